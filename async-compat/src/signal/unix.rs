//! Signals of any kind.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use corespun::signal::Signals;

use crate::runtime::context;

/// A kind of signal.
///
/// # Examples
///
/// ```
/// use corespun_compat::signal::unix::SignalKind;
///
/// assert_eq!(SignalKind::terminate(), SignalKind::from_raw(15));
/// ```
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct SignalKind(i32);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $signal:ident;)*) => {$(
        $(#[$doc])*
        pub const fn $name() -> Self {
            SignalKind(libc::$signal)
        }
    )*};
}

impl SignalKind {
    /// The signal of this number, of which [`signal`] says whether one can listen for it.
    pub const fn from_raw(signum: std::os::raw::c_int) -> Self {
        SignalKind(signum)
    }

    /// Its number.
    pub const fn as_raw_value(&self) -> std::os::raw::c_int {
        self.0
    }

    kinds! {
        /// SIGALRM: a timer of the program's has run out.
        alarm = SIGALRM;
        /// SIGCHLD: a child has ended or stopped.
        child = SIGCHLD;
        /// SIGHUP: the terminal is gone; for daemons, to read the settings again.
        hangup = SIGHUP;
        /// SIGINT: Ctrl-C.
        interrupt = SIGINT;
        /// SIGIO: I/O is possible.
        io = SIGIO;
        /// SIGPIPE: a pipe without a reader was written to. Rust programs ignore it.
        pipe = SIGPIPE;
        /// SIGQUIT: Ctrl-\.
        quit = SIGQUIT;
        /// SIGTERM: the process is to end.
        terminate = SIGTERM;
        /// SIGUSR1.
        user_defined1 = SIGUSR1;
        /// SIGUSR2.
        user_defined2 = SIGUSR2;
        /// SIGWINCH: the terminal has another size.
        window_change = SIGWINCH;
    }
}

impl From<std::os::raw::c_int> for SignalKind {
    fn from(signum: std::os::raw::c_int) -> Self {
        SignalKind(signum)
    }
}

impl From<SignalKind> for std::os::raw::c_int {
    fn from(kind: SignalKind) -> Self {
        kind.0
    }
}

/// One listener for each kind that was ever listened for: as with tokio, the default effect does not
/// come back. Handlers belong to the process, and so does this.
static KEPT: Mutex<BTreeMap<i32, Signals>> = Mutex::new(BTreeMap::new());

/// The signals of one kind as they come; several that come before the first is taken are one.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// use tokio::signal::unix::{SignalKind, signal};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mut hangups = signal(SignalKind::hangup())?;
/// # nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP)?;
/// // Somebody says `kill -HUP`.
/// assert_eq!(hangups.recv().await, Some(()));
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
#[must_use = "signals are lost unless they are taken"]
pub struct Signal(Signals);

/// Listens for signals of a kind, from now on.
///
/// The default effect of the signal is taken away from the process for good.
///
/// # Errors
///
/// For a signal that cannot be handled (SIGKILL, SIGSTOP), or that the processor raises (SIGSEGV and its
/// like), or a number that there is not; what the kernel refuses.
///
/// # Panics
///
/// Outside of a runtime.
#[track_caller]
pub fn signal(kind: SignalKind) -> io::Result<Signal> {
    match context::current_rc() {
        Ok(handle) => handle.check_io(),
        Err(error) => panic!("{error}"),
    }
    let listen = || Signals::new([corespun::signal::SignalKind::from_raw(kind.0)]);
    let signals = listen()?;
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let std::collections::btree_map::Entry::Vacant(place) = kept.entry(kind.0) {
        place.insert(listen()?);
    }
    Ok(Signal(signals))
}

impl Signal {
    /// The next signal. `None` never comes.
    ///
    /// # Cancel safety
    ///
    /// Safe: a signal that came is given to the next call.
    pub async fn recv(&mut self) -> Option<()> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`recv`](Self::recv), in a `poll` function.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.0.poll_recv(cx).map(|_| Some(()))
    }
}
