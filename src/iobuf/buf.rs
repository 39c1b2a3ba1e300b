//! One buffer, owned: its owner may write it, from any thread, and it goes
//! back when it is dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::Class;
use super::pool::{Pool, Pools};
use super::queue;
use crate::io::{IoBuf, IoBufMut};

/// A buffer out of a pool, zeroed when the pool was made and as its last user
/// left it after that. As long as its class says, which may be more than was
/// asked for, and aligned to 4 KiB.
///
/// Dropping it gives it back (`spdk_iobuf_put`): to the waiter of this thread
/// that has waited longest, else to a waiter elsewhere, else to the cache of the
/// channel that it came from, else to the pool. It may be dropped on any thread,
/// also after the pools were finished.
///
/// # Examples
///
/// ```
/// use corespun::{iobuf::Iobuf, thread::ThreadLib};
///
/// let mut runner = ThreadLib::new().thread().build()?.attach();
/// let iobuf = runner.enter(|| Iobuf::builder().small(64, 4096).large(8, 8192).build())?;
/// iobuf.register_module("null")?;
/// let channel = runner.enter(|| iobuf.channel("null", 0, 0))?;
/// let free = iobuf.free_counts();
/// let mut buffer = channel.try_get(512)?.unwrap();
/// assert_eq!((buffer.len(), buffer.as_ptr().addr() % 4096), (4096, 0));
/// buffer[..4].copy_from_slice(b"data");
/// // It may be dropped on any thread.
/// std::thread::spawn(move || drop(buffer)).join().unwrap();
/// assert_eq!(iobuf.free_counts(), free);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IobufBuf {
    inner: Arc<Pools>,
    index: u32,
    node: u16,
    class: Class,
    home: Home,
}

/// The channel that a buffer came from, where it may be cached: its number among
/// those of the same pools, so that it says something beside them only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Home(pub(super) u64);

impl Home {
    /// In no cache.
    pub(super) const NONE: Home = Home(0);
}

impl IobufBuf {
    /// The index must have come out of the pool's free queue or a cache, and
    /// goes into no other `IobufBuf`.
    pub(super) fn new(inner: Arc<Pools>, index: u32, node: u16, class: Class, home: Home) -> Self {
        IobufBuf {
            inner,
            index,
            node,
            class,
            home,
        }
    }

    fn pool(&self) -> &Pool {
        self.inner.pool(self.node, self.class)
    }

    /// Gives up the buffer without putting it back.
    pub(super) fn into_index(self) -> u32 {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the reference is taken over once.
        drop(unsafe { std::ptr::read(&this.inner) });
        this.index
    }

    pub(super) fn inner(&self) -> &Arc<Pools> {
        &self.inner
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl Deref for IobufBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let arena = &self.pool().arena;
        // SAFETY: the memory is initialised, lives as long as `inner`, and only
        // the one `IobufBuf` of this index reaches it.
        unsafe { std::slice::from_raw_parts(arena.buffer(self.index).as_ptr(), arena.size()) }
    }
}

impl DerefMut for IobufBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let arena = &self.pool().arena;
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(arena.buffer(self.index).as_ptr(), arena.size()) }
    }
}

// SAFETY: the address depends on the index only; the memory is initialised and
// has no other user while the value lives.
unsafe impl IoBuf for IobufBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; all of it is initialised.
unsafe impl IoBufMut for IobufBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }

    unsafe fn set_init(&mut self, _len: usize) {}
}

impl Drop for IobufBuf {
    fn drop(&mut self) {
        queue::put(&self.inner, self.index, self.node, self.class, self.home);
    }
}

impl fmt::Debug for IobufBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IobufBuf")
            .field("class", &self.class)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
