//! Completions: what the device has done with what was posted.
//!
//! ```text
//!   poll ──some──▶ answer              Waiting without losing a wake-up: a completion that comes before the queue is armed
//!    │ none                            makes no event, so the queue is looked at once more after arming; one that comes
//!   arm, poll ──some──▶ answer         after makes an event, which makes the descriptor readable. An event disarms.
//!    │ none
//!   wait for the descriptor, take and acknowledge the event, begin again
//! ```

#![expect(unsafe_code, reason = "calls libibverbs; rules in `verbs`")]

use std::{
    ffi::CStr,
    fmt,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    ptr::{self, NonNull},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use libc::c_int;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Buffer, CmId,
    error::{Error, Result, check_code},
    event::set_nonblocking,
    id::Id,
    library::Library,
    outstanding::{Flight, Held, Outstanding},
    sys::{ibv_comp_channel, ibv_context, ibv_cq, ibv_wc, ibv_wc_status::*},
};

/// How many completions are taken from the device at a time.
const BATCH: usize = 32;

/// Where completions of queue pairs arrive. Waits through a descriptor of its own, so nothing polls.
pub struct CompletionQueue {
    pub(super) shared: Arc<Cq>,
    /// An event is under way or waiting: there is no need to arm again.
    armed: bool,
}

/// The part queue pairs keep alive. Field order is drop order, after `drop` has destroyed the queue.
pub(super) struct Cq {
    raw: NonNull<ibv_cq>,
    events: AsyncFd<CompletionChannel>,
    outstanding: Mutex<Outstanding>,
    depth: u32,
    /// Entries promised to queue pairs. Not given back when one ends: its last completions may still be inside.
    promised: AtomicU32,
    /// Keeps the device open.
    id: Arc<Id>,
}

// SAFETY: libibverbs may be called from any thread, from several at a time too.
unsafe impl Send for Cq {}
// SAFETY: as above.
unsafe impl Sync for Cq {}

/// The library's channel. `AsyncFd` takes its descriptor out of the reactor before this drops.
struct CompletionChannel {
    raw: NonNull<ibv_comp_channel>,
    /// Keeps the device open.
    id: Arc<Id>,
}

