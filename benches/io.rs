//! The I/O driver, per back-end, beside plain system calls in the same run: page-cached 4 KiB reads
//! at depth 1 and 32, and 64-byte echoes over a Unix socket from one busy OS thread to another.
//!
//! `cargo bench --bench io [-- SECONDS_PER_ROW]`. Rows on one OS thread are in its CPU time, so that a
//! shared machine disturbs them less; rows over two are in wall-clock time. The client of the echoes is plain code for every
//! row; only the server differs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::task::{Context, RawWaker, RawWakerVTable, Waker};
use std::time::{Duration, Instant};

use corespun::fs::File;
use corespun::io::raw::{opcode, types};
use corespun::io::{BackendChoice, Driver, DriverConfig};
use corespun::net::UnixStream;
use futures::{AsyncReadExt, AsyncWriteExt};

thread_local! {
    static READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
}

/// The lightest waker there is: a task's number, queued on this OS thread.
fn waker(task: usize) -> Waker {
    const TABLE: RawWakerVTable =
        RawWakerVTable::new(|data| RawWaker::new(data, &TABLE), wake, wake, |_| {});
    fn wake(data: *const ()) {
        READY.with_borrow_mut(|ready| ready.push_back(data.addr()));
    }
    // SAFETY: the data is a number, nothing is owned, and the table's functions may run anywhere.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::without_provenance(task), &TABLE)) }
}

/// Runs the tasks on a spinning loop until all have ended.
fn run(driver: &Driver, tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let wakers: Vec<Waker> = (0..tasks.len()).map(waker).collect();
    READY.with_borrow_mut(|ready| *ready = (0..tasks.len()).collect());
    let mut live = tasks.len();
    let mut tasks: Vec<_> = tasks.into_iter().map(Some).collect();
    while live > 0 {
        for _ in 0..READY.with_borrow(VecDeque::len) {
            let Some(task) = READY.with_borrow_mut(VecDeque::pop_front) else {
                break;
            };
            let Some(future) = &mut tasks[task] else {
                continue;
            };
            if future
                .as_mut()
                .poll(&mut Context::from_waker(&wakers[task]))
                .is_ready()
            {
                tasks[task] = None;
                live -= 1;
            }
        }
        driver.poll();
    }
}

fn driver(choice: BackendChoice) -> Option<Driver> {
    Driver::new(&DriverConfig::new().backend(choice)).ok()
}

fn pin_to(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// The CPU time this OS thread has used.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

const FILE_BLOCKS: u64 = 16_384;

fn next_block(seed: &Cell<u64>) -> u64 {
    let mut x = seed.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    seed.set(x);
    (x % FILE_BLOCKS) * 4096
}

fn report(row: &str, count: u64, elapsed: Duration) {
    let nanos = elapsed.as_nanos() as f64 / count as f64;
    println!(
        "{row:<52} {:>9.0} k/s {nanos:>9.0} ns",
        count as f64 / elapsed.as_secs_f64() / 1e3
    );
}

fn reads(time: Duration) {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), vec![7; FILE_BLOCKS as usize * 4096]).unwrap();
    let seed = Cell::new(0x9e37_79b9_7f4a_7c15);
    {
        let (plain, mut buf) = (std::fs::File::open(file.path()).unwrap(), vec![0; 4096]);
        let (start, cpu, mut count) = (Instant::now(), cpu_time(), 0);
        while start.elapsed() < time {
            for _ in 0..32 {
                plain.read_exact_at(&mut buf, next_block(&seed)).unwrap();
                count += 1;
            }
        }
        report("read 4 KiB cached, plain pread", count, cpu_time() - cpu);
    }
    for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
        let Some(driver) = driver(choice) else {
            continue;
        };
        let _entered = driver.enter();
        let plain = std::fs::File::open(file.path()).unwrap();
        let file = File::from_std(plain).unwrap();
        for depth in [1, 32] {
            let (start, cpu, count) = (Instant::now(), cpu_time(), Cell::new(0));
            let task = || async {
                let mut buf = vec![0; 4096];
                while count.get() % 32 != 0 || start.elapsed() < time {
                    let (result, back) = file.read_at(buf, next_block(&seed)).await;
                    assert_eq!(result.unwrap(), 4096);
                    buf = back;
                    count.set(count.get() + 1);
                }
            };
            run(
                &driver,
                (0..depth)
                    .map(|_| Box::pin(task()) as Pin<Box<dyn Future<Output = ()>>>)
                    .collect(),
            );
            report(
                &format!("read 4 KiB cached, {} depth {depth}", driver.backend()),
                count.get(),
                cpu_time() - cpu,
            );
        }
    }
}

