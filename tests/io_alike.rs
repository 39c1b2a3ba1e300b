//! Both back-ends answer alike: the same values and the same errors for every kind of file, and no
//! operation on any of them that never ends, nor keeps its driver from ending.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::pin;

use corespun::fs::{File, OpenOptions};
use corespun::io::{BackendChoice, unblock};
use corespun::net::{UnixListener, UnixStream};
use futures::executor::block_on;
use harness::io::{Loop, io_uring_permitted, on_every_backend, poll_once};
use harness::must_return;
use nix::sys::stat::Mode;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Kind, number, and text of an error that has no number.
fn told<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?} {number}", error.kind()),
            None => format!("{:?} {error}", error.kind()),
        },
    }
}

/// Every operation on an open file; what changes nothing that a later one shows comes first.
fn use_file(io: &Loop, file: File, lines: &mut String) {
    let mut line = |what: &str, answer: String| writeln!(lines, "  {what}: {answer}").unwrap();
    for offset in [0, 3, 1 << 40, i64::MAX as u64, u64::MAX] {
        let (read, buf) = io.must_end("a read", file.read_at(vec![7; 8], offset));
        line("read", format!("{offset} {} {buf:?}", told(read)));
    }
    let (read, _) = io.must_end("a read of nothing", file.read_at(Vec::new(), 0));
    line("read nothing", told(read));
    let (read, _) = io.must_end("an exact read", file.read_exact_at(vec![0; 64], 0));
    line("read exactly", told(read));
    line(
        "is a directory",
        told(
            io.must_end("metadata", file.metadata())
                .map(|it| it.is_dir()),
        ),
    );
    line(
        "write",
        told(io.must_end("a write", file.write_at("written", 1)).0),
    );
    line(
        "write nothing",
        told(io.must_end("a write", file.write_at("", 1)).0),
    );
    line("sync", told(io.must_end("a sync", file.sync_all())));
    line("sync data", told(io.must_end("a sync", file.sync_data())));
    line("set_len", told(io.must_end("set_len", file.set_len(4096))));
    line(
        "allocate",
        told(io.must_end("allocate", file.allocate(0, 8192))),
    );
    line(
        "allocate nothing",
        told(io.must_end("allocate", file.allocate(0, 0))),
    );
    line(
        "punch",
        told(io.must_end("punch", file.punch_hole(0, 4096))),
    );
    line("zero", told(io.must_end("zero", file.zero_range(0, 4096))));
    line(
        "will need",
        told(io.must_end("advice", file.will_need(0, 4096))),
    );
    line("len", told(io.must_end("len", file.len())));
}

fn fifo(dir: &Path, name: &str) {
    nix::unistd::mkfifo(&dir.join(name), Mode::from_bits_retain(0o600)).unwrap();
}

/// What a back-end answers for all kinds of files.
fn answers(choice: BackendChoice) -> String {
    let (io, dir) = (Loop::new(choice), scratch());
    let dir = dir.path();
    std::fs::write(dir.join("regular"), "some contents").unwrap();
    std::fs::create_dir(dir.join("directory")).unwrap();
    std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
    std::os::unix::fs::symlink("regular", dir.join("link")).unwrap();
    fifo(dir, "lonely");
    fifo(dir, "read");
    fifo(dir, "written");
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let mut lines = String::new();
    for name in [
        "regular",
        "link",
        "directory",
        "missing",
        "missing/below",
        "regular/below",
        "loop",
        "lonely",
        "read",
        "written",
        "socket",
        "/dev/null",
        "/dev/zero",
        "a\0b",
        "",
    ] {
        for (access, read, write) in [("r", true, false), ("w", false, true), ("rw", true, true)] {
            // Others hold a FIFO open, so that it is not opened into nothing.
            let held = match name {
                "read" | "written" => {
                    let mut options = std::fs::OpenOptions::new();
                    Some(options.read(true).write(true).open(dir.join(name)).unwrap())
                }
                _ => None,
            };
            let mut options = OpenOptions::new();
            options.read(read).write(write);
            let opened = io.must_end("an open", options.open(dir.join(name)));
            writeln!(
                lines,
                "open {name:?} {access}: {}",
                told(opened.as_ref().map(drop).map_err(copy))
            )
            .unwrap();
            if let Ok(file) = opened {
                use_file(&io, file, &mut lines);
            }
            drop(held);
        }
    }
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
    let descriptors: [(&str, OwnedFd); 6] = [
        ("the reading end of a pipe", reader),
        ("the writing end of a pipe", writer),
        ("a socket", one.into()),
        ("its peer", other.into()),
        ("an eventfd", eventfd.into()),
        ("a directory", std::fs::File::open(dir).unwrap().into()),
    ];
    for (what, fd) in descriptors {
        let made = File::from_std(fd);
        writeln!(
            lines,
            "{what}: {}",
            told(made.as_ref().map(drop).map_err(copy))
        )
        .unwrap();
        if let Ok(file) = made {
            use_file(&io, file, &mut lines);
        }
    }
    io.end();
    lines
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[test]
fn both_back_ends_answer_alike_for_every_kind_of_file() {
    let epoll = must_return("epoll", || answers(BackendChoice::Epoll));
    // What is no place to read at an offset of is refused when it is opened or wrapped.
    for what in [
        "open \"written\" r",
        "open \"read\" rw",
        "a socket",
        "an eventfd",
    ] {
        let line = epoll.lines().find(|line| line.starts_with(what)).unwrap();
        assert!(line.contains("NotSeekable"), "{line}");
    }
    if !io_uring_permitted() {
        return;
    }
    let uring = must_return("io_uring", || answers(BackendChoice::IoUring));
    for (epoll, uring) in epoll.lines().zip(uring.lines()) {
        assert_eq!(epoll, uring, "epoll's, and io_uring's");
    }
    assert_eq!(epoll.lines().count(), uring.lines().count());
}

/// Neither end of the copy waits in a FIFO for a peer, nor does a helper thread.
#[test]
fn a_copy_from_or_to_a_fifo_is_refused() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        fifo(dir.path(), "fifo");
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        std::fs::write(&file, "text").unwrap();
        for (from, to) in [(&fifo, &file), (&file, &fifo), (&fifo, &fifo)] {
            let copied = io.must_end("a copy", corespun::fs::copy(from, to));
            assert!(copied.is_err(), "{copied:?}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"text");
        io.end();
    });
}

