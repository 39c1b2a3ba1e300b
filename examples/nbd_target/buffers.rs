//! The two byte queues of a connection: what has come and is not yet understood
//! ([`Inbox`]), and the replies on their way out ([`Outbox`]).
//!
//! Both belong to the one connection task (requests that finish later reach the outbox
//! through it), keep their memory, and are written once before use, so that the hot path
//! neither allocates nor clears.

use std::collections::VecDeque;
use std::io::IoSlice;

/// Room for received bytes: one system call can bring in 64 small writes, or thousands
/// of reads.
pub(crate) const INBOX: usize = 256 << 10;

/// Room of one chunk of replies: a read of 256 KiB with its header.
pub(crate) const CHUNK: usize = (256 << 10) + 64;

/// Emptied chunks kept for the next replies: one fills while the other is being sent.
const SPARES: usize = 2;

/// Received bytes, oldest first.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            bytes: vec![0; INBOX].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What has come and was not yet consumed.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets the `n` oldest bytes.
    pub(crate) fn consume(&mut self, n: usize) {
        assert!(n <= self.filled().len());
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where the next bytes go; never empty unless the inbox is full.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        // Move the remainder to the front only when little room is left behind it.
        if self.start > 0 && self.bytes.len() - self.end < INBOX / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Says that the first `n` bytes of the room were filled.
    pub(crate) fn received(&mut self, n: usize) {
        assert!(n <= self.bytes.len() - self.end);
        self.end += n;
    }
}

/// Replies, in the order they will be sent.
///
/// Only whole frames go in, each in one step, so that a header and its data are never
/// parted on the wire.
#[derive(Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    spares: Vec<Chunk>,
    queued: usize,
    broken: bool,
}

struct Chunk {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Chunk {
    fn room(&self) -> usize {
        self.bytes.len() - self.end
    }
}

impl Outbox {
    /// Bytes not yet sent.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Whether [`Outbox::abandon`] was called.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Appends a frame of `len` bytes for `fill` to write. When `fill` fails, nothing
    /// was appended.
    pub(crate) fn append<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.chunks.back().is_none_or(|last| last.room() < len) {
            let fits = self.spares.pop_if(|spare| spare.bytes.len() >= len);
            self.chunks.push_back(fits.unwrap_or_else(|| Chunk {
                bytes: vec![0; len.max(CHUNK)],
                start: 0,
                end: 0,
            }));
        }
        if let Some(last) = self.chunks.back_mut() {
            fill(&mut last.bytes[last.end..][..len])?;
            if !self.broken {
                last.end += len;
                self.queued += len;
            }
        }
        Ok(())
    }

    /// Appends a copy of a short frame.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        let copied: Result<(), std::convert::Infallible> = self.append(frame.len(), |room| {
            room.copy_from_slice(frame);
            Ok(())
        });
        copied.unwrap_or_else(|never| match never {});
    }

    /// Appends a frame without copying it.
    pub(crate) fn push_owned(&mut self, frame: Vec<u8>) {
        if !self.broken {
            self.queued += frame.len();
            self.chunks.push_back(Chunk {
                start: 0,
                end: frame.len(),
                bytes: frame,
            });
        }
    }

    /// What to send next, at most `slices.len()` pieces; returns those filled in.
    pub(crate) fn next<'a, 's>(&'a self, slices: &'s mut [IoSlice<'a>]) -> &'s [IoSlice<'a>] {
        let filled = self.chunks.iter().filter(|chunk| chunk.start < chunk.end);
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(filled) {
            *slice = IoSlice::new(&chunk.bytes[chunk.start..chunk.end]);
            count += 1;
        }
        &slices[..count]
    }

    /// Says that the `n` oldest bytes were sent.
    pub(crate) fn sent(&mut self, mut n: usize) {
        assert!(n <= self.queued);
        self.queued -= n;
        while let Some(first) = self.chunks.front_mut() {
            let part = n.min(first.end - first.start);
            first.start += part;
            n -= part;
            if first.start < first.end {
                break;
            }
            if let Some(empty) = self.chunks.pop_front() {
                self.recycle(empty);
            }
        }
    }

    /// Drops everything queued and all that comes later: nobody is there to read it.
    pub(crate) fn abandon(&mut self) {
        *self = Outbox {
            broken: true,
            ..Outbox::default()
        };
    }

    fn recycle(&mut self, mut chunk: Chunk) {
        if chunk.bytes.len() == CHUNK && self.spares.len() < SPARES {
            (chunk.start, chunk.end) = (0, 0);
            self.spares.push(chunk);
        }
    }
}
