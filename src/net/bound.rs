//! Why a socket cannot be sent, in the compiler's own words.

use std::marker::PhantomData;

/// Named by the compiler when a socket is sent to another OS thread: it belongs to the I/O driver of
/// the one it was made on. Take it out with `into_std`, send that, and wrap it there with `from_std`;
/// or use a [`SharedFd`](crate::io::SharedFd), or `corespun-compat`'s sockets, which may be sent.
#[expect(unreachable_pub, reason = "the compiler names it where it refuses")]
pub trait UseIntoStdToSendItToAnotherThread {}

/// A part of everything that stays on its OS thread; first, so that the compiler names it.
#[derive(Default)]
pub(super) struct Bound(PhantomData<dyn UseIntoStdToSendItToAnotherThread>);

impl Unpin for Bound {}
