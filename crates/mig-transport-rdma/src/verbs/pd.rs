//! A protection domain: what memory and queue pairs have in common.

#![expect(unsafe_code, reason = "calls libibverbs; rules in `verbs`")]

use std::{fmt, ptr::NonNull, sync::Arc};

use super::{
    CmId,
    error::{Error, Result, check_code},
    id::Id,
    library::Library,
    sys::ibv_pd,
};

/// A protection domain on the device of a [`CmId`]. Clones are the same one; it ends with the last of them and of what was
/// made in it.
#[derive(Clone)]
pub struct ProtectionDomain {
    pub(super) inner: Arc<Pd>,
}

pub(super) struct Pd {
    raw: NonNull<ibv_pd>,
    /// Keeps the device open.
    id: Arc<Id>,
}

// SAFETY: libibverbs may be called from any thread, from several at a time too.
unsafe impl Send for Pd {}
// SAFETY: as above.
unsafe impl Sync for Pd {}

impl ProtectionDomain {
    /// Makes one, once the id has a device: after `AddrResolved`, or on a request's id.
    pub fn new(id: &CmId) -> Result<Self> {
        let id = Arc::clone(&id.inner);
        let context = id.context()?;
        // SAFETY: the device is open, and kept so by the id.
        let raw = NonNull::new(unsafe { (id.library.ibv_alloc_pd)(context) })
            .ok_or_else(|| Error::last("ibv_alloc_pd"))?;
        Ok(Self { inner: Arc::new(Pd { raw, id }) })
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain").finish_non_exhaustive()
    }
}

impl Pd {
    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }

    pub(super) fn library(&self) -> &'static Library {
        self.id.library
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: from `ibv_alloc_pd`, freed once; memory and queue pairs in it hold an `Arc` of this, so are gone.
        let answer = unsafe { (self.library().ibv_dealloc_pd)(self.raw.as_ptr()) };
        if let Err(error) = check_code("ibv_dealloc_pd", answer) {
            tracing::warn!(%error, "a protection domain is left behind");
        }
    }
}
