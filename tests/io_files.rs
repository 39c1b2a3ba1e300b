//! Files on each back-end: what is read is what was written, and nothing outside the buffer is
//! touched. What happens to operations whose futures are dropped: `g8_cancel_safe_io.rs`.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::task::Poll;

use corespun::fs::{File, OpenOptions};
use corespun::io::{AlignedBuf, BackendChoice, IoBuf};
use harness::io::{Loop, on_every_backend, poll_once};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A directory whose file system is the disk's, so that O_DIRECT and fallocate mean something.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options
}

#[test]
fn what_is_written_is_read_back_on_every_backend() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let path = dir.path().join("f");
        io.block_on(async {
            let file = read_write().open(&path).await.unwrap();
            let data = pattern(100_000);
            let (result, buf) = file.write_all_at(data.clone(), 12_345).await;
            result.unwrap();
            assert_eq!(buf, data);
            file.sync_data().await.unwrap();
            file.sync_all().await.unwrap();
            assert_eq!(file.len().await.unwrap(), 112_345);
            let (result, buf) = file.read_exact_at(vec![0; 100_000], 12_345).await;
            result.unwrap();
            assert_eq!(buf, data);
            let (result, buf) = file.read_at(vec![1; 16], 0).await;
            assert_eq!(result.unwrap(), 16);
            assert_eq!(buf, [0; 16], "the gap reads as zero");
        });
        assert_eq!(&std::fs::read(&path).unwrap()[12_345..], pattern(100_000));
    });
}

#[test]
fn a_read_never_touches_memory_outside_the_slice() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        std::fs::write(dir.path().join("f"), pattern(8192)).unwrap();
        io.block_on(async {
            let file = File::open(dir.path().join("f")).await.unwrap();
            let (result, part) = file
                .read_exact_at(vec![0xee; 4096].slice(1000..2000), 10)
                .await;
            result.unwrap();
            let buf = part.into_inner();
            assert_eq!(&buf[1000..2000], &pattern(8192)[10..1010]);
            assert!(
                buf[..1000]
                    .iter()
                    .chain(&buf[2000..])
                    .all(|&byte| byte == 0xee)
            );
        });
    });
}

#[test]
fn the_end_of_the_file_is_a_short_read_or_unexpected_eof() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        std::fs::write(dir.path().join("f"), pattern(1000)).unwrap();
        io.block_on(async {
            let file = File::open(dir.path().join("f")).await.unwrap();
            let (result, buf) = file.read_at(Vec::with_capacity(4096), 900).await;
            assert_eq!((result.unwrap(), buf.len()), (100, 100));
            assert_eq!(buf, &pattern(1000)[900..]);
            let (result, _) = file.read_at(vec![0; 10], 1000).await;
            assert_eq!(result.unwrap(), 0);
            let (result, buf) = file.read_exact_at(vec![0; 200], 900).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(&buf[..100], &pattern(1000)[900..]);
        });
    });
}

#[test]
fn offsets_no_file_can_have_are_refused() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        io.block_on(async {
            let file = read_write().open(dir.path().join("f")).await.unwrap();
            for offset in [u64::MAX, i64::MAX as u64 + 1, i64::MAX as u64 - 3] {
                let (result, buf) = file.read_at(vec![0; 4], offset).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
                let (result, _) = file.write_at(buf, offset).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
                assert!(file.punch_hole(offset, 4).await.is_err());
            }
            assert!(file.set_len(u64::MAX).await.is_err());
            assert_eq!(file.len().await.unwrap(), 0);
        });
    });
}

#[test]
fn errors_of_the_kernel_come_back_with_the_buffer() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        io.block_on(async {
            let missing = File::open(dir.path().join("missing")).await.unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
            let path = dir.path().join("f");
            let file = File::create(&path).await.unwrap();
            let (result, buf) = file.read_at(vec![7; 9], 0).await;
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
            assert_eq!(buf, [7; 9]);
            let twice = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .await;
            assert_eq!(twice.unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert!(OpenOptions::new().open(&path).await.is_err());
            assert!(
                OpenOptions::new()
                    .read(true)
                    .truncate(true)
                    .open(&path)
                    .await
                    .is_err()
            );
        });
    });
}

#[test]
fn space_is_allocated_punched_and_zeroed() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        io.block_on(async {
            let file = read_write().open(dir.path().join("f")).await.unwrap();
            file.set_len(1 << 20).await.unwrap();
            assert_eq!(file.metadata().await.unwrap().allocated(), 0);
            match file.allocate(0, 1 << 20).await {
                Err(error) => return assert_eq!(error.kind(), ErrorKind::Unsupported),
                Ok(()) => assert!(file.metadata().await.unwrap().allocated() >= 1 << 20),
            }
            file.write_all_at(vec![1; 1 << 20], 0).await.0.unwrap();
            file.punch_hole(65_536, 65_536).await.unwrap();
            assert!(file.metadata().await.unwrap().allocated() < 1 << 20);
            match file.zero_range(262_144, 4096).await {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
                Ok(()) => {
                    let (result, buf) = file.read_exact_at(vec![9; 4098], 262_143).await;
                    result.unwrap();
                    assert_eq!((buf[0], buf[4097]), (1, 1));
                    assert!(buf[1..4097].iter().all(|&byte| byte == 0));
                }
            }
            let (result, buf) = file.read_exact_at(vec![9; 65_536], 65_536).await;
            result.unwrap();
            assert!(buf.iter().all(|&byte| byte == 0));
            assert_eq!(file.len().await.unwrap(), 1 << 20);
            let meta = file.metadata().await.unwrap();
            assert!(meta.is_file() && !meta.is_dir() && meta.mode() & 0o400 != 0);
        });
    });
}

