//! Files and buffers that the ring knows by number: what is read and written is the same as without,
//! no operation meets another file than its own, and nobody is refused anything for want of it.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::rc::Rc;

use corespun::fs::{File, OpenOptions};
use corespun::io::{BackendChoice, DriverConfig, IoBuf, IoBufMut, PooledBuf};
use corespun::task::{JoinHandle, spawn_local};
use harness::io::{Loop, io_uring_permitted, on_every_backend, poll_once};
use harness::process::{in_a_process_of_its_own, refuse};
use harness::threads::thread;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

/// After so many operations a file has a place.
const OFTEN: usize = 20;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file of two blocks that hold `byte`.
fn file_of(io: &Loop, byte: u8) -> File {
    let mut plain = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::io::Write::write_all(&mut plain, &[byte; 8192]).unwrap();
    let file = File::from_std(plain).unwrap();
    use_often(io, &file, byte);
    file
}

/// Reads and writes through the driver, into buffers of all kinds, until the file has its place.
fn use_often(io: &Loop, file: &File, byte: u8) {
    for round in 0..OFTEN as u64 {
        let (read, buf) = through_the_driver(io, file, vec![0; 64], round);
        assert_eq!((read, &buf[..]), (64, &[byte; 64][..]));
        let pooled = io.driver.buffer(4096);
        let (read, buf) = through_the_driver(io, file, pooled, round);
        assert_eq!((read, &buf[..]), (4096, &[byte; 4096][..]));
        let (written, _) = io.block_on(file.write_at(buf.slice(1..3), 4096));
        assert_eq!(written.unwrap(), 2);
    }
}

/// A read that is not done on the spot: its waker wakes no task.
fn through_the_driver<B: IoBufMut>(io: &Loop, file: &File, buf: B, offset: u64) -> (usize, B) {
    let (read, buf) = io.must_end("a read", file.read_at(buf, offset));
    (read.unwrap(), buf)
}

/// What `/proc` says of the places in this process' rings that files have, if it says so.
fn places_of_files() -> Option<usize> {
    let mut places = None;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        if target.as_os_str() != "anon_inode:[io_uring]" {
            continue;
        }
        let number = path.file_name().unwrap().to_owned();
        let told = std::path::Path::new("/proc/self/fdinfo").join(number);
        let told = std::fs::read_to_string(told).unwrap();
        let mut lines = told
            .lines()
            .skip_while(|line| !line.starts_with("UserFiles:"));
        if lines.next().is_some() {
            let files = lines.take_while(|line| !line.starts_with("UserBufs:"));
            *places.get_or_insert(0) += files.filter(|line| line.contains(':')).count();
        }
    }
    places
}

#[test]
fn a_file_that_is_used_often_has_a_place_until_its_last_share_is_gone() {
    const NAME: &str = "a_file_that_is_used_often_has_a_place_until_its_last_share_is_gone";
    in_a_process_of_its_own(NAME, || {
        if !io_uring_permitted() {
            return;
        }
        let io = Loop::new(BackendChoice::IoUring);
        let once = File::from_std(tempfile::tempfile().unwrap()).unwrap();
        io.block_on(once.write_at("once", 0)).0.unwrap();
        let Some(before) = places_of_files() else {
            return eprintln!("skipped: this kernel does not tell");
        };
        assert_eq!(before, 0);
        let (one, other) = (file_of(&io, 1), file_of(&io, 2));
        assert_eq!(places_of_files(), Some(2));
        let clone = one.clone();
        drop((one, other));
        assert_eq!(places_of_files(), Some(1));
        // Turned into what may be used elsewhere.
        drop(clone.into_std().unwrap());
        assert_eq!(places_of_files(), Some(0));
    });
}

#[test]
fn the_place_and_the_number_of_a_closed_file_may_be_anothers() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        for byte in 1..=50 {
            let file = file_of(&io, byte);
            use_often(&io, &file, byte);
        }
    });
}

#[test]
fn more_files_than_there_are_places_are_used_alike() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let files: Vec<File> = (0..300).map(|n| file_of(&io, n as u8)).collect();
        for (n, file) in files.iter().enumerate().rev() {
            let (read, buf) = through_the_driver(&io, file, io.driver.buffer(512), 7);
            assert_eq!((read, buf[511]), (512, n as u8));
        }
    });
}

