//! Buffers for messages: memory of our own, registered once. A buffer is owned by whoever may touch it: the program, or
//! from posting to completion the device.

#![expect(unsafe_code, reason = "lends memory to a device; rules in `verbs`")]

use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    param::page_size,
};
use tokio::task::spawn_blocking;

use super::{
    Access, ProtectionDomain,
    error::{Error, Result},
    mr::{Memory, Registration},
    pd::Pd,
};

/// Whole pages of zeros, which nobody else uses.
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is this value's alone.
unsafe impl Send for Pages {}
// SAFETY: as above; bytes are reached through buffers that own theirs.
unsafe impl Sync for Pages {}

// SAFETY: the mapping stays until drop; references exist only inside a `Buffer` that its owner, not the device, holds.
unsafe impl Memory for Pages {
    fn range(&self) -> (NonNull<u8>, usize) {
        (self.start, self.len)
    }
}

impl Pages {
    fn zeroed(len: usize) -> Result<Self> {
        // SAFETY: a new mapping, at a place the kernel chooses.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|error| Error { call: "mmap", source: error.into() })?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::code("mmap", libc::ENOMEM))?;
        Ok(Self { start, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once; no buffer of it is left. The call cannot fail for a range that is mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A registered buffer, page-aligned. Posting moves it to the device; its completion brings it back.
pub struct Buffer {
    pages: Arc<Registration<Pages>>,
    offset: usize,
    len: usize,
}

impl Buffer {
    /// `count` buffers of `len` bytes each, in one registration that lasts as long as any of them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was made is given back.
    pub async fn allocate(pd: &ProtectionDomain, count: usize, len: usize) -> Result<Vec<Self>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let too_much = || Error::code("mmap", libc::EOVERFLOW);
        let stride = len.checked_next_multiple_of(page_size()).ok_or_else(too_much)?;
        let total = stride.checked_mul(count).ok_or_else(too_much)?;
        let pd = pd.clone();
        // No bytes make no mapping, which the kernel says.
        let allocating = spawn_blocking(move || {
            Registration::new(&pd, Pages::zeroed(total)?, Access::LocalWrite)
        });
        let pages =
            allocating.await.unwrap_or_else(|_| Err(Error::code("ibv_reg_mr", libc::ECANCELED)))?;
        let pages = Arc::new(pages);
        Ok((0..count)
            .map(|index| Self { pages: Arc::clone(&pages), offset: index * stride, len })
            .collect())
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: `offset` is inside the mapping.
        unsafe { self.pages.memory().start.add(self.offset) }
    }

    /// What a scatter entry of it says: address and local key.
    pub(super) fn entry(&self) -> (u64, u32) {
        (self.start().addr().get() as u64, self.pages.local_key())
    }

    pub(super) fn is_in(&self, pd: &Arc<Pd>) -> bool {
        self.pages.is_in(pd)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `offset + len` is inside the mapping, which lives as long as `pages`; no other buffer has these bytes,
        // and the device has them only while it owns the buffer.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}
