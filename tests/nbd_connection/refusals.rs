//! The transmission phase meets nonsense: the error the protocol prescribes, or the end
//! of the connection where it has none, and never a byte outside the disk.

use crate::harness::{MIB, Setup, header, status, write};
use crate::protocol::{Request, command, command_flag};
use crate::ram_disk::RamDisk;
use crate::transmit::{End, TransmitError};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

fn setup() -> Setup<RamDisk> {
    Setup::new(RamDisk::new(MIB).unwrap())
}

/// Sends each request and expects its error; then the connection still works.
fn refused(setup: Setup<RamDisk>, requests: &[(u16, u16, u64, u32, u32)]) {
    let structured = setup.structured;
    let end = setup.run(async |mut client| {
        for &(kind, flags, offset, length, error) in requests {
            let mut bytes = header(kind, flags, 1, offset, length);
            if kind == command::WRITE {
                bytes.extend(vec![0xee; length as usize]);
            }
            client.send(&bytes).await;
            let what = (kind, flags, offset, length);
            assert_eq!(client.reply().await, status(1, error), "{what:x?}");
        }
        client.send(&header(command::READ, 0, 2, 0, 4096)).await;
        let reply = client.reply().await;
        assert_eq!((reply.cookie, reply.error), (2, 0));
        let data = match structured {
            true => reply.data,
            false => client.bytes(4096).await,
        };
        assert_eq!(data, [0; 4096], "a refused write was carried out");
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn a_request_past_the_end_is_refused() {
    for structured in [false, true] {
        let mut requests = Vec::new();
        for (offset, length) in [
            (MIB, 1),
            (MIB - 1, 2),
            (MIB - 4096, 8192),
            (1 << 40, 512),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
            (u64::MAX - 255, 512),
        ] {
            requests.extend([
                (command::READ, 0, offset, length, EINVAL),
                (command::WRITE, 0, offset, length, ENOSPC),
                (command::TRIM, 0, offset, length, EINVAL),
                (command::CACHE, 0, offset, length, EINVAL),
                (command::WRITE_ZEROES, 0, offset, length, ENOSPC),
            ]);
        }
        requests.push((command::WRITE_ZEROES, 0, 0, u32::MAX, ENOSPC));
        requests.push((command::TRIM, 0, 0, u32::MAX, EINVAL));
        refused(
            Setup {
                structured,
                ..setup()
            },
            &requests,
        );
    }
}

#[test]
fn an_unknown_command_or_flag_is_refused() {
    use command_flag::*;
    let mut requests = Vec::new();
    for kind in [7, 8, 9, 100, 0xffff] {
        requests.push((kind, 0, 0, 512, EINVAL));
    }
    for bit in 0..16 {
        let flag = 1 << bit;
        for (kind, valid) in [
            (command::READ, FUA),
            (command::WRITE, FUA),
            (command::TRIM, FUA),
            (command::CACHE, FUA),
            (command::WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO),
        ] {
            if flag & valid == 0 {
                requests.push((kind, flag, 0, 512, EINVAL));
            }
        }
        if flag != FUA {
            requests.push((command::FLUSH, flag, 0, 0, EINVAL));
        }
    }
    requests.push((command::FLUSH, 0, 512, 0, EINVAL));
    requests.push((command::FLUSH, 0, 0, 512, EINVAL));
    refused(setup(), &requests);
}

#[test]
fn dont_fragment_is_for_reads_with_structured_replies() {
    let df = command_flag::DF;
    refused(setup(), &[(command::READ, df, 0, 512, EINVAL)]);
    refused(
        setup().structured(),
        &[(command::WRITE, df, 0, 512, EINVAL)],
    );
    let end = setup().structured().run(async |mut client| {
        client.send(&header(command::READ, df, 1, 0, 65_536)).await;
        assert_eq!(client.reply().await.data.len(), 65_536);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn a_read_only_export_refuses_to_change() {
    let mut setup = setup();
    setup.export.read_only = true;
    refused(
        setup,
        &[
            (command::WRITE, 0, 0, 512, EPERM),
            (command::WRITE, command_flag::FUA, 0, 100_000, EPERM),
            (command::TRIM, 0, 0, 512, EPERM),
            (command::WRITE_ZEROES, 0, 0, 512, EPERM),
            (command::FLUSH, 0, 0, 0, 0),
        ],
    );
}

#[test]
fn an_unaligned_request_is_refused_where_the_export_has_a_minimum() {
    for structured in [false, true] {
        let mut setup = Setup {
            structured,
            ..setup()
        };
        setup.export.blocks.minimum = 512;
        let mut requests = Vec::new();
        for (offset, length) in [(1, 512), (512, 511), (511, 1), (256, 256)] {
            for kind in [0, 1, 4, 5, 6] {
                requests.push((kind, 0, offset, length, EINVAL));
            }
        }
        refused(setup, &requests);
    }
}

#[test]
fn a_payload_over_the_maximum_is_refused_and_skipped() {
    let small = |structured| {
        let mut setup = Setup {
            structured,
            ..setup()
        };
        setup.export.blocks.maximum = 100_000;
        setup
    };
    refused(
        small(false),
        &[
            (command::READ, 0, 0, 100_001, EINVAL),
            (command::READ, 0, 0, u32::MAX, EINVAL),
            (command::WRITE, 0, 0, 100_001, EINVAL),
            (command::WRITE, 0, 0, 200_000, EINVAL),
            // Commands without payload have no such limit.
            (command::WRITE_ZEROES, 0, 0, 500_000, 0),
        ],
    );
    refused(
        small(true),
        &[
            (command::READ, 0, 0, 100_001, EOVERFLOW),
            (command::WRITE, 0, 0, 100_001, EINVAL),
        ],
    );
}

#[test]
fn a_payload_far_over_the_maximum_ends_the_connection() {
    let end = setup().run(async |mut client| {
        client
            .send(&header(command::WRITE, 0, 1, 0, (64 << 20) + 1))
            .await;
        assert!(client.rest().await.is_empty());
    });
    assert!(matches!(end, Err(TransmitError::OversizedWrite(_))));
}

#[test]
fn a_bad_magic_ends_the_connection_after_the_replies_owed() {
    let end = setup().run(async |mut client| {
        let mut says = header(command::READ, 0, 1, 0, 512);
        says.extend([0x5a; Request::LEN]);
        says.extend(header(command::READ, 0, 2, 0, 512));
        client.send(&says).await;
        assert_eq!(client.rest().await.len(), 16 + 512);
    });
    assert!(matches!(end, Err(TransmitError::RequestMagic(0x5a5a_5a5a))));
}

#[test]
fn a_write_that_was_cut_off_is_not_carried_out() {
    for length in [512, 200_000] {
        let disk = RamDisk::new(MIB).unwrap();
        let whole = write(0, 1, 0, &vec![0xee; length]);
        for sent in [1, 27, 28, 29, whole.len() / 2, whole.len() - 1] {
            let end = Setup::new(disk.clone()).run(async |mut client| {
                client.send(&whole[..sent]).await;
            });
            assert!(matches!(end, Err(TransmitError::Truncated)), "{sent} bytes");
        }
        let end = Setup::new(disk).run(async |mut client| {
            assert_eq!(client.read(0, length as u32).await, vec![0; length]);
        });
        assert_eq!(end.unwrap(), End::Closed);
    }
}

#[test]
fn a_client_that_leaves_inside_a_skipped_payload_is_noticed() {
    let end = setup().run(async |mut client| {
        client.send(&write(0, 1, MIB, &[0xee; 4096])[..1000]).await;
        assert_eq!(client.reply().await, status(1, ENOSPC));
    });
    assert!(matches!(end, Err(TransmitError::Truncated)));
}

/// A flood of refused requests by a client that reads nothing is held back by the same
/// limit as replies with data.
#[test]
fn refusals_are_bounded_too() {
    let mut setup = setup();
    setup.pipe = 4096;
    let end = setup.run(async |mut client| {
        use futures::AsyncWriteExt;
        let bad = header(77, 0, 1, 0, 0).repeat(200_000);
        // Until the server takes no more: what it holds then is bounded.
        let mut taken = 0;
        let mut idle = 0;
        while idle < 100 {
            let write = client.0.write(&bad[taken..]);
            match futures::future::select(write, Box::pin(corespun::task::yield_now())).await {
                futures::future::Either::Left((n, _)) => {
                    taken += n.unwrap();
                    idle = 0;
                }
                futures::future::Either::Right(_) => idle += 1,
            }
        }
        assert!(taken < 1 << 20, "the server took {taken} bytes");
    });
    assert!(end.is_err());
}
