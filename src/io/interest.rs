//! What is waited for on a descriptor, and what a wait has found: two small sets of bits.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

use nix::sys::epoll::EpollFlags;

use super::readiness::Direction;

/// What a descriptor is watched for. Never empty.
///
/// # Examples
///
/// ```
/// use corespun::io::Interest;
///
/// let both = Interest::READABLE | Interest::WRITABLE;
/// assert!(both.is_readable() && both.is_writable() && !both.is_priority());
/// assert_eq!(both.remove(Interest::WRITABLE), Some(Interest::READABLE));
/// assert_eq!(Interest::READABLE.remove(Interest::READABLE), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Data to read, or the end of it.
    pub const READABLE: Interest = Interest(1);
    /// Room to write.
    pub const WRITABLE: Interest = Interest(2);
    /// Urgent data (`EPOLLPRI`).
    pub const PRIORITY: Interest = Interest(4);
    /// An error of the descriptor (`EPOLLERR`).
    pub const ERROR: Interest = Interest(8);

    /// Whether it holds [`READABLE`](Self::READABLE).
    pub const fn is_readable(self) -> bool {
        self.0 & Self::READABLE.0 != 0
    }

    /// Whether it holds [`WRITABLE`](Self::WRITABLE).
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITABLE.0 != 0
    }

    /// Whether it holds [`PRIORITY`](Self::PRIORITY).
    pub const fn is_priority(self) -> bool {
        self.0 & Self::PRIORITY.0 != 0
    }

    /// Whether it holds [`ERROR`](Self::ERROR).
    pub const fn is_error(self) -> bool {
        self.0 & Self::ERROR.0 != 0
    }

    /// Both together; the same as `|`, in a constant.
    #[must_use]
    pub const fn add(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }

    /// What is left without `other`; `None` if that is nothing.
    #[must_use]
    pub const fn remove(self, other: Interest) -> Option<Interest> {
        match self.0 & !other.0 {
            0 => None,
            left => Some(Interest(left)),
        }
    }

    /// The edge-triggered events that tell of it.
    pub(crate) fn epoll_flags(self) -> EpollFlags {
        let mut flags = EpollFlags::EPOLLET;
        if self.is_readable() {
            flags |= EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        }
        if self.is_writable() {
            flags |= EpollFlags::EPOLLOUT;
        }
        if self.is_priority() {
            flags |= EpollFlags::EPOLLPRI;
        }
        flags
    }

    /// The direction that a wait for it belongs to.
    pub(crate) fn direction(self) -> Direction {
        match self.0 == Self::WRITABLE.0 {
            true => Direction::Write,
            false => Direction::Read,
        }
    }
}

impl BitOr for Interest {
    type Output = Interest;

    fn bitor(self, other: Interest) -> Interest {
        self.add(other)
    }
}

impl BitOrAssign for Interest {
    fn bitor_assign(&mut self, other: Interest) {
        *self = self.add(other);
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::READABLE, "READABLE"),
            (Self::WRITABLE, "WRITABLE"),
            (Self::PRIORITY, "PRIORITY"),
            (Self::ERROR, "ERROR"),
        ];
        let mut between = "";
        for (interest, name) in names {
            if self.0 & interest.0 != 0 {
                write!(f, "{between}{name}")?;
                between = " | ";
            }
        }
        Ok(())
    }
}

/// What a descriptor was seen to be ready for.
///
/// # Examples
///
/// ```
/// use corespun::io::Ready;
///
/// // The peer has closed: a read will not block.
/// assert!(Ready::READ_CLOSED.is_readable());
/// assert_eq!(Ready::READABLE | Ready::WRITABLE - Ready::WRITABLE, Ready::READABLE);
/// assert!(Ready::EMPTY.is_empty());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ready(u16);

impl Ready {
    /// Nothing.
    pub const EMPTY: Ready = Ready(0);
    /// Data to read.
    pub const READABLE: Ready = Ready(1);
    /// Room to write.
    pub const WRITABLE: Ready = Ready(2);
    /// The reading side is at its end.
    pub const READ_CLOSED: Ready = Ready(4);
    /// The writing side is closed.
    pub const WRITE_CLOSED: Ready = Ready(8);
    /// Urgent data.
    pub const PRIORITY: Ready = Ready(16);
    /// An error of the descriptor.
    pub const ERROR: Ready = Ready(32);
    /// All of these.
    pub const ALL: Ready = Ready(63);

