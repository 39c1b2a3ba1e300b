//! What the peers do: they answer in pieces, with urgent data and with descriptors in
//! between.

use std::io::IoSlice;
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::SockRef;

use crate::perform::length;
use crate::things::{Connection, URGENT, World, pattern};

impl World {
    fn peer_bytes(connection: &Connection, len: usize) -> Vec<u8> {
        let books = &connection.books;
        let from = books.peer_sent.get();
        (0..len as u64)
            .map(|n| pattern(books.number + 1000, from + n))
            .collect()
    }

    pub fn peer_send(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let bytes = World::peer_bytes(connection, length(b).min(70_000));
        let sent = if connection.tcp || connection.unix {
            SockRef::from(peer)
                .send_with_flags(&bytes, libc::MSG_NOSIGNAL)
                .ok()
        } else {
            nix::unistd::write(peer, &bytes).ok()
        };
        let books = &connection.books;
        books
            .peer_sent
            .set(books.peer_sent.get() + sent.unwrap_or(0) as u64);
    }

    /// Some bytes, an urgent one and some more. Once: the next would put it among
    /// the others.
    pub fn peer_urgent(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.tcp) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        if connection.books.urgent.replace(true) {
            return;
        }
        self.peer_send(a, 1 + b % 6);
        let _ = SockRef::from(peer).send_with_flags(&[URGENT], libc::MSG_OOB | libc::MSG_NOSIGNAL);
        self.peer_send(a, 1 + b % 7);
    }

    /// Bytes of which some carry a descriptor, at which reads end.
    pub fn peer_descriptor(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.unix) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let bytes = World::peer_bytes(connection, 1 + b % 9);
        let null = std::fs::File::open("/dev/null").expect("a device");
        let sent = sendmsg::<()>(
            peer.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&[null.as_raw_fd()])],
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        );
        let books = &connection.books;
        books
            .peer_sent
            .set(books.peer_sent.get() + sent.unwrap_or(0) as u64);
        self.peer_send(a, 1 + b % 5);
    }

    pub fn peer_recv(&self, a: usize, b: usize) {
        let Some(connection) = self.connection(a).filter(|c| c.tcp || c.unix) else {
            return;
        };
        let Some(peer) = &connection.peer else {
            return;
        };
        let mut space = vec![0; length(b).max(1)];
        let Ok(count) = nix::unistd::read(peer, &mut space) else {
            return;
        };
        let books = &connection.books;
        let from = books.peer_received.get();
        books.peer_received.set(from + count as u64);
        let right = |(n, byte): (usize, &u8)| *byte == pattern(books.number, from + n as u64);
        if !books.out_lost.get() && !space[..count].iter().enumerate().all(right) {
            self.shared.wrong("peer: it receives something else");
        }
    }
}
