//! `openraft` on these threads: its consensus engine asks for tasks, timers and channels
//! through the traits of `openraft-rt`, and [`CorespunRuntime`] gives them.
//!
//! With the feature `openraft` everything is `Send` and the runtime is a `multi_thread`
//! one; with `openraft-single-threaded` nothing is, and it is a
//! [`LocalRuntime`](crate::runtime::LocalRuntime). The channels are tokio's, behind the
//! thin types of this module. It costs nothing beyond what the runtime costs.
//!
//! `openraft-rt` is pinned exactly: it is a pre-release.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use openraft_rt::{
    AsyncRuntime, Mpsc, MpscReceiver, MpscSender, MpscWeakSender, Mutex, Oneshot, OneshotSender,
    OptionalSend, OptionalSync, RecvError, SendError, TryRecvError, Watch, WatchReceiver,
    WatchSender,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::task::{JoinError, JoinHandle};
use crate::time::error::Elapsed;
use crate::time::{self, Instant, Sleep, Timeout};

#[cfg(feature = "openraft-single-threaded")]
use crate::runtime::LocalRuntime as Runtime;
#[cfg(not(feature = "openraft-single-threaded"))]
use crate::runtime::Runtime;

/// The runtime of a consensus engine.
///
/// # Examples
///
/// ```
/// use corespun_compat::openraft::CorespunRuntime;
/// use openraft_rt::AsyncRuntime;
///
/// let answer = CorespunRuntime::new(1).block_on(async {
///     CorespunRuntime::spawn(async { 42 }).await.unwrap()
/// });
/// assert_eq!(answer, 42);
/// ```
#[derive(Debug)]
pub struct CorespunRuntime {
    runtime: Runtime,
}

impl AsyncRuntime for CorespunRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = rand::rngs::ThreadRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: OptionalSend + 'static> = Lock<T>;

    #[track_caller]
    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        #[cfg(feature = "openraft-single-threaded")]
        return crate::task::spawn_local(future);
        #[cfg(not(feature = "openraft-single-threaded"))]
        crate::task::spawn(future)
    }

    #[track_caller]
    fn sleep(duration: Duration) -> Sleep {
        time::sleep(duration)
    }

    #[track_caller]
    fn sleep_until(deadline: Instant) -> Sleep {
        time::sleep_until(deadline)
    }

    #[track_caller]
    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        time::timeout(duration, future)
    }

    #[track_caller]
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Timeout<F> {
        time::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        rand::rng()
    }

    #[cfg(feature = "openraft-single-threaded")]
    fn new(_threads: usize) -> Self {
        let runtime = Runtime::new().expect("the system gives a runtime");
        CorespunRuntime { runtime }
    }

    #[cfg(not(feature = "openraft-single-threaded"))]
    fn new(threads: usize) -> Self {
        let runtime = crate::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .enable_all()
            .build()
            .expect("the system gives the workers of a runtime");
        CorespunRuntime { runtime }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.runtime.block_on(future)
    }

    fn spawn_blocking<F, T>(f: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let task = crate::task::spawn_blocking(f);
        async { task.await.map_err(io::Error::from) }
    }
}

impl openraft_rt::Instant for Instant {
    fn now() -> Self {
        Instant::now()
    }
}

/// tokio's channels, as the engine names them.
#[derive(Clone, Copy, Debug)]
pub struct Channels;

impl Mpsc for Channels {
    type Sender<T: OptionalSend> = Sender<T>;
    type Receiver<T: OptionalSend> = Receiver<T>;
    type WeakSender<T: OptionalSend> = WeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::channel(buffer);
        (Sender(sender), Receiver(receiver))
    }
}

/// The sending end of a bounded channel.
pub struct Sender<T>(mpsc::Sender<T>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone())
    }
}

impl<T: OptionalSend> MpscSender<Channels, T> for Sender<T> {
    async fn send(&self, msg: T) -> Result<(), SendError<T>> {
        let sent = self.0.send(msg).await;
        sent.map_err(|error| SendError(error.0))
    }

    fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.downgrade())
    }
}

/// A sending end that does not keep the channel open.
pub struct WeakSender<T>(mpsc::WeakSender<T>);

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        WeakSender(self.0.clone())
    }
}

impl<T: OptionalSend> MpscWeakSender<Channels, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        self.0.upgrade().map(Sender)
    }
}

/// The receiving end of a bounded channel.
pub struct Receiver<T>(mpsc::Receiver<T>);

impl<T: OptionalSend> MpscReceiver<T> for Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> + OptionalSend {
        self.0.recv()
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            mpsc::error::TryRecvError::Empty => TryRecvError::Empty,
            mpsc::error::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }
}

impl Oneshot for Channels {
    type Sender<T: OptionalSend> = OnceSender<T>;
    type Receiver<T: OptionalSend> = oneshot::Receiver<T>;
    type ReceiverError = oneshot::error::RecvError;

    fn channel<T: OptionalSend>() -> (OnceSender<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (OnceSender(sender), receiver)
    }
}

/// The sending end of a channel for one value.
pub struct OnceSender<T>(oneshot::Sender<T>);

impl<T: OptionalSend> OneshotSender<T> for OnceSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

impl Watch for Channels {
    type Sender<T: OptionalSend + OptionalSync> = WatchedSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = WatchedReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (WatchedSender<T>, WatchedReceiver<T>) {
        let (sender, receiver) = watch::channel(init);
        (WatchedSender(sender), WatchedReceiver(receiver))
    }
}

/// The sending end of a watched value.
pub struct WatchedSender<T>(watch::Sender<T>);

impl<T> Clone for WatchedSender<T> {
    fn clone(&self) -> Self {
        WatchedSender(self.0.clone())
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<Channels, T> for WatchedSender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        self.0
            .send(value)
            .map_err(|error| openraft_rt::watch::SendError(error.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn subscribe(&self) -> WatchedReceiver<T> {
        WatchedReceiver(self.0.subscribe())
    }
}

/// The receiving end of a watched value.
pub struct WatchedReceiver<T>(watch::Receiver<T>);

impl<T> Clone for WatchedReceiver<T> {
    fn clone(&self) -> Self {
        WatchedReceiver(self.0.clone())
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<Channels, T> for WatchedReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.0.changed().await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.0.borrow_and_update()
    }
}

/// An asynchronous lock.
pub struct Lock<T>(tokio::sync::Mutex<T>);

impl<T: OptionalSend + 'static> Mutex<T> for Lock<T> {
    type Guard<'a> = tokio::sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        Lock(tokio::sync::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = Self::Guard<'_>> + OptionalSend {
        self.0.lock()
    }
}

/// Names the type, and shows nothing of what it carries.
macro_rules! opaque {
    ($($name:ident),*) => {$(
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(
    Sender,
    WeakSender,
    Receiver,
    OnceSender,
    WatchedSender,
    WatchedReceiver,
    Lock
);