/// Shows what it holds when it is dropped.
struct Telling(Vec<u8>, Rc<RefCell<Vec<u8>>>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.1.replace(std::mem::take(&mut self.0));
    }
}

// SAFETY: the vector's.
unsafe impl IoBuf for Telling {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: the vector's.
unsafe impl IoBufMut for Telling {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
    unsafe fn set_init(&mut self, _len: usize) {}
}

/// The entry names the place only. It is not submitted before its file is dropped, and others ask for
/// places meanwhile.
#[test]
fn an_operation_in_flight_keeps_its_files_place() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (file, told) = (file_of(&io, 1), Rc::new(RefCell::new(Vec::new())));
        {
            let mut reading = pin!(file.read_at(Telling(vec![9; 512], told.clone()), 0));
            assert!(poll_once(reading.as_mut()).is_pending());
        }
        let number = file.as_fd().as_raw_fd();
        drop(file);
        // No turn of the driver from here on.
        let plain = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        assert_ne!(plain.as_raw_fd(), number);
        let other = File::from_std(plain).unwrap();
        for _ in 0..OFTEN {
            let writing = pin!(other.write_at(vec![2; 512], 0));
            assert!(poll_once(writing).is_pending());
        }
        io.settle();
        assert_eq!(*told.borrow(), [1; 512]);
    });
}

#[test]
fn a_registered_buffer_outlives_its_dropped_future() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (file, out) = (file_of(&io, 1), file_of(&io, 2));
        for round in 0..50 {
            let mut full = io.driver.buffer(4096);
            full.fill(round);
            let mut writing = Box::pin(out.write_at(full, 0));
            let mut reading = Box::pin(file.read_at(io.driver.buffer(4096), 0));
            assert!(poll_once(writing.as_mut()).is_pending());
            assert!(poll_once(reading.as_mut()).is_pending());
            drop((writing, reading));
            // None of those that are under the kernel's hands.
            let mut next = [(); 4].map(|()| io.driver.buffer(4096));
            next.iter_mut().for_each(|buf| buf.fill(77));
            io.settle();
            assert!(next.iter().all(|buf| buf.iter().all(|byte| *byte == 77)));
            let (_, back) = through_the_driver(&io, &out, vec![0; 4096], 0);
            assert_eq!(back, [round; 4096]);
        }
    });
}

/// Its number means nothing, or another buffer, to the other's ring.
#[test]
fn a_buffer_of_another_drivers_pool_is_an_ordinary_one() {
    on_every_backend(|choice| {
        let first = Loop::new(choice);
        let mut buf: PooledBuf = first.driver.buffer(4096);
        buf.fill(5);
        let driver = first.driver.clone();
        first.end();
        let second = Loop::new(choice);
        let file = file_of(&second, 3);
        let (read, back) = through_the_driver(&second, &file, buf, 0);
        assert_eq!((read, &back[..]), (4096, &[3; 4096][..]));
        // The pool outlives the ring that knew its buffers.
        drop(driver);
        let (read, back) = through_the_driver(&second, &file, back, 0);
        assert_eq!((read, back.len()), (4096, 4096));
        second.end();
        drop(back);
    });
}

#[test]
fn where_the_kernel_registers_nothing_files_and_buffers_are_used_alike() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        refuse(libc::SYS_io_uring_register);
        let files: Vec<File> = (1..4).map(|byte| file_of(&io, byte)).collect();
        files
            .iter()
            .zip(1..)
            .for_each(|(file, byte)| use_often(&io, file, byte));
        drop(files);
        io.end();
    });
}

#[test]
fn a_low_limit_of_descriptors_or_of_locked_memory_refuses_nothing() {
    const NAME: &str = "a_low_limit_of_descriptors_or_of_locked_memory_refuses_nothing";
    in_a_process_of_its_own(NAME, || {
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
        on_every_backend(|choice| {
            // More than any table has room for.
            let io = Loop::with(
                DriverConfig::new()
                    .backend(choice)
                    .registered_bytes(16 << 20),
            );
            let bufs: Vec<PooledBuf> = (0..2000).map(|_| io.driver.buffer(4096)).collect();
            let file = file_of(&io, 1);
            for buf in bufs {
                assert_eq!(through_the_driver(&io, &file, buf, 0).0, 4096);
            }
        });
    });
}

