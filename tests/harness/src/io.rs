//! The smallest loop that can drive the I/O layer: one future, and driver turns in between.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use corespun::io::{BackendChoice, Driver, DriverConfig, EnterGuard, WakeFd};

use crate::PATIENCE;

/// A driver, entered.
pub struct Loop {
    /// The driver.
    pub driver: Driver,
    /// Ends a sleep of the driver.
    pub wake: WakeFd,
    entered: EnterGuard,
}

/// Wakes the loop as a reactor's handshake would: a flag, and the eventfd for the sleeper.
struct Wakeup {
    woken: AtomicBool,
    wake: WakeFd,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.wake.wake();
        }
    }
}

impl Loop {
    /// On that back-end.
    pub fn new(choice: BackendChoice) -> Self {
        Self::with(DriverConfig::new().backend(choice))
    }

    /// With those settings.
    pub fn with(config: DriverConfig) -> Self {
        let driver = Driver::new(&config).unwrap();
        let entered = driver.enter();
        Loop {
            wake: driver.wake_fd(),
            driver,
            entered,
        }
    }

    /// Runs one future to its end, sleeping when there is nothing to do.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let wakeup = Arc::new(Wakeup {
            woken: AtomicBool::new(true),
            wake: self.wake.clone(),
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
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Poll::Ready(output) = poll_once(future.as_mut()) {
                return output;
            }
            self.driver.park(Some(Duration::from_millis(2)));
        }
        panic!("this never ended: {what}");
    }

    /// Turns the driver until nothing is in flight.
    pub fn settle(&self) {
        while self.driver.in_flight() > 0 {
            self.driver.park(Some(Duration::from_millis(10)));
        }
    }

    /// As [`Loop::settle`], until only so many are in flight, for at most about so
    /// long.
    pub fn settle_to(&self, left: usize, limit: Duration) {
        let end = Instant::now() + limit;
        while self.driver.in_flight() > left && Instant::now() < end {
            self.driver.park(Some(Duration::from_millis(1)));
        }
    }

    /// How many wakes no sleep has taken; they are taken back.
    pub fn take_wakes(&self) -> u64 {
        let mut count = [0; 8];
        let read = nix::unistd::read(&self.wake, &mut count);
        read.map_or(0, |_| u64::from_ne_bytes(count))
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
    for choice in backends() {
        eprintln!("on {choice:?}");
        let outcome = std::thread::scope(|scope| scope.spawn(|| body(choice)).join());
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The back-ends that this machine permits.
pub fn backends() -> Vec<BackendChoice> {
    let ring = io_uring_permitted().then_some(BackendChoice::IoUring);
    ring.into_iter().chain([BackendChoice::Epoll]).collect()
}

/// Whether this machine permits io_uring; `CORESPUN_REQUIRE_IO_URING` makes it a failure if not.
pub fn io_uring_permitted() -> bool {
    let attempt = || {
        let config = DriverConfig::new().backend(BackendChoice::IoUring);
        Driver::new(&config).map(drop)
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
