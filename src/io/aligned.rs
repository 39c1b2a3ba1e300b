//! Aligned buffers for direct I/O, and the per-driver pool that recycles them.
//!
//! O_DIRECT wants address, offset and length aligned to the device's logical block (512 or 4096
//! bytes). The pool belongs to one OS thread, so taking and returning a buffer touches no atomic.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use super::buf::{IoBuf, IoBufMut};
use super::fixed::KnownBuf;

/// The alignment pooled buffers have: the page, which satisfies every device met so far.
pub const POOL_ALIGN: usize = 4096;

/// An owned, zeroed, aligned run of bytes.
///
/// # Examples
///
/// ```
/// use corespun::io::AlignedBuf;
///
/// let buf = AlignedBuf::zeroed(8192, 4096);
/// assert_eq!(buf.as_ptr().addr() % 4096, 0);
/// assert!(buf.iter().all(|&byte| byte == 0));
/// ```
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory alone, like a Box<[u8]>.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len` zero bytes at a multiple of `align`.
    ///
    /// # Panics
    ///
    /// If `align` is not a power of two, or `len` rounded up to it is more than `isize::MAX`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::AlignedBuf;
    ///
    /// let mut sector = AlignedBuf::zeroed(512, 512);
    /// sector[..4].copy_from_slice(b"boot");
    /// assert_eq!((sector.len(), sector.as_ptr().addr() % 512), (512, 0));
    /// ```
    #[track_caller]
    pub fn zeroed(len: usize, align: usize) -> Self {
        assert!(
            align.is_power_of_two(),
            "no buffer of {len} bytes aligned to {align}: align must be a power of two"
        );
        let Ok(layout) = Layout::from_size_align(len, align) else {
            too_long(len, align)
        };
        if len == 0 {
            // Dangling but aligned, as an empty Vec's.
            let ptr = std::ptr::without_provenance_mut(layout.align());
            let ptr = NonNull::new(ptr).expect("an alignment is not zero");
            return AlignedBuf { ptr, layout };
        }
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuf { ptr, layout }
    }
}

#[cold]
#[track_caller]
fn too_long(len: usize, align: usize) -> ! {
    panic!("no buffer of {len} bytes aligned to {align}: a buffer has at most isize::MAX bytes")
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `zeroed` allocated and initialised that many bytes (or a dangling pointer and 0).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "AlignedBuf({} bytes, aligned to {})",
            self.layout.size(),
            self.layout.align()
        )
    }
}

// SAFETY: heap memory, freed only by drop.
unsafe impl IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.layout.size()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for AlignedBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.layout.size()
    }
    unsafe fn set_init(&mut self, _len: usize) {}
}

/// Idle buffers of one driver, by size class: 4 KiB, 8 KiB, … 1 MiB.
#[derive(Debug)]
pub(crate) struct BufPool {
    classes: RefCell<[Vec<Pooled>; CLASSES]>,
    /// Of those that the ring does not know.
    idle_bytes: Cell<usize>,
    max_idle_bytes: usize,
    /// What the ring may yet be told of.
    unregistered_bytes: Cell<usize>,
    registered_bytes: usize,
}

/// A buffer, and its number if the ring knows it: then it stays in the pool for good, because the
/// ring does not forget it.
#[derive(Debug)]
struct Pooled {
    buf: AlignedBuf,
    number: Option<u16>,
}

const CLASSES: usize = 9;
pub(super) const SMALLEST: usize = 4096;

