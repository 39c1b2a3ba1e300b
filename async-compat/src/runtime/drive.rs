//! `block_on`: the loop that polls a future, a SpdkThread and the I/O driver of the
//! calling OS thread, and sleeps in that driver.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use corespun::io::{Driver, DriverConfig};
use corespun::notify::Sleeper;
use corespun::thread::ThreadRunner;

use super::config::call;
use super::context;
use super::handle::Handle;
use super::scheduler::{CurrentThread, Load};

/// What an OS thread sleeps in.
struct Bed {
    driver: Driver,
    sleeper: Arc<Sleeper>,
}

impl Bed {
    fn of(driver: Driver) -> Self {
        let wake = driver.wake_fd();
        let sleeper = Sleeper::new(move || wake.wake());
        Bed {
            driver,
            sleeper: Arc::new(sleeper),
        }
    }
}

thread_local! {
    /// Made by the OS thread's first `block_on`, since a driver costs a ring, and kept:
    /// sockets stay registered there between two calls.
    static BED: RefCell<Option<Rc<Bed>>> = const { RefCell::new(None) };
}

/// The calling OS thread's bed. Within a reactor, that is a part of the reactor's.
fn bed() -> io::Result<(Rc<Bed>, Option<corespun::io::EnterGuard>)> {
    if let Some(driver) = Driver::current() {
        return Ok((Rc::new(Bed::of(driver)), None));
    }
    let known = BED.try_with(|bed| bed.borrow().clone()).ok().flatten();
    let bed = match known {
        Some(bed) => bed,
        None => {
            let driver = Driver::new(&DriverConfig::new()).map_err(io::Error::other)?;
            let bed = Rc::new(Bed::of(driver));
            // Not while the OS thread ends.
            let _ = BED.try_with(|place| place.replace(Some(bed.clone())));
            bed
        }
    };
    let entered = bed.driver.enter();
    Ok((bed, Some(entered)))
}

/// Wakes the future that `block_on` polls.
struct Root {
    woken: AtomicBool,
    sleeper: Arc<Sleeper>,
}

impl Wake for Root {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.sleeper.notify();
    }
}

/// Runs `future` and the runtime's thread, in turns.
#[track_caller]
pub(super) fn block_on_thread<F: Future>(
    handle: &Handle,
    thread: &CurrentThread,
    future: F,
) -> F::Output {
    let mut future = pin!(future);
    let mut block = BlockOn::new(handle);
    loop {
        if let Some(mut taken) = thread.take() {
            if taken.moved {
                taken.runner().wake_tasks();
            }
            let _worker = context::enter_worker(Some(0));
            let output = block.run(taken.runner(), Some(&thread.load), future.as_mut(), || {
                false
            });
            return output.expect("it is not asked to stop before");
        }
        // Somebody else polls the runtime's thread: this one's turn comes with the end
        // of that.
        let waker = block.waker.clone();
        let output = block.beside(future.as_mut(), || thread.poll_free(&waker));
        thread.forget(&waker);
        if let Some(output) = output {
            return output;
        }
    }
}

/// Runs `future` on a thread that has only its timers.
#[track_caller]
pub(super) fn block_on_beside<F: Future>(handle: &Handle, future: F) -> F::Output {
    let future = pin!(future);
    let output = BlockOn::new(handle).beside(future, || false);
    output.expect("it is not asked to stop before")
}

/// Runs `future` and a thread of the caller's.
#[track_caller]
pub(super) fn block_on_runner<F: Future>(
    handle: &Handle,
    runner: &mut ThreadRunner,
    load: &Load,
    future: F,
) -> F::Output {
    let future = pin!(future);
    let output = BlockOn::new(handle).run(runner, Some(load), future, || false);
    output.expect("it is not asked to stop before")
}

struct BlockOn<'a> {
    handle: &'a Handle,
    bed: Rc<Bed>,
    root: Arc<Root>,
    waker: Waker,
    entered: Option<corespun::io::EnterGuard>,
}

impl Drop for BlockOn<'_> {
    fn drop(&mut self) {
        // Nobody polls the driver from now on, except where it is a part of a reactor's
        // or of an outer loop's.
        if self.entered.is_some()
            && self.handle.inner.config.enable_io
            && let Ok(driver) = self.bed.driver.handle()
        {
            self.handle.inner.home.leave(&driver);
        }
    }
}

