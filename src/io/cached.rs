//! Reads of what the page cache holds, without a turn of the driver.
//!
//! A system call that takes what the page cache has is cheaper than a ring entry, its submission and
//! its completion, also where many entries share one submission: the entry costs the kernel a request
//! of its own, and the task a wake and a poll more. So each short read is tried on the spot first;
//! where the cache does not have all of it, the driver does it, and the next ones of that file.

use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};

use super::IoBufMut;
use super::epoll::read_cached;
use super::fixed::OpenFile;
use super::op::transfer_len;
use crate::sync::budget::poll_budget_of;

/// Longer ones are mostly copying.
const LONGEST: u32 = 16 << 10;
/// How many reads are left to the driver after one that the cache did not have.
const PAUSE: u32 = 32;
/// So many bytes cost a unit of the budget: a poll of a task copies 64 KiB, in about 15 µs, and then
/// the others have their turn.
const UNIT: u32 = 512;

impl OpenFile {
    /// Reads into the whole of `buf` on the spot, if that is likely to be possible; how much was read.
    /// `None` leaves it to the driver.
    #[inline]
    pub(crate) fn poll_read_cached<B: IoBufMut>(
        &self,
        buf: &mut B,
        offset: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<usize>> {
        let len = transfer_len(buf.bytes_total());
        // A waker without data wakes no task: a caller that polls with one looks for an operation
        // in flight.
        let by_hand = cx.waker().data().is_null();
        let at_once = !by_hand && len > 0 && len <= LONGEST && !self.is_pausing();
        if !at_once || self.core().check_current().is_err() {
            return Poll::Ready(None);
        }
        let budget = ready!(poll_budget_of(len.div_ceil(UNIT), cx));
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
