//! Between this crate and crates that bring their own traits for I/O, tasks and timers.
//!
//! | from | to | how |
//! |---|---|---|
//! | tokio's I/O traits | futures' | [`TokioAsFutures`] |
//! | futures' I/O traits, so corespun's own sockets too | tokio's | [`FuturesAsTokio`] |
//! | tokio's I/O traits | hyper's | [`TokioAsHyper`] (feature `hyper`) |
//! | hyper's I/O traits | tokio's | [`HyperAsTokio`] (feature `hyper`) |
//! | a runtime | hyper's `Executor` and `Timer` | [`HyperExecutor`], [`HyperLocalExecutor`], [`HyperTimer`] (feature `hyper`) |
//! | futures' I/O traits | hyper's, and back | two of those: `TokioAsHyper<FuturesAsTokio<T>>`, `TokioAsFutures<HyperAsTokio<T>>` |
//! | tokio's I/O traits | those of `embedded-io-async` | `FromTokio` of the crate `embedded-io-adapters` |
//! | a runtime | futures' `Spawn` and `LocalSpawn` | [`Handle`](crate::runtime::Handle), [`LocalSpawner`] |
//! | a runtime | opendal's `Execute` | [`Handle`](crate::runtime::Handle) (feature `opendal`) |
//! | a runtime | an `async_executor::Executor` | a task that runs it: `spawn(async move { executor.run(pending::<()>()).await })` |
//!
//! The I/O adapters are transparent: they keep no bytes, so that one can be taken off at any time, and
//! vectored writes stay vectored.
//!
//! # Examples
//!
//! One of corespun's own sockets, where tokio's traits are asked for:
//!
//! ```
//! # use corespun_compat as tokio;
//! use corespun_compat::adapters::FuturesAsTokio;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let (one, other) = corespun::net::UnixStream::pair()?;
//! let (mut one, mut other) = (FuturesAsTokio::new(one), FuturesAsTokio::new(other));
//! one.write_all(b"ping").await?;
//! one.shutdown().await?;
//! let mut all = Vec::new();
//! other.read_to_end(&mut all).await?;
//! assert_eq!(all, b"ping");
//! # std::io::Result::Ok(())
//! # }).unwrap();
//! ```

mod futures_io;
#[cfg(feature = "hyper")]
mod hyper_io;
#[cfg(feature = "hyper")]
mod hyper_rt;
mod spawn;

pub use futures_io::{FuturesAsTokio, TokioAsFutures};
#[cfg(feature = "hyper")]
pub use hyper_io::{HyperAsTokio, TokioAsHyper};
#[cfg(feature = "hyper")]
pub use hyper_rt::{HyperExecutor, HyperLocalExecutor, HyperTimer};
pub use spawn::LocalSpawner;

/// What every adapter has: the inside, and a pinned way to it.
macro_rules! wrapper {
    ($adapter:ident { $($field:ident: $type:ty),* }) => {
        impl<T> $adapter<T> {
            /// Wraps `inner`.
            pub fn new(inner: T) -> Self {
                $adapter {
                    inner,
                    $($field: <$type>::default(),)*
                }
            }

            /// What is inside.
            pub fn get_ref(&self) -> &T {
                &self.inner
            }

            /// What is inside.
            pub fn get_mut(&mut self) -> &mut T {
                &mut self.inner
            }

            /// Gives what is inside.
            pub fn into_inner(self) -> T {
                self.inner
            }
        }
    };
}

use wrapper;
