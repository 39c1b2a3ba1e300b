//! Reads of a file that the page cache holds, 4 KiB at random places.

use std::cell::Cell;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use corespun::io::{Driver, PooledBuf};
use futures::future::join_all;
use io_uring::{IoUring, opcode, types};

use crate::measure::per_op;
use crate::measure::tasks::Executor;
use crate::neighbours::{Compio, Glommio, Monoio, Smol, Tokio};
use crate::reactor::Reactor;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16_384;

/// The file that all read, in the page cache. It has no name but that of its descriptor, so that
/// nothing is left of it.
fn path() -> &'static Path {
    static FILE: OnceLock<(fs::File, PathBuf)> = OnceLock::new();
    let make = || {
        // Not a file system in memory, which is read in other ways.
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let contents = vec![7; BLOCK * BLOCKS as usize];
        file.write_all_at(&contents, 0).expect("room for the file");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        (file, path.into())
    };
    &FILE.get_or_init(make).1
}

/// Random places in the file.
struct Places(Cell<u64>);

impl Places {
    fn new() -> Self {
        Places(Cell::new(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x % BLOCKS * BLOCK as u64
    }
}

/// A runtime that reads files.
pub trait Files: Executor {
    type File: 'static;
    type Buf: 'static;

    fn open(path: &Path) -> impl Future<Output = Self::File>;
    fn buffer() -> Self::Buf;
    fn read(file: &Self::File, buf: Self::Buf, at: u64)
    -> impl Future<Output = (usize, Self::Buf)>;
}

/// So many tasks read until they have read `count` times together; ns per read.
pub fn reads<F: Files>(depth: usize, count: usize) -> f64 {
    F::run(async move {
        let file = Rc::new(F::open(path()).await);
        read_all::<F>(&file, depth, count / 10).await;
        let start = Instant::now();
        read_all::<F>(&file, depth, count).await;
        per_op(start, count)
    })
}

async fn read_all<F: Files>(file: &Rc<F::File>, depth: usize, count: usize) {
    let (places, left) = (Rc::new(Places::new()), Rc::new(Cell::new(count)));
    let reader = |_| {
        let (file, places, left) = (file.clone(), places.clone(), left.clone());
        F::spawn(async move {
            let mut buf = F::buffer();
            while left.get() > 0 {
                left.set(left.get() - 1);
                let (read, back) = F::read(&file, buf, places.next()).await;
                assert_eq!(read, BLOCK);
                buf = back;
            }
        })
    };
    join_all((0..depth).map(reader)).await;
}

/// Plain `pread`, one after the other.
pub fn pread(count: usize) -> f64 {
    let file = fs::File::open(path()).expect("it is there");
    let (places, mut buf) = (Places::new(), vec![0; BLOCK]);
    let mut read = |count| {
        for _ in 0..count {
            file.read_exact_at(&mut buf, places.next())
                .expect("a block");
        }
    };
    read(count / 10);
    let start = Instant::now();
    read(count);
    per_op(start, count)
}

/// A ring and nothing else: so many reads in flight, one system call for each batch; with `fixed`,
/// into registered buffers from a registered file.
pub fn ring(depth: usize, fixed: bool, count: usize) -> f64 {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(64)
        .expect("io_uring is permitted");
    let file = fs::File::open(path()).expect("it is there");
    let mut memory = vec![[0u8; BLOCK]; depth];
    if fixed {
        let part = |block: &mut [u8; BLOCK]| libc::iovec {
            iov_base: block.as_mut_ptr().cast(),
            iov_len: BLOCK,
        };
        let parts: Vec<_> = memory.iter_mut().map(part).collect();
        let submitter = ring.submitter();
        // SAFETY: the memory outlives the ring's use of it, below.
        unsafe { submitter.register_buffers(&parts) }.expect("memory that may be locked");
        let files = submitter.register_files(&[file.as_raw_fd()]);
        files.expect("a file to register");
    }
    let places = Places::new();
    let mut run = |count: usize| {
        let (mut begun, mut done) = (0, 0);
        let mut idle: Vec<usize> = (0..depth).collect();
        while done < count {
            let mut queue = ring.submission();
            while begun < count
                && let Some(place) = idle.pop()
            {
                begun += 1;
                let (to, at) = (memory[place].as_mut_ptr(), places.next());
                let entry = match fixed {
                    true => opcode::ReadFixed::new(types::Fixed(0), to, BLOCK as u32, place as u16)
                        .offset(at)
                        .build(),
                    false => opcode::Read::new(types::Fd(file.as_raw_fd()), to, BLOCK as u32)
                        .offset(at)
                        .build(),
                };
                // SAFETY: each block of memory has one read at a time, and outlives the loop.
                let pushed = unsafe { queue.push(&entry.user_data(place as u64)) };
                pushed.expect("room for as many as there are blocks");
            }
            drop(queue);
            ring.submit_and_wait(1).expect("a ring that works");
            for entry in ring.completion() {
                assert_eq!(entry.result(), BLOCK as i32);
                idle.push(entry.user_data() as usize);
                done += 1;
            }
        }
    };
    run(count / 10);
    let start = Instant::now();
    run(count);
    per_op(start, count)
}

impl Files for Reactor {
    type File = corespun::fs::File;
    type Buf = Vec<u8>;

    async fn open(path: &Path) -> Self::File {
        corespun::fs::File::open(path).await.expect("it is there")
    }

    fn buffer() -> Vec<u8> {
        vec![0; BLOCK]
    }

    async fn read(file: &Self::File, buf: Vec<u8>, at: u64) -> (usize, Vec<u8>) {
        let (read, buf) = file.read_at(buf, at).await;
        (read.expect("a block"), buf)
    }
}

/// corespun again, into buffers of the driver's pool.
pub struct Registered;

impl Executor for Registered {
    type Handle<T: 'static> = <Reactor as Executor>::Handle<T>;

    fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
        Reactor::run(main)
    }

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::Handle<T> {
        Reactor::spawn(future)
    }
}

impl Files for Registered {
    type File = corespun::fs::File;
    type Buf = PooledBuf;

