//! The smallest loop that can drive the I/O layer: one future, and driver turns in between.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use corespun::io::{BackendChoice, Driver, DriverConfig, EnterGuard};
use nix::sys::eventfd::EventFd;

/// Longest wait for anything. Only a failing test ever waits that long.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// A driver, entered, with its eventfd.
pub struct Loop {
    pub driver: Driver,
    pub wake: Arc<EventFd>,
    entered: EnterGuard,
}

/// Wakes the loop as a reactor's handshake would: a flag, and the eventfd for the sleeper.
struct Wakeup {
    woken: AtomicBool,
    eventfd: Arc<EventFd>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.eventfd.write(1).unwrap();
        }
    }
}

impl Loop {
    pub fn new(choice: BackendChoice) -> Self {
        Self::with(DriverConfig::new().backend(choice))
    }

    pub fn with(config: DriverConfig) -> Self {
        let wake = Arc::new(EventFd::new().unwrap());
        let driver = Driver::new(&config, wake.clone()).unwrap();
        let entered = driver.enter();
        Loop {
            driver,
            wake,
            entered,
        }
    }

    /// Runs one future to its end, sleeping when there is nothing to do.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let wakeup = Arc::new(Wakeup {
            woken: AtomicBool::new(true),
            eventfd: self.wake.clone(),
        });
        let waker = Waker::from(wakeup.clone());
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if wakeup.woken.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            if self.driver.poll() == 0 && !wakeup.woken.load(Ordering::SeqCst) {
                self.driver.park(None);
            }
        }
    }

    /// As `block_on`, but gives up after turns of `PATIENCE` altogether without an end: what waits
    /// for ever fails the test instead of hanging it.
    #[track_caller]
    pub fn must_end<F: Future>(&self, what: &str, future: F) -> F::Output {
        let mut future = pin!(future);
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Poll::Ready(output) = poll_once(future.as_mut()) {
                return output;
            }
            self.driver.park(Some(std::time::Duration::from_millis(2)));
        }
        panic!("this never ended: {what}");
    }

    /// Turns the driver until nothing is in flight.
    pub fn settle(&self) {
        while self.driver.in_flight() > 0 {
            self.driver.park(Some(std::time::Duration::from_millis(10)));
        }
    }

    /// As [`Loop::settle`], until only so many are in flight, for at most about so
    /// long.
    pub fn settle_to(&self, left: usize, limit: std::time::Duration) {
        let end = std::time::Instant::now() + limit;
        while self.driver.in_flight() > left && std::time::Instant::now() < end {
            self.driver.park(Some(std::time::Duration::from_millis(1)));
        }
    }

    /// Leaves and drops the driver.
    pub fn end(self) {
        let Loop {
            driver, entered, ..
        } = self;
        drop(entered);
        drop(driver);
    }
}

/// Polls once, with a waker that does nothing.
pub fn poll_once<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs a test body on every back-end this machine permits; epoll always, io_uring unless refused.
///
/// Each on an OS thread of its own: the kernel tears a ring down after its close has returned, and
/// interrupts a sleep of the OS thread that had it.
pub fn on_every_backend(body: impl Fn(BackendChoice) + Sync) {
    for choice in [BackendChoice::IoUring, BackendChoice::Epoll] {
        if choice == BackendChoice::IoUring && !io_uring_permitted() {
            continue;
        }
        eprintln!("on {choice:?}");
        let outcome = std::thread::scope(|scope| scope.spawn(|| body(choice)).join());
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Runs `body` on an OS thread of its own and fails if it does not return: for what might block for
/// ever.
#[track_caller]
pub fn must_return<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let value = body();
        let _ = tell.send(());
        value
    });
    if told.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("this never returned: {what}");
    }
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Whether this machine permits io_uring; `CORESPUN_REQUIRE_IO_URING` makes it a failure if not.
pub fn io_uring_permitted() -> bool {
    let attempt = || {
        let wake = Arc::new(EventFd::new().unwrap());
        let config = DriverConfig::new().backend(BackendChoice::IoUring);
        Driver::new(&config, wake).map(drop)
    };
    match std::thread::scope(|scope| scope.spawn(attempt).join().unwrap()) {
        Ok(()) => true,
        Err(error) => {
            let required = std::env::var_os("CORESPUN_REQUIRE_IO_URING").is_some();
            assert!(!required, "io_uring is required here: {error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// How many descriptors of this process lead to the file at `path`.
pub fn open_descriptors_of(path: &std::path::Path) -> usize {
    let path = path.canonicalize().unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| *target == path)
        .count()
}

/// Runs the body of the test `name` in a process of its own: for what a process has one of.
pub fn in_a_process_of_its_own(name: &str, body: impl FnOnce()) {
    const ALONE: &str = "CORESPUN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some_and(|alone| alone == *name) {
        return body();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(ALONE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}

/// Makes the kernel refuse a system call to the calling thread from now on, as container run times do.
pub fn refuse(call: libc::c_long) {
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: call as u32,
        },
        statement(
            libc::BPF_RET as u16,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        statement(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program lives until the call has copied it.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