/// The class that holds `len` bytes, or None when it is too large to be pooled.
fn class_of(len: usize) -> Option<usize> {
    let pages = len.div_ceil(SMALLEST).max(1).next_power_of_two();
    let class = pages.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl BufPool {
    /// Of the bytes that are kept, so many may be registered with the ring.
    pub(crate) fn new(max_idle_bytes: usize, registered_bytes: usize) -> Rc<Self> {
        let registered_bytes = registered_bytes.min(max_idle_bytes);
        Rc::new(BufPool {
            classes: RefCell::default(),
            idle_bytes: Cell::new(0),
            max_idle_bytes: max_idle_bytes - registered_bytes,
            unregistered_bytes: Cell::new(registered_bytes),
            registered_bytes,
        })
    }

    /// `register` tells the ring of a new buffer, of which there are so many bytes at most, and gives
    /// its number.
    #[track_caller]
    pub(crate) fn take(
        self: &Rc<Self>,
        len: usize,
        register: impl FnOnce(&AlignedBuf, usize) -> Option<u16>,
    ) -> PooledBuf {
        let class = class_of(len);
        let recycled = class.and_then(|class| self.classes.borrow_mut()[class].pop());
        let buf = match (recycled, class) {
            (Some(pooled), _) => {
                if pooled.number.is_none() {
                    self.idle_bytes
                        .set(self.idle_bytes.get() - pooled.buf.len());
                }
                pooled
            }
            (None, Some(class)) => {
                let buf = AlignedBuf::zeroed(SMALLEST << class, POOL_ALIGN);
                let number = self.register(&buf, register);
                Pooled { buf, number }
            }
            (None, None) => match len.checked_next_multiple_of(POOL_ALIGN) {
                Some(whole) if isize::try_from(whole).is_ok() => Pooled {
                    buf: AlignedBuf::zeroed(whole, POOL_ALIGN),
                    number: None,
                },
                _ => too_long(len, POOL_ALIGN),
            },
        };
        PooledBuf {
            buf: ManuallyDrop::new(buf),
            len,
            pool: self.clone(),
        }
    }

    fn register(
        &self,
        buf: &AlignedBuf,
        register: impl FnOnce(&AlignedBuf, usize) -> Option<u16>,
    ) -> Option<u16> {
        let left = self.unregistered_bytes.get().checked_sub(buf.len())?;
        let number = register(buf, self.registered_bytes);
        // A refusal lasts.
        let left = number.map_or(0, |_| left);
        self.unregistered_bytes.set(left);
        number
    }

    fn give_back(&self, pooled: Pooled) {
        let len = pooled.buf.len();
        if pooled.number.is_none() {
            let idle = self.idle_bytes.get() + len;
            if class_of(len).is_none() || idle > self.max_idle_bytes {
                return;
            }
            self.idle_bytes.set(idle);
        }
        let class = class_of(len).expect("a registered buffer has a class");
        self.classes.borrow_mut()[class].push(pooled);
    }
}

/// An aligned buffer from [`Driver::buffer`](super::Driver::buffer); dropping it returns it to the
/// driver's pool. Bound to its OS thread.
///
/// Its bytes are initialised but arbitrary: a recycled buffer holds what its last user left.
///
/// # Examples
///
/// ```
/// use corespun::{fs::File, io::Driver};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let zero = File::open("/dev/zero").await?;
/// let mut buf = Driver::current().unwrap().buffer(4096);
/// buf.fill(1);
/// // A recycled one is not cleared: what was not read is not to be relied on.
/// let (read, buf) = zero.read_at(buf, 0).await;
/// assert!(buf[..read?].iter().all(|&byte| byte == 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PooledBuf {
    buf: ManuallyDrop<Pooled>,
    len: usize,
    pool: Rc<BufPool>,
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        // SAFETY: taken once, here; nothing reads `buf` after drop.
        let buf = unsafe { ManuallyDrop::take(&mut self.buf) };
        self.pool.give_back(buf);
    }
}

impl Deref for PooledBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf.buf[..self.len]
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buf.buf[..self.len]
    }
}

impl std::fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PooledBuf({} of {} bytes)", self.len, self.buf.buf.len())
    }
}

// SAFETY: the bytes are AlignedBuf's; the pool gets them back only on drop.
unsafe impl IoBuf for PooledBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.buf.buf.stable_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len
    }
    fn known(&self) -> Option<KnownBuf> {
        let number = self.buf.number?;
        let pool = Rc::as_ptr(&self.pool);
        Some(KnownBuf { pool, number })
    }
}

// SAFETY: as above; `len` never exceeds the allocation (`take` chose it so).
unsafe impl IoBufMut for PooledBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buf.buf.stable_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.len
    }
    unsafe fn set_init(&mut self, _len: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unasked(_: &AlignedBuf, _: usize) -> Option<u16> {
        unreachable!("nothing may be registered")
    }

    #[test]
    fn registered_buffers_stay_in_the_pool_and_no_more_than_permitted() {
        let pool = BufPool::new(16384, 8192);
        let numbers = Cell::new(0);
        let take = |len| {
            pool.take(len, |_, limit| {
                assert_eq!(limit, 8192);
                numbers.set(numbers.get() + 1);
                Some(numbers.get())
            })
        };
        let bufs = [(); 4].map(|()| take(4096));
        let known = bufs.iter().filter(|buf| buf.known().is_some()).count();
        assert_eq!((known, numbers.get()), (2, 2));
        drop(bufs);
        assert_eq!(pool.idle_bytes.get(), 8192);
        let again = [(); 4].map(|()| take(4096));
        assert_eq!(again.iter().filter(|buf| buf.known().is_some()).count(), 2);
        assert_eq!(numbers.get(), 2);
    }

    #[test]
    fn a_refusal_is_asked_for_once() {
        let pool = BufPool::new(16384, 16384);
        let asked = Cell::new(0);
        let take = || {
            pool.take(4096, |_, _| {
                asked.set(asked.get() + 1);
                None
            })
        };
        let bufs = (take(), take());
        assert!(bufs.0.known().is_none() && bufs.1.known().is_none());
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn a_returned_buffer_is_handed_out_again() {
        let pool = BufPool::new(1 << 20, 0);
        let first = pool.take(5000, unasked);
        let address = first.as_ptr();
        assert_eq!((first.len(), address.addr() % POOL_ALIGN), (5000, 0));
        drop(first);
        assert_eq!(pool.idle_bytes.get(), 8192);
        assert_eq!(pool.take(8192, unasked).as_ptr(), address);
    }

    #[test]
    fn idle_bytes_stay_under_the_limit() {
        let pool = BufPool::new(8192, 0);
        let (a, b, huge) = (
            pool.take(4096, unasked),
            pool.take(8192, unasked),
            pool.take(3 << 20, unasked),
        );
        drop((a, b, huge));
        assert_eq!(pool.idle_bytes.get(), 4096);
    }

    #[test]
    fn an_empty_aligned_buffer_is_legal() {
        assert!(AlignedBuf::zeroed(0, 512).is_empty());
    }
}