/// A FIFO without a peer, and more of them than there are helper threads.
#[test]
fn opening_fifos_keeps_nobody_from_files_or_from_the_end() {
    on_every_backend(|choice| {
        must_return("opens of FIFOs, and the end", move || {
            let (io, dir) = (Loop::new(choice), scratch());
            fifo(dir.path(), "fifo");
            let path = dir.path().join("fifo");
            for _ in 0..100 {
                let mut opening = Box::pin(File::open(&path));
                let _ = poll_once(opening.as_mut());
            }
            let opened = io.must_end("an open", File::open(&path));
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::NotSeekable);
            io.must_end("an open", File::open(dir.path())).unwrap();
            assert_eq!(io.must_end("a call", unblock(|| 7)).unwrap(), 7);
            io.end();
        });
    });
}

/// What a regular file is opened for is not changed by how it is opened.
#[test]
fn an_opened_file_does_not_refuse_to_block() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        for (custom, expected) in [(0, false), (libc::O_NONBLOCK, true)] {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            options.custom_flags(custom | libc::O_APPEND);
            let file = io.block_on(options.open(dir.path().join("f"))).unwrap();
            let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
            assert_eq!(flags.contains(OFlag::O_NONBLOCK), expected);
            assert!(flags.contains(OFlag::O_APPEND));
        }
    });
}

/// A listener that never accepts, with its queue full.
#[test]
fn connects_to_a_full_queue_keep_nobody_from_helpers_or_from_the_end() {
    on_every_backend(|choice| {
        must_return("connects, and the end", move || {
            let (io, dir) = (Loop::new(choice), scratch());
            let path = dir.path().join("s");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            socket2::SockRef::from(&listener).listen(0).unwrap();
            let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let mut connects: Vec<_> = (0..100)
                .map(|_| Box::pin(UnixStream::connect(&path)))
                .collect();
            for connect in &mut connects {
                assert!(poll_once(connect.as_mut()).is_pending());
            }
            assert_eq!(io.must_end("a call", unblock(|| 7)).unwrap(), 7);
            // Room comes, and one after the other gets in.
            let listener = UnixListener::from_std(listener).unwrap();
            let mut let_in = pin!(async {
                listener.accept().await.unwrap();
                listener.accept().await.unwrap();
            });
            let mut any = pin!(futures::future::select_all(&mut connects));
            let both = async { futures::join!(any.as_mut(), let_in.as_mut()) };
            let ((connected, ..), ()) = io.must_end("a connect", both);
            connected.unwrap();
            io.end();
        });
    });
}

/// Whatever becomes of its descriptor: a read may wait for data without end, and must not keep its
/// driver.
#[test]
fn a_read_that_never_ends_does_not_outlast_its_driver() {
    on_every_backend(|choice| {
        must_return("the end", move || {
            let io = Loop::new(choice);
            let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
            let (reader, _writer) = nix::unistd::pipe().unwrap();
            // Another file under the same number, as a program may do.
            let number = file.as_fd().as_raw_fd();
            // SAFETY: the number stays owned by `file`, and is open as before.
            let moved = unsafe { libc::dup2(reader.as_raw_fd(), number) };
            assert_eq!(moved, number);
            let mut reading = Box::pin(file.read_at(vec![0; 8], 0));
            let _ = poll_once(reading.as_mut());
            io.driver.poll();
            io.end();
            assert!(block_on(reading).0.is_err());
        });
    });
}