#[test]
fn direct_io_moves_aligned_blocks() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let path = dir.path().join("f");
        io.block_on(async {
            let file = match read_write().direct(true).open(&path).await {
                Ok(file) => file,
                // tmpfs before Linux 6.6 has no O_DIRECT.
                Err(error) => return assert_eq!(error.kind(), ErrorKind::InvalidInput),
            };
            assert!(file.is_direct());
            let data = pattern(64 * 4096);
            let mut buf = AlignedBuf::zeroed(data.len(), 4096);
            buf.copy_from_slice(&data);
            let (result, _) = file.write_all_at(buf, 4096).await;
            result.unwrap();
            // Many at once, in one buffer each, out of order.
            let reads = (0..64u64).rev().map(|block| {
                let buf = io.driver.buffer(4096);
                let file = &file;
                async move { (block, file.read_exact_at(buf, (block + 1) * 4096).await) }
            });
            for (block, (result, buf)) in futures::future::join_all(reads).await {
                result.unwrap();
                assert_eq!(&buf[..], &data[block as usize * 4096..][..4096]);
            }
            // Misaligned: refused by the kernel (ext4, xfs), never served wrongly.
            let (result, part) = file
                .read_at(AlignedBuf::zeroed(8192, 4096).slice(1..513), 4097)
                .await;
            match result {
                Ok(count) => assert_eq!(part.into_inner()[1..=count], data[1..=count]),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
            }
            // Past the end of a file whose length no block has.
            file.set_len(4096 + 700).await.unwrap();
            let (result, buf) = file
                .read_exact_at(AlignedBuf::zeroed(8192, 4096), 4096)
                .await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(&buf[..700], &data[..700]);
        });
    });
}

/// The kernel's part of Linux AIO, which is counted for the whole machine, ends with its driver.
#[test]
fn an_ended_driver_leaves_no_aio_context() {
    const DRIVERS: usize = 30;
    fn contexts() -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("[aio]")).count()
    }
    let dir = scratch();
    let before = contexts();
    for _ in 0..DRIVERS {
        let io = Loop::new(BackendChoice::Epoll);
        io.block_on(async {
            let opened = read_write().direct(true).open(dir.path().join("f")).await;
            if let Ok(file) = opened {
                let written = file.write_at(AlignedBuf::zeroed(4096, 4096), 0).await;
                written.0.unwrap();
            }
        });
        io.end();
    }
    // Other tests have theirs meanwhile.
    let left = contexts().saturating_sub(before);
    assert!(left < DRIVERS / 2, "{left}");
}

#[test]
fn many_operations_at_once_overflow_no_ring() {
    on_every_backend(|choice| {
        let config = corespun::io::DriverConfig::new().backend(choice).entries(4);
        let (io, dir) = (Loop::with(config), scratch());
        let data = pattern(1 << 20);
        std::fs::write(dir.path().join("f"), &data).unwrap();
        io.block_on(async {
            let file = File::open(dir.path().join("f")).await.unwrap();
            let reads = (0..2000u64).map(|i| file.read_exact_at(vec![0; 512], i * 512));
            for (i, (result, buf)) in futures::future::join_all(reads)
                .await
                .into_iter()
                .enumerate()
            {
                result.unwrap();
                assert_eq!(buf, &data[i * 512..][..512]);
            }
        });
        assert_eq!(io.driver.in_flight(), 0);
    });
}

#[test]
fn a_file_under_another_driver_or_none_is_an_error() {
    on_every_backend(|choice| {
        let (first, dir) = (Loop::new(choice), scratch());
        let path = dir.path().join("f");
        let file = first.block_on(read_write().open(&path)).unwrap();
        let driver = first.driver.clone();
        first.end();
        let Poll::Ready(Err(error)) = poll_once(pin!(file.sync_all())) else {
            panic!()
        };
        assert!(error.to_string().contains("no I/O driver"), "{error}");
        let Poll::Ready(Err(error)) = poll_once(pin!(File::open(&path))) else {
            panic!()
        };
        assert!(error.to_string().contains("no I/O driver"), "{error}");
        let second = Loop::new(choice);
        let error = second.block_on(file.read_at(vec![0], 0)).0.unwrap_err();
        assert!(error.to_string().contains("another driver"), "{error}");
        // Through the std type it moves.
        let moved = File::from_std(file.into_std().unwrap()).unwrap();
        second
            .block_on(moved.write_all_at(b"x".to_vec(), 0))
            .0
            .unwrap();
        drop(driver);
    });
}

#[test]
fn from_std_sees_direct_files() {
    use std::os::unix::fs::OpenOptionsExt;
    let (_io, dir) = (Loop::new(BackendChoice::Auto), scratch());
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true);
    let plain = options.open(dir.path().join("f")).unwrap();
    let raw = plain.as_raw_fd();
    let file = File::from_std(plain).unwrap();
    assert!(!file.is_direct());
    assert_eq!(
        file.into_std().unwrap().as_raw_fd(),
        raw,
        "no dup without need"
    );
    if let Ok(direct) = options
        .custom_flags(libc::O_DIRECT)
        .open(dir.path().join("f"))
    {
        assert!(File::from_std(direct).unwrap().is_direct());
    }
}
