//! A client that says exactly what a test wants, on a blocking Unix socket. Its constants
//! are its own, written from the protocol document.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use harness::PATIENCE;
use harness::nbd::Server;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;

pub(crate) const FLAG_DF: u16 = 4;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;

pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;

pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    /// Connects, and takes the greeting.
    pub(crate) fn greeted(server: &Server) -> Client {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client(stream);
        let greeting: [u8; 18] = client.take();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        client
    }

    /// As [`Client::greeted`], ready to send options.
    pub(crate) fn haggling(server: &Server) -> Client {
        let mut client = Client::greeted(server);
        client.send(&3u32.to_be_bytes());
        client
    }

    /// As [`Client::haggling`], ready to send requests.
    pub(crate) fn transmitting(server: &Server) -> Client {
        let mut client = Client::haggling(server);
        client.export_name();
        client
    }

    /// As [`Client::transmitting`], with structured replies.
    pub(crate) fn structured(server: &Server) -> Client {
        let mut client = Client::haggling(server);
        client.send(&option(OPT_STRUCTURED_REPLY, b""));
        assert_eq!(client.option_reply(), (OPT_STRUCTURED_REPLY, REP_ACK));
        client.export_name();
        client
    }

    fn export_name(&mut self) {
        self.send(&option(1, b""));
        let _size_and_flags: [u8; 10] = self.take();
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The option and the kind of the next reply to an option.
    pub(crate) fn option_reply(&mut self) -> (u32, u32) {
        let magic: [u8; 8] = self.take();
        assert_eq!(u64::from_be_bytes(magic), 0x0003_e889_0455_65a9);
        let option = u32::from_be_bytes(self.take());
        let kind = u32::from_be_bytes(self.take());
        let length = u32::from_be_bytes(self.take());
        let mut data = vec![0; length as usize];
        self.0.read_exact(&mut data).unwrap();
        (option, kind)
    }

    /// The cookie and the error of the next reply, which carries no data.
    pub(crate) fn reply(&mut self) -> (u64, u32) {
        let magic = u32::from_be_bytes(self.take());
        if magic == 0x6744_6698 {
            let error = u32::from_be_bytes(self.take());
            return (u64::from_be_bytes(self.take()), error);
        }
        assert_eq!(magic, 0x668e_33ef, "no reply at all");
        let _flags: [u8; 2] = self.take();
        let kind = u16::from_be_bytes(self.take());
        let cookie = u64::from_be_bytes(self.take());
        let length = u32::from_be_bytes(self.take());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).unwrap();
        assert_eq!(kind, 0x8001, "not an error chunk");
        (cookie, u32::from_be_bytes(payload[..4].try_into().unwrap()))
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.send(&request(WRITE, 0, 7, offset, data.len() as u32));
        self.send(data);
        assert_eq!(self.reply(), (7, 0));
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.send(&request(READ, 0, 8, offset, length));
        assert_eq!(self.reply(), (8, 0));
        let mut data = vec![0; length as usize];
        self.0.read_exact(&mut data).unwrap();
        data
    }

    /// Checks that the server closes, with nothing more said.
    #[track_caller]
    pub(crate) fn expect_cut_off(mut self) {
        match self.0.read(&mut [0; 64]) {
            Ok(0) => {}
            // What the server had not read when it closed comes back as this.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("the connection was to be closed: {other:?}"),
        }
    }

    /// Checks that the connection still serves, at its end of the disk.
    #[track_caller]
    pub(crate) fn expect_well(mut self) {
        self.write(100, b"still here");
        assert_eq!(self.read(100, 10), b"still here");
    }
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Well-behaved clients, one on each of the server's threads, that write and read back
/// without a pause, each in a part of the disk of its own, until told to stop.
pub(crate) struct Bystanders {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<u32>>,
}

/// Where the bystanders' part of the disk begins.
pub(crate) const BYSTANDERS: u64 = 1 << 20;

impl Bystanders {
    pub(crate) fn start(server: &Server) -> Bystanders {
        let stop = Arc::<AtomicBool>::default();
        let client = |number: u64| {
            let (mut client, stop) = (Client::transmitting(server), stop.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) || rounds == 0 {
                    let data = [rounds as u8 ^ number as u8; 5000];
                    let offset = BYSTANDERS + number * 8192;
                    client.write(offset, &data);
                    assert_eq!(client.read(offset, 5000), data);
                    rounds += 1;
                }
                rounds
            })
        };
        let clients = (0..4).map(client).collect();
        Bystanders { stop, clients }
    }

    /// Checks that none of them noticed anything.
    pub(crate) fn expect_well(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert!(client.join().unwrap() > 0);
        }
    }
}
