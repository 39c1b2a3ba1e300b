//! Names, directories and whole files: on every back-end as `std::fs` does them, with its errors.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

use corespun::fs;
use corespun::io::{DriverConfig, IoBuf};
use futures::executor::block_on;
use futures::{StreamExt, TryStreamExt};
use harness::io::{Loop, on_every_backend, poll_once};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file, a full directory, an empty one, links.
fn furnish(dir: &Path) {
    std::fs::write(dir.join("file"), "contents").unwrap();
    std::fs::create_dir_all(dir.join("full/below")).unwrap();
    std::fs::write(dir.join("full/below/file"), "below").unwrap();
    std::fs::create_dir(dir.join("empty")).unwrap();
    std::os::unix::fs::symlink("file", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("broken")).unwrap();
    std::os::unix::fs::symlink("full", dir.join("to_full")).unwrap();
}

/// All that is below, with contents.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        let what = match kind {
            _ if kind.is_symlink() => format!("-> {:?}", std::fs::read_link(&path).unwrap()),
            _ if kind.is_dir() => format!("{:?}", tree(&path)),
            _ => std::fs::read_to_string(&path).unwrap(),
        };
        found.insert(format!("{:?} {what}", path.file_name().unwrap()));
    }
    found
}

/// Kind and number.
fn error<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?} {:?}", error.kind(), error.raw_os_error()),
    }
}

/// Does the same through the driver and through `std`, each in a directory of its own, and compares
/// answers and traces.
#[track_caller]
fn as_std<T, F>(io: &Loop, ours: impl FnOnce(&Path) -> F, std: impl FnOnce(&Path) -> io::Result<T>)
where
    T: std::fmt::Debug,
    F: Future<Output = io::Result<T>>,
{
    let (one, other) = (scratch(), scratch());
    furnish(one.path());
    furnish(other.path());
    let answer = error(io.must_end("an operation on a path", ours(one.path())));
    assert_eq!(answer, error(std(other.path())));
    assert_eq!(tree(one.path()), tree(other.path()));
}

const NAMES: [&str; 10] = [
    "file",
    "full",
    "empty",
    "link",
    "broken",
    "to_full",
    "new",
    "new/below",
    "file/below",
    "a\0b",
];

#[test]
fn operations_on_a_path_do_what_std_does() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for name in NAMES {
            macro_rules! same {
                ($($ours:ident)*) => {
                    $(as_std(&io, |dir| fs::$ours(dir.join(name)), |dir| std::fs::$ours(dir.join(name)));)*
                };
            }
            same!(remove_file create_dir create_dir_all remove_dir remove_dir_all);
            same!(read read_to_string read_link);
            as_std(
                &io,
                |dir| fs::write(dir.join(name), "written"),
                |dir| std::fs::write(dir.join(name), "written"),
            );
            as_std(
                &io,
                |dir| fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o640)),
                |dir| std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o640)),
            );
            as_std(
                &io,
                |dir| fs::try_exists(dir.join(name)),
                |dir| std::fs::exists(dir.join(name)),
            );
        }
    });
}

#[test]
fn operations_on_two_paths_do_what_std_does() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let names = ["file", "full", "empty", "link", "broken", "new/below"];
        for from in names {
            for to in names {
                macro_rules! same {
                    ($($ours:ident $std:path,)*) => {
                        $(as_std(
                            &io,
                            |dir| fs::$ours(dir.join(from), dir.join(to)),
                            |dir| $std(dir.join(from), dir.join(to)),
                        );)*
                    };
                }
                same!(rename std::fs::rename, hard_link std::fs::hard_link, copy std::fs::copy,);
                as_std(
                    &io,
                    |dir| fs::symlink(from, dir.join(to)),
                    |dir| std::os::unix::fs::symlink(from, dir.join(to)),
                );
            }
        }
    });
}

#[test]
fn metadata_says_what_std_says() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        furnish(dir.path());
        for name in NAMES {
            let path = dir.path().join(name);
            for (ours, std) in [
                (
                    io.must_end("metadata", fs::metadata(&path)),
                    path.metadata(),
                ),
                (
                    io.must_end("metadata", fs::symlink_metadata(&path)),
                    path.symlink_metadata(),
                ),
            ] {
                let ours = ours.map(|it| {
                    let times = (it.modified(), it.accessed(), it.created().ok());
                    let kind = (it.is_file(), it.is_dir(), it.is_symlink());
                    let numbers = (it.dev(), it.ino(), it.nlink(), it.uid(), it.gid(), it.len());
                    (times, kind, numbers, it.permissions())
                });
                let std = std.map(|it| {
                    let times = (
                        it.modified().unwrap(),
                        it.accessed().unwrap(),
                        it.created().ok(),
                    );
                    let kind = (it.is_file(), it.is_dir(), it.is_symlink());
                    let numbers = (it.dev(), it.ino(), it.nlink(), it.uid(), it.gid(), it.len());
                    (times, kind, numbers, it.permissions())
                });
                assert_eq!(error(ours), error(std), "{name}");
            }
            assert_eq!(
                error(io.must_end("canonicalize", fs::canonicalize(&path))),
                error(path.canonicalize())
            );
            let synced = io.must_end("sync", fs::sync_dir(&path));
            assert_eq!(synced.is_ok(), path.is_dir(), "{synced:?}");
        }
    });
}

