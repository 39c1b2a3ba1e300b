//! Signals of the process, as futures and streams: [`ctrl_c`], and [`Signals`] of
//! any kind.
//!
//! A signal is delivered where its listener is awaited: on a SpdkThread, whose
//! reactor it wakes, or on any other executor. Several may listen for the same
//! signal, in apps that know nothing of each other too; each is told. While
//! SIGINT or SIGTERM has a listener, it is the listener's: it stops no
//! [`App`](crate::app::App), and however often it comes, it does not end the
//! process.
//!
//! Handlers belong to the process. This module installs one for a signal when
//! the first listener for it begins, and puts back what was in force before when
//! the last one ends, unless the program has installed another since then. A
//! child made by `fork` inherits no listeners: until it begins to listen itself,
//! signals do there what they do by default.
//!
//! ```
//! use corespun::{app::App, signal::{SignalKind, Signals}};
//! use futures::StreamExt;
//!
//! let reloads = App::builder().block_on(async |_app| {
//!     let mut hangups = Signals::new([SignalKind::HANGUP])?;
//!     # nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP)?;
//!     // The user says `kill -HUP`.
//!     Ok::<_, std::io::Error>(hangups.next().await)
//! })??;
//! assert_eq!(reloads, Some(SignalKind::HANGUP));
//! # Ok::<(), std::io::Error>(())
//! ```

mod process;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;
use libc::c_int;
use nix::sys::signal::Signal;

use crate::sync::budget::poll_budget;
use crate::thread::local::Local;
pub(crate) use process::{Registration, Stoppable, register_app, shut_down_current_app, tell};

/// One of the signals, 1 to 64.
///
/// # Examples
///
/// ```
/// use corespun::signal::SignalKind;
///
/// assert_eq!(SignalKind::from_raw(15), SignalKind::TERMINATE);
/// assert_eq!(SignalKind::TERMINATE.to_string(), "SIGTERM");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalKind(c_int);

impl SignalKind {
    /// SIGALRM: a timer of the program's has run out.
    pub const ALARM: SignalKind = SignalKind(libc::SIGALRM);
    /// SIGCHLD: a child has ended or stopped.
    pub const CHILD: SignalKind = SignalKind(libc::SIGCHLD);
    /// SIGHUP: the terminal is gone; for daemons, to read the settings again.
    pub const HANGUP: SignalKind = SignalKind(libc::SIGHUP);
    /// SIGINT: Ctrl-C.
    pub const INTERRUPT: SignalKind = SignalKind(libc::SIGINT);
    /// SIGPIPE: a pipe without a reader was written to. Rust programs ignore it.
    pub const PIPE: SignalKind = SignalKind(libc::SIGPIPE);
    /// SIGQUIT: Ctrl-\.
    pub const QUIT: SignalKind = SignalKind(libc::SIGQUIT);
    /// SIGTERM: the process is to end.
    pub const TERMINATE: SignalKind = SignalKind(libc::SIGTERM);
    /// SIGUSR1.
    pub const USER1: SignalKind = SignalKind(libc::SIGUSR1);
    /// SIGUSR2.
    pub const USER2: SignalKind = SignalKind(libc::SIGUSR2);
    /// SIGWINCH: the terminal has another size.
    pub const WINDOW_CHANGE: SignalKind = SignalKind(libc::SIGWINCH);

    /// The signal of this number, of which [`Signals::new`] says whether one can
    /// listen for it.
    pub const fn from_raw(signal: i32) -> Self {
        SignalKind(signal)
    }

    /// Its number.
    pub const fn as_raw(self) -> i32 {
        self.0
    }

    /// Whether a handler can be installed for it, and may do no more than note it.
    fn can_be_heard(self) -> bool {
        const OWN: [c_int; 7] = [
            // Not to be handled.
            libc::SIGKILL,
            libc::SIGSTOP,
            // A fault of the instruction that is executed: to return to that would
            // raise it again.
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
        ];
        (1..=64).contains(&self.0) && !OWN.contains(&self.0)
    }
}

impl fmt::Display for SignalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for SignalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The signals of some kinds as they come. It never ends.
///
/// As with the kernel, several of one kind that come before the first is taken are
/// one. Those of different kinds come in the order of their numbers.
///
/// It may be sent, and awaited, anywhere; the last task that polled it is woken.
///
/// # Examples
///
/// A listener for SIGTERM decides what it does:
///
/// ```
/// use corespun::{app::App, signal::{SignalKind, Signals}};
///
/// let ended_by = App::builder().block_on(async |_app| {
///     let mut ends = Signals::new([SignalKind::INTERRUPT, SignalKind::TERMINATE])?;
///     # nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM)?;
///     Ok::<_, std::io::Error>(ends.recv().await)
/// })??;
/// assert_eq!(ended_by, SignalKind::TERMINATE);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "signals that nobody takes stop nothing while this lives"]
pub struct Signals {
    listener: Arc<process::Listener>,
    _registration: Registration,
}

