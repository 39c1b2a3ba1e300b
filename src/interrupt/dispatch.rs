//! The wait of a tree's root, and the calls of the handlers that it leads to.
//!
//! A panic of a handler, a wrapper or a destructor of either is caught where it
//! leaves them, the handler is removed, and the rest of the batch has its turn.

use std::any::Any;
use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use super::group::{Group, Handler};
use super::{FdGroup, FdGroupError, FdHandlerState, FdKind, Readiness};

/// What a handler panicked with.
pub(super) type Payload = Box<dyn Any + Send>;

pub(super) fn contain(f: impl FnOnce()) -> Result<(), Payload> {
    // What it leaves half-changed is the program's own.
    catch_unwind(AssertUnwindSafe(f))
}

/// The end of a payload that no caller receives.
pub(super) fn report_and_forget(name: &str, payload: Payload) {
    tracing::error!(name, "a handler of a descriptor group panicked");
    if let Err(second) = contain(|| drop(payload)) {
        std::mem::forget(second);
    }
}

impl FdGroup {
    /// Waits for up to `timeout` (`None`: for ever) and calls the handler of
    /// each descriptor that is ready. Says how many were.
    ///
    /// A nested group finds nothing, since the outermost waits in its place.
    ///
    /// # Errors
    ///
    /// [`FdGroupError::Nested`] for a nested group that would wait for ever;
    /// the kernel's, `Interrupted` by a signal among them; and that of reading
    /// an eventfd, after all other handlers were called.
    ///
    /// # Panics
    ///
    /// When a handler does, or its destructor, after all other handlers were
    /// called. A handler that panicked is removed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::Write, os::unix::net::UnixStream, time::Duration};
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let pairs = [UnixStream::pair()?, UnixStream::pair()?];
    /// let group = FdGroup::new()?;
    /// for (_peer, socket) in &pairs {
    ///     group.add(socket, FdOptions::default(), |_event| ())?;
    /// }
    /// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
    /// for (mut peer, _socket) in pairs.each_ref().map(|(peer, socket)| (peer, socket)) {
    ///     peer.write_all(b"x")?;
    /// }
    /// assert_eq!(group.wait(None)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self, timeout: Option<Duration>) -> Result<usize, FdGroupError> {
        let mut first = None;
        let waited = self.wait_with(timeout, &mut |name, outcome| match outcome {
            Err(payload) if first.is_none() => first = Some(payload),
            Err(payload) => report_and_forget(name, payload),
            Ok(()) => {}
        });
        match first {
            Some(payload) => resume_unwind(payload),
            None => waited,
        }
    }

    /// As [`FdGroup::wait`]; after each call of a handler, and when its destructor
    /// has panicked, `told` hears of it, with the handler's name.
    pub(crate) fn wait_with(
        &self,
        timeout: Option<Duration>,
        told: &mut dyn FnMut(&str, Result<(), Payload>),
    ) -> Result<usize, FdGroupError> {
        let root = &self.group;
        if root.parent.borrow().is_some() {
            return match timeout {
                None => Err(FdGroupError::Nested),
                Some(_) => Ok(0),
            };
        }
        let none = libc::epoll_event { events: 0, u64: 0 };
        let mut few = [none; 16];
        let mut many = Vec::new();
        let capacity = self.fd_count().max(1);
        let events = if capacity <= few.len() {
            &mut few[..capacity]
        } else {
            many.resize(capacity, none);
            &mut many[..]
        };
        let millis = timeout.map_or(-1, |timeout| {
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX)
        });
        let count = root.epoll.wait(events, millis)?;
        if count == 0 {
            return Ok(0);
        }
        let fired: Vec<_> = {
            let table = root.table.borrow();
            let find = |event: &libc::epoll_event| {
                let (data, ready) = (event.u64, event.events);
                let handler = table.get(&(data as u32 as RawFd))?;
                (handler.data() == data).then(|| (handler.clone(), Readiness(ready)))
            };
            events[..count].iter().filter_map(find).collect()
        };
        for (handler, _) in &fired {
            handler.state.set(FdHandlerState::Running);
        }
        let mut failed = None;
        for (place, (handler, event)) in fired.into_iter().enumerate() {
            if let Err(error) = root.dispatch(&handler, event, place > 0, told) {
                failed = Some(error);
            }
            if handler.state.get() == FdHandlerState::Running {
                handler.state.set(FdHandlerState::Waiting);
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(count),
        }
    }

    /// The event that the handler being called was called for.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::interrupt::{Readiness, FdGroup, FdOptions};
    ///
    /// let group = Rc::new(FdGroup::new()?);
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let (here, seen) = (group.clone(), Rc::new(Cell::new(None)));
    /// let inside = seen.clone();
    /// let options = FdOptions { events: Readiness::WRITABLE, ..FdOptions::default() };
    /// group.add(&socket, options, move |_event| inside.set(here.current_event()))?;
    /// group.wait(None)?;
    /// assert_eq!(seen.get(), Some(Readiness::WRITABLE));
    /// assert_eq!(group.current_event(), None);
    /// # group.remove(&socket)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn current_event(&self) -> Option<Readiness> {
        self.group.root().current.get()
    }
}

impl Group {
    /// Calls a handler, `later` than another of the batch or not.
    fn dispatch(
        &self,
        handler: &Rc<Handler>,
        event: Readiness,
        later: bool,
        told: &mut dyn FnMut(&str, Result<(), Payload>),
    ) -> io::Result<()> {
        // An earlier handler of the batch may have removed it.
        if handler.state.get() == FdHandlerState::Removed {
            return Ok(());
        }
        if handler.kind == FdKind::EventFd {
            // Or closed it, and what has its number is not to be read.
            if later && !self.is_open(handler) || !read_counter(handler.fd)? {
                return Ok(());
            }
        }
        let Some(mut callback) = handler.callback.take() else {
            return Ok(());
        };
        let group = handler.group.upgrade();
        let wrapper = group.as_ref().and_then(|group| {
            let wrapper = group.wrapper.borrow();
            wrapper.clone()
        });
        let before = self.current.replace(Some(event));
        let call = &mut callback;
        let outcome = contain(move || match wrapper {
            Some(wrapper) => wrapper(&mut || call(event)),
            None => call(event),
        });
        self.current.set(before);
        if outcome.is_err()
            && let Some(group) = &group
        {
            // It would be ready, and panic, again at once.
            group.remove(handler);
        }
        // The last reference, if the handler ended its group.
        drop(group);
        told(&handler.name, outcome);
        if handler.state.get() != FdHandlerState::Removed {
            handler.callback.set(Some(callback));
        } else if let Err(payload) = contain(|| drop(callback)) {
            told(&handler.name, Err(payload));
        }
        Ok(())
    }
}

/// Reads an eventfd's counter; `false` if it was zero.
fn read_counter(fd: RawFd) -> io::Result<bool> {
    let mut counter = 0u64;
    // SAFETY: the buffer is eight bytes.
    let count = unsafe { libc::read(fd, (&raw mut counter).cast(), 8) };
    if count >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}
