//! One end of a connection, or of a listener, in the connection manager.

#![expect(unsafe_code, reason = "calls librdmacm; rules in `verbs`")]

use std::{
    fmt,
    mem::size_of,
    net::SocketAddr,
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use libc::{c_int, c_void, sockaddr_storage};

use super::{
    address::RawAddress,
    bindings::{RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, RDMA_OPTION_ID_REUSEADDR},
    device::{self, DeviceLimits},
    error::{Error, Result, check},
    event::{Channel, EventChannel},
    library::Library,
    sys::{ibv_context, rdma_cm_id, rdma_conn_param, rdma_port_space},
};

/// Which id an event is about. Never used again for another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdKey(usize);

impl IdKey {
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The key travels where C keeps a pointer; it is never followed.
    fn as_context(self) -> *mut c_void {
        ptr::without_provenance_mut(self.0)
    }

    /// # Safety
    ///
    /// `id` is null or alive.
    pub(super) unsafe fn of(id: *const rdma_cm_id) -> Self {
        match id.is_null() {
            true => Self::default(),
            // SAFETY: alive.
            false => Self(unsafe { (*id).context }.addr()),
        }
    }
}

/// A connection manager id: connects, listens, or is what a listener brought. All in the TCP port space
/// (docs/wire/rdma.md §2.1).
///
/// Everything made from it ([`ProtectionDomain`](super::ProtectionDomain), [`QueuePair`](super::QueuePair), …) keeps it alive,
/// whatever becomes of this handle.
pub struct CmId {
    pub(super) inner: Arc<Id>,
}

pub(super) struct Id {
    raw: NonNull<rdma_cm_id>,
    key: IdKey,
    channel: Mutex<Arc<Channel>>,
    pub(super) library: &'static Library,
}

// SAFETY: librdmacm has no thread of its own and none it prefers; the fields are reached under the channel's lock only.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

/// What goes with connecting and accepting (docs/wire/rdma.md §2.2, §2.3, §2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectParameters<'a> {
    /// At most 56 bytes with a request, 196 with an answer; the link may pad them.
    pub private_data: &'a [u8],
    /// How many READs of the other end are served at a time.
    pub responder_resources: u8,
    /// How many READs of this end may be under way.
    pub initiator_depth: u8,
    /// Retransmissions before a link counts as dead; 7 at most. Only a request's value counts, for both ends.
    pub retry_count: u8,
    /// How often *the other end* tries again when nothing is posted here; 7 is for ever.
    pub rnr_retry_count: u8,
}

