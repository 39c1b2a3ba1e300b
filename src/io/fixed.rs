//! Files and buffers that the ring knows by number, so that the kernel looks neither up for each
//! operation.
//!
//! A file that is used again and again gets a place in the ring's table, and gives it up with its last
//! share: a descriptor that is closed, and whose number another file gets, has no place any more. An
//! operation owns a share of its file, so that no entry names a place that is another's. A buffer of
//! the pool keeps its number for as long as the ring lives.
//!
//! All of this is a wish. Where the kernel refuses (an older one, a limit of locked memory or of
//! descriptors), operations name descriptors and addresses. Only the driver's OS thread gets here.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use super::aligned::{AlignedBuf, BufPool, SMALLEST};
use super::buf::IoBuf;
use super::state::{Core, Engine};
use super::uring::Uring;

/// Files that the ring knows at most.
const FILES: u32 = 256;
/// Operations on a file before it gets a place: one that is read once does not pay for it.
const USES: u8 = 8;
const FOR_EVER: u32 = u32::MAX;

/// What an operation's file and buffer are to the ring, if it knows them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Known {
    pub(crate) file: Option<u32>,
    pub(crate) buf: Option<u16>,
}

/// A buffer's number in the ring of the driver that has the pool.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct KnownBuf {
    pub(super) pool: *const BufPool,
    pub(super) number: u16,
}

/// The ring's tables.
#[derive(Default)]
pub(crate) struct Tables {
    files: Places,
    /// Made for so many bytes, at the first buffer.
    buffers: Places,
}

/// The places of a table: made when the first is asked for.
#[derive(Default)]
enum Places {
    #[default]
    Unmade,
    Made {
        free: Vec<u32>,
    },
    Refused,
}

impl Places {
    fn take(&mut self, make: impl FnOnce() -> Option<u32>) -> Option<u32> {
        if let Places::Unmade = self {
            *self = match make() {
                Some(count) => Places::Made {
                    free: (0..count).rev().collect(),
                },
                None => Places::Refused,
            };
        }
        match self {
            Places::Made { free } => free.pop(),
            Places::Unmade | Places::Refused => None,
        }
    }

    fn give_back(&mut self, place: u32) {
        if let Places::Made { free } = self {
            free.push(place);
        }
    }
}

impl Uring {
    fn fix_file(&mut self, fd: RawFd) -> Option<u32> {
        let Uring { ring, fixed, .. } = self;
        let submitter = ring.submitter();
        let make = || submitter.register_files_sparse(FILES).ok().map(|()| FILES);
        let place = fixed.files.take(make)?;
        match submitter.register_files_update(place, &[fd]) {
            Ok(1) => Some(place),
            _ => {
                fixed.files.give_back(place);
                None
            }
        }
    }

    fn free_file(&mut self, place: u32) {
        // What is still in the table is replaced by the next, or goes with the ring.
        let _ = self.ring.submitter().register_files_update(place, &[-1]);
        self.fixed.files.give_back(place);
    }

    /// Registers memory that lives as long as the ring; `limit` is how many bytes there may be.
    fn fix_buffer(&mut self, buf: &AlignedBuf, limit: usize) -> Option<u16> {
        let Uring { ring, fixed, .. } = self;
        let submitter = ring.submitter();
        let count = limit.div_ceil(SMALLEST).min(1 << 14) as u32;
        let make = || {
            submitter
                .register_buffers_sparse(count)
                .ok()
                .map(|()| count)
        };
        let place = fixed.buffers.take(make)?;
        let part = libc::iovec {
            iov_base: buf.as_ptr().cast_mut().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: the pool keeps a registered buffer until the ring is gone; the tags are one for
        // the one buffer.
        match unsafe { submitter.register_buffers_update(place, &[part], Some(&[0])) } {
            Ok(()) => Some(place as u16),
            Err(_) => {
                // The limit of locked memory: there is no use in asking for each buffer.
                fixed.buffers = Places::Refused;
                None
            }
        }
    }
}

impl Core {
    /// The number of a buffer that this driver's ring knows.
    #[inline]
    pub(crate) fn number_of(&self, known: Option<KnownBuf>) -> Option<u16> {
        let known = known?;
        std::ptr::eq(known.pool, self.pool()).then_some(known.number)
    }

