//! A disk in memory that loses power, writes and patience.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SimHandle;
use super::chance::Span;
use crate::io::{Block, IoBuf, IoBufMut};

/// What is written as a whole or not at all, in bytes.
const SECTOR: usize = 512;

/// How a [`SimDisk`] behaves, and how it fails. Chances are one in so many, 0 for never.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// How long an operation takes: 5 to 200 µs.
    pub delay: RangeInclusive<Duration>,
    /// A crash loses what was not flushed, each write or not; it does.
    pub loses_unflushed: bool,
    /// A crash may leave any sectors (of 512 bytes) of a write that was not flushed; it does.
    pub tears: bool,
    /// One in so many reads fails, with nothing read.
    pub read_errors: u32,
    /// One in so many writes fails; it may have been written nevertheless.
    pub write_errors: u32,
    /// One in so many flushes fails, with nothing flushed.
    pub flush_errors: u32,
    /// One in so many reads or writes stops short, after one byte at least.
    pub short: u32,
}

impl Default for DiskFaults {
    /// Crashes lose and tear; nothing fails without one.
    fn default() -> Self {
        DiskFaults {
            delay: Duration::from_micros(5)..=Duration::from_micros(200),
            loses_unflushed: true,
            tears: true,
            read_errors: 0,
            write_errors: 0,
            flush_errors: 0,
            short: 0,
        }
    }
}

/// A disk in memory, which is lost power by [`crash`](Self::crash) and then
/// [mounted again](Self::remount). Clones are the same disk; any thread may use them.
///
/// A write is read from when it was begun; a flush makes durable what had completed when
/// it was begun.
///
/// # Examples
///
/// ```
/// use corespun::{io::Block, sim::Sim};
///
/// let mut sim = Sim::builder().seed(7).build();
/// let disk = sim.handle().disk(1 << 20, Default::default());
/// sim.block_on(async move {
///     disk.write_all_at(b"kept".to_vec(), 0).await.0?;
///     disk.flush().await?;
///     disk.write_all_at(b"lost".to_vec(), 512).await.0?; // perhaps
///     disk.crash();
///     assert!(disk.flush().await.is_err(), "it has no power");
///     let disk = disk.remount();
///     let (read, kept) = disk.read_exact_at(vec![0; 4], 0).await;
///     read?;
///     assert_eq!(kept, b"kept");
///     std::io::Result::Ok(())
/// }).unwrap();
/// ```
#[derive(Clone)]
pub struct SimDisk {
    handle: SimHandle,
    media: Arc<Mutex<Media>>,
    delay: Span,
    /// How often power was lost when this was mounted.
    crashes: u64,
}

struct Media {
    faults: DiskFaults,
    /// What survives.
    durable: Vec<u8>,
    /// What is read.
    seen: Vec<u8>,
    /// What is in the second and not in the first, in the order begun.
    unflushed: Vec<Write>,
    number: u64,
    crashes: u64,
}

struct Write {
    number: u64,
    offset: usize,
    data: Vec<u8>,
    completed: bool,
}

impl SimHandle {
    /// A disk of so many bytes, all of them 0.
    ///
    /// # Panics
    ///
    /// When there is no memory for it, twice.
    #[must_use]
    pub fn disk(&self, size: usize, faults: DiskFaults) -> SimDisk {
        SimDisk {
            handle: self.clone(),
            delay: Span::new(&faults.delay, &self.world.clock),
            media: Arc::new(Mutex::new(Media {
                faults,
                durable: vec![0; size],
                seen: vec![0; size],
                unflushed: Vec::new(),
                number: 0,
                crashes: 0,
            })),
            crashes: 0,
        }
    }
}

impl SimDisk {
    /// Loses power: of what was not flushed, chance keeps what it may, and every operation
    /// of the programs that have mounted it fails from now on.
    pub fn crash(&self) {
        let mut media = self.media();
        let Media { faults, .. } = &*media;
        let (loses, tears) = (faults.loses_unflushed, faults.tears);
        let (mut kept, mut lost) = (0, 0);
        for write in std::mem::take(&mut media.unflushed) {
            // The whole of it is kept, nothing of it, or some sectors.
            let whole = !loses || self.handle.chance(2);
            let torn = loses && tears && self.handle.chance(2);
            for (offset, sector) in write.sectors() {
                let keeps = if torn { self.handle.chance(2) } else { whole };
                if keeps {
                    media.durable[offset..offset + sector.len()].copy_from_slice(sector);
                    kept += 1;
                } else {
                    lost += 1;
                }
            }
        }
        let Media { durable, seen, .. } = &mut *media;
        seen.copy_from_slice(durable);
        media.crashes += 1;
        drop(media);
        let sectors =
            format_args!("the disk crashes: {kept} sectors not flushed kept, {lost} lost");
        self.handle.note(sectors);
    }

    /// The disk as it is found after a crash, or beside the programs that have mounted it.
    #[must_use]
    pub fn remount(&self) -> SimDisk {
        SimDisk {
            crashes: self.media().crashes,
            ..self.clone()
        }
    }