#[test]
fn a_directory_is_read_whole_however_large() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        for count in [0, 1, 63, 64, 65, 300] {
            let below = dir.path().join(count.to_string());
            std::fs::create_dir(&below).unwrap();
            let expected: BTreeSet<_> = (0..count).map(|i| format!("entry {i}")).collect();
            for name in &expected {
                std::fs::write(below.join(name), name).unwrap();
            }
            let entries = io.must_end("read_dir", fs::read_dir(&below)).unwrap();
            let entries: Vec<_> = io.must_end("entries", entries.try_collect()).unwrap();
            assert_eq!(entries.len(), count);
            let names = entries.iter().map(|entry| {
                assert!(entry.file_type().is_file());
                assert_eq!(entry.path().parent(), Some(&*below));
                let found = io.must_end("metadata", entry.metadata()).unwrap();
                assert_eq!(found.ino(), entry.ino());
                entry.file_name().to_str().unwrap().to_owned()
            });
            assert_eq!(names.collect::<BTreeSet<_>>(), expected);
        }
        let refused = io.must_end("read_dir", fs::read_dir(dir.path().join("none")));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

/// Asked, left, and asked again, at every place.
#[test]
fn a_dropped_wait_for_an_entry_loses_none() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        for i in 0..200 {
            std::fs::write(dir.path().join(i.to_string()), "").unwrap();
        }
        let mut entries = io.must_end("read_dir", fs::read_dir(dir.path())).unwrap();
        let mut seen = 0;
        loop {
            if let Poll::Ready(entry) = poll_once(pin!(entries.next_entry())) {
                seen += usize::from(entry.unwrap().is_some());
            }
            match io.must_end("an entry", entries.next_entry()).unwrap() {
                Some(_) => seen += 1,
                None => break,
            }
        }
        assert_eq!(seen, 200);
        // After the end there is none.
        assert!(io.must_end("the end", entries.next()).is_none());
    });
}

/// A file that does not tell its length, and one that is longer than one read.
#[test]
fn whole_files_are_read_to_their_end() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let status = io.must_end("a read", fs::read_to_string("/proc/self/maps"));
        assert!(status.unwrap().lines().count() > 10);
        for len in [0, 1, 8191, 8192, 8193, 3_000_001] {
            let contents: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let path = dir.path().join("f");
            io.must_end("a write", fs::write(&path, contents.clone()))
                .unwrap();
            assert!(io.must_end("a read", fs::read(&path)).unwrap() == contents);
        }
        std::fs::write(dir.path().join("f"), [0xff]).unwrap();
        let refused = io.must_end("a read", fs::read_to_string(dir.path().join("f")));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
}

/// More of them than the kernel takes at once.
#[test]
fn vectored_reads_and_writes_move_the_first_buffers() {
    on_every_backend(|choice| {
        let io = Loop::with(DriverConfig::new().backend(choice));
        let file = fs::File::from_std(tempfile::tempfile().unwrap()).unwrap();
        let bufs: Vec<Vec<u8>> = (0..2000).map(|i| vec![i as u8; 3]).collect();
        let (written, bufs) = io.must_end("a write", file.write_vectored_at(bufs, 5));
        assert_eq!((written.unwrap(), bufs.len()), (3 * 1024, 2000));
        let rest = bufs[1024..].to_vec();
        let (written, _) = io.must_end("a write", file.write_vectored_at(rest, 5 + 3 * 1024));
        assert_eq!(written.unwrap(), 3 * 976);
        // Into buffers of several lengths, one of them empty; the last is not reached.
        let room = [7, 0, 100, 10_000, 9].map(|len| vec![0xee; len].slice(..len));
        let (read, parts) = io.must_end("a read", file.read_vectored_at(room.into(), 5));
        assert_eq!(read.unwrap(), 6000);
        let got: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        assert_eq!(got[..6000], bufs.concat());
        assert!(got[6000..].iter().all(|&byte| byte == 0xee));
        let none: Vec<Vec<u8>> = Vec::new();
        assert_eq!(
            io.must_end("nothing", file.read_vectored_at(none, 0))
                .0
                .unwrap(),
            0
        );
        let past = file.write_vectored_at(vec!["x"], u64::MAX);
        let (refused, back) = io.must_end("a write", past);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(back, ["x"]);
    });
}

#[test]
fn a_path_without_a_driver_is_an_error() {
    assert!(block_on(fs::rename("a", "b")).is_err());
    assert!(block_on(fs::metadata("/")).is_err());
    assert!(block_on(fs::read_dir("/")).is_err());
}

/// Its future gone, what was started takes effect.
#[test]
fn a_dropped_operation_on_a_path_takes_effect() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        furnish(dir.path());
        let (from, to) = (dir.path().join("file"), dir.path().join("moved"));
        {
            let mut renaming = pin!(fs::rename(&from, &to));
            assert!(poll_once(renaming.as_mut()).is_pending());
        }
        io.settle();
        assert_eq!(std::fs::read(&to).unwrap(), b"contents");
        let below = dir.path().join("made");
        {
            let mut making = pin!(fs::create_dir(&below));
            assert!(poll_once(making.as_mut()).is_pending());
        }
        // Also by a driver that ends at once.
        io.end();
        assert!(below.is_dir());
    });
}