impl CmId {
    /// A new id whose events go to `channel`.
    pub fn new(channel: &EventChannel) -> Result<Self> {
        let library = Library::get()?;
        let channel = Arc::clone(&channel.shared);
        let key = IdKey::next();
        let mut raw = ptr::null_mut();
        let guard = channel.lock();
        // SAFETY: the channel is alive and stays so, since the id keeps it; the library writes one pointer.
        let answer = unsafe {
            (library.rdma_create_id)(
                channel.as_ptr(),
                &raw mut raw,
                key.as_context(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        drop(guard);
        check("rdma_create_id", answer)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::code("rdma_create_id", libc::EPROTO))?;
        let inner = Id { raw, key, channel: Mutex::new(channel), library };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes over the id of a connection request. The caller does not hold the channel's lock.
    pub(super) fn adopt(
        raw: NonNull<rdma_cm_id>,
        channel: Arc<Channel>,
        library: &'static Library,
    ) -> Self {
        let key = IdKey::next();
        let inner = Id { raw, key, channel: Mutex::new(channel), library };
        // SAFETY: alive and ours. Until now its context was the listener's.
        inner.with(|id| unsafe { (*id).context = key.as_context() });
        Self { inner: Arc::new(inner) }
    }

    /// What events call this id.
    pub fn key(&self) -> IdKey {
        self.inner.key
    }

    /// Begins to find the device that leads to `destination`; `AddrResolved` or `AddrError` follows within `timeout`.
    pub fn resolve_addr(&self, destination: SocketAddr, timeout: Duration) -> Result<()> {
        let mut address = RawAddress::new(destination);
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive; the address is copied by the call.
            check("rdma_resolve_addr", unsafe {
                (library.rdma_resolve_addr)(
                    id,
                    ptr::null_mut(),
                    address.as_mut_ptr(),
                    milliseconds(timeout),
                )
            })
        })
    }

    /// Begins to find the way there; `RouteResolved` or `RouteError` follows within `timeout`.
    pub fn resolve_route(&self, timeout: Duration) -> Result<()> {
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive.
            check("rdma_resolve_route", unsafe {
                (library.rdma_resolve_route)(id, milliseconds(timeout))
            })
        })
    }

    /// Lets an address be bound again right after its last user closed. Before [`CmId::bind_addr`].
    pub fn set_reuse_address(&self) -> Result<()> {
        self.set_option(RDMA_OPTION_ID_REUSEADDR)
    }

    /// Keeps a `[::]` listener from taking the port for IPv4 too. Before [`CmId::bind_addr`].
    pub fn set_ipv6_only(&self) -> Result<()> {
        self.set_option(RDMA_OPTION_ID_AFONLY)
    }

    fn set_option(&self, option: u32) -> Result<()> {
        let mut on: c_int = 1;
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive; both options take an int, which is copied by the call.
            check("rdma_set_option", unsafe {
                (library.rdma_set_option)(
                    id,
                    RDMA_OPTION_ID as c_int,
                    option as c_int,
                    (&raw mut on).cast(),
                    size_of::<c_int>(),
                )
            })
        })
    }

    /// Takes a local address; port 0 gets a free one, which [`CmId::local_addr`] tells.
    pub fn bind_addr(&self, local: SocketAddr) -> Result<()> {
        let mut address = RawAddress::new(local);
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive; the address is copied by the call.
            check("rdma_bind_addr", unsafe { (library.rdma_bind_addr)(id, address.as_mut_ptr()) })
        })
    }

    /// Lets `ConnectRequest` events come.
    pub fn listen(&self, backlog: u32) -> Result<()> {
        let library = self.inner.library;
        let backlog = c_int::try_from(backlog).unwrap_or(c_int::MAX);
        self.inner.with(|id| {
            // SAFETY: the id is alive.
            check("rdma_listen", unsafe { (library.rdma_listen)(id, backlog) })
        })
    }

    /// Asks for the connection; `Established`, `Rejected`, `Unreachable` or `ConnectError` follows, at the latest when the
    /// kernel has tried often enough (tens of seconds). The other end is connected only when this end has fetched that event:
    /// the library confirms the answer while fetching it. After the queue pair is made and its RECVs are posted.
    pub fn connect(&self, parameters: &ConnectParameters<'_>) -> Result<()> {
        let mut raw = parameters.raw("rdma_connect")?;
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive; parameters and private data are copied by the call.
            check("rdma_connect", unsafe { (library.rdma_connect)(id, &raw mut raw) })
        })
    }

    /// Accepts a request; `Established` follows. After the queue pair is made and its RECVs are posted.
    pub fn accept(&self, parameters: &ConnectParameters<'_>) -> Result<()> {
        let mut raw = parameters.raw("rdma_accept")?;
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: as in `connect`.
            check("rdma_accept", unsafe { (library.rdma_accept)(id, &raw mut raw) })
        })
    }

    /// Refuses a request, with at most 148 bytes of reason.
    pub fn reject(&self, private_data: &[u8]) -> Result<()> {
        let len = private_data_len("rdma_reject", private_data)?;
        let library = self.inner.library;
        self.inner.with(|id| {
            // SAFETY: the id is alive; the data are copied by the call.
            check("rdma_reject", unsafe {
                (library.rdma_reject)(id, private_data.as_ptr().cast(), len)
            })
        })
    }

    /// Ends the connection: everything posted is flushed, the other end gets `Disconnected`. This end gets its own event
    /// only when the other has disconnected too.
    pub fn disconnect(&self) -> Result<()> {
        self.inner.disconnect()
    }

    /// This end's address, once bound or resolved.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        // SAFETY: the id is alive; the source comes first in the pair of addresses, with room for every family.
        self.inner.with(|id| unsafe { RawAddress::read((&raw const (*id).route.addr).cast()) })
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        // SAFETY: as above; the destination follows the source, which is as long as a `sockaddr_storage`.
        self.inner.with(|id| unsafe {
            let addresses = &raw const (*id).route.addr;
            RawAddress::read(addresses.byte_add(size_of::<sockaddr_storage>()).cast())
        })
    }

    /// Sends this id's further events, and those not fetched yet, to another channel.
    pub fn migrate(&self, to: &EventChannel) -> Result<()> {
        // Holding two channels' locks is safe as long as one thread at a time does.
        static MIGRATING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = MIGRATING.lock().unwrap_or_else(PoisonError::into_inner);
        let to = &to.shared;
        let mut channel = self.inner.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&channel, to) {
            return Ok(());
        }
        let old = channel.lock();
        let new = to.lock();
        // SAFETY: id and channel are alive; the id keeps the new one from here on.
        let answer =
            unsafe { (self.inner.library.rdma_migrate_id)(self.inner.raw.as_ptr(), to.as_ptr()) };
        let outcome = check("rdma_migrate_id", answer);
        drop((old, new));
        if outcome.is_ok() {
            *channel = Arc::clone(to);
        }
        outcome
    }

    /// What the device behind this id can do; an error before an address is resolved or a request has come.
    pub fn limits(&self) -> Result<DeviceLimits> {
        let context = self.inner.context()?;
        // SAFETY: the id is alive.
        let port = self.inner.with(|id| unsafe { (*id).port_num });
        // SAFETY: the device stays open while the id is there.
        unsafe { device::limits(self.inner.library, context, port) }
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmId")
            .field("key", &self.inner.key)
            .field("local", &self.local_addr())
            .field("peer", &self.peer_addr())
            .finish()
    }
}

