//! Waiting for a future on an OS thread that polls no SpdkThread.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread;

use crate::notify::Sleeper;
use crate::thread::SpdkThread;

/// Runs `future` on the calling OS thread, which sleeps while it waits: the way
/// into the library for `main`, tests and foreign threads.
///
/// The future is not a task: what needs a current SpdkThread (`sleep`,
/// `spawn_local`) is to be reached through a handle of one.
///
/// # Panics
///
/// When called on a SpdkThread, which would stop everything on its core, and
/// for good if the future waits for any of that.
///
/// # Examples
///
/// ```
/// use corespun::{task, thread::ThreadLib};
///
/// let library = ThreadLib::new();
/// let parked = library.thread().build()?;
/// let thread = parked.handle();
/// let poller = std::thread::spawn(move || {
///     let mut runner = parked.attach();
///     while !runner.handle().is_exited() {
///         runner.poll(0, 0);
///     }
/// });
/// assert_eq!(task::block_on(thread.call(|| 6 * 7)).unwrap(), 42);
/// task::block_on(thread.exit());
/// poller.join().unwrap();
/// # Ok::<(), corespun::thread::CreateError>(())
/// ```
#[track_caller]
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    if let Some(current) = SpdkThread::current() {
        panic!(
            "block_on on SpdkThread {:?} would stop everything on its core: await the future in a task instead",
            current.name()
        );
    }
    let mut future = pin!(future.into_future());
    let caller = thread::current();
    let sleeper = Arc::new((
        Sleeper::new(move || caller.unpark()),
        AtomicBool::new(false),
    ));
    let waker = waker_fn::waker_fn({
        let sleeper = sleeper.clone();
        move || {
            let (sleeper, woken) = &*sleeper;
            woken.store(true, Ordering::Release);
            sleeper.notify();
        }
    });
    let (sleeper, woken) = &*sleeper;
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        while !woken.swap(false, Ordering::Acquire) {
            // The park may end for no reason, or for an old one.
            sleeper.sleep_unless(|| woken.load(Ordering::Acquire), thread::park);
        }
    }
}
