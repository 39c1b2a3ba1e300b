//! What a descriptor is ready for, how it is to be watched, and where its handler
//! stands.

/// What a descriptor is ready for: `EPOLL*` bits.
///
/// # Examples
///
/// ```
/// use corespun::interrupt::Readiness;
///
/// let both = Readiness::READABLE | Readiness::WRITABLE;
/// assert!(both.contains(Readiness::WRITABLE));
/// // As epoll knows it.
/// assert_eq!(Readiness::READABLE, Readiness(libc::EPOLLIN as u32));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness(pub u32);

impl Readiness {
    /// Something to read, a connection to accept, or the end of the other side.
    pub const READABLE: Readiness = Readiness(libc::EPOLLIN as u32);
    /// Room to write.
    pub const WRITABLE: Readiness = Readiness(libc::EPOLLOUT as u32);
    /// An error; always reported.
    pub const ERROR: Readiness = Readiness(libc::EPOLLERR as u32);

    /// Whether all of `other` is in this.
    pub fn contains(self, other: Readiness) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Readiness {
    type Output = Readiness;

    fn bitor(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }
}

/// What the group does with a ready descriptor before its handler is called.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, time::Duration};
/// use corespun::interrupt::{FdGroup, FdKind, FdOptions};
/// use nix::sys::eventfd::EventFd;
///
/// let (group, doorbell) = (FdGroup::new()?, EventFd::new()?);
/// let rings = Rc::new(Cell::new(0));
/// let counter = rings.clone();
/// let options = FdOptions { kind: FdKind::EventFd, ..FdOptions::default() };
/// group.add(&doorbell, options, move |_event| counter.set(counter.get() + 1))?;
/// doorbell.write(1)?;
/// group.wait(Some(Duration::ZERO))?;
/// // Read by the group: it is not ready any more.
/// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
/// assert_eq!(rings.get(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdKind {
    /// Nothing.
    #[default]
    Plain,
    /// It is an eventfd: its counter is read, and the handler is not called if
    /// there was nothing to read.
    EventFd,
}

/// How a descriptor is to be watched.
///
/// # Examples
///
/// ```
/// use corespun::interrupt::{Readiness, FdKind, FdOptions};
///
/// let options = FdOptions {
///     events: Readiness::READABLE | Readiness::WRITABLE,
///     name: "client 7".to_owned(),
///     ..FdOptions::default()
/// };
/// assert_eq!(options.kind, FdKind::Plain);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdOptions {
    /// What for; readable unless set.
    pub events: Readiness,
    /// What it is.
    pub kind: FdKind,
    /// A name for introspection.
    pub name: String,
}

impl Default for FdOptions {
    fn default() -> Self {
        FdOptions {
            events: Readiness::READABLE,
            kind: FdKind::Plain,
            name: String::new(),
        }
    }
}

/// Where a handler stands.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc, time::Duration};
/// use corespun::interrupt::{Readiness, FdGroup, FdHandlerState, FdOptions};
///
/// let group = Rc::new(FdGroup::new()?);
/// let (_peer, socket) = UnixStream::pair()?;
/// let socket = Rc::new(socket);
/// let options = FdOptions { events: Readiness::WRITABLE, ..FdOptions::default() };
/// let (here, fd) = (group.clone(), socket.clone());
/// let inside = Rc::new(Cell::new(None));
/// let seen = inside.clone();
/// group.add(&socket, options, move |_event| seen.set(here.handler(&fd).map(|found| found.1)))?;
/// assert_eq!(group.handler(&socket).unwrap().1, FdHandlerState::Waiting);
/// group.wait(Some(Duration::ZERO))?;
/// assert_eq!(inside.get(), Some(FdHandlerState::Running));
/// # group.remove(&socket)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdHandlerState {
    /// Waits for its descriptor.
    Waiting,
    /// Its descriptor is in the batch of events being worked on.
    Running,
    /// Was taken out of its group.
    Removed,
}
