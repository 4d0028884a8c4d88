//! What the connection manager tells: an [`EventChannel`] and the [`CmEvent`]s that come out of it.
//!
//! librdmacm moves the id an event is about (its address, its device, its queue pair's state) while the event is fetched,
//! on whatever thread fetches it. So every channel has a lock that is held for a fetch and for each call on an id: the
//! calls are short, the descriptor does not block. Events are copied and acknowledged under that lock too, hence
//! destroying an id never waits for somebody's acknowledgement.

#![expect(unsafe_code, reason = "calls librdmacm; rules in `verbs`")]

use std::{
    fmt,
    future::poll_fn,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr::{self, NonNull},
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{
    error::{Error, Result, check},
    id::{CmId, IdKey},
    library::Library,
    sys::{rdma_cm_event, rdma_cm_event_type::*, rdma_event_channel},
};

/// Where the events of some [`CmId`]s arrive. Waits through its descriptor, so nothing polls.
pub struct EventChannel {
    pub(super) shared: Arc<Channel>,
}

/// The part every id on the channel keeps alive.
pub(super) struct Channel {
    events: AsyncFd<RawChannel>,
    lock: Mutex<()>,
}

/// The library's channel. `AsyncFd` takes its descriptor out of the reactor before this drops.
struct RawChannel {
    raw: NonNull<rdma_event_channel>,
    library: &'static Library,
}

// SAFETY: the channel is a descriptor in a struct that nobody changes; librdmacm may be called from any thread.
unsafe impl Send for RawChannel {}
// SAFETY: as above.
unsafe impl Sync for RawChannel {}

impl AsRawFd for RawChannel {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: the channel is alive until `drop`, its descriptor is set when it is made and never changes.
        unsafe { (*self.raw.as_ptr()).fd }
    }
}

