//! Buffers that an operation may own while the kernel works on them.
//!
//! A completion-based kernel interface writes into a buffer after the call that named it has
//! returned, so a borrowed slice will not do: the buffer is moved into the operation and comes back
//! with the result. These traits say which types may be lent that way; `AlignedBuf` and the pool
//! live next door.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::sync::Arc;

use super::fixed::KnownBuf;

/// A buffer the kernel may read from while an operation owns it.
///
/// # Safety
///
/// For as long as the value lives, however often it is moved:
/// - `stable_ptr` returns the same address, and the `bytes_init` bytes there are initialised and
///   readable;
/// - `bytes_init` does not shrink while the value is moved about and only these traits' methods are
///   called; for an [`IoBufMut`] it is at most `bytes_total`, which does not shrink either;
/// - nothing but the value's own methods frees, moves or (while it is owned by an operation) writes
///   that memory.
///
/// # Examples
///
/// `Vec<u8>`, `Box<[u8]>`, `String`, `Arc<[u8]>`, `&'static` bytes and text, and with the feature
/// `bytes` that crate's `Bytes` and `BytesMut` are buffers. So is one's own, for as long as what it
/// points to stays in place:
///
/// ```
/// use std::sync::Arc;
/// use corespun::io::IoBuf;
///
/// struct Shared(Arc<Vec<u8>>);
///
/// // SAFETY: the bytes are on the heap, and nothing writes them.
/// unsafe impl IoBuf for Shared {
///     fn stable_ptr(&self) -> *const u8 {
///         self.0.as_ptr()
///     }
///
///     fn bytes_init(&self) -> usize {
///         self.0.len()
///     }
/// }
///
/// let message = Shared(Arc::new(b"one message, many clients".to_vec()));
/// assert_eq!(&message.slice(..11)[..], b"one message");
/// ```
pub unsafe trait IoBuf: 'static {
    /// The first byte.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::IoBuf;
    ///
    /// let buf = vec![1, 2, 3];
    /// let address = buf.stable_ptr();
    /// let moved = Box::new(buf);
    /// assert_eq!(moved.stable_ptr(), address);
    /// ```
    fn stable_ptr(&self) -> *const u8;

    /// How many bytes from there are initialised: what a write sends.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::IoBuf;
    ///
    /// let mut buf = Vec::with_capacity(4096);
    /// buf.extend([1, 2, 3]);
    /// // What a write would send.
    /// assert_eq!(buf.bytes_init(), 3);
    /// ```
    fn bytes_init(&self) -> usize;

    /// What the buffer is to a ring that knows it.
    #[doc(hidden)]
    fn known(&self) -> Option<KnownBuf> {
        None
    }

    /// Restricts an operation to a part of the buffer; [`Slice::into_inner`] gives the whole back.
    ///
    /// # Panics
    ///
    /// If the range starts after its end or after the initialised bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::IoBuf;
    ///
    /// let part = b"0123456789".to_vec().slice(2..5);
    /// assert_eq!(&part[..], b"234");
    /// assert_eq!(part.into_inner().len(), 10);
    /// ```
    #[track_caller]
    fn slice(self, range: impl RangeBounds<usize>) -> Slice<Self>
    where
        Self: Sized,
    {
        let begin = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n
                .checked_add(1)
                .expect("a buffer slice cannot start after usize::MAX"),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n.saturating_add(1),
            Bound::Excluded(&n) => n,
            Bound::Unbounded => usize::MAX,
        };
        assert!(
            begin <= end,
            "buffer slice starts at {begin} but ends at {end}"
        );
        assert!(
            begin <= self.bytes_init(),
            "buffer slice starts at {begin}, past the {} initialised bytes",
            self.bytes_init()
        );
        Slice {
            buf: self,
            begin,
            end,
        }
    }
}