// SAFETY: a descriptor in a struct that nobody changes; libibverbs may be called from any thread.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl AsRawFd for CompletionChannel {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: alive until `drop`; its descriptor is set when it is made and never changes.
        unsafe { (*self.raw.as_ptr()).fd }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_create_comp_channel`, destroyed once, after the queue that used it.
        let answer = unsafe { (self.id.library.ibv_destroy_comp_channel)(self.raw.as_ptr()) };
        if let Err(error) = check_code("ibv_destroy_comp_channel", answer) {
            tracing::warn!(%error, "a completion channel is left behind");
        }
    }
}

impl CompletionQueue {
    /// A queue of at least `depth` completions on the device of `id`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O.
    pub fn new(id: &CmId, depth: u32) -> Result<Self> {
        let id = Arc::clone(&id.inner);
        let context = id.context()?;
        let library = id.library;
        // SAFETY: the device is open, and kept so by the id.
        let channel = NonNull::new(unsafe { (library.ibv_create_comp_channel)(context) })
            .ok_or_else(|| Error::last("ibv_create_comp_channel"))?;
        let channel = CompletionChannel { raw: channel, id: Arc::clone(&id) };
        // SAFETY: `channel` has it open.
        unsafe { set_nonblocking(channel.as_raw_fd()) }
            .map_err(|source| Error { call: "fcntl(O_NONBLOCK)", source })?;
        // SAFETY: `channel` moves in; its descriptor stays open, and the same, until it drops.
        let events = unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE) }
            .map_err(|error| Error { call: "epoll_ctl", source: error.into_parts().1 })?;
        let entries = c_int::try_from(depth).unwrap_or(c_int::MAX);
        // SAFETY: device and channel are alive, and outlive the queue.
        let raw = unsafe {
            (library.ibv_create_cq)(
                context,
                entries,
                ptr::null_mut(),
                events.get_ref().raw.as_ptr(),
                0,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("ibv_create_cq"))?;
        let shared = Cq {
            raw,
            events,
            outstanding: Mutex::new(Outstanding::new(depth)),
            depth,
            promised: AtomicU32::new(0),
            id,
        };
        Ok(Self { shared: Arc::new(shared), armed: false })
    }

    /// Appends the completions that are there, a few dozen at most, to `done`; answers how many.
    pub fn poll(&mut self, done: &mut Vec<WorkCompletion>) -> Result<usize> {
        self.shared.poll(done)
    }

    /// As [`CompletionQueue::poll`], but never 0: promises to wake the caller instead. An error is final.
    pub fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        done: &mut Vec<WorkCompletion>,
    ) -> Poll<Result<usize>> {
        loop {
            let some = self.shared.poll(done)?;
            if some > 0 {
                return Poll::Ready(Ok(some));
            }
            if !self.armed {
                self.shared.arm()?;
                self.armed = true;
                // What came before the arming makes no event.
                continue;
            }
            let mut readable = ready!(self.shared.events.poll_read_ready(cx))
                .map_err(|source| Error { call: "epoll_wait", source })?;
            if self.shared.take_event()? {
                self.armed = false;
            }
            // There is one event for each arming, so either way nothing is left to read.
            readable.clear_ready();
        }
    }

    /// Waits for completions, appends them to `done` and answers how many, at least one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: completions are taken only to be returned.
    pub async fn completions(&mut self, done: &mut Vec<WorkCompletion>) -> Result<usize> {
        poll_fn(|cx| self.poll_completions(cx, done)).await
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("depth", &self.shared.depth)
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Cq {
    pub(super) fn as_ptr(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }

    fn library(&self) -> &'static Library {
        self.id.library
    }

    pub(super) fn context(&self) -> *mut ibv_context {
        // SAFETY: the queue is alive; the field is set when it is made.
        unsafe { (*self.raw.as_ptr()).context }
    }

    pub(super) fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets entries aside: a queue that overflows is lost.
    pub(super) fn promise(&self, entries: u32) -> bool {
        self.promised
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |promised| {
                promised.checked_add(entries).filter(|&sum| sum <= self.depth)
            })
            .is_ok()
    }

    fn poll(&self, done: &mut Vec<WorkCompletion>) -> Result<usize> {
        let mut batch = [const { MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        // SAFETY: queue and device are alive; every provider has this function, and it writes at most `BATCH` entries.
        let answer = unsafe {
            let poll = (*self.context()).ops.poll_cq;
            let poll = poll.ok_or_else(|| Error::code("ibv_poll_cq", libc::ENOSYS))?;
            poll(self.as_ptr(), BATCH as c_int, batch.as_mut_ptr().cast())
        };
        let count = usize::try_from(answer)
            .map_err(|_| Error::code("ibv_poll_cq", answer.saturating_abs()))?;
        let mut known = 0;
        for raw in batch.iter().take(count) {
            // SAFETY: the device wrote the first `count` entries.
            let raw = unsafe { raw.assume_init_ref() };
            // Not known: the last words of a queue pair that is gone.
            let flight = self.outstanding().take(raw.wr_id);
            if let Some(flight) = flight {
                done.push(WorkCompletion::new(raw, flight));
                known += 1;
            }
        }
        // None known of a whole batch: there may be more behind it, which the caller must not wait for.
        if known == 0 && count > 0 { self.poll(done) } else { Ok(known) }
    }

    fn arm(&self) -> Result<()> {
        // SAFETY: queue and device are alive; every provider has this function.
        let answer = unsafe {
            let arm = (*self.context()).ops.req_notify_cq;
            let arm = arm.ok_or_else(|| Error::code("ibv_req_notify_cq", libc::ENOSYS))?;
            arm(self.as_ptr(), 0)
        };
        check_code("ibv_req_notify_cq", answer)
    }

    /// Takes the event, if one is there.
    fn take_event(&self) -> Result<bool> {
        let (mut queue, mut cookie) = (ptr::null_mut(), ptr::null_mut());
        loop {
            // SAFETY: the channel is alive; the library writes two pointers.
            let answer = unsafe {
                (self.library().ibv_get_cq_event)(
                    self.events.get_ref().raw.as_ptr(),
                    &raw mut queue,
                    &raw mut cookie,
                )
            };
            if answer == 0 {
                break;
            }
            let error = Error::last("ibv_get_cq_event");
            match error.source.kind() {
                io::ErrorKind::WouldBlock => return Ok(false),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
        // SAFETY: one event was taken, of the only queue on this channel. Until this is called, destroying the queue
        // would wait; it cannot be destroyed while `self` is borrowed.
        unsafe { (self.library().ibv_ack_cq_events)(self.as_ptr(), 1) };
        Ok(true)
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: from `ibv_create_cq`, destroyed once; queue pairs hold an `Arc` of this, so are gone, and every event
        // is acknowledged.
        let answer = unsafe { (self.library().ibv_destroy_cq)(self.raw.as_ptr()) };
        if let Err(error) = check_code("ibv_destroy_cq", answer) {
            tracing::warn!(%error, "a completion queue is left behind");
        }
    }
}

/// What was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkKind {
    /// A message to the other end.
    Send,
    /// Room for a message of the other end.
    Recv,
    /// An RDMA WRITE.
    Write,
}

impl fmt::Display for WorkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "SEND",
            Self::Recv => "RECV",
            Self::Write => "RDMA WRITE",
        })
    }
}

/// A work request that the device is done with.
#[derive(Debug)]
pub struct WorkCompletion {
    /// What was posted.
    pub kind: WorkKind,
    /// The number it was posted with.
    pub token: u64,
    /// How it went. Anything but success is the end of the connection (docs/wire/rdma.md §8.5).
    pub status: WorkStatus,
    /// The device maker's own error number, for a report.
    pub vendor_error: u32,
    /// Bytes that arrived, of a RECV that succeeded.
    pub byte_len: usize,
    /// The buffer that was posted, except with WRITEs.
    pub buffer: Option<Buffer>,
}

impl WorkCompletion {
    fn new(raw: &ibv_wc, flight: Flight) -> Self {
        let Flight { kind, token, held, .. } = flight;
        let status = WorkStatus::new(raw.status);
        let buffer = match held {
            Held::Buffer(buffer) => Some(buffer),
            Held::Region { .. } | Held::Nothing => None,
        };
        let byte_len = match (&buffer, kind, status) {
            // The device has not written past the end; the reader need not trust that.
            (Some(buffer), WorkKind::Recv, WorkStatus::Success) => {
                (raw.byte_len as usize).min(buffer.len())
            }
            _ => 0,
        };
        Self { kind, token, status, vendor_error: raw.vendor_err, byte_len, buffer }
    }
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $status:ident = $value:ident,)*) => {
        /// How a work request ended, named as libibverbs names it; the text is libibverbs's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum WorkStatus {
            $($(#[$doc])* $status,)*
            /// One that does not happen to SEND, RECV and WRITE, or of a newer library.
            Other(u32),
        }

        impl WorkStatus {
            fn new(raw: Type) -> Self {
                match raw {
                    $($value => Self::$status,)*
                    other => Self::Other(other),
                }
            }

            fn raw(self) -> Type {
                match self {
                    $(Self::$status => $value,)*
                    Self::Other(other) => other,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Success = IBV_WC_SUCCESS,
    /// A message longer than the buffer posted for it here, or than the device sends.
    LocalLength = IBV_WC_LOC_LEN_ERR,
    /// A malformed work request, or trouble inside the device.
    LocalQueuePairOperation = IBV_WC_LOC_QP_OP_ERR,
    /// Local memory that is not registered for this.
    LocalProtection = IBV_WC_LOC_PROT_ERR,
    /// Not done: the connection ended first, by an earlier error or by disconnecting.
    Flushed = IBV_WC_WR_FLUSH_ERR,
    /// The other end's answer makes no sense.
    BadResponse = IBV_WC_BAD_RESP_ERR,
    /// Local memory refused a write.
    LocalAccess = IBV_WC_LOC_ACCESS_ERR,
    /// The other end finds the message malformed, or too long for its buffer.
    RemoteInvalidRequest = IBV_WC_REM_INV_REQ_ERR,
    /// The other end's memory is not open for this WRITE: wrong key, wrong range.
    RemoteAccess = IBV_WC_REM_ACCESS_ERR,
    /// The other end could not finish it.
    RemoteOperation = IBV_WC_REM_OP_ERR,
    /// The other end does not acknowledge: it, or the link, is dead.
    RetryExceeded = IBV_WC_RETRY_EXC_ERR,
    /// The other end had no RECV posted (docs/wire/rdma.md §2.5).
    RnrRetryExceeded = IBV_WC_RNR_RETRY_EXC_ERR,
    /// The other end aborted.
    RemoteAborted = IBV_WC_REM_ABORT_ERR,
    /// The device failed.
    Fatal = IBV_WC_FATAL_ERR,
    /// No response in time.
    ResponseTimeout = IBV_WC_RESP_TIMEOUT_ERR,
    /// Something else.
    General = IBV_WC_GENERAL_ERR,
}

impl WorkStatus {
    /// Whether it was done.
    pub fn is_success(self) -> bool {
        self == Self::Success
    }
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = self.raw();
        let text = Library::get().ok().map(|library| {
            // SAFETY: any number is allowed; the answer is text that lives for ever.
            unsafe { (library.ibv_wc_status_str)(raw) }
        });
        match text.and_then(|text| NonNull::new(text.cast_mut())) {
            Some(text) => {
                // SAFETY: not null, hence text, as above.
                let text = unsafe { CStr::from_ptr(text.as_ptr()) };
                f.write_str(&text.to_string_lossy())?;
            }
            None => write!(f, "{self:?}")?,
        }
        write!(f, " (status {raw})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_keep_their_number() {
        for raw in 0..30 {
            assert_eq!(WorkStatus::new(raw).raw(), raw);
        }
        assert_eq!(WorkStatus::new(13), WorkStatus::RnrRetryExceeded);
        assert!(WorkStatus::RnrRetryExceeded.to_string().ends_with("(status 13)"));
    }
}