    async fn open(path: &Path) -> Self::File {
        Reactor::open(path).await
    }

    fn buffer() -> PooledBuf {
        Driver::current().expect("a reactor's").buffer(BLOCK)
    }

    async fn read(file: &Self::File, buf: PooledBuf, at: u64) -> (usize, PooledBuf) {
        let (read, buf) = file.read_at(buf, at).await;
        (read.expect("a block"), buf)
    }
}

/// tokio's blocking pool; its `File` reads through a copy and from one position only.
impl Files for Tokio {
    type File = Arc<fs::File>;
    type Buf = Vec<u8>;

    async fn open(path: &Path) -> Self::File {
        fs::File::open(path).expect("it is there").into()
    }

    fn buffer() -> Vec<u8> {
        vec![0; BLOCK]
    }

    async fn read(file: &Self::File, mut buf: Vec<u8>, at: u64) -> (usize, Vec<u8>) {
        let file = file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let count = file.read_at(&mut buf, at).expect("a block");
            (count, buf)
        });
        read.await.expect("it ends")
    }
}

impl Files for Smol {
    type File = Arc<fs::File>;
    type Buf = Vec<u8>;

    async fn open(path: &Path) -> Self::File {
        fs::File::open(path).expect("it is there").into()
    }

    fn buffer() -> Vec<u8> {
        vec![0; BLOCK]
    }

    async fn read(file: &Self::File, mut buf: Vec<u8>, at: u64) -> (usize, Vec<u8>) {
        let file = file.clone();
        let read = blocking::unblock(move || {
            let count = file.read_at(&mut buf, at).expect("a block");
            (count, buf)
        });
        read.await
    }
}

impl Files for Glommio {
    type File = glommio::io::BufferedFile;
    /// It brings buffers of its own.
    type Buf = ();

    async fn open(path: &Path) -> Self::File {
        let file = glommio::io::BufferedFile::open(path).await;
        file.expect("it is there")
    }

    fn buffer() {}

    async fn read(file: &Self::File, (): (), at: u64) -> (usize, ()) {
        let read = file.read_at(at, BLOCK).await.expect("a block");
        (read.len(), ())
    }
}

impl Files for Monoio {
    type File = monoio::fs::File;
    type Buf = Vec<u8>;

    async fn open(path: &Path) -> Self::File {
        monoio::fs::File::open(path).await.expect("it is there")
    }

    fn buffer() -> Vec<u8> {
        vec![0; BLOCK]
    }

    async fn read(file: &Self::File, buf: Vec<u8>, at: u64) -> (usize, Vec<u8>) {
        let (read, buf) = file.read_at(buf, at).await;
        (read.expect("a block"), buf)
    }
}

impl Files for Compio {
    type File = compio::fs::File;
    type Buf = Vec<u8>;

    async fn open(path: &Path) -> Self::File {
        compio::fs::File::open(path).await.expect("it is there")
    }

    fn buffer() -> Vec<u8> {
        Vec::with_capacity(BLOCK)
    }

    async fn read(file: &Self::File, mut buf: Vec<u8>, at: u64) -> (usize, Vec<u8>) {
        use compio::io::AsyncReadAt;
        buf.clear();
        let compio::BufResult(read, buf) = file.read_at(buf, at).await;
        (read.expect("a block"), buf)
    }
}