/// A buffer the kernel may write into while an operation owns it.
///
/// It also says how much is read: up to `bytes_total` bytes, which for a `Vec` is its *capacity*,
/// whatever its length. [`slice(..n)`](IoBuf::slice) asks for `n` bytes, and leaves what is behind
/// them alone.
///
/// # Safety
///
/// As [`IoBuf`], and `stable_mut_ptr` is that same address, from which `bytes_total` bytes may be
/// written.
///
/// # Examples
///
/// What is read goes into the room after what is there:
///
/// ```
/// use corespun::{fs::File, io::IoBuf};
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// let zero = File::open("/dev/zero").await?;
/// let mut buf = Vec::with_capacity(8);
/// buf.extend([9, 9]);
/// let (read, buf) = zero.read_at(buf.slice(2..6), 0).await;
/// assert_eq!((read?, buf.into_inner()), (4, vec![9, 9, 0, 0, 0, 0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe trait IoBufMut: IoBuf {
    /// The first byte, for writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{IoBuf, IoBufMut};
    ///
    /// let mut buf = vec![0; 16];
    /// assert_eq!(buf.stable_mut_ptr().cast_const(), buf.stable_ptr());
    /// ```
    fn stable_mut_ptr(&mut self) -> *mut u8;

    /// How many bytes from there may be written: what a read asks for. For a `Vec` this is its
    /// capacity.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::{IoBuf, IoBufMut};
    ///
    /// let buf: Box<[u8]> = vec![0; 512].into();
    /// assert_eq!((buf.bytes_init(), buf.bytes_total()), (512, 512));
    /// // What a read would ask for.
    /// assert!(Vec::<u8>::with_capacity(512).bytes_total() >= 512);
    /// ```
    fn bytes_total(&self) -> usize;

    /// Tells the buffer that its first `len` bytes are initialised. A `Vec` grows to `len` if it is
    /// shorter and is never cut.
    ///
    /// # Safety
    ///
    /// They are, and `len <= bytes_total()`.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::io::IoBufMut;
    ///
    /// let mut buf = Vec::with_capacity(8);
    /// // SAFETY: the two bytes are written first, and there is room for them.
    /// unsafe {
    ///     buf.stable_mut_ptr().write_bytes(7, 2);
    ///     buf.set_init(2);
    /// }
    /// assert_eq!(buf, [7, 7]);
    /// ```
    unsafe fn set_init(&mut self, len: usize);
}

// SAFETY: a Vec's elements live on the heap; moving the Vec does not move them, and only methods of
// the Vec free or reallocate them.
unsafe impl IoBuf for Vec<u8> {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; `capacity` bytes are allocated.
unsafe impl IoBufMut for Vec<u8> {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.capacity()
    }
    unsafe fn set_init(&mut self, len: usize) {
        if self.len() < len {
            // SAFETY: the caller's contract is set_len's.
            unsafe { self.set_len(len) }
        }
    }
}

// SAFETY: the bytes are on the heap and stay there until the box is dropped.
unsafe impl IoBuf for Box<[u8]> {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Box<[u8]> {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.len()
    }
    unsafe fn set_init(&mut self, _len: usize) {}
}

// SAFETY: static memory never moves and is never freed.
unsafe impl IoBuf for &'static [u8] {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: static memory never moves and is never freed.
unsafe impl IoBuf for &'static str {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: static memory never moves and is never freed.
unsafe impl<const N: usize> IoBuf for &'static [u8; N] {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        N
    }
}

// SAFETY: a String is a Vec of bytes.
unsafe impl IoBuf for String {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: the bytes are on the heap for as long as any clone lives, and no clone may write them
// while more than one does; the one that an operation owns is not used.
unsafe impl IoBuf for Arc<[u8]> {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as of `Arc<[u8]>`.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::Bytes {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as of `Vec<u8>`; what it shares its allocation with has other parts of it.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::BytesMut {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; `capacity` bytes are its own.
#[cfg(feature = "bytes")]
unsafe impl IoBufMut for bytes::BytesMut {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    fn bytes_total(&self) -> usize {
        self.capacity()
    }
    unsafe fn set_init(&mut self, len: usize) {
        if self.len() < len {
            // SAFETY: the caller's contract is set_len's.
            unsafe { self.set_len(len) }
        }
    }
}

/// Part of a buffer: what [`IoBuf::slice`] makes.
///
/// # Examples
///
/// ```
/// use corespun::io::IoBuf;
///
/// let mut part = vec![0; 8].slice(4..);
/// part[0] = 1;
/// assert_eq!(part.len(), 4);
/// assert_eq!(part.into_inner(), [0, 0, 0, 0, 1, 0, 0, 0]);
/// ```
#[derive(Debug)]
pub struct Slice<B> {
    buf: B,
    begin: usize,
    end: usize,
}

impl<B> Slice<B> {
    /// Gives the whole buffer back.
    pub fn into_inner(self) -> B {
        self.buf
    }