impl<'a> BlockOn<'a> {
    #[track_caller]
    fn new(handle: &'a Handle) -> Self {
        let (bed, entered) = match bed() {
            Ok(bed) => bed,
            Err(error) => panic!("this OS thread gets no I/O driver to block in: {error}"),
        };
        if handle.inner.config.enable_io
            && let Ok(driver) = bed.driver.handle()
        {
            handle.inner.home.serve(&driver);
        }
        let root = Arc::new(Root {
            woken: AtomicBool::new(true),
            sleeper: bed.sleeper.clone(),
        });
        BlockOn {
            handle,
            bed,
            waker: Waker::from(root.clone()),
            root,
            entered,
        }
    }

    /// Runs on a thread that exists for this call.
    #[track_caller]
    fn beside<F: Future>(
        &mut self,
        future: Pin<&mut F>,
        stop: impl Fn() -> bool,
    ) -> Option<F::Output> {
        let built = self
            .handle
            .inner
            .library
            .thread()
            .name("block_on")
            .yield_ends_poll()
            .build();
        let mut runner = match built {
            Ok(parked) => parked.attach(),
            Err(error) => panic!("block_on gets no thread: {error}"),
        };
        // What was polled on another thread of this call has its timers there.
        self.root.woken.store(true, Ordering::Relaxed);
        self.run(&mut runner, None, future, stop)
    }

    /// Until the future is ready, or `stop`.
    fn run<F: Future>(
        &mut self,
        runner: &mut ThreadRunner,
        load: Option<&Load>,
        mut future: Pin<&mut F>,
        stop: impl Fn() -> bool,
    ) -> Option<F::Output> {
        runner.set_host(Some(&self.bed.sleeper));
        self.root.woken.store(true, Ordering::Relaxed);
        let mut cx = Context::from_waker(&self.waker);
        loop {
            let mut worked = false;
            if self.root.woken.swap(false, Ordering::Acquire) {
                worked = true;
                let polled = runner.enter(|| {
                    context::fresh_budget();
                    future.as_mut().poll(&mut cx)
                });
                if let Poll::Ready(output) = polled {
                    return Some(output);
                }
                if stop() {
                    return None;
                }
            }
            worked |= runner.poll(0, 0).is_busy();
            worked |= self.bed.driver.poll() > 0;
            // Not another turn that finds nothing: it reads the clock.
            if !worked || !self.has_work(runner) {
                self.rest(runner, load);
            }
        }
    }

    fn has_work(&self, runner: &ThreadRunner) -> bool {
        self.root.woken.load(Ordering::Acquire) || runner.needs_poll()
    }

    /// Nothing is to be done: sleeps until something is, or lets a stopped clock go on.
    fn rest(&self, runner: &mut ThreadRunner, load: Option<&Load>) {
        if self.has_work(runner) {
            return;
        }
        let config = &self.handle.inner.config;
        if load.is_some() {
            call(&config.before_park);
            if self.has_work(runner) {
                // The hook gave it work.
                call(&config.after_unpark);
                return;
            }
        }
        if let Some(load) = load {
            load.note_park();
        }
        let clock = self.handle.inner.library.clock();
        let deadline = runner.next_deadline();
        let timeout = deadline.map(|tick| clock.duration_from(tick.saturating_sub(clock.now())));
        if !self.moves_clock(timeout) {
            let Bed { driver, sleeper } = &*self.bed;
            sleeper.sleep_unless(
                || self.has_work(runner),
                || driver.park_announced(timeout, sleeper),
            );
        }
        if let Some(load) = load {
            load.note_park();
            call(&config.after_unpark);
        }
    }

    /// Moves a clock that stands to the next timer, if nothing else comes.
    #[cfg(all(feature = "time", feature = "test-util"))]
    fn moves_clock(&self, timeout: Option<Duration>) -> bool {
        let clock = &self.handle.inner.clock;
        let Some(timeout) = timeout.filter(|_| clock.can_auto_advance()) else {
            return false;
        };
        if self.bed.driver.park(Some(Duration::ZERO)) == 0
            && !self.root.woken.load(Ordering::Acquire)
        {
            clock.auto_advance(timeout);
        }
        true
    }

    #[cfg(not(all(feature = "time", feature = "test-util")))]
    fn moves_clock(&self, _timeout: Option<Duration>) -> bool {
        false
    }
}
