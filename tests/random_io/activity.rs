//! A future under way, and the buffers that it may own.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use corespun::io::{IoBuf, IoBufMut};

/// What `poll(2)` must not say while an activity waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    Read(RawFd),
    Write(RawFd),
    /// As those, of what another OS thread uses too.
    SharedRead(RawFd),
    SharedWrite(RawFd),
    /// For what ends by itself.
    Soon,
    Anything,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub struct Activity {
    pub name: &'static str,
    pub waits: Waits,
    /// Of which connection and direction it is, if of one.
    pub uses: Option<(usize, bool)>,
    /// The kernel does it by itself: the connection's bytes go lost with it.
    pub raw: bool,
    /// It goes on by itself, and opens descriptors: never forgotten.
    pub unbounded: bool,
    /// Descriptors that are never closed if it is forgotten.
    pub descriptors: usize,
    pub future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Flag>,
}

impl Activity {
    pub fn new(
        name: &'static str,
        waits: Waits,
        future: impl Future<Output = ()> + 'static,
    ) -> Self {
        Activity {
            name,
            waits,
            uses: None,
            raw: false,
            unbounded: false,
            descriptors: 0,
            future: Box::pin(future),
            woken: Arc::new(Flag(AtomicBool::new(true))),
        }
    }

    pub fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    /// With a waker of its own, each time another one.
    pub fn poll(&mut self) -> Poll<()> {
        self.woken = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(self.woken.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// What is known of all buffers.
#[derive(Default)]
pub struct BufferBook {
    pub made: Cell<usize>,
    pub dropped: Cell<usize>,
    pub wrong: RefCell<Option<String>>,
}

const EMPTY: u8 = 0xee;
const GONE: u8 = 0xdd;

/// A buffer that knows what it holds.
pub struct Buffer {
    pub id: usize,
    bytes: Vec<u8>,
    init: usize,
    book: Rc<BufferBook>,
}

impl Buffer {
    /// To be read into.
    pub fn empty(book: &Rc<BufferBook>, len: usize) -> Self {
        Buffer::with(book, vec![EMPTY; len], 0)
    }

    pub fn full(book: &Rc<BufferBook>, bytes: Vec<u8>) -> Self {
        let init = bytes.len();
        Buffer::with(book, bytes, init)
    }

    fn with(book: &Rc<BufferBook>, bytes: Vec<u8>, init: usize) -> Self {
        let id = book.made.get();
        book.made.set(id + 1);
        Buffer {
            id,
            bytes,
            init,
            book: book.clone(),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// That nothing was written beyond what was said.
    pub fn check_beyond(&self, count: usize) {
        if count > self.bytes.len() {
            self.wrong("buffer: more read than there is room for");
        } else if self.bytes[count..].iter().any(|byte| *byte != EMPTY) {
            self.wrong("buffer: written beyond what was read");
        }
    }

    pub fn wrong(&self, what: &str) {
        self.book.wrong.borrow_mut().get_or_insert(what.to_owned());
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.book.dropped.set(self.book.dropped.get() + 1);
        // Whoever uses it yet sees that.
        self.bytes.fill(GONE);
    }
}

// SAFETY: the bytes are on the heap, and all of them are initialised.
unsafe impl IoBuf for Buffer {
    fn stable_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.init
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Buffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    fn bytes_total(&self) -> usize {
        self.bytes.len()
    }

    unsafe fn set_init(&mut self, len: usize) {
        if len > self.bytes.len() {
            self.wrong("buffer: more initialised than there is room for");
        }
        self.init = self.init.max(len);
    }
}