#[test]
fn a_forked_child_leaves_its_parents_places_alone() {
    const NAME: &str = "a_forked_child_leaves_its_parents_places_alone";
    in_a_process_of_its_own(NAME, || {
        on_every_backend(|choice| {
            let io = Loop::new(choice);
            let mut file = Some(file_of(&io, 1));
            let buf = io.driver.buffer(4096);
            let places = places_of_files();
            // SAFETY: the child uses nothing that another thread of the parent may have held.
            match unsafe { nix::unistd::fork() }.unwrap() {
                ForkResult::Child => {
                    drop((file.take(), buf));
                    // SAFETY: ends the process without running what is the parent's.
                    unsafe { libc::_exit(0) }
                }
                ForkResult::Parent { child } => {
                    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
                }
            }
            assert_eq!(places_of_files(), places);
            let file = file.unwrap();
            let (read, buf) = through_the_driver(&io, &file, buf, 0);
            assert_eq!((read, &buf[..]), (4096, &[1; 4096][..]));
        });
    });
}

/// One that is dropped after its driver, whose tables are gone.
#[test]
fn a_file_outlives_its_driver() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let (file, buf) = (file_of(&io, 1), io.driver.buffer(4096));
        io.end();
        let own = Loop::new(choice);
        let (refused, buf) = own.must_end("a read", file.read_at(buf, 0));
        assert!(refused.is_err());
        let file = File::from_std(file.into_std().unwrap()).unwrap();
        assert_eq!(through_the_driver(&own, &file, buf, 0).0, 4096);
    });
}

#[test]
fn a_task_is_served_from_the_page_cache() {
    on_every_backend(|choice| {
        let (io, dir) = (Loop::new(choice), scratch());
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 16_384]).unwrap();
        let file = io
            .block_on(OpenOptions::new().read(true).open(&path))
            .unwrap();
        let turns = Rc::new(Cell::new(0));
        let polls = turns.clone();
        let reading = async move {
            let mut buf = vec![0; 4096];
            for round in 0..100 {
                let (read, back) = file.read_at(buf, round % 4 * 4096).await;
                assert_eq!((read.unwrap(), &back[..]), (4096, &[7; 4096][..]));
                buf = back;
            }
            // What the cache does not have, the driver tells: the end, and what is short of it.
            assert_eq!(file.read_at(vec![0; 64], 16_384).await.0.unwrap(), 0);
            assert_eq!(file.read_at(vec![0; 64], 16_380).await.0.unwrap(), 4);
            assert_eq!(file.read_at(Vec::new(), 0).await.0.unwrap(), 0);
        };
        let mut reading = pin!(reading);
        io.block_on(std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            reading.as_mut().poll(cx)
        }));
        assert!(turns.get() < 20, "{} polls", turns.get());
    });
}

/// None of them waits for anything, so each goes behind the other after 64 KiB.
#[test]
fn tasks_that_read_from_the_page_cache_take_turns() {
    on_every_backend(|choice| {
        let io = Loop::new(choice);
        let file = file_of(&io, 1);
        let (mut runner, _hand) = thread();
        let order = Rc::new(RefCell::new(Vec::new()));
        let readers = [0, 1].map(|reader| {
            let (file, order) = (file.clone(), order.clone());
            let reading = async move {
                let mut buf = vec![0; 4096];
                for _ in 0..64 {
                    let (read, back) = file.read_at(buf, 0).await;
                    assert_eq!((read.unwrap(), &back[..]), (4096, &[1; 4096][..]));
                    order.borrow_mut().push(reader);
                    buf = back;
                }
            };
            runner.enter(|| spawn_local(reading))
        });
        while !readers.iter().all(JoinHandle::is_finished) {
            runner.poll(0, 0);
            io.driver.poll();
        }
        let order = order.borrow();
        let turns: Vec<usize> = order.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        assert!(turns.iter().all(|reads| *reads <= 16), "{turns:?}");
    });
}