    /// How many writes a crash might lose.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.media().unflushed.len()
    }

    /// Changes how it fails from now on; its delay stays.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.media().faults = faults;
    }

    fn media(&self) -> MutexGuard<'_, Media> {
        // No user code runs under this lock.
        self.media.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk, if it is still powered as it was mounted.
    fn powered(&self) -> io::Result<MutexGuard<'_, Media>> {
        let media = self.media();
        match media.crashes == self.crashes {
            true => Ok(media),
            false => Err(io::Error::other("the simulated disk has lost power")),
        }
    }

    async fn wait(&self) {
        let time = {
            let dice = &mut self.handle.world.state().dice;
            self.delay.throw(&mut dice.rng)
        };
        let until = self.handle.world.now().saturating_add(time);
        self.handle.delay_until(until).await;
    }

    fn fails(&self, in_so_many: u32, what: &str) -> io::Result<()> {
        match self.handle.chance(in_so_many) {
            false => Ok(()),
            true => {
                self.handle.note(format_args!("a {what} of the disk fails"));
                let message = format!("the simulated disk fails a {what}");
                Err(io::Error::other(message))
            }
        }
    }

    /// How many of `count` bytes an operation moves.
    fn shortened(&self, count: usize, in_so_many: u32) -> usize {
        match count > 1 && self.handle.chance(in_so_many) {
            true => 1 + self.handle.random(count as u64 - 1) as usize,
            false => count,
        }
    }

    async fn read(&self, room: usize, offset: u64) -> io::Result<Vec<u8>> {
        drop(self.powered()?);
        self.wait().await;
        let media = self.powered()?;
        self.fails(media.faults.read_errors, "read")?;
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = media.seen.get(begin..).unwrap_or_default();
        let count = self.shortened(rest.len().min(room), media.faults.short);
        Ok(rest[..count].to_vec())
    }

    async fn write(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let (number, count, failed) = {
            let mut media = self.powered()?;
            let failed = self.fails(media.faults.write_errors, "write");
            let begin = usize::try_from(offset).unwrap_or(usize::MAX);
            let room = media.seen.len().saturating_sub(begin);
            let count = self.shortened(data.len().min(room), media.faults.short);
            if failed.is_ok() || self.handle.chance(2) {
                media.begin_write(begin, &data[..count]);
            }
            (media.number, count, failed)
        };
        self.wait().await;
        let mut media = self.powered()?;
        failed?;
        media.complete(number);
        Ok(count)
    }
}

impl Media {
    fn begin_write(&mut self, offset: usize, data: &[u8]) {
        self.number += 1;
        if data.is_empty() {
            return;
        }
        self.seen[offset..offset + data.len()].copy_from_slice(data);
        self.unflushed.push(Write {
            number: self.number,
            offset,
            data: data.to_vec(),
            completed: false,
        });
    }

    fn complete(&mut self, number: u64) {
        let mut writes = self.unflushed.iter_mut();
        if let Some(write) = writes.find(|write| write.number == number) {
            write.completed = true;
        }
    }

    /// Makes durable what had completed by then.
    fn flush(&mut self, covered: &[u64]) {
        let Media {
            durable, unflushed, ..
        } = self;
        for write in unflushed.extract_if(.., |one| covered.contains(&one.number)) {
            durable[write.offset..write.offset + write.data.len()].copy_from_slice(&write.data);
        }
    }
}

impl Write {
    /// Its parts that are written as a whole, each with its offset on the disk.
    fn sectors(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let first = SECTOR - self.offset % SECTOR;
        let (head, rest) = self.data.split_at(first.min(self.data.len()));
        let mut offset = self.offset;
        std::iter::once(head)
            .chain(rest.chunks(SECTOR))
            .map(move |sector| {
                let begin = offset;
                offset += sector.len();
                (begin, sector)
            })
    }
}

impl Block for SimDisk {
    async fn size(&self) -> io::Result<u64> {
        Ok(self.powered()?.seen.len() as u64)
    }

    async fn read_at<B: IoBufMut>(&self, mut buf: B, offset: u64) -> (io::Result<usize>, B) {
        let read = self.read(buf.bytes_total(), offset).await;
        let read = read.map(|data| {
            // SAFETY: that many bytes may be written there, since no more were asked for;
            // and they are before they are said to be.
            unsafe {
                buf.stable_mut_ptr()
                    .copy_from_nonoverlapping(data.as_ptr(), data.len());
                buf.set_init(data.len());
            }
            data.len()
        });
        (read, buf)
    }

    async fn write_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        let buf = buf.slice(..);
        let written = self.write(&buf, offset).await;
        (written, buf.into_inner())
    }

    async fn flush(&self) -> io::Result<()> {
        let covered: Vec<_> = {
            let media = self.powered()?;
            let writes = media.unflushed.iter();
            let completed = writes.filter(|write| write.completed);
            completed.map(|write| write.number).collect()
        };
        self.wait().await;
        let mut media = self.powered()?;
        self.fails(media.faults.flush_errors, "flush")?;
        media.flush(&covered);
        Ok(())
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let media = self.media();
        f.debug_struct("SimDisk")
            .field("size", &media.seen.len())
            .field("unflushed", &media.unflushed.len())
            .field("crashes", &media.crashes)
            .finish_non_exhaustive()
    }
}