impl Drop for RawChannel {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_event_channel`, destroyed once; every id on it kept it alive.
        unsafe { (self.library.rdma_destroy_event_channel)(self.raw.as_ptr()) }
    }
}

/// Makes a descriptor of the library answer EAGAIN instead of waiting.
///
/// # Safety
///
/// `fd` is open for the length of the call.
pub(super) unsafe fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

impl EventChannel {
    /// Opens a channel.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O.
    pub fn new() -> Result<Self> {
        let library = Library::get()?;
        // SAFETY: no argument; the answer is checked.
        let raw = NonNull::new(unsafe { (library.rdma_create_event_channel)() })
            .ok_or_else(|| Error::last("rdma_create_event_channel"))?;
        let raw = RawChannel { raw, library };
        // SAFETY: `raw` has it open.
        unsafe { set_nonblocking(raw.as_raw_fd()) }
            .map_err(|source| Error { call: "fcntl(O_NONBLOCK)", source })?;
        // SAFETY: `raw` moves in; its descriptor stays open, and the same, until it drops.
        let events = unsafe { AsyncFd::register_with_interest(raw, Interest::READABLE) }
            .map_err(|error| Error { call: "epoll_ctl", source: error.into_parts().1 })?;
        Ok(Self { shared: Arc::new(Channel { events, lock: Mutex::new(()) }) })
    }

    /// The next event, or a promise to wake the caller; an error is final. One task waits at a time.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CmEvent>> {
        loop {
            let mut readable = ready!(self.shared.events.poll_read_ready(cx))
                .map_err(|source| Error { call: "epoll_wait", source })?;
            match self.shared.fetch()? {
                Some(event) => return Poll::Ready(Ok(event)),
                None => readable.clear_ready(),
            }
        }
    }

    /// The next event.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event is taken only to be returned.
    pub async fn event(&mut self) -> Result<CmEvent> {
        poll_fn(|cx| self.poll_event(cx)).await
    }
}

impl Channel {
    /// Held while an id of this channel is used or an event fetched (module head).
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn as_ptr(&self) -> *mut rdma_event_channel {
        self.events.get_ref().raw.as_ptr()
    }

    /// Takes an event that is there.
    fn fetch(self: &Arc<Self>) -> Result<Option<CmEvent>> {
        let library = self.events.get_ref().library;
        let guard = self.lock();
        let mut raw = ptr::null_mut();
        loop {
            // SAFETY: the channel is alive; the library writes one pointer.
            if unsafe { (library.rdma_get_cm_event)(self.as_ptr(), &raw mut raw) } == 0 {
                break;
            }
            let error = Error::last("rdma_get_cm_event");
            match error.source.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
        // SAFETY: the call succeeded, so `raw` is an event that stays until it is acknowledged, which happens after
        // this last use of it. The ids it names live at least as long: destroying one waits for the acknowledgement.
        let (event, request, acknowledged) = unsafe {
            let (event, request) = copy(&*raw);
            (event, request, check("rdma_ack_cm_event", (library.rdma_ack_cm_event)(raw)))
        };
        drop(guard);
        // Dropping an id takes the lock, so the request gets its owner only now, and before anything can fail.
        let request = request.map(|raw| CmId::adopt(raw, Arc::clone(self), library));
        acknowledged?;
        Ok(Some(CmEvent { request, ..event }))
    }
}

/// Copies an event, and points out the new id of a request.
///
/// # Safety
///
/// The event is not acknowledged yet, and of an id in the TCP port space.
unsafe fn copy(raw: &rdma_cm_event) -> (CmEvent, Option<NonNull<super::sys::rdma_cm_id>>) {
    let kind = CmEventKind::new(raw.event);
    let request = (kind == CmEventKind::ConnectRequest).then(|| NonNull::new(raw.id)).flatten();
    let about = if request.is_some() { raw.listen_id } else { raw.id };
    let has_data = matches!(
        kind,
        CmEventKind::ConnectRequest
            | CmEventKind::ConnectResponse
            | CmEventKind::Rejected
            | CmEventKind::Established
    );
    // SAFETY: ids of the TCP port space always use this arm of the union, and any bytes are a valid one.
    let parameters = unsafe { raw.param.conn };
    let private_data = match NonNull::new(parameters.private_data.cast_mut()) {
        // SAFETY: the library's pointer and length belong to the event.
        Some(data) if has_data => unsafe {
            slice::from_raw_parts(
                data.as_ptr().cast::<u8>(),
                usize::from(parameters.private_data_len),
            )
            .to_vec()
        },
        _ => Vec::new(),
    };
    let event = CmEvent {
        // SAFETY: the id is alive (see the caller); `context` is what `CmId` put there.
        id: unsafe { IdKey::of(about) },
        kind,
        status: raw.status,
        private_data,
        request: None,
    };
    (event, request)
}

/// One event, already acknowledged.
#[derive(Debug)]
pub struct CmEvent {
    /// The id it is about: the listening one for [`CmEventKind::ConnectRequest`].
    pub id: IdKey,
    /// What happened.
    pub kind: CmEventKind,
    /// 0, a negative `errno`, or for [`CmEventKind::Rejected`] the reason of the link's own table; [`CmEvent::reason`] has
    /// the words.
    pub status: i32,
    /// What the other end said: of requests, responses, refusals and `Established`. Padded with zeros by the link
    /// (docs/wire/rdma.md §2.4).
    pub private_data: Vec<u8>,
    /// The new connection of a [`CmEventKind::ConnectRequest`], on the listener's channel. Dropping it refuses it.
    pub request: Option<CmId>,
}

impl CmEvent {
    /// Why, in words, when the status says so.
    pub fn reason(&self) -> Option<String> {
        match self.status {
            0 => None,
            status if status < 0 => {
                Some(io::Error::from_raw_os_error(status.saturating_abs()).to_string())
            }
            status if self.kind == CmEventKind::Rejected => Some(reject_reason(status)),
            status => Some(format!("status {status}")),
        }
    }
}

/// Reasons of a REJ message, numbered by the InfiniBand architecture; those a migration can meet have words.
fn reject_reason(status: i32) -> String {
    let words = match status {
        1 => "no queue pair available there",
        3 => "no resources available there",
        4 => "time-out there",
        5 => "unsupported request",
        8 => "nobody listens on that port",
        9 => "unsupported transport type",
        10 => "stale connection",
        24 | 25 => "redirected, which is not supported",
        26 => "the MTU is not supported there",
        27 => "insufficient responder resources there",
        28 => "refused by the program there",
        29 => "the RNR retry count is not supported there",
        _ => return format!("reject reason {status}"),
    };
    format!("{words} (reject reason {status})")
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $value:ident,)*) => {
        /// What happened, named as rdma-core names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum CmEventKind {
            $($(#[$doc])* $kind,)*
            /// An event of a newer library.
            Other(u32),
        }

        impl CmEventKind {
            fn new(raw: Type) -> Self {
                match raw {
                    $($value => Self::$kind,)*
                    other => Self::Other(other),
                }
            }
        }

        impl fmt::Display for CmEventKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$kind => f.write_str(stringify!($value)),)*
                    Self::Other(other) => write!(f, "connection manager event {other}"),
                }
            }
        }
    };
}

kinds! {
    /// The destination is reachable through a device.
    AddrResolved = RDMA_CM_EVENT_ADDR_RESOLVED,
    /// It is not.
    AddrError = RDMA_CM_EVENT_ADDR_ERROR,
    /// The way is known.
    RouteResolved = RDMA_CM_EVENT_ROUTE_RESOLVED,
    /// There is none.
    RouteError = RDMA_CM_EVENT_ROUTE_ERROR,
    /// Somebody wants to connect to a listener.
    ConnectRequest = RDMA_CM_EVENT_CONNECT_REQUEST,
    /// An answer, for ids without a queue pair.
    ConnectResponse = RDMA_CM_EVENT_CONNECT_RESPONSE,
    /// Connecting failed half way.
    ConnectError = RDMA_CM_EVENT_CONNECT_ERROR,
    /// The other end does not answer.
    Unreachable = RDMA_CM_EVENT_UNREACHABLE,
    /// The other end refused.
    Rejected = RDMA_CM_EVENT_REJECTED,
    /// Connected.
    Established = RDMA_CM_EVENT_ESTABLISHED,
    /// The connection is over.
    Disconnected = RDMA_CM_EVENT_DISCONNECTED,
    /// The device goes away: destroy everything on it.
    DeviceRemoval = RDMA_CM_EVENT_DEVICE_REMOVAL,
    /// Of no use here.
    MulticastJoin = RDMA_CM_EVENT_MULTICAST_JOIN,
    /// Of no use here.
    MulticastError = RDMA_CM_EVENT_MULTICAST_ERROR,
    /// The address moved to another interface.
    AddrChange = RDMA_CM_EVENT_ADDR_CHANGE,
    /// A closed connection's queue pair may be used again.
    TimewaitExit = RDMA_CM_EVENT_TIMEWAIT_EXIT,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_words() {
        let event = |kind, status| CmEvent {
            id: IdKey::default(),
            kind,
            status,
            private_data: Vec::new(),
            request: None,
        };
        let reason = |kind, status| event(kind, status).reason();
        assert_eq!(reason(CmEventKind::Established, 0), None);
        assert!(reason(CmEventKind::Rejected, 8).unwrap().contains("nobody listens"));
        assert_eq!(reason(CmEventKind::Rejected, 99).unwrap(), "reject reason 99");
        let timeout = reason(CmEventKind::Unreachable, -libc::ETIMEDOUT).unwrap();
        assert!(timeout.contains("timed out"), "{timeout}");
    }

    #[test]
    fn kinds_are_named_as_the_library_names_them() {
        assert_eq!(CmEventKind::DeviceRemoval.to_string(), "RDMA_CM_EVENT_DEVICE_REMOVAL");
        assert_eq!(CmEventKind::new(9), CmEventKind::Established);
        assert_eq!(CmEventKind::new(77), CmEventKind::Other(77));
    }
}
