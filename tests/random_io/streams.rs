//! What is received from a connection and sent by it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use corespun::io::IoBufMut;
use futures::io::{AsyncReadExt, AsyncWriteExt};

use crate::activity::{Activity, Buffer, Waits};
use crate::perform::length;
use crate::things::{Books, Ours, Shared, URGENT, World, pattern};
use crate::{Kind, Step};

impl World {
    pub fn recv(&mut self, step: &Step) {
        let Some((connection, ours)) = self.handle(step.a, step.b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, true, true) {
            return;
        }
        let len = length(step.b);
        let exact = step.kind == Kind::RecvExact && !matches!(ours, Ours::Pipe(_));
        let buffer = Buffer::empty(&self.shared.buffers, len);
        let (id, shared, fd) = (buffer.id, self.shared.clone(), ours.fd());
        let uses = Some((books.number, true));
        if exact && self.is_used(books.number, true, false) {
            return;
        }
        let loses = exact;
        let mut activity = Activity::new(
            if exact { "recv_exact" } else { "recv" },
            if len == 0 {
                Waits::Anything
            } else {
                Waits::Read(fd)
            },
            async move {
                let (result, buffer) = match (&ours, exact) {
                    (Ours::Tcp(stream), false) => stream.recv(buffer).await,
                    (Ours::Unix(stream), false) => stream.recv(buffer).await,
                    (Ours::Tcp(stream), true) => {
                        let (result, buffer) = stream.recv_exact(buffer).await;
                        (result.map(|()| buffer.bytes_total()), buffer)
                    }
                    (Ours::Unix(stream), true) => {
                        let (result, buffer) = stream.recv_exact(buffer).await;
                        (result.map(|()| buffer.bytes_total()), buffer)
                    }
                    (Ours::Pipe(pipe), _) => {
                        let mut buffer = buffer;
                        let result = {
                            let pointer = buffer.stable_mut_ptr();
                            // SAFETY: `buffer` is used by this alone until then.
                            let space = unsafe { std::slice::from_raw_parts_mut(pointer, len) };
                            let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, space)?);
                            pipe.read_with(read).await
                        };
                        (result, buffer)
                    }
                };
                if buffer.id != id {
                    buffer.wrong("buffer: another one came back");
                }
                if exact && result.is_err() {
                    // Some may be in there.
                    books.in_lost.set(true);
                    return;
                }
                received(&shared, &books, result, &buffer);
            },
        );
        activity.uses = uses;
        // Dropped midway, it takes what it has read along.
        activity.raw = loses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    pub fn send(&mut self, step: &Step) {
        let Some((connection, ours)) = self.handle(step.a, step.b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, false, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let len = length(step.b);
        let bytes = (0..len).map(|n| pattern(books.number, books.sent.get() + n as u64));
        let buffer = Buffer::full(&self.shared.buffers, bytes.collect());
        let all = step.kind == Kind::SendAll;
        let (id, shared, fd) = (buffer.id, self.shared.clone(), ours.fd());
        let uses = Some((books.number, false));
        let name = if all { "send_all" } else { "send" };
        let waits = if len == 0 {
            Waits::Anything
        } else {
            Waits::Write(fd)
        };
        let mut activity = Activity::new(name, waits, async move {
            let (result, buffer) = match (&ours, all) {
                (Ours::Tcp(stream), false) => stream.send(buffer).await,
                (Ours::Unix(stream), false) => stream.send(buffer).await,
                (Ours::Tcp(stream), true) => {
                    let (result, buffer) = stream.send_all(buffer).await;
                    (result.map(|()| len), buffer)
                }
                (Ours::Unix(stream), true) => {
                    let (result, buffer) = stream.send_all(buffer).await;
                    (result.map(|()| len), buffer)
                }
                (Ours::Pipe(_), _) => return,
            };
            if buffer.id != id {
                buffer.wrong("buffer: another one came back");
            }
            match result {
                Ok(count) if count > len => shared.wrong("send: more than there was"),
                Ok(count) => books.sent.set(books.sent.get() + count as u64),
                Err(_) if books.ending.get() => books.out_lost.set(true),
                Err(error) => shared.wrong(format!("send: {error}")),
            }
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    /// By way of the traits for readers, into buffers that are the future's.
    pub fn recv_vectored(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        // Of several by way of the traits, the last alone is woken.
        if self.is_used(books.number, true, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        let lengths = [length(b).min(70_000), length(a).min(70_000)];
        let whole = lengths[0] + lengths[1];
        let mut buffer = Buffer::empty(&self.shared.buffers, whole);
        let (shared, fd) = (self.shared.clone(), ours.fd());
        let uses = Some((books.number, true));
        let waits = if whole == 0 {
            Waits::Anything
        } else {
            Waits::Read(fd)
        };
        let mut activity = Activity::new("recv_vectored", waits, async move {
            let result = {
                let pointer = buffer.stable_mut_ptr();
                // SAFETY: `buffer` is used by this alone until then.
                let space = unsafe { std::slice::from_raw_parts_mut(pointer, whole) };
                let (first, second) = space.split_at_mut(lengths[0]);
                let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
                match &ours {
                    Ours::Tcp(stream) => (&mut &**stream).read_vectored(&mut slices).await,
                    Ours::Unix(stream) => (&mut &**stream).read_vectored(&mut slices).await,
                    Ours::Pipe(_) => return,
                }
            };
            received(&shared, &books, result, &buffer);
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }

    pub fn send_vectored(&mut self, a: usize, b: usize) {
        let Some((connection, ours)) = self.handle(a, b) else {
            return;
        };
        let books = connection.books.clone();
        if self.is_used(books.number, false, false) || matches!(ours, Ours::Pipe(_)) {
            return;
        }
        // More slices than one call takes, now and then.
        let slices = if b.is_multiple_of(8) { 1500 } else { b % 8 };
        let bytes = (0..slices as u64 * 3).map(|n| pattern(books.number, books.sent.get() + n));
        let bytes: Vec<u8> = bytes.collect();
        let (shared, fd) = (self.shared.clone(), ours.fd());
        let uses = Some((books.number, false));
        let waits = if slices == 0 {
            Waits::Anything
        } else {
            Waits::Write(fd)
        };
        let mut activity = Activity::new("send_vectored", waits, async move {
            let slices: Vec<_> = bytes.chunks(3).map(IoSlice::new).collect();
            let result = match &ours {
                Ours::Tcp(stream) => (&mut &**stream).write_vectored(&slices).await,
                Ours::Unix(stream) => (&mut &**stream).write_vectored(&slices).await,
                Ours::Pipe(_) => return,
            };
            match result {
                Ok(count) => books.sent.set(books.sent.get() + count as u64),
                Err(_) if books.ending.get() => books.out_lost.set(true),
                Err(error) => shared.wrong(format!("send_vectored: {error}")),
            }
        });
        activity.uses = uses;
        activity.descriptors = 1;
        self.begin(activity);
    }
}

/// The next bytes of a connection have come.
pub fn received(shared: &Shared, books: &Books, result: std::io::Result<usize>, buffer: &Buffer) {
    let count = match result {
        Ok(count) if count > buffer.bytes_total() => {
            return shared.wrong("recv: more than there is room for");
        }
        Ok(count) => count,
        Err(_) if books.ending.get() => return,
        Err(error) => return shared.wrong(format!("recv: {error}")),
    };
    buffer.check_beyond(count);
    for byte in &buffer.bytes()[..count] {
        let at = books.received.get();
        if *byte == URGENT && books.urgent.get() {
            continue;
        }
        if !books.in_lost.get() && *byte != pattern(books.number + 1000, at) {
            return shared.wrong("recv: something else than was sent");
        }
        books.received.set(at + 1);
    }
    if !books.in_lost.get() && books.received.get() > books.peer_sent.get() {
        shared.wrong("recv: more than was sent");
    }
}
