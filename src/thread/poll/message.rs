//! A message: a function to call once on the owner's thread, with two words of
//! content in place. A closure of up to two words costs no allocation; a larger
//! one is boxed; a task's `Runnable` is one word.

use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::ptr;

use crate::thread::panic::{Payload as PanicPayload, contain};

/// The content of a message, as its virtual table sees it.
pub(crate) type Payload = [MaybeUninit<*mut ()>; 2];

/// How to run and how to drop a payload. Each consumes it.
pub(crate) struct MessageVTable {
    pub(crate) run: unsafe fn(&mut Payload),
    pub(crate) drop: unsafe fn(&mut Payload),
    /// Whether the message is a task, which measures itself, is counted by no limit
    /// and takes turns with what others send.
    pub(crate) task: bool,
    /// Names the content in reports.
    pub(crate) name: fn() -> &'static str,
}

/// A message in a queue: what has no destructor can stay in registers on its way
/// in. Its holder turns it back into a [`Message`], once.
// In this order, so that a copy of a message loads what one store wrote.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Queued {
    payload: Payload,
    vtable: &'static MessageVTable,
}

impl Queued {
    /// Whether it is the task whose `Runnable` has this address.
    #[inline]
    pub(super) fn is_task_at(&self, runnable: *const ()) -> bool {
        // SAFETY: the first word of a task is its `Runnable`.
        self.vtable.task && ptr::eq(unsafe { self.payload[0].assume_init() }, runnable)
    }

    #[inline]
    pub(in crate::thread) fn vtable(&self) -> &'static MessageVTable {
        self.vtable
    }
}

pub(crate) struct Message(Queued);

// SAFETY: the content of `Message::new` is `Send`; that of `Message::from_raw`
// is sendable by that function's contract.
unsafe impl Send for Message {}

impl Message {
    #[inline(always)]
    pub(crate) fn new<F: FnOnce() + Send + 'static>(f: F) -> Self {
        // SAFETY: `F` is `Send`, and the virtual tables below read the payload
        // the way it is written here, decided by the same constant.
        unsafe {
            if Closure::<F>::INLINE {
                let mut payload = [MaybeUninit::uninit(); 2];
                payload.as_mut_ptr().cast::<F>().write(f);
                Message::from_raw(payload, &Closure::<F>::IN_PLACE)
            } else {
                let mut payload = [MaybeUninit::uninit(); 2];
                let boxed = Box::into_raw(Box::new(f));
                payload.as_mut_ptr().cast::<*mut F>().write(boxed);
                Message::from_raw(payload, &Closure::<F>::BOXED)
            }
        }
    }

    /// A message with a virtual table of its own.
    ///
    /// # Safety
    ///
    /// `vtable`'s functions take exactly this payload, and may be called on
    /// the thread that the message is sent to; dropping it must be sound
    /// wherever the message may be dropped.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(payload: Payload, vtable: &'static MessageVTable) -> Self {
        Message(Queued { payload, vtable })
    }

    #[inline(always)]
    pub(crate) fn into_queued(self) -> Queued {
        ManuallyDrop::new(self).0
    }

    /// # Safety
    ///
    /// `queued` came from [`Message::into_queued`], and is turned back once.
    #[inline(always)]
    pub(crate) unsafe fn from_queued(queued: Queued) -> Self {
        Message(queued)
    }

    #[inline]
    pub(crate) fn is_task(&self) -> bool {
        self.0.vtable.task
    }

    /// Where reports find what the message is called.
    #[inline]
    pub(crate) fn vtable(&self) -> &'static MessageVTable {
        self.0.vtable
    }

    /// The content, to be consumed by code that knows what it is.
    pub(crate) fn into_payload(self) -> Payload {
        ManuallyDrop::new(self).0.payload
    }

    /// Runs the message; a panic of its code passes on. The content is not copied on the
    /// way: a load that spans two stores which are still under way waits for both.
    #[inline(always)]
    pub(crate) fn run(self) {
        let mut message = ManuallyDrop::new(self);
        // SAFETY: the payload is the one this table was made for, and it is
        // consumed once: `message` is not dropped.
        unsafe { (message.0.vtable.run)(&mut message.0.payload) }
    }

    /// Runs the message; a panic of its code comes back as its payload.
    #[inline]
    pub(crate) fn run_contained(self) -> Result<(), PanicPayload> {
        contain(|| self.run())
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: as in `run`; a message that ran is never dropped.
        unsafe { (self.0.vtable.drop)(&mut self.0.payload) }
    }
}

struct Closure<F>(F);

impl<F: FnOnce()> Closure<F> {
    const INLINE: bool = mem::size_of::<F>() <= mem::size_of::<Payload>()
        && mem::align_of::<F>() <= mem::align_of::<Payload>();

    const IN_PLACE: MessageVTable = MessageVTable {
        run: |payload| {
            // SAFETY: `Message::new` wrote an `F` here, and it is read once.
            let f = unsafe { payload.as_ptr().cast::<F>().read() };
            f();
        },
        drop: |payload| {
            // SAFETY: as above.
            drop(unsafe { payload.as_ptr().cast::<F>().read() });
        },
        task: false,
        name: std::any::type_name::<F>,
    };

    const BOXED: MessageVTable = MessageVTable {
        run: |payload| {
            // SAFETY: `Message::new` put the address of a boxed `F` here.
            let f = unsafe { Self::unbox(payload) };
            f();
        },
        drop: |payload| {
            // SAFETY: as above.
            drop(unsafe { Self::unbox(payload) });
        },
        task: false,
        name: std::any::type_name::<F>,
    };

    unsafe fn unbox(payload: &mut Payload) -> Box<F> {
        // SAFETY: by this function's callers the first word is the address of
        // a boxed `F` that no other holder will free.
        unsafe { Box::from_raw(payload.as_ptr().cast::<*mut F>().read()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn closures_of_every_size_run_once_or_drop_once() {
        fn check<const N: usize>() {
            let witness = Arc::new(AtomicUsize::new(0));
            let make = || {
                let ran = witness.clone();
                let filler = [1usize; N];
                Message::new(move || {
                    ran.fetch_add(filler.iter().sum::<usize>() + 1, Ordering::Relaxed);
                })
            };
            make().run();
            assert_eq!(witness.load(Ordering::Relaxed), N + 1);
            drop(make());
            assert_eq!(witness.load(Ordering::Relaxed), N + 1);
            assert_eq!(Arc::strong_count(&witness), 1);
        }
        check::<0>();
        check::<1>();
        check::<2>();
        check::<9>();
    }

    #[test]
    fn an_over_aligned_closure_is_boxed() {
        #[repr(align(64))]
        struct Aligned(u8);
        let value = Aligned(7);
        Message::new(move || {
            assert_eq!((&raw const value).addr() % 64, 0);
            assert_eq!(value.0, 7);
        })
        .run();
    }
}
