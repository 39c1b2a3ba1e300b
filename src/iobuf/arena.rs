//! The memory of one pool: one mapping, divided into equal buffers of whole
//! pages, which are named by their index.

use std::io;
use std::ptr::{self, NonNull};

use super::IobufError;

pub(super) struct Arena {
    base: NonNull<u8>,
    size: usize,
    count: usize,
}

// SAFETY: the mapping belongs to the arena, and which owner may touch which
// buffer of it is the business of `IobufBuf`, of which there is one per index.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `count` zeroed buffers of `size` bytes, a multiple of the page size. The
    /// pages come into being when first touched, on `node` if one is given and
    /// has any left.
    pub(super) fn new(count: usize, size: usize, node: Option<usize>) -> Result<Self, IobufError> {
        let bytes = count.saturating_mul(size);
        // SAFETY: a new private mapping at an address of the kernel's choice
        // touches no existing memory.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let base = NonNull::new(address.cast::<u8>());
        let Some(base) = base.filter(|_| address != libc::MAP_FAILED) else {
            return Err(IobufError::NoMemory {
                bytes,
                source: io::Error::last_os_error(),
            });
        };
        let arena = Arena { base, size, count };
        if let Some(node) = node {
            arena.prefer_node(node);
        }
        Ok(arena)
    }

    /// Asks for memory near `node`. A kernel without NUMA has only one.
    fn prefer_node(&self, node: usize) {
        const MPOL_PREFERRED: libc::c_long = 1;
        let Some(mask) = mask_of(node) else {
            return;
        };
        // SAFETY: the range is this arena's mapping, and the mask has as many
        // bits as said.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.size * self.count,
                MPOL_PREFERRED,
                mask.as_ptr(),
                NODES,
                0,
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            tracing::warn!(node, "iobuf memory is not placed on its node: {error}");
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The address of one buffer, of `size` bytes, initialised.
    #[inline]
    pub(super) fn buffer(&self, index: u32) -> NonNull<u8> {
        let index = index as usize;
        assert!(index < self.count);
        // SAFETY: the offset is within the mapping.
        unsafe { self.base.add(index * self.size) }
    }
}

/// As many as `mask_of` has bits for.
const NODES: usize = 1024;

/// The set of one node, as the kernel takes it.
pub(super) fn mask_of(node: usize) -> Option<[u64; 16]> {
    let mut mask = [0; 16];
    *mask.get_mut(node / 64)? = 1 << (node % 64);
    Some(mask)
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's, and every buffer keeps the arena
        // alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size * self.count) };
    }
}
