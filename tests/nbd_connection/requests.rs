//! The transmission phase as an honest client sees it.

use futures::executor::LocalPool;
use proptest::prelude::*;

use crate::disk::Disk;
use crate::flight::{MAX_BYTES, MAX_TASKS};
use crate::harness::{Forgetful, OnPool, Setup, SlowDisk, header, status, until, write};
use crate::protocol::{command, command_flag};
use crate::ram_disk::RamDisk;
use crate::transmit::{End, TransmitError};

const MIB: u64 = crate::harness::MIB;

fn ram() -> RamDisk {
    RamDisk::new(MIB).unwrap()
}

#[test]
fn what_was_written_is_read_at_any_alignment_and_size() {
    for structured in [false, true] {
        for (offset, length) in [(0, 4096), (1, 1), (511, 513), (4095, 70_000), (7, 300_001)] {
            let data: Vec<u8> = (0..length).map(|i| (i * 7 + 1) as u8).collect();
            let setup = Setup {
                structured,
                ..Setup::new(ram())
            };
            let end = setup.run(async |mut client| {
                client.send(&write(0, 1, offset, &data)).await;
                assert_eq!(client.reply().await, status(1, 0));
                client
                    .send(&header(command::READ, 0, 2, offset, length as u32))
                    .await;
                let reply = client.reply().await;
                assert_eq!((reply.cookie, reply.error), (2, 0));
                let read = if structured {
                    reply.data
                } else {
                    client.bytes(length).await
                };
                assert!(read == data, "{length} bytes at {offset} differ");
            });
            assert_eq!(end.unwrap(), End::Closed);
        }
    }
}