    /// The offset in the whole buffer at which this part begins.
    pub fn begin(&self) -> usize {
        self.begin
    }
}

impl<B: IoBuf> Deref for Slice<B> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: IoBuf promises `bytes_init` readable bytes; `Slice::bytes_init` stays within.
        unsafe { std::slice::from_raw_parts(self.stable_ptr(), self.bytes_init()) }
    }
}

impl<B: IoBufMut> DerefMut for Slice<B> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.bytes_init();
        // SAFETY: as in `deref`, and IoBufMut promises they may be written.
        unsafe { std::slice::from_raw_parts_mut(self.stable_mut_ptr(), len) }
    }
}

// SAFETY: a window of a buffer that keeps the promise: `slice` checked begin <= bytes_init, which
// does not shrink while the buffer is in here. Should it nevertheless, the window is empty.
unsafe impl<B: IoBuf> IoBuf for Slice<B> {
    fn stable_ptr(&self) -> *const u8 {
        self.buf.stable_ptr().wrapping_add(self.begin)
    }
    fn bytes_init(&self) -> usize {
        self.end
            .min(self.buf.bytes_init())
            .saturating_sub(self.begin)
    }
    fn known(&self) -> Option<KnownBuf> {
        self.buf.known()
    }
}

// SAFETY: as above; `bytes_total` is clipped to the inner buffer's.
unsafe impl<B: IoBufMut> IoBufMut for Slice<B> {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buf.stable_mut_ptr().wrapping_add(self.begin)
    }
    fn bytes_total(&self) -> usize {
        self.end
            .min(self.buf.bytes_total())
            .saturating_sub(self.begin)
    }
    unsafe fn set_init(&mut self, len: usize) {
        // SAFETY: bytes before `begin` are initialised (checked by `slice`), `len` after it are by
        // the caller's word.
        unsafe { self.buf.set_init(self.begin + len) }
    }
}

/// What is lent to the kernel, with a pointer to its memory out there, while what holds it is moved.
///
/// The compiler takes it that there is no other pointer to what a `Box` owns whenever the box is
/// moved. A union hides the box from it until the memory is back.
pub(crate) struct Lent<B>(MaybeUninit<B>);

impl<B> Lent<B> {
    pub(crate) fn new(value: B) -> Self {
        Lent(MaybeUninit::new(value))
    }

    /// To take the pointers that are lent.
    pub(crate) fn get_mut(&mut self) -> &mut B {
        // SAFETY: initialised by `new`, and taken out only by value or on drop.
        unsafe { self.0.assume_init_mut() }
    }

    /// The value back, when the kernel is done.
    pub(crate) fn into_inner(self) -> B {
        let this = ManuallyDrop::new(self);
        // SAFETY: as above; `this` is not dropped, so this is the only copy.
        unsafe { this.0.assume_init_read() }
    }
}

impl<B> Drop for Lent<B> {
    fn drop(&mut self) {
        // SAFETY: as above; `into_inner` does not get here.
        unsafe { self.0.assume_init_drop() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vec_offers_its_capacity_and_grows_to_what_was_read() {
        let mut buf = Vec::with_capacity(64);
        buf.push(1u8);
        let mut part = buf.slice(1..8);
        assert_eq!((part.bytes_init(), part.bytes_total()), (0, 7));
        // SAFETY: the three bytes are written first.
        unsafe {
            part.stable_mut_ptr().write_bytes(9, 3);
            part.set_init(3);
        }
        assert_eq!(part.into_inner(), [1, 9, 9, 9]);
    }

    #[test]
    #[should_panic(expected = "past the 2 initialised bytes")]
    fn a_slice_that_would_leave_a_gap_is_refused() {
        let _ = Vec::from([1u8, 2]).slice(3..);
    }
}