impl Id {
    /// Uses the raw id under its channel's lock (see `event`).
    pub(super) fn with<R>(&self, use_it: impl FnOnce(*mut rdma_cm_id) -> R) -> R {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let _guard = channel.lock();
        use_it(self.raw.as_ptr())
    }

    /// The device, which stays open as long as this id.
    pub(super) fn context(&self) -> Result<*mut ibv_context> {
        // SAFETY: the id is alive.
        match self.with(|id| unsafe { (*id).verbs }) {
            context if context.is_null() => {
                Err(Error::code("device of a connection without an address", libc::ENOTCONN))
            }
            context => Ok(context),
        }
    }

    pub(super) fn disconnect(&self) -> Result<()> {
        self.with(|id| {
            // SAFETY: the id is alive.
            check("rdma_disconnect", unsafe { (self.library.rdma_disconnect)(id) })
        })
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: made by librdmacm, destroyed once; queue pair and all else on it hold an `Arc` of this, so are gone.
        // Nobody has an unacknowledged event, so the call does not wait.
        let answer = self.with(|id| unsafe { (self.library.rdma_destroy_id)(id) });
        if let Err(error) = check("rdma_destroy_id", answer) {
            tracing::warn!(%error, "a connection manager id is left behind");
        }
    }
}

impl ConnectParameters<'_> {
    fn raw(&self, call: &'static str) -> Result<rdma_conn_param> {
        Ok(rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: private_data_len(call, self.private_data)?,
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 0,
            retry_count: self.retry_count,
            rnr_retry_count: self.rnr_retry_count,
            srq: 0,
            qp_num: 0,
        })
    }
}

fn private_data_len(call: &'static str, data: &[u8]) -> Result<u8> {
    u8::try_from(data.len()).map_err(|_| Error::code(call, libc::EMSGSIZE))
}

/// At least one, so that a short wait does not become none.
fn milliseconds(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_data_that_cannot_be_sent_is_refused() {
        let data = [0; 256];
        let parameters = ConnectParameters { private_data: &data, ..Default::default() };
        let error = parameters.raw("rdma_connect").err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn waits_keep_within_the_systems_numbers() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_secs(10)), 10_000);
        assert_eq!(milliseconds(Duration::MAX), c_int::MAX);
    }
}
