//! Memory a device may reach: parts of regions, for the other end's RDMA WRITEs or as the source of ours.

#![expect(unsafe_code, reason = "registers memory with a device; rules in `verbs`")]

use std::{fmt, mem::ManuallyDrop, ptr::NonNull, sync::Arc};

use mig_transport::RegionSlice;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{
    ProtectionDomain,
    error::{Error, Result, check_code},
    pd::Pd,
    sys::{ibv_access_flags, ibv_mr},
};

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// This end's WRITEs and SENDs read it. The other end cannot reach it.
    LocalRead,
    /// What the other end sends lands in it. The other end cannot reach it by itself.
    LocalWrite,
    /// The other end WRITEs to it whenever it likes, given the key.
    RemoteWrite,
}

impl Access {
    fn flags(self) -> u32 {
        let write = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        match self {
            Self::LocalRead => 0,
            Self::LocalWrite => write,
            Self::RemoteWrite => write | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
        }
    }
}

/// Memory that can be registered.
///
/// # Safety
///
/// The range stays mapped, at its place, while the value lives, wherever the value moves; no Rust reference to it exists
/// while a device may write there.
pub(super) unsafe trait Memory: Send + Sync + 'static {
    fn range(&self) -> (NonNull<u8>, usize);
}

// SAFETY: the promises of `Region`.
unsafe impl Memory for RegionSlice {
    fn range(&self) -> (NonNull<u8>, usize) {
        (self.as_ptr(), self.len())
    }
}

/// A registration, and the memory, which it outlives in no case.
pub(super) struct Registration<M: Memory> {
    raw: NonNull<ibv_mr>,
    memory: ManuallyDrop<M>,
    /// It was tried to give it back: neither `raw` nor `memory` is to be touched any more.
    is_over: bool,
    pd: Arc<Pd>,
}

// SAFETY: the registration is read only until it drops, which any thread may do; memory and domain are `Send` themselves.
unsafe impl<M: Memory> Send for Registration<M> {}
// SAFETY: as above.
unsafe impl<M: Memory> Sync for Registration<M> {}

impl<M: Memory> Registration<M> {
    /// Registers, and so pins, the memory. Takes as long as it takes: off the async threads.
    pub(super) fn new(pd: &ProtectionDomain, memory: M, access: Access) -> Result<Self> {
        let pd = Arc::clone(&pd.inner);
        let (start, len) = memory.range();
        // SAFETY: the memory is mapped for its length until it drops, which is after the deregistration; the domain is
        // alive. Not the old `ibv_reg_mr`, whose macro form differs from the function.
        let raw = unsafe {
            (pd.library().ibv_reg_mr_iova2)(
                pd.as_ptr(),
                start.as_ptr().cast(),
                len,
                start.addr().get() as u64,
                access.flags(),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("ibv_reg_mr"))?;
        Ok(Self { raw, memory: ManuallyDrop::new(memory), is_over: false, pd })
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: registered until drop.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    fn remote_key(&self) -> u32 {
        // SAFETY: registered until drop.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    pub(super) fn is_in(&self, pd: &Arc<Pd>) -> bool {
        Arc::ptr_eq(&self.pd, pd)
    }
}

impl<M: Memory> Registration<M> {
    /// Gives the memory back. If the device does not, it may still write there, so the memory stays for ever.
    fn give_back(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_over, true) {
            return Ok(());
        }
        // SAFETY: from `ibv_reg_mr_iova2`, given back once.
        let answer = unsafe { (self.pd.library().ibv_dereg_mr)(self.raw.as_ptr()) };
        check_code("ibv_dereg_mr", answer)?;
        // SAFETY: dropped once, here; the device cannot reach it any more.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
        Ok(())
    }
}

impl<M: Memory> Drop for Registration<M> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "registered memory cannot be given back");
        }
    }
}

/// A region's registration, shared with the WRITEs under way.
pub(super) struct Registered {
    registration: Option<Registration<RegionSlice>>,
}

/// Giving back as much as this takes about a millisecond; more is done on a thread that may wait.
const INLINE_LIMIT: usize = 4 << 20;

impl Registered {
    pub(super) fn registration(&self) -> &Registration<RegionSlice> {
        self.registration.as_ref().expect("taken by `drop` and `deregister` only, which own it")
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(registration) = self.registration.take() else { return };
        if registration.memory().len() > INLINE_LIMIT
            && let Ok(runtime) = Handle::try_current()
        {
            // A runtime that is shutting down drops the closure, which is the same, here.
            runtime.spawn_blocking(move || drop(registration));
        }
    }
}