    /// Whether it is [`EMPTY`](Self::EMPTY).
    pub fn is_empty(self) -> bool {
        self == Ready::EMPTY
    }

    /// Whether a read would not block: data, or the end of it.
    pub fn is_readable(self) -> bool {
        self.intersects(Ready::READABLE | Ready::READ_CLOSED)
    }

    /// Whether a write would not block: room, or a closed side.
    pub fn is_writable(self) -> bool {
        self.intersects(Ready::WRITABLE | Ready::WRITE_CLOSED)
    }

    /// Whether it holds [`READ_CLOSED`](Self::READ_CLOSED).
    pub fn is_read_closed(self) -> bool {
        self.intersects(Ready::READ_CLOSED)
    }

    /// Whether it holds [`WRITE_CLOSED`](Self::WRITE_CLOSED).
    pub fn is_write_closed(self) -> bool {
        self.intersects(Ready::WRITE_CLOSED)
    }

    /// Whether it holds [`PRIORITY`](Self::PRIORITY).
    pub fn is_priority(self) -> bool {
        self.intersects(Ready::PRIORITY)
    }

    /// Whether it holds [`ERROR`](Self::ERROR).
    pub fn is_error(self) -> bool {
        self.intersects(Ready::ERROR)
    }

    pub(crate) fn intersects(self, other: Ready) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn bits(self) -> u64 {
        self.0.into()
    }

    pub(crate) fn from_bits(bits: u64) -> Ready {
        Ready(bits as u16 & Ready::ALL.0)
    }

    /// What answers a wait for `interest`.
    pub(crate) fn answering(interest: Interest) -> Ready {
        let mut ready = Ready::EMPTY;
        if interest.is_readable() {
            ready |= Ready::READABLE | Ready::READ_CLOSED;
        }
        if interest.is_writable() {
            ready |= Ready::WRITABLE | Ready::WRITE_CLOSED;
        }
        if interest.is_priority() {
            ready |= Ready::PRIORITY | Ready::READ_CLOSED;
        }
        if interest.is_error() {
            ready |= Ready::ERROR;
        }
        ready
    }

    /// What an epoll event says.
    pub(crate) fn from_epoll(flags: EpollFlags) -> Ready {
        let has = |wanted| flags.contains(wanted);
        let mut ready = Ready::EMPTY;
        if has(EpollFlags::EPOLLIN) || has(EpollFlags::EPOLLPRI) {
            ready |= Ready::READABLE;
        }
        if has(EpollFlags::EPOLLOUT) {
            ready |= Ready::WRITABLE;
        }
        if has(EpollFlags::EPOLLHUP) || has(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            ready |= Ready::READ_CLOSED;
        }
        // An error by itself is how the reader of a pipe, or the receiver of a broken connection,
        // that has gone is told.
        if has(EpollFlags::EPOLLHUP)
            || has(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR)
            || flags == EpollFlags::EPOLLERR
        {
            ready |= Ready::WRITE_CLOSED;
        }
        if has(EpollFlags::EPOLLPRI) {
            ready |= Ready::PRIORITY;
        }
        if has(EpollFlags::EPOLLERR) {
            ready |= Ready::ERROR;
        }
        ready
    }
}

impl BitOr for Ready {
    type Output = Ready;

    fn bitor(self, other: Ready) -> Ready {
        Ready(self.0 | other.0)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Ready) {
        self.0 |= other.0;
    }
}

impl BitAnd for Ready {
    type Output = Ready;

    fn bitand(self, other: Ready) -> Ready {
        Ready(self.0 & other.0)
    }
}

impl Sub for Ready {
    type Output = Ready;

    fn sub(self, other: Ready) -> Ready {
        Ready(self.0 & !other.0)
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("is_readable", &self.is_readable())
            .field("is_writable", &self.is_writable())
            .field("is_read_closed", &self.is_read_closed())
            .field("is_write_closed", &self.is_write_closed())
            .field("is_error", &self.is_error())
            .field("is_priority", &self.is_priority())
            .finish()
    }
}
