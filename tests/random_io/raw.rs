//! Raw operations: entries of the submission queue, alone, in chains, and with many
//! completions.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use corespun::io::raw::squeue::Flags;
use corespun::io::raw::{opcode, types};
use corespun::io::{Completion, IoBufMut, RawOp};
use futures::StreamExt;
use futures::future::join_all;

use crate::activity::{Activity, Buffer, Waits};
use crate::perform::length;
use crate::streams::received;
use crate::things::{Books, Ours, World, pattern};

/// What a chain is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// A write, and a read of the same bytes after it.
    Whole,
    /// Behind what fails, nothing is done.
    Broken,
    /// Unless the link is a hard one.
    Hard,
}

impl World {
    pub fn raw_recv(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let mut buffer = Buffer::empty(&self.shared.buffers, length(b));
        let entry = opcode::Recv::new(
            types::Fd(ours.fd()),
            buffer.stable_mut_ptr(),
            buffer.bytes_total() as u32,
        );
        self.raw_reading("raw recv", entry.build(), buffer, ours, books);
    }

    pub fn raw_read(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, false) {
            return;
        }
        let mut buffer = Buffer::empty(&self.shared.buffers, length(b));
        let entry = opcode::Read::new(
            types::Fd(ours.fd()),
            buffer.stable_mut_ptr(),
            buffer.bytes_total() as u32,
        );
        self.raw_reading("raw read", entry.build(), buffer, ours, books);
    }

    pub fn raw_reading(
        &mut self,
        name: &'static str,
        entry: corespun::io::raw::squeue::Entry,
        buffer: Buffer,
        ours: Ours,
        books: Rc<Books>,
    ) {
        let (shared, id, fd, len) = (
            self.shared.clone(),
            buffer.id,
            ours.fd(),
            buffer.bytes_total(),
        );
        let uses = Some((books.number, true));
        // SAFETY: the buffer and the descriptor are kept.
        let submitted = unsafe { self.io.driver.submit_raw(entry, (buffer, ours)) };
        let Ok(operation) = submitted else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let waits = if len == 0 {
            Waits::Anything
        } else {
            Waits::Read(fd)
        };
        let mut activity = Activity::new(name, waits, async move {
            let (completion, (buffer, ours)) = poll_shared(&operation).await;
            if buffer.id != id {
                buffer.wrong("buffer: another one came back");
            }
            let result = completion.into_result().map(|count| count as usize);
            if matches!(&result, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                // Of a descriptor that does not block.
                drop(ours);
            } else {
                received(&shared, &books, result, &buffer);
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        });
        activity.uses = uses;
        activity.raw = true;
        activity.descriptors = 1;
        self.begin(activity);
    }

    pub fn raw_poll(&mut self, a: usize) {
        let Some((_, ours)) = self.handle(a, 0) else {
            return;
        };
        let fd = ours.fd();
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        // SAFETY: the descriptor is kept.
        let Ok(operation) = (unsafe { self.io.driver.submit_raw(entry, ours) }) else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let shared = self.shared.clone();
        let mut activity = Activity::new("raw poll", Waits::Read(fd), async move {
            let (completion, ours) = poll_shared(&operation).await;
            if completion.result <= 0 || ours.fd() != fd {
                shared.wrong(format!("raw poll: {completion:?}"));
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    pub fn raw_nop(&mut self) {
        self.next += 1;
        let number = self.next;
        let entry = opcode::Nop::new().build();
        // SAFETY: a no-op refers to nothing.
        let Ok(operation) = (unsafe { self.io.driver.submit_raw(entry, number) }) else {
            return;
        };
        let (operation, again) = (Rc::new(RefCell::new(operation)), self.completed.clone());
        let shared = self.shared.clone();
        self.begin(Activity::new("raw nop", Waits::Soon, async move {
            let (completion, kept) = poll_shared(&operation).await;
            if completion.result != 0 || kept != number {
                shared.wrong(format!("raw nop: {completion:?}"));
            }
            again
                .borrow_mut()
                .push(Box::new(move || poll_completed(&operation)));
        }));
    }

    /// As a stream, of which only some is taken.
    pub fn raw_accept(&mut self, a: usize) {
        let Some(listening) = self.listeners.get(a % self.listeners.len().max(1)) else {
            return;
        };
        let listener = listening.listener.clone();
        let fd = listener.as_fd().as_raw_fd();
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the descriptor is kept.
        let Ok(mut stream) = (unsafe { self.io.driver.submit_raw_multi(entry, listener) }) else {
            return;
        };
        let mut activity = Activity::new("raw stream", Waits::Anything, async move {
            for _ in 0..=a % 3 {
                stream.next().await;
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// Which is wrong use of a raw operation, and no one else's trouble.
    pub fn poll_again(&mut self, a: usize) {
        let mut completed = self.completed.borrow_mut();
        if completed.is_empty() {
            return;
        }
        let at = a % completed.len();
        let mut again = completed.swap_remove(at);
        drop(completed);
        let _ = catch_unwind(AssertUnwindSafe(&mut again));
        if a.is_multiple_of(2) {
            self.completed.borrow_mut().push(again);
        }
    }

    /// Each is done after the one before it, or not at all.
    pub fn raw_chain(&mut self, a: usize, b: usize) {
        self.next += 1;
        let kind = [Chain::Whole, Chain::Broken, Chain::Hard][a % 3];
        let len = length(b).clamp(1, 4097);
        let bytes: Vec<u8> = (0..len as u64).map(|n| pattern(self.next, n)).collect();
        let file = tempfile::tempfile().expect("a file");
        let fd = match kind {
            Chain::Whole => file.as_raw_fd(),
            _ => -1,
        };
        let mut written = Buffer::full(&self.shared.buffers, bytes.clone());
        let mut read = Buffer::empty(&self.shared.buffers, len);
        let write = opcode::Write::new(types::Fd(fd), written.stable_mut_ptr(), len as u32);
        let write = match kind {
            Chain::Hard => write.build().flags(Flags::IO_HARDLINK),
            _ => write.build(),
        };
        let space = read.stable_mut_ptr();
        let after = opcode::Read::new(types::Fd(file.as_raw_fd()), space, len as u32);
        let file = Rc::new(file);
        let chain = vec![
            (write, (written, file.clone())),
            (after.build(), (read, file)),
        ];
        // SAFETY: the buffers and the descriptor are kept.
        let Ok(chain) = (unsafe { self.io.driver.submit_raw_chain(chain) }) else {
            return;
        };
        let shared = self.shared.clone();
        let mut activity = Activity::new("raw chain", Waits::Soon, async move {
            let done = join_all(chain).await;
            let results: Vec<i32> = done.iter().map(|(done, _)| done.result).collect();
            let expected = match kind {
                Chain::Whole => [len as i32; 2],
                Chain::Broken => [-libc::EBADF, -libc::ECANCELED],
                Chain::Hard => [-libc::EBADF, 0],
            };
            let (_, (read, _)) = &done[1];
            if results != expected {
                shared.wrong(format!("raw chain: {results:?} instead of {expected:?}"));
            } else if kind == Chain::Whole && read.bytes() != bytes {
                shared.wrong("raw chain: it reads what was there before");
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// Connections that the kernel accepts by itself, of which only some are taken.
    pub fn raw_accept_many(&mut self, a: usize) {
        let Some(listening) = self.listeners.get(a % self.listeners.len().max(1)) else {
            return;
        };
        let listener = listening.listener.clone();
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_fd().as_raw_fd())).build();
        // SAFETY: the descriptor is kept.
        let Ok(stream) = (unsafe { self.io.driver.submit_raw_multi(entry, listener) }) else {
            return;
        };
        let mut stream = stream.on_abandon(|_, completion| drop(accepted(completion)));
        let mut activity = Activity::new("raw accept", Waits::Anything, async move {
            for _ in 0..=a % 3 {
                match stream.next().await {
                    Some(completion) => drop(accepted(completion)),
                    None => return,
                }
            }
        });
        activity.unbounded = true;
        self.begin(activity);
    }
}

fn accepted(completion: Completion) -> Option<OwnedFd> {
    // SAFETY: the kernel gave this descriptor, and nobody else knows it.
    (completion.result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(completion.result) })
}

async fn poll_shared<T: 'static>(
    operation: &Rc<RefCell<RawOp<T>>>,
) -> (corespun::io::Completion, T) {
    poll_fn(|cx| Pin::new(&mut *operation.borrow_mut()).poll(cx)).await
}

fn poll_completed<T: 'static>(operation: &Rc<RefCell<RawOp<T>>>) {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut *operation.borrow_mut()).poll(&mut cx);
}