const MESSAGE: usize = 64;

/// Keeps `depth` messages outstanding on a spinning, plain, non-blocking socket.
fn client(mut stream: StdStream, depth: usize, time: Duration) -> (u64, Duration) {
    pin_to(1);
    stream.set_nonblocking(true).unwrap();
    let message = [5; MESSAGE];
    for _ in 0..depth {
        stream.write_all(&message).unwrap();
    }
    let (start, mut count, mut filled) = (Instant::now(), 0, 0);
    let mut echo = [0; MESSAGE];
    while count % 64 != 0 || start.elapsed() < time {
        match stream.read(&mut echo[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
        if filled == MESSAGE {
            filled = 0;
            count += 1;
            stream.write_all(&message).unwrap();
        }
    }
    (count, start.elapsed())
}

fn echo_row<'a, F: Future<Output = ()> + 'a>(
    row: &str,
    depth: usize,
    time: Duration,
    driver: &Driver,
    server: impl Fn(StdStream) -> F,
) {
    let (ours, theirs) = StdStream::pair().unwrap();
    let client = std::thread::spawn(move || client(theirs, depth, time));
    run(driver, vec![Box::pin(server(ours))]);
    let (count, elapsed) = client.join().unwrap();
    report(&format!("echo 64 B, {row}, depth {depth}"), count, elapsed);
}

/// The server as plain code: a spinning non-blocking socket.
fn plain_server(mut stream: StdStream) {
    stream.set_nonblocking(true).unwrap();
    let mut buf = [0; MESSAGE];
    let mut filled = 0;
    loop {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(_) => return,
        }
        if filled == MESSAGE {
            filled = 0;
            if stream.write_all(&buf).is_err() {
                return;
            }
        }
    }
}

/// The server on the stream's traits: try, then wait for readiness.
async fn stream_server(stream: StdStream) {
    let mut stream = UnixStream::from_std(stream).unwrap();
    let mut buf = [0; MESSAGE];
    while stream.read_exact(&mut buf).await.is_ok() {
        if stream.write_all(&buf).await.is_err() {
            return;
        }
    }
}

/// The server on owned buffers.
async fn owned_server(stream: StdStream) {
    let stream = UnixStream::from_std(stream).unwrap();
    let mut buf = vec![0; MESSAGE];
    loop {
        let (result, back) = stream.recv_exact(buf).await;
        if result.is_err() {
            return;
        }
        let (result, back) = stream.send_all(back).await;
        if result.is_err() {
            return;
        }
        buf = back;
    }
}

/// The server on ring operations: receive by completion, send by completion or directly.
async fn ring_server(stream: StdStream, driver: &Driver, send_by_ring: bool) {
    stream.set_nonblocking(!send_by_ring).unwrap();
    let fd = types::Fd(stream.as_raw_fd());
    let (mut buf, mut keep) = (vec![0u8; MESSAGE], std::rc::Rc::new(stream));
    let mut filled = 0;
    loop {
        let room = (MESSAGE - filled) as u32;
        let entry = opcode::Recv::new(fd, buf[filled..].as_mut_ptr(), room).build();
        // SAFETY: the vector's bytes and the descriptor are kept.
        let (completion, kept) = unsafe { driver.submit_raw(entry, (buf, keep)) }
            .unwrap()
            .await;
        (buf, keep) = kept;
        match completion.result {
            ..=0 => return,
            count => filled += count as usize,
        }
        if filled < MESSAGE {
            continue;
        }
        filled = 0;
        if send_by_ring {
            let entry = opcode::Send::new(fd, buf.as_ptr(), MESSAGE as u32)
                .flags(libc::MSG_NOSIGNAL)
                .build();
            // SAFETY: the vector's bytes and the descriptor are kept.
            let (completion, kept) = unsafe { driver.submit_raw(entry, (buf, keep)) }
                .unwrap()
                .await;
            (buf, keep) = kept;
            if completion.result < 0 {
                return;
            }
        } else if (&*keep).write_all(&buf).is_err() {
            return;
        }
    }
}

fn echoes(time: Duration) {
    for depth in [1, 32] {
        let (ours, theirs) = StdStream::pair().unwrap();
        let client = std::thread::spawn(move || client(theirs, depth, time));
        plain_server(ours);
        let (count, elapsed) = client.join().unwrap();
        report(
            &format!("echo 64 B, plain spinning, depth {depth}"),
            count,
            elapsed,
        );
        for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
            let Some(driver) = driver(choice) else {
                continue;
            };
            let _entered = driver.enter();
            let backend = driver.backend();
            echo_row(
                &format!("{backend} AsyncRead"),
                depth,
                time,
                &driver,
                stream_server,
            );
            echo_row(
                &format!("{backend} recv/send"),
                depth,
                time,
                &driver,
                owned_server,
            );
            if choice == BackendChoice::IoUring {
                for (row, by_ring) in [("RECV op, direct send", false), ("RECV and SEND ops", true)]
                {
                    echo_row(row, depth, time, &driver, |stream| {
                        ring_server(stream, &driver, by_ring)
                    });
                }
            }
        }
    }
}

