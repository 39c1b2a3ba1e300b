//! File descriptor groups: many descriptors behind one, for loops that sleep.
//!
//! An [`FdGroup`] waits for its descriptors in an epoll of its own, and calls
//! the handler of each that is ready. Groups nest: what is in a nested group is
//! waited for by the outermost one, in one system call.
//!
//! Everything here belongs to one OS thread, and knows nothing of SpdkThreads.

mod dispatch;
mod epoll;
mod group;
mod readiness;

use std::io;
use std::os::fd::RawFd;

pub use group::FdGroup;
pub(crate) use group::Member;
pub use readiness::{FdHandlerState, FdKind, FdOptions, Readiness};

/// What may go wrong with a group of descriptors.
///
/// # Examples
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use corespun::interrupt::{FdGroup, FdGroupError, FdOptions};
///
/// let (_peer, socket) = UnixStream::pair()?;
/// let group = FdGroup::new()?;
/// assert!(matches!(group.remove(&socket), Err(FdGroupError::Unknown(_))));
/// group.add(&socket, FdOptions::default(), |_event| ())?;
/// let twice = group.add(&socket, FdOptions::default(), |_event| ());
/// assert!(matches!(twice, Err(FdGroupError::Exists(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FdGroupError {
    /// The group has this descriptor already.
    #[error("descriptor {0} is in this group already")]
    Exists(RawFd),
    /// The group does not have this descriptor.
    #[error("descriptor {0} is not in this group")]
    Unknown(RawFd),
    /// The group is nested in another, which waits in its place.
    #[error("the group is nested in another one; wait for that")]
    Nested,
    /// The group is not nested in that one.
    #[error("the group is not nested in that one")]
    NotNested,
    /// A group cannot be nested in itself.
    #[error("a group cannot be nested in itself or in one nested in it")]
    Cycle,
    /// The group has a wrapper, and so can have neither another nor children.
    #[error("the group has a wrapper")]
    HasWrapper,
    /// The group has children, and so cannot have a wrapper.
    #[error("the group has nested groups")]
    HasChildren,
    /// The kernel refused.
    #[error("descriptor group: {0}")]
    Os(#[from] io::Error),
}
