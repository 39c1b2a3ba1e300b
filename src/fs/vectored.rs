//! Reads and writes of several buffers in one operation.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use super::file::{File, check_range};
use crate::io::fixed::OpenFile;
use crate::io::op::{Payload, Request, transfer_len};
use crate::io::{IoBuf, IoBufMut};

/// As many buffers as the kernel takes at once.
const MOST: usize = libc::UIO_MAXIOV as usize;

impl File {
    /// As [`read_at`](Self::read_at), into one buffer after the other; of more than 1,024 the first
    /// ones.
    ///
    /// # Errors
    ///
    /// Those of `preadv(2)`; `InvalidInput` if the offset is not a file offset.
    ///
    /// # Examples
    ///
    /// A header and its body:
    ///
    /// ```
    /// use corespun::{fs::File, io::IoBuf};
    ///
    /// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
    /// let file = File::from_std(tempfile::tempfile()?)?;
    /// let (written, _) = file.write_vectored_at(vec!["head", "and body"], 0).await;
    /// assert_eq!(written?, 12);
    /// let parts = vec![vec![0; 4].slice(..), vec![0; 64].slice(..64)];
    /// let (read, parts) = file.read_vectored_at(parts, 0).await;
    /// assert_eq!(read?, 12);
    /// assert_eq!((&parts[0][..], &parts[1][..8]), (&b"head"[..], &b"and body"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn read_vectored_at<B: IoBufMut>(
        &self,
        mut bufs: Vec<B>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<B>) {
        let parts = parts(&mut bufs, |buf| (buf.stable_mut_ptr(), buf.bytes_total()));
        let (result, mut bufs) = self.vectored(true, bufs, parts, offset).await;
        if let Ok(count) = result {
            let mut left = count;
            for buf in &mut bufs {
                let part = left.min(buf.bytes_total());
                // SAFETY: the kernel has filled the buffers in order, so many bytes altogether.
                unsafe { buf.set_init(part) };
                left -= part;
                if left == 0 {
                    break;
                }
            }
        }
        (result, bufs)
    }

    /// As [`write_at`](Self::write_at), of one buffer after the other; of more than 1,024 the first
    /// ones.
    ///
    /// # Errors
    ///
    /// Those of `pwritev(2)`; `InvalidInput` if the offset is not a file offset.
    pub async fn write_vectored_at<B: IoBuf>(
        &self,
        mut bufs: Vec<B>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<B>) {
        let parts = parts(&mut bufs, |buf| {
            (buf.stable_ptr().cast_mut(), buf.bytes_init())
        });
        self.vectored(false, bufs, parts, offset).await
    }

    async fn vectored<B: 'static>(
        &self,
        read: bool,
        bufs: Vec<B>,
        parts: Vec<libc::iovec>,
        offset: u64,
    ) -> (io::Result<usize>, Vec<B>) {
        let len: usize = parts.iter().map(|part| part.iov_len).sum();
        if let Err(error) = check_range(offset, len as u64).await {
            return (Err(error), bufs);
        }
        let fd = self.fd().clone();
        let (result, moved) = self
            .run(Vectored {
                fd,
                read,
                parts,
                offset,
                bufs,
            })
            .await;
        (result.map(|count| count as usize), moved.bufs)
    }
}

/// The first of `bufs`, up to as many and as long as one operation moves.
fn parts<B>(bufs: &mut [B], of: impl Fn(&mut B) -> (*mut u8, usize)) -> Vec<libc::iovec> {
    let mut room = transfer_len(usize::MAX) as usize;
    let first = bufs.iter_mut().take(MOST);
    first
        .map(|buf| {
            let (start, len) = of(buf);
            let len = len.min(room);
            room -= len;
            libc::iovec {
                iov_base: start.cast(),
                iov_len: len,
            }
        })
        .collect()
}

struct Vectored<B> {
    fd: Rc<OpenFile>,
    read: bool,
    parts: Vec<libc::iovec>,
    offset: u64,
    /// Not moved themselves while they are lent: a `Vec` keeps them where they are.
    bufs: Vec<B>,
}

// SAFETY: the parts are on the heap, and were taken from the buffers, whose bytes stay in place for
// as long as they are not touched (IoBuf, IoBufMut); the descriptor is shared.
unsafe impl<B: 'static> Payload for Vectored<B> {
    fn request(&mut self) -> Request {
        let (fd, offset) = (self.fd.as_raw_fd(), self.offset);
        let (parts, count) = (self.parts.as_ptr(), self.parts.len() as u32);
        match self.read {
            true => Request::ReadVectored {
                fd,
                parts,
                count,
                offset,
            },
            false => Request::WriteVectored {
                fd,
                parts,
                count,
                offset,
            },
        }
    }
}