/// A part of a region that a device can reach, until this drops and the last WRITE from it has completed.
///
/// Dropping a large one gives it back in the background (at once outside a runtime); [`MemoryRegion::deregister`] waits.
pub struct MemoryRegion {
    pub(super) inner: Arc<Registered>,
}

/// Memory that a device may still reach.
#[derive(Debug, thiserror::Error)]
pub enum NotGivenBack {
    /// It can be tried again when the WRITEs have completed.
    #[error("RDMA WRITEs from this memory have not completed")]
    StillPosted(MemoryRegion),
    /// The device does not give it back; it stays mapped for as long as the process lives.
    #[error("the device does not give registered memory back: {0}")]
    Refused(#[source] Error),
}

impl MemoryRegion {
    /// Registers memory, which pins it: on a thread that may wait, since that takes a while.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the registration cannot be interrupted, but is undone as soon as it is done.
    pub async fn register(
        pd: &ProtectionDomain,
        memory: RegionSlice,
        access: Access,
    ) -> Result<Self> {
        let pd = pd.clone();
        let registering = spawn_blocking(move || {
            let registration = Registration::new(&pd, memory, access)?;
            Ok(Self { inner: Arc::new(Registered { registration: Some(registration) }) })
        });
        registering.await.unwrap_or_else(|_| Err(Error::code("ibv_reg_mr", libc::ECANCELED)))
    }

    /// Gives the memory back: on success no device can reach it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it is given back all the same.
    pub async fn deregister(self) -> Result<(), NotGivenBack> {
        let mut registered = Arc::try_unwrap(self.inner)
            .map_err(|inner| NotGivenBack::StillPosted(Self { inner }))?;
        let Some(registration) = registered.registration.take() else { return Ok(()) };
        // A runtime that is shutting down drops the closure, which gives it back too, but tells nobody.
        let answer = spawn_blocking(move || registration.give_back()).await;
        answer
            .unwrap_or_else(|_| Err(Error::code("ibv_dereg_mr", libc::ECANCELED)))
            .map_err(NotGivenBack::Refused)
    }

    /// The memory.
    pub fn slice(&self) -> &RegionSlice {
        self.inner.registration().memory()
    }

    /// Where the other end says it writes: the address of the first byte, as it goes on the wire.
    pub fn remote_address(&self) -> u64 {
        self.slice().as_ptr().addr().get() as u64
    }

    /// The key that lets the other end in; of use only with [`Access::RemoteWrite`].
    pub fn remote_key(&self) -> u32 {
        self.inner.registration().remote_key()
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryRegion").field(self.slice()).finish()
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::{Region, VecRegion};

    use super::{
        super::{CmEventKind, CmId, EventChannel, devices},
        *,
    };

    /// A domain of the device that has the lab's address, or the one in `MIG_RDMA_TEST_ADDRS`.
    async fn domain() -> Option<ProtectionDomain> {
        let reason = match devices() {
            Ok(devices) if devices.is_empty() => "no RDMA device".to_owned(),
            Ok(_) => {
                let wait = std::time::Duration::from_secs(10);
                let address = std::env::var("MIG_RDMA_TEST_ADDRS");
                let address = address.unwrap_or_else(|_| "10.55.0.1".into());
                let (first, _) = address.split_once(',').unwrap_or((&address, ""));
                let mut events = EventChannel::new().unwrap();
                let id = CmId::new(&events).unwrap();
                id.resolve_addr((first.parse::<std::net::IpAddr>().unwrap(), 1).into(), wait)
                    .unwrap();
                assert_eq!(events.event().await.unwrap().kind, CmEventKind::AddrResolved);
                return Some(ProtectionDomain::new(&id).unwrap());
            }
            Err(error) => error.to_string(),
        };
        mig_testkit::not_applicable("rdma-device", &reason);
        None
    }

    #[tokio::test]
    async fn memory_that_the_device_keeps_is_an_error() {
        let Some(domain) = domain().await else { return };
        let region: Arc<dyn Region> = VecRegion::zeroed(4096);
        let memory = RegionSlice::new(Arc::clone(&region), 0, 4096).unwrap();
        let registered = MemoryRegion::register(&domain, memory, Access::LocalRead).await.unwrap();
        let raw = registered.inner.registration().raw;
        // SAFETY: registered, and nobody else uses it now. The kernel knows nothing of such a number.
        unsafe { (*raw.as_ptr()).handle = u32::MAX };
        let error = registered.deregister().await.unwrap_err();
        assert!(
            matches!(&error, NotGivenBack::Refused(cause) if cause.call == "ibv_dereg_mr"),
            "{error}"
        );
        assert!(Arc::strong_count(&region) > 1, "the device may still reach it");
    }
}