impl Signals {
    /// Begins to listen for signals of these kinds.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for a signal that cannot be handled so
    /// (SIGKILL, SIGSTOP), or that the processor raises (SIGSEGV and its like), or
    /// for a number beyond 64; what the kernel refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::signal::{SignalKind, Signals};
    /// use std::io::ErrorKind;
    ///
    /// let hangups = Signals::new([SignalKind::HANGUP])?;
    /// let kill = Signals::new([SignalKind::from_raw(9)]);
    /// assert_eq!(kill.unwrap_err().kind(), ErrorKind::InvalidInput);
    /// # drop(hangups);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(kinds: impl IntoIterator<Item = SignalKind>) -> io::Result<Self> {
        let kinds: Vec<_> = kinds.into_iter().collect();
        if let Some(kind) = kinds.iter().find(|kind| !kind.can_be_heard()) {
            let text = format!("{kind} cannot be listened for");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // The delivery thread belongs beside the reactors, not on one's core.
        let cpus = Local::with_current(|local| local.shared.library.helpers.cpus()).flatten();
        let (registration, listener) =
            process::register_listener(kinds.iter().map(|kind| kind.0), cpus.as_ref())?;
        Ok(Signals {
            listener,
            _registration: registration,
        })
    }

    /// The next signal.
    ///
    /// # Cancel safety
    ///
    /// A signal is lost only with the `Signals`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::{signal::{SignalKind, Signals}, task};
    ///
    /// let mut users = Signals::new([SignalKind::USER1, SignalKind::USER2])?;
    /// # nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2)?;
    /// // `kill -USR2`
    /// assert_eq!(task::block_on(users.recv()), SignalKind::USER2);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn recv(&mut self) -> SignalKind {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`recv`](Self::recv), for futures that are written by hand.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::task::{Context, Waker};
    /// use corespun::signal::{SignalKind, Signals};
    ///
    /// let mut sizes = Signals::new([SignalKind::WINDOW_CHANGE])?;
    /// let mut cx = Context::from_waker(Waker::noop());
    /// assert!(sizes.poll_recv(&mut cx).is_pending());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<SignalKind> {
        let budget = ready!(poll_budget(cx));
        let mut signal = self.take();
        if signal.is_none() {
            self.listener.waker.register(cx.waker());
            // One that came before that found the waker of an earlier poll, or none.
            signal = self.take();
        }
        match signal {
            Some(signal) => {
                budget.progressed();
                Poll::Ready(signal)
            }
            None => Poll::Pending,
        }
    }

    fn take(&self) -> Option<SignalKind> {
        let pending = &self.listener.pending;
        let signal = process::signals(pending.load(Ordering::SeqCst)).next()?;
        // The delivery thread only adds others meanwhile.
        pending.fetch_and(!process::bit(signal), Ordering::SeqCst);
        Some(SignalKind(signal))
    }
}

impl Stream for Signals {
    type Item = SignalKind;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SignalKind>> {
        self.poll_recv(cx).map(Some)
    }
}

impl FusedStream for Signals {
    fn is_terminated(&self) -> bool {
        false
    }
}

/// Completes at the next Ctrl-C (SIGINT), counted from this call.
///
/// From now on until the result is dropped, SIGINT is its business alone: it does
/// not stop the app.
///
/// # Cancel safety
///
/// A Ctrl-C that came is lost only with the future.
///
/// # Examples
///
/// ```
/// use corespun::{app::App, signal};
///
/// App::builder().try_block_on(async |_app| {
///     let interrupted = signal::ctrl_c();
///     # nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT)?;
///     interrupted.await?;
///     println!("bye");
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn ctrl_c() -> CtrlC {
    CtrlC(Signals::new([SignalKind::INTERRUPT]).map_err(Some))
}

/// The next Ctrl-C; made by [`ctrl_c`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{app::App, signal, time};
///
/// let interrupted = App::builder().block_on(async |_app| {
///     time::timeout(Duration::from_millis(1), signal::ctrl_c()).await.is_ok()
/// })?;
/// assert!(!interrupted);
/// # Ok::<(), corespun::app::AppError>(())
/// ```
///
/// # Errors
///
/// If SIGINT cannot be listened for, which the kernel refuses only for want of
/// memory, descriptors or threads.
///
/// # Panics
///
/// If it is polled again after it has failed.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited, and this one keeps Ctrl-C from stopping the app"]
pub struct CtrlC(Result<Signals, Option<io::Error>>);

impl Future for CtrlC {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Ok(signals) => signals.poll_recv(cx).map(|_| Ok(())),
            Err(error) => {
                // Out of descriptors, a loop over it would be refused for ever.
                ready!(poll_budget(cx)).progressed();
                Poll::Ready(Err(error.take().expect("polled after it failed")))
            }
        }
    }
}

/// Runs what may be foreign code; a panic of it is logged.
fn contained<R>(f: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => Some(result),
        Err(payload) => {
            tracing::error!("what a signal was delivered to panicked");
            // Its destructor may panic in turn.
            std::mem::forget(payload);
            None
        }
    }
}
