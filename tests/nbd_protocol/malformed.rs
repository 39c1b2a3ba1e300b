//! Clients that break the rules: the error the protocol prescribes, or the end of the
//! connection, and nobody else notices.

use crate::client::{
    BYSTANDERS, Bystanders, Client, EINVAL, ENOSPC, EOVERFLOW, EPERM, FLAG_DF, FLUSH, READ,
    REP_ACK, REP_ERR_UNSUP, TRIM, WRITE, WRITE_ZEROES, option, request,
};
use harness::nbd::Server;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// Runs `case` with bystanders around it, on a RAM disk and on a file.
fn amid_others(case: impl Fn(&Server)) {
    for disk in [
        &["--memory", "8M"][..],
        &["--file", "disk.img", "--size", "8M"],
    ] {
        let server = Server::start(disk);
        let others = Bystanders::start(&server);
        case(&server);
        others.expect_well();
        server.stop();
    }
}

#[test]
fn a_bad_request_magic_ends_the_connection() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        let mut bytes = request(READ, 0, 1, 0, 512);
        bytes[0] ^= 1;
        client.send(&bytes);
        client.expect_cut_off();
    });
}

#[test]
fn a_bad_option_magic_ends_the_connection() {
    amid_others(|server| {
        let mut client = Client::haggling(server);
        let mut bytes = option(3, b"");
        bytes[7] ^= 1;
        client.send(&bytes);
        client.expect_cut_off();
    });
}

#[test]
fn unknown_client_flags_end_the_connection() {
    amid_others(|server| {
        let mut client = Client::greeted(server);
        client.send(&0x8000_0003u32.to_be_bytes());
        client.expect_cut_off();
    });
}

#[test]
fn an_unknown_option_is_refused_and_the_handshake_goes_on() {
    amid_others(|server| {
        let mut client = Client::haggling(server);
        client.send(&option(0x7777, b"what is this"));
        assert_eq!(client.option_reply(), (0x7777, REP_ERR_UNSUP));
        client.send(&option(8, b""));
        assert_eq!(client.option_reply(), (8, REP_ACK));
    });
}

#[test]
fn an_oversized_option_ends_the_connection() {
    amid_others(|server| {
        let mut client = Client::haggling(server);
        let mut bytes = option(1, b"");
        bytes[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        client.send(&bytes);
        client.expect_cut_off();
    });
}

#[test]
fn an_unknown_export_by_the_old_option_ends_the_connection() {
    amid_others(|server| {
        let mut client = Client::haggling(server);
        client.send(&option(1, b"no such disk"));
        client.expect_cut_off();
    });
}

#[test]
fn an_unknown_command_is_invalid() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        client.send(&request(4711, 0, 1, 0, 512));
        assert_eq!(client.reply(), (1, EINVAL));
        client.expect_well();
    });
}

#[test]
fn a_flag_that_was_not_agreed_on_is_invalid() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        client.send(&request(READ, FLAG_DF, 1, 0, 512));
        assert_eq!(client.reply(), (1, EINVAL));
        client.send(&request(FLUSH, 0x8000, 2, 0, 0));
        assert_eq!(client.reply(), (2, EINVAL));
        client.expect_well();
    });
}

#[test]
fn an_oversized_request_is_refused_or_ends_the_connection() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        client.send(&request(READ, 0, 1, 0, 33 << 20));
        assert_eq!(client.reply(), (1, EINVAL));
        // Its payload is skipped, as long as that is not absurd.
        client.send(&request(WRITE, 0, 2, 0, 33 << 20));
        for _ in 0..33 {
            client.send(&vec![0xee; 1 << 20]);
        }
        assert_eq!(client.reply(), (2, EINVAL));
        client.send(&request(WRITE, 0, 3, 0, u32::MAX));
        client.expect_cut_off();

        let mut client = Client::structured(server);
        client.send(&request(READ, 0, 4, 0, 33 << 20));
        assert_eq!(client.reply(), (4, EOVERFLOW));
    });
}

#[test]
fn nothing_past_the_end_is_read_or_written() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        client.write(SIZE - 8, b"last one");
        let last = SIZE - 4;
        for (kind, offset, length, error) in [
            (READ, last, 8, EINVAL),
            (READ, SIZE, 1, EINVAL),
            (READ, u64::MAX - 3, 8, EINVAL),
            (READ, 1 << 63, 1, EINVAL),
            (WRITE_ZEROES, last, 8, ENOSPC),
            (WRITE_ZEROES, u64::MAX, u32::MAX, ENOSPC),
            (TRIM, last, 8, EINVAL),
            (TRIM, u64::MAX, 1, EINVAL),
        ] {
            client.send(&request(kind, 0, 5, offset, length));
            assert_eq!(client.reply(), (5, error), "{kind} at {offset}+{length}");
        }
        for offset in [last, SIZE, u64::MAX - 3] {
            client.send(&request(WRITE, 0, 6, offset, 8));
            client.send(b"too long");
            assert_eq!(client.reply(), (6, ENOSPC), "a write at {offset}");
        }
        assert_eq!(client.read(SIZE - 8, 8), b"last one");
        if let Ok(file) = std::fs::metadata(server.directory.path().join("disk.img")) {
            assert_eq!(file.len(), SIZE);
        }
        client.expect_well();
    });
}

#[test]
fn an_unaligned_request_touches_only_its_own_bytes() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        client.write(0, &[0x11; 64]);
        client.write(13, b"seventeen bytes..");
        let mut expected = [0x11; 64];
        expected[13..30].copy_from_slice(b"seventeen bytes..");
        assert_eq!(client.read(0, 64), expected);
        client.send(&request(WRITE_ZEROES, 0, 1, 3, 5));
        assert_eq!(client.reply(), (1, 0));
        expected[3..8].fill(0);
        assert_eq!(client.read(0, 64), expected);
        assert_eq!(client.read(5, 11), expected[5..16]);
    });
}

#[test]
fn half_a_header_keeps_only_its_sender_waiting() {
    amid_others(|server| {
        let mut client = Client::transmitting(server);
        let whole = request(READ, 0, 9, BYSTANDERS, 16);
        client.send(&whole[..11]);
        Client::transmitting(server).expect_well();
        client.send(&whole[11..]);
        assert_eq!(client.reply(), (9, 0));
        let _data: [u8; 16] = client.take();
        // And one that never sends the rest, but says that it has ended.
        client.send(&whole[..11]);
        client.0.shutdown(std::net::Shutdown::Write).unwrap();
        client.expect_cut_off();
    });
}

#[test]
fn a_read_only_export_is_not_changed() {
    let server = Server::start(["--memory", "8M", "--read-only"]);
    let mut client = Client::transmitting(&server);
    client.send(&request(WRITE, 0, 1, 0, 4));
    client.send(b"data");
    assert_eq!(client.reply(), (1, EPERM));
    for kind in [TRIM, WRITE_ZEROES] {
        client.send(&request(kind, 0, 2, 0, 4096));
        assert_eq!(client.reply(), (2, EPERM));
    }
    assert_eq!(client.read(0, 4), [0; 4]);
    drop(client);
    server.stop();
}

#[test]
fn a_write_acknowledged_on_one_connection_is_seen_by_all() {
    amid_others(|server| {
        // More than there are threads, so that some live on different ones.
        let mut clients: Vec<_> = (0..4).map(|_| Client::transmitting(server)).collect();
        for round in 0..40u8 {
            let writer = usize::from(round) % clients.len();
            clients[writer].write(300, &[round; 3000]);
            for reader in &mut clients {
                assert_eq!(reader.read(300, 3000), [round; 3000]);
            }
        }
    });
}
