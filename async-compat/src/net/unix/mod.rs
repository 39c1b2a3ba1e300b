//! Unix sockets and pipes.

pub(super) mod datagram;
pub(super) mod listener;
pub mod pipe;
pub(super) mod socket;
mod socketaddr;
pub(super) mod split;
pub(super) mod stream;
mod ucred;

pub use socketaddr::SocketAddr;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use ucred::UCred;

/// The number of a process, as [`UCred`] has it.
#[expect(non_camel_case_types, reason = "tokio's name, and the C library's")]
pub type pid_t = i32;

/// The number of a user, as [`UCred`] has it.
#[expect(non_camel_case_types, reason = "tokio's name, and the C library's")]
pub type uid_t = u32;

/// The number of a group, as [`UCred`] has it.
#[expect(non_camel_case_types, reason = "tokio's name, and the C library's")]
pub type gid_t = u32;
