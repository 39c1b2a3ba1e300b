//! How clients and the server end, and that nothing of them stays behind.

use std::io::Read;

use nix::sys::signal::Signal;

use crate::client::{Bystanders, CACHE, Client, READ, WRITE, request};
use harness::nbd::{Server, listing, until};

/// Clients that are killed at once: there is no difference, for the server, between the
/// kernel closing a dead process' sockets and this.
fn killed_clients(server: &Server) {
    let whole = request(WRITE, 0, 1, 0, 24 << 20);
    for part in [0, 11, whole.len()] {
        let mut client = Client::transmitting(server);
        client.send(&whole[..part]);
    }
    // In the payload of a large write, with memory taken for all of it.
    let mut client = Client::transmitting(server);
    client.send(&whole);
    client.send(&vec![0xaa; 8 << 20]);
    drop(client);
    // With many requests in flight, and none of the replies taken.
    let mut client = Client::transmitting(server);
    for cookie in 0..48 {
        client.send(&request(READ, 0, cookie, 0, 1 << 20));
    }
    drop(client);
    // In the handshake.
    let mut client = Client::haggling(server);
    client.send(b"IHAVE");
}

fn killed_clients_leave_nothing(arguments: &[&str]) {
    let server = Server::start(arguments);
    // What the server keeps for good (helper threads, spare buffers) comes with the
    // first ones.
    let others = Bystanders::start(&server);
    killed_clients(&server);
    others.expect_well();
    let idle = Client::transmitting(&server);
    drop(idle);
    let others = Bystanders::start(&server);
    let settled = until("the descriptors settle", || {
        let before = server.descriptors();
        std::thread::sleep(std::time::Duration::from_millis(200));
        (server.descriptors() == before).then_some(before)
    });
    let memory = server.memory();
    for _ in 0..8 {
        killed_clients(&server);
    }
    until("all descriptors are closed", || {
        (server.descriptors() <= settled).then_some(())
    });
    // One such client holds 24 MiB, and each of the eight rounds has two of them.
    let grown = server.memory().saturating_sub(memory);
    assert!(grown < 100 << 20, "{grown} bytes more than before");
    others.expect_well();
    // A task that was left behind would keep its thread from exiting.
    server.stop();
}

#[test]
fn killed_clients_leave_nothing_behind_on_a_ram_disk() {
    killed_clients_leave_nothing(&["--memory", "64M"]);
}

#[test]
fn killed_clients_leave_nothing_behind_on_a_file() {
    killed_clients_leave_nothing(&["--file", "disk.img", "--size", "64M"]);
}

#[test]
fn killed_clients_leave_nothing_behind_on_a_file_through_epoll() {
    killed_clients_leave_nothing(&["--file", "disk.img", "--size", "64M", "--backend", "epoll"]);
}

/// Takes ten seconds, because that is what the server grants.
#[test]
fn a_client_silent_in_the_handshake_is_cut_off_and_an_idle_one_is_not() {
    let server = Server::start(["--memory", "8M"]);
    let silent = Client::haggling(&server);
    let idle = Client::transmitting(&server);
    silent.expect_cut_off();
    idle.expect_well();
    server.stop();
}

#[test]
fn signals_end_the_server_cleanly_amid_requests() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        for mode in ["poll", "adaptive", "interrupt"] {
            let server = Server::start(["--memory", "8M", "--mode", mode]);
            let mut client = Client::transmitting(&server);
            client.send(&request(WRITE, 0, 1, 0, 1 << 20));
            client.send(&[0; 1000]);
            for cookie in 0..16 {
                client.send(&[0; 1000]);
                let _ = cookie;
            }
            server.signal(signal);
            let directory = server.ended();
            assert!(listing(directory.path()).is_empty(), "something is left");
            // Closed, not left hanging.
            let _ = client.0.read_to_end(&mut Vec::new());
        }
    }
}

#[test]
fn a_file_keeps_what_was_flushed_and_is_served_again() {
    let server = Server::start(["--file", "disk.img", "--size", "1000001"]);
    let mut client = Client::transmitting(&server);
    client.write(1_000_001 - 7, b"the end");
    client.send(&request(crate::client::FLUSH, 0, 3, 0, 0));
    assert_eq!(client.reply(), (3, 0));
    // No farewell: killed.
    server.signal(Signal::SIGKILL);
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    let path = server.directory.path().join("disk.img");
    let kept = std::fs::read(&path).unwrap();
    assert_eq!(kept.len(), 1_000_001);
    assert_eq!(&kept[1_000_001 - 7..], b"the end");

    let again = Server::start(["--file".as_ref(), path.as_os_str()]);
    let mut client = Client::transmitting(&again);
    assert_eq!(client.read(1_000_001 - 7, 7), b"the end");
    drop(client);
    again.stop();
    assert_eq!(std::fs::read(&path).unwrap(), kept);
}

/// Another server's, say, that was started after somebody had removed the first one's.
#[test]
fn a_socket_that_took_the_place_of_the_servers_own_stays() {
    let server = Server::start(["--memory", "8M"]);
    let path = server.socket();
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    server.signal(Signal::SIGTERM);
    let directory = server.ended();
    assert_eq!(listing(directory.path()), ["nbd.sock"]);
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    drop(other);
}

/// What a client asks for with a few bytes does not take the server's memory, nor keep it busy when
/// the client has left.
#[test]
fn requests_without_data_take_no_memory() {
    for backend in ["io-uring", "epoll"] {
        let arguments = ["--file", "disk.img", "--size", "1G", "--backend", backend];
        let server = Server::start(arguments);
        drop(Client::transmitting(&server));
        let before = server.memory();
        let mut clients: Vec<_> = (0..4).map(|_| Client::transmitting(&server)).collect();
        for client in &mut clients {
            for cookie in 0..256 {
                client.send(&request(CACHE, 0, cookie, 0, 1 << 30));
            }
        }
        let reading = std::thread::spawn(move || {
            for client in &mut clients {
                for _ in 0..256 {
                    assert_eq!(client.reply().1, 0);
                }
            }
        });
        let grown = until("all are answered, or too much memory is taken", || {
            let grown = server.memory().saturating_sub(before);
            (reading.is_finished() || grown > 100 << 20).then_some(grown)
        });
        assert!(grown < 100 << 20, "{grown} bytes for requests of 28");
        reading.join().unwrap();
        server.stop();
    }
}
