//! Linux native AIO, for direct reads and writes where io_uring is refused.
//!
//! The kernel takes a batch of control blocks per `io_submit`, copies them, and posts results to a
//! ring it maps into this process; an empty ring is seen without a system call. nix and libc wrap
//! only POSIX AIO (a thread pool in the C library), so the structures are declared here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::op::{Completion, Request, Sink};
use super::table::Key;

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_FLAG_RESFD: u32 = 1;
const RING_MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    rw_flags: i32,
    #[cfg(target_endian = "big")]
    key: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// The head of the completion ring, `struct aio_ring` of the kernel's `fs/aio.c`.
#[repr(C)]
struct Ring {
    id: u32,
    entries: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
}

pub(crate) struct Aio {
    context: libc::c_ulong,
    eventfd: EventFd,
    queued: VecDeque<Iocb>,
    /// The argument of `io_submit`, kept for its allocation.
    pointers: Vec<*mut Iocb>,
    in_flight: usize,
}

impl Aio {
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes the context id to a variable that lives here.
        Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, entries, &mut context) })?;
        Ok(Aio {
            context,
            eventfd,
            queued: VecDeque::new(),
            pointers: Vec::new(),
            in_flight: 0,
        })
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// Queues a read or write for the next `submit`.
    pub(crate) fn queue(&mut self, key: Key, request: &Request) {
        let (opcode, fd, buf, len, offset) = match *request {
            Request::Read {
                fd,
                ptr,
                len,
                offset,
                ..
            } => (IOCB_CMD_PREAD, fd, ptr as u64, len, offset),
            Request::Write {
                fd,
                ptr,
                len,
                offset,
                ..
            } => (IOCB_CMD_PWRITE, fd, ptr as u64, len, offset),
            _ => unreachable!("AIO does reads and writes"),
        };
        self.queued.push_back(Iocb {
            data: key.to_bits(),
            opcode,
            fd: fd as u32,
            buf,
            len: len.into(),
            offset: offset as i64,
            flags: IOCB_FLAG_RESFD,
            result_fd: self.eventfd.as_raw_fd() as u32,
            ..Iocb::default()
        });
    }

    /// Hands queued operations to the kernel; one it refuses completes with its error.
    pub(crate) fn submit(&mut self, sink: &mut Sink<'_>) {
        while !self.queued.is_empty() {
            let blocks = self.queued.make_contiguous();
            self.pointers.clear();
            self.pointers
                .extend(blocks.iter_mut().map(|block| block as *mut Iocb));
            // SAFETY: the pointers name live control blocks, which the kernel copies; the buffers
            // and descriptors in them are kept by their payloads (`op::Payload`).
            let submitted = Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_io_submit,
                    self.context,
                    self.pointers.len() as libc::c_long,
                    self.pointers.as_mut_ptr(),
                )
            });
            match submitted {
                Ok(count) => {
                    self.queued.drain(..count as usize);
                    self.in_flight += count as usize;
                }
                Err(Errno::EINTR) => {}
                // The context is full: the rest goes when results have been taken.
                Err(Errno::EAGAIN) if self.in_flight > 0 => return,
                Err(errno) => {
                    let refused = self.queued.pop_front().expect("the queue is not empty");
                    let completion = Completion {
                        result: -(errno as i32),
                        flags: 0,
                    };
                    sink.complete(Key::from_bits(refused.data), completion, false);
                }
            }
        }
    }

    /// Takes the results that are there, without a system call if there are none.
    pub(crate) fn reap(&mut self, sink: &mut Sink<'_>) {
        let mut events = [Event::default(); 64];
        while self.in_flight > 0 && self.has_results() {
            let limit = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: the array has room for as many events as are asked for.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    0 as libc::c_long,
                    events.len() as libc::c_long,
                    events.as_mut_ptr(),
                    &limit,
                )
            };
            let Ok(count @ 1..) = usize::try_from(count) else {
                return;
            };
            self.in_flight -= count;
            for event in &events[..count] {
                let completion = Completion {
                    result: event.result as i32,
                    flags: 0,
                };
                sink.complete(Key::from_bits(event.data), completion, false);
            }
        }
    }

    /// Whether `io_getevents` may find something.
    fn has_results(&self) -> bool {
        // SAFETY: the context id is the address of the ring, which the kernel maps readable for the
        // life of the context; a ring of another layout is told by its magic.
        unsafe {
            let ring = &*ptr::with_exposed_provenance::<Ring>(self.context as usize);
            ring.magic != RING_MAGIC
                || ring.head.load(Ordering::Relaxed) != ring.tail.load(Ordering::Acquire)
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is this object's own; the kernel waits for what is in flight.
        unsafe {
            libc::syscall(libc::SYS_io_destroy, self.context);
        }
    }
}