#[test]
fn a_write_leaves_its_neighbours_alone() {
    let end = Setup::new(ram()).run(async |mut client| {
        client.send(&write(0, 1, 1000, &[0xaa; 64])).await;
        client.send(&write(0, 2, 1013, &[0xbb; 5])).await;
        client.reply().await;
        client.reply().await;
        let mut expected = vec![0; 128];
        expected[24..88].fill(0xaa);
        expected[37..42].fill(0xbb);
        assert_eq!(client.read(976, 128).await, expected);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn the_end_of_the_disk_can_be_read_and_written() {
    let end = Setup::new(ram()).run(async |mut client| {
        client.send(&write(0, 1, MIB - 3, &[1, 2, 3])).await;
        assert_eq!(client.reply().await, status(1, 0));
        assert_eq!(client.read(MIB - 4, 4).await, [0, 1, 2, 3]);
        assert_eq!(client.read(0, MIB as u32).await.len(), MIB as usize);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn replies_go_out_as_requests_finish() {
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        for (cookie, block) in [(1, 10), (2, 20), (3, 30)] {
            client
                .send(&header(command::READ, 0, cookie, block * 4096, 4096))
                .await;
        }
        until(|| disk.waiting().len() == 3).await;
        for (cookie, block) in [(2, 20), (3, 30), (1, 10)] {
            disk.finish(&format!("read {}+4096", block * 4096), Ok(()));
            assert_eq!(client.reply().await, status(cookie, 0));
            assert_eq!(client.bytes(4096).await, [block as u8; 4096]);
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
}

/// Over a pipe that takes a few bytes at a time, with requests that finish all at once.
#[test]
fn header_and_data_of_a_reply_stay_together() {
    for structured in [false, true] {
        let disk = SlowDisk::new();
        let setup = Setup {
            structured,
            pipe: 100,
            ..Setup::new(disk.clone())
        };
        let end = setup.run(async |mut client| {
            for cookie in 0..100 {
                client
                    .send(&header(command::READ, 0, cookie, cookie * 4096, 1000))
                    .await;
            }
            until(|| disk.waiting().len() == 100).await;
            for cookie in (0..100).rev() {
                disk.finish(&format!("read {}+1000", cookie * 4096), Ok(()));
            }
            let mut seen = Vec::new();
            for _ in 0..100 {
                let reply = client.reply().await;
                let data = if structured {
                    reply.data
                } else {
                    client.bytes(1000).await
                };
                assert_eq!(data, [reply.cookie as u8; 1000]);
                seen.push(reply.cookie);
            }
            seen.sort();
            assert_eq!(seen, Vec::from_iter(0..100));
        });
        assert_eq!(end.unwrap(), End::Closed);
    }
}

#[test]
fn a_client_that_reads_no_replies_cannot_make_the_server_hold_more_than_the_limit() {
    // Twice as many reads as may be in flight: the rest stays in the pipe.
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        for cookie in 0..2 * MAX_TASKS as u64 {
            client.send(&header(command::READ, 0, cookie, 0, 512)).await;
        }
        until(|| disk.waiting().len() == MAX_TASKS).await;
        for _ in 0..100 {
            corespun::task::yield_now().await;
        }
        for _ in 0..2 * MAX_TASKS {
            until(|| !disk.waiting().is_empty()).await;
            disk.finish("read 0+512", Ok(()));
            client.reply().await;
            client.bytes(512).await;
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
    assert_eq!(disk.0.most_waiting.get(), MAX_TASKS);

    // Large ones reach the limit in bytes first.
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        for cookie in 0..64 {
            client
                .send(&header(command::READ, 0, cookie, 0, MIB as u32))
                .await;
        }
        let limit = MAX_BYTES / MIB as usize;
        until(|| disk.waiting().len() >= limit - 1).await;
        for _ in 0..100 {
            corespun::task::yield_now().await;
        }
        assert!(disk.waiting().len() <= limit);
        for _ in 0..64 {
            until(|| !disk.waiting().is_empty()).await;
            disk.finish(&format!("read 0+{MIB}"), Ok(()));
            client.reply().await;
            client.bytes(MIB as usize).await;
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn the_largest_request_is_served_though_it_alone_is_over_the_limit() {
    let most = MAX_BYTES + 1000;
    let size = 2 * most as u64;
    let mut setup = Setup::new(RamDisk::new(size).unwrap());
    setup.export.size = size;
    setup.export.blocks.maximum = most as u32;
    let end = setup.run(async |mut client| {
        let data = vec![0x5a; most];
        client.send(&write(0, 1, 5, &data)).await;
        assert_eq!(client.reply().await, status(1, 0));
        assert!(client.read(5, most as u32).await == data);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn a_durable_write_is_answered_after_the_flush() {
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        for (cookie, kind, name) in [
            (1, command::WRITE, "write 0+512"),
            (2, command::TRIM, "trim 0+512"),
            (3, command::WRITE_ZEROES, "zero 0+512 punch"),
        ] {
            let mut request = header(kind, command_flag::FUA, cookie, 0, 512);
            if kind == command::WRITE {
                request.extend([1; 512]);
            }
            client.send(&request).await;
            until(|| disk.waiting() == [name]).await;
            disk.finish(name, Ok(()));
            until(|| disk.waiting() == ["flush"]).await;
            disk.finish("flush", Ok(()));
            assert_eq!(client.reply().await, status(cookie, 0));
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn each_command_reaches_the_disk_with_its_flags() {
    use command_flag::*;
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        for (kind, flags, name) in [
            (command::FLUSH, 0, "flush"),
            (command::TRIM, 0, "trim 512+1024"),
            (command::CACHE, 0, "cache 512+1024"),
            (command::WRITE_ZEROES, 0, "zero 512+1024 punch"),
            (command::WRITE_ZEROES, NO_HOLE, "zero 512+1024"),
            (command::WRITE_ZEROES, FAST_ZERO, "zero 512+1024 punch fast"),
            (
                command::WRITE_ZEROES,
                NO_HOLE | FAST_ZERO,
                "zero 512+1024 fast",
            ),
        ] {
            let (offset, length) = match kind {
                command::FLUSH => (0, 0),
                _ => (512, 1024),
            };
            client.send(&header(kind, flags, 7, offset, length)).await;
            until(|| disk.waiting() == [name]).await;
            disk.finish(name, Ok(()));
            assert_eq!(client.reply().await, status(7, 0));
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn requests_of_length_zero_succeed_and_move_nothing() {
    for structured in [false, true] {
        let setup = Setup {
            structured,
            ..Setup::new(ram())
        };
        let end = setup.run(async |mut client| {
            for kind in [0, 1, 4, 5, 6] {
                client.send(&header(kind, 0, kind.into(), MIB, 0)).await;
                assert_eq!(client.reply().await, status(kind.into(), 0));
            }
        });
        assert_eq!(end.unwrap(), End::Closed);
    }
}

#[test]
fn disconnect_ends_the_transmission_when_everything_is_answered() {
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        client.send(&header(command::READ, 0, 1, 0, 512)).await;
        client.send(&header(command::DISC, 0, 2, 0, 0)).await;
        // After a disconnect nothing is looked at, not even this.
        client.send(&[0xff; 28]).await;
        until(|| !disk.waiting().is_empty()).await;
        disk.finish("read 0+512", Ok(()));
        assert_eq!(client.rest().await.len(), 16 + 512);
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn a_client_that_only_shuts_down_its_side_gets_all_its_replies() {
    let disk = SlowDisk::new();
    let end = Setup::new(disk.clone()).run(async |mut client| {
        client.send(&header(command::READ, 0, 1, 0, 512)).await;
        futures::AsyncWriteExt::close(&mut client.0).await.unwrap();
        until(|| !disk.waiting().is_empty()).await;
        disk.finish("read 0+512", Ok(()));
        assert_eq!(client.rest().await.len(), 16 + 512);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn a_client_that_vanishes_leaves_no_task_and_no_buffer() {
    let disk = SlowDisk::new();
    let mut pool = LocalPool::new();
    let spawner = OnPool(pool.spawner());
    let gone = disk.clone();
    let end = Setup::new(disk.clone()).run_on(&mut pool, &spawner, async |mut client| {
        client.send(&header(command::READ, 0, 1, 0, 512)).await;
        client.send(&write(0, 2, 4096, &[1; 512])).await;
        // And in the middle of a third one.
        client.send(&write(0, 3, 4096, &[1; 512])[..100]).await;
        until(|| gone.waiting().len() == 2).await;
        drop(client);
        for _ in 0..100 {
            corespun::task::yield_now().await;
        }
        gone.finish("read 0+512", Ok(()));
        gone.finish("write 4096+512", Ok(()));
    });
    assert!(end.is_err());
    drop(gone);
    // Every task held a clone of the disk.
    assert_eq!(std::rc::Rc::strong_count(&disk.0), 1);
    let started = disk
        .0
        .log
        .borrow()
        .iter()
        .filter(|line| line.starts_with("start"))
        .count();
    assert_eq!(started, 2, "half a request was carried out");
}

#[test]
fn a_request_whose_task_dies_is_answered_with_an_error() {
    let mut pool = LocalPool::new();
    let end = Setup::new(SlowDisk::new()).run_on(&mut pool, &Forgetful, async |mut client| {
        client.send(&header(command::READ, 0, 1, 0, 512)).await;
        assert_eq!(client.reply().await, status(1, 5));
        client.send(&header(command::FLUSH, 0, 2, 0, 0)).await;
        assert_eq!(client.reply().await, status(2, 5));
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn an_error_of_the_disk_becomes_the_protocols_word_for_it() {
    let os = std::io::Error::from_raw_os_error;
    for structured in [false, true] {
        let disk = SlowDisk::new();
        let setup = Setup {
            structured,
            ..Setup::new(disk.clone())
        };
        let end = setup.run(async |mut client| {
            for (errno, code) in [
                (libc::EIO, 5),
                (libc::ENOSPC, 28),
                (libc::EDQUOT, 28),
                (libc::EFBIG, 28),
                (libc::EROFS, 1),
                (libc::EACCES, 1),
                (libc::EPERM, 1),
                (libc::ENOMEM, 12),
                (libc::EINVAL, 22),
                (libc::EBADF, 5),
            ] {
                client.send(&header(command::READ, 0, 3, 0, 512)).await;
                until(|| !disk.waiting().is_empty()).await;
                disk.finish("read 0+512", Err(os(errno)));
                assert_eq!(client.reply().await, status(3, code));
                client.send(&write(0, 4, 0, &[0; 512])).await;
                until(|| !disk.waiting().is_empty()).await;
                disk.finish("write 0+512", Err(os(errno)));
                assert_eq!(client.reply().await, status(4, code));
            }
            client
                .send(&header(
                    command::WRITE_ZEROES,
                    command_flag::FAST_ZERO,
                    5,
                    0,
                    512,
                ))
                .await;
            until(|| !disk.waiting().is_empty()).await;
            let refused = Err(std::io::ErrorKind::Unsupported.into());
            disk.finish("zero 0+512 punch fast", refused);
            assert_eq!(client.reply().await, status(5, 95));
        });
        assert_eq!(end.unwrap(), End::Closed);
    }
}

/// One step of a client: an area, a byte, and what to do.
fn step() -> impl Strategy<Value = (u8, u64, u32, u8)> {
    (0..4u8, 0..MIB, 0..80_000u32, any::<u8>())
        .prop_map(|(what, at, len, byte)| (what, at, len.min((MIB - at) as u32), byte))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the mix of writes, zeroing, trims and reads, and however the stream is
    /// cut up: reads see what a plain vector would hold.
    #[test]
    fn a_connection_behaves_like_a_vector(
        steps in proptest::collection::vec(step(), 1..30),
        pipe in prop_oneof![1..200usize, 1000..600_000usize],
        structured: bool,
    ) {
        let mut model = vec![0u8; MIB as usize];
        let setup = Setup { structured, pipe, ..Setup::new(ram()) };
        let end = setup.run(async |mut client| {
            for (what, offset, length, byte) in steps {
                let area = offset as usize..offset as usize + length as usize;
                let request = match what {
                    0 => {
                        let data: Vec<u8> =
                            (0..length).map(|i| byte.wrapping_add(i as u8)).collect();
                        model[area].copy_from_slice(&data);
                        write(0, 1, offset, &data)
                    }
                    1 | 2 => {
                        model[area].fill(0);
                        let flags = u16::from(what - 1) * command_flag::NO_HOLE;
                        header(command::WRITE_ZEROES, flags, 1, offset, length)
                    }
                    _ => header(command::READ, 0, 1, offset, length),
                };
                client.send(&request).await;
                let reply = client.reply().await;
                assert_eq!((reply.cookie, reply.error), (1, 0));
                if what == 3 {
                    let read = match structured {
                        true => reply.data,
                        false => client.bytes(length as usize).await,
                    };
                    let area = offset as usize..offset as usize + length as usize;
                    assert!(read == model[area]);
                }
            }
        });
        prop_assert_eq!(end.unwrap(), End::Closed);
    }
}

#[test]
fn pipelined_requests_are_all_answered() {
    let end = Setup::new(ram()).structured().run(async |mut client| {
        let mut says = Vec::new();
        for cookie in 0..500u64 {
            let at = cookie * 2048;
            says.extend(write(0, cookie, at, &at.to_be_bytes()));
            says.extend(header(
                command::READ,
                command_flag::DF,
                cookie + 1000,
                at,
                8,
            ));
        }
        client.send(&says).await;
        for cookie in 0..500u64 {
            assert_eq!(client.reply().await, status(cookie, 0));
            let read = client.reply().await;
            assert_eq!(read.cookie, cookie + 1000);
            assert_eq!(read.data, (cookie * 2048).to_be_bytes());
        }
    });
    assert_eq!(end.unwrap(), End::Closed);
}

/// Far more than the server receives at once, cut up at every place.
#[test]
fn a_long_row_of_writes_arrives_unharmed() {
    let end = Setup::new(ram()).run(async |mut client| {
        let mut says = Vec::new();
        let block = |cookie: u64| (0..5000u64).map(move |i| (cookie * 31 + i) as u8);
        for cookie in 0..200 {
            let data: Vec<u8> = block(cookie).collect();
            says.extend(write(0, cookie, cookie * 5000, &data));
        }
        client.send(&says).await;
        for cookie in 0..200 {
            assert_eq!(client.reply().await, status(cookie, 0));
        }
        let expected: Vec<u8> = (0..200).flat_map(block).collect();
        assert!(client.read(0, 1_000_000).await == expected);
    });
    assert_eq!(end.unwrap(), End::Closed);
}

#[test]
fn a_ram_disk_answers_small_requests_at_once() {
    let disk = ram();
    assert!(disk.try_write(3, &[1; 4096]).is_some());
    assert!(disk.try_read(3, &mut [0; 4096]).is_some());
    // Not ones that would keep the other tasks waiting.
    assert!(disk.try_read(0, &mut vec![0; MIB as usize]).is_none());
}

/// Zeroes of many gigabytes are asked for with a few bytes: a client that has left gets the rest of
/// them no more.
#[test]
fn zeroing_stops_when_nobody_is_left_to_hear_of_it() {
    const PIECE: u64 = 32 << 20;
    let disk = SlowDisk::new();
    let mut setup = Setup::new(disk.clone());
    setup.export.size = 4 << 30;
    let log = disk.0.clone();
    let end = setup.run(async |mut client| {
        client
            .send(&header(command::WRITE_ZEROES, 0, 1, 0, u32::MAX))
            .await;
        client.send(&header(command::FLUSH, 0, 2, 0, 0)).await;
        let first = format!("zero 0+{PIECE} punch");
        until(|| disk.waiting() == [first.as_str(), "flush"]).await;
        disk.finish(&first, Ok(()));
        let second = format!("zero {PIECE}+{PIECE} punch");
        until(|| disk.waiting() == ["flush", second.as_str()]).await;
        drop(client);
        // The reply that nobody takes says so.
        disk.finish("flush", Ok(()));
        for _ in 0..100 {
            corespun::task::yield_now().await;
        }
        disk.finish(&second, Ok(()));
    });
    assert!(matches!(end, Err(TransmitError::Io(_))), "{end:?}");
    let started = log.log.borrow();
    let started = started.iter().filter(|line| line.starts_with("start zero"));
    assert_eq!(started.count(), 2);
}