/// Both ends on one OS thread: what a round trip costs, without the second core's weather.
fn echoes_on_one_thread(time: Duration) {
    for depth in [1, 32] {
        for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
            let Some(driver) = driver(choice) else {
                continue;
            };
            let _entered = driver.enter();
            let (ours, theirs) = StdStream::pair().unwrap();
            let (start, cpu, count) = (Instant::now(), cpu_time(), Cell::new(0));
            let client = async {
                let mut stream = UnixStream::from_std(theirs).unwrap();
                let mut buf = [0; MESSAGE];
                for _ in 0..depth {
                    stream.write_all(&buf).await.unwrap();
                }
                while count.get() % 64 != 0 || start.elapsed() < time {
                    stream.read_exact(&mut buf).await.unwrap();
                    count.set(count.get() + 1);
                    stream.write_all(&buf).await.unwrap();
                }
            };
            run(
                &driver,
                vec![Box::pin(client), Box::pin(stream_server(ours))],
            );
            report(
                &format!(
                    "echo 64 B on one thread, {}, depth {depth}",
                    driver.backend()
                ),
                count.get(),
                cpu_time() - cpu,
            );
        }
    }
}

fn idle_polls() {
    for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
        let Some(driver) = driver(choice) else {
            continue;
        };
        let _entered = driver.enter();
        let (_a, b) = StdStream::pair().unwrap();
        let stream = UnixStream::from_std(b).unwrap();
        for waiting in [false, true] {
            let mut receive = std::pin::pin!(stream.recv(vec![0; 64]));
            if waiting {
                let _ = receive
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
            }
            const TURNS: u64 = 1_000_000;
            let cpu = cpu_time();
            for _ in 0..TURNS {
                std::hint::black_box(&driver).poll();
            }
            let what = if waiting {
                "one socket waits"
            } else {
                "nothing in flight"
            };
            report(
                &format!("idle poll, {}, {what}", driver.backend()),
                TURNS,
                cpu_time() - cpu,
            );
        }
    }
}

fn main() {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(0.5);
    let time = Duration::from_secs_f64(seconds);
    pin_to(0);
    idle_polls();
    reads(time);
    echoes_on_one_thread(time);
    echoes(time);
}
