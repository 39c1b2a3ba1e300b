//! Whether a driver may be used: one word, looked at on every way into it.
//!
//! A forked child has a copy of every object of its parent's driver, over the same ring and epoll set:
//! its operations would be executed by the parent's ring, in the parent's memory, and a descriptor it
//! drops would be taken out of the parent's set. So the word is on a page that the kernel gives a
//! child as zeroes, whatever number the child has (the first process of a container may have a child
//! that is the first of another). When the kernel refuses to serve the driver, the word says so.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) struct Mark {
    page: NonNull<AtomicU32>,
    process: u32,
    /// The kernel wipes the page in a child (Linux 4.14); if not, numbers are compared.
    wiped: bool,
}

/// What the word says; in a child it is neither.
const USABLE: u32 = 1;
const LOST: u32 = 2;

/// The least that can be mapped; the kernel rounds up.
const LENGTH: usize = size_of::<AtomicU32>();

impl Mark {
    pub(super) fn new() -> io::Result<Mark> {
        // SAFETY: a new mapping, of the kernel's choice of place.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made.
        let wiped = unsafe { libc::madvise(page, LENGTH, libc::MADV_WIPEONFORK) } == 0;
        let mark = Mark {
            page: NonNull::new(page.cast()).expect("nothing is mapped at 0"),
            process: std::process::id(),
            wiped,
        };
        mark.word().store(USABLE, Ordering::Relaxed);
        Ok(mark)
    }

    #[inline]
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped, zeroed or written as an atomic, for the life of `self`.
        unsafe { self.page.as_ref() }
    }

    /// Whether the driver may be used, by this process.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.word().load(Ordering::Relaxed) == USABLE && (self.wiped || !self.is_forked())
    }

    /// From now on it may not.
    pub(super) fn clear(&self) {
        self.word().store(LOST, Ordering::Relaxed);
    }

    /// Whether this is a child of the process that made it.
    #[cold]
    pub(super) fn is_forked(&self) -> bool {
        match self.wiped {
            true => self.word().load(Ordering::Relaxed) == 0,
            false => std::process::id() != self.process,
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, in a child too.
        unsafe {
            libc::munmap(self.page.as_ptr().cast(), LENGTH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleared_mark_stays_so() {
        let mark = Mark::new().unwrap();
        assert!(mark.is_set() && !mark.is_forked());
        mark.clear();
        assert!(!mark.is_set() && !mark.is_forked());
    }

    /// As the first process of a container inside a container.
    #[test]
    fn a_child_with_its_parents_number_is_a_child() {
        for lost in [false, true] {
            let mut mark = Mark::new().unwrap();
            if lost {
                mark.clear();
            }
            // SAFETY: the child allocates nothing and ends at once.
            match unsafe { nix::unistd::fork() }.unwrap() {
                nix::unistd::ForkResult::Child => {
                    mark.process = std::process::id();
                    let told = !mark.is_set() && mark.is_forked();
                    // SAFETY: as above.
                    unsafe { libc::_exit(i32::from(!told)) }
                }
                nix::unistd::ForkResult::Parent { child } => {
                    let status = nix::sys::wait::waitpid(child, None).unwrap();
                    assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
                    assert!(!mark.is_forked());
                }
            }
        }
    }
}
