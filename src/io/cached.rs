//! Reads of what the page cache holds, without a turn of the driver.
//!
//! One task that reads a file block by block gains nothing from a ring: a system call that takes what
//! the page cache has is cheaper than an entry, its submission and its completion. Several tasks that
//! read at the same time share their submission, and that is cheaper still. So a read is done on the
//! spot if the task that read last wants the next block too; where the cache does not have all of it,
//! the driver does it.

use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

use super::IoBufMut;
use super::epoll::read_cached;
use super::fixed::OpenFile;
use super::op::transfer_len;
use crate::sync::budget::poll_budget;

/// Longer ones are mostly copying, of which a poll of a task should not do its budget's worth.
const LONGEST: u32 = 16 << 10;
/// How many reads are left to the driver after one that the cache did not have.
const PAUSE: u32 = 32;

impl OpenFile {
    /// Reads into the whole of `buf` on the spot, if that is likely to be possible; how much was read.
    /// `None` leaves it to the driver. One unit of the task's budget for each read.
    #[inline]
    pub(crate) fn poll_read_cached<B: IoBufMut>(
        &self,
        buf: &mut B,
        offset: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<usize>> {
        let (core, len) = (self.core(), transfer_len(buf.bytes_total()));
        let reader = cx.waker().data().addr();
        // A waker without data could be anybody's.
        let lone = core.reader.replace(reader) == reader && reader != 0;
        if !lone || len == 0 || len > LONGEST || self.is_pausing() || core.check_current().is_err()
        {
            return Poll::Ready(None);
        }
        let budget = ready!(poll_budget(cx));
        match read_cached(self.as_raw_fd(), buf.stable_mut_ptr(), len, offset) {
            Some(count) if count == 0 || count as u32 == len => {
                budget.progressed();
                Poll::Ready(Some(count as usize))
            }
            // What is not there, or the end of the file, or an error: the driver tells.
            _ => {
                self.pause(PAUSE);
                Poll::Ready(None)
            }
        }
    }
}