    /// Has the ring know a buffer of the pool, if it may.
    pub(super) fn fix_buffer(&self, buf: &AlignedBuf, limit: usize) -> Option<u16> {
        match &mut self.state.borrow_mut().engine {
            Engine::Uring(uring) if self.mark.is_set() => uring.fix_buffer(buf, limit),
            _ => None,
        }
    }

    fn fix_file(&self, fd: RawFd) -> Option<u32> {
        match &mut self.state.borrow_mut().engine {
            Engine::Uring(uring) if self.mark.is_set() => uring.fix_file(fd),
            _ => None,
        }
    }

    fn free_file(&self, place: u32) {
        // The parent's table stays as it is; a closed ring has none.
        if self.mark.is_set()
            && let Engine::Uring(uring) = &mut self.state.borrow_mut().engine
        {
            uring.free_file(place);
        }
    }
}

/// An open file, shared by its clones and by the operations on it.
pub(crate) struct OpenFile {
    // Gives the place up before the descriptor is closed.
    place: FilePlace,
    fd: OwnedFd,
    /// So many reads are not tried on the spot.
    pause: Cell<u32>,
}

struct FilePlace {
    core: Rc<Core>,
    state: Cell<PlaceState>,
}

#[derive(Clone, Copy)]
enum PlaceState {
    /// Used so often.
    Counting(u8),
    At(u32),
    None,
}

impl OpenFile {
    /// `direct`: it bypasses the page cache.
    pub(crate) fn new(core: Rc<Core>, fd: OwnedFd, direct: bool) -> Self {
        let pause = if direct { FOR_EVER } else { 0 };
        OpenFile {
            place: FilePlace {
                core,
                state: Cell::new(PlaceState::Counting(0)),
            },
            fd,
            pause: Cell::new(pause),
        }
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.place.core
    }

    /// What the ring knows of an operation on this file and that buffer.
    #[inline]
    pub(crate) fn known<B: IoBuf>(&self, buf: &B) -> Known {
        Known {
            file: self.place(),
            buf: self.place.core.number_of(buf.known()),
        }
    }

    /// The file's place in the ring's table, which it gets after some uses. Outside of the driver's
    /// state, and where the driver is the current one.
    #[inline]
    fn place(&self) -> Option<u32> {
        match self.place.state.get() {
            PlaceState::At(place) => Some(place),
            PlaceState::None => None,
            PlaceState::Counting(uses) => self.count(uses),
        }
    }

    #[cold]
    fn count(&self, uses: u8) -> Option<u32> {
        let state = match uses < USES {
            true => PlaceState::Counting(uses + 1),
            false => match self.place.core.fix_file(self.fd.as_raw_fd()) {
                Some(place) => PlaceState::At(place),
                None => PlaceState::None,
            },
        };
        self.place.state.set(state);
        match state {
            PlaceState::At(place) => Some(place),
            _ => None,
        }
    }

    /// Takes one off the reads that are not tried on the spot.
    #[inline]
    pub(super) fn is_pausing(&self) -> bool {
        let left = self.pause.get();
        if left > 0 && left < FOR_EVER {
            self.pause.set(left - 1);
        }
        left > 0
    }

    pub(super) fn pause(&self, reads: u32) {
        self.pause.set(reads);
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        let OpenFile { place, fd, .. } = self;
        drop(place);
        fd
    }
}

impl Drop for FilePlace {
    fn drop(&mut self) {
        if let PlaceState::At(place) = self.state.get() {
            self.core.free_file(place);
        }
    }
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fd.fmt(f)
    }
}
