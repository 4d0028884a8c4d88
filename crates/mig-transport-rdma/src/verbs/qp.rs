//! A queue pair: where work is posted.
//!
//! What a posted work request uses is kept until its completion is seen, or until the queue pair is destroyed, whichever
//! comes first: safe code can neither read a buffer the device is writing, nor unmap memory it is reading.

#![expect(unsafe_code, reason = "lends memory to a device; rules in `verbs`")]

use std::{
    fmt,
    mem::MaybeUninit,
    ptr::{self, NonNull},
    sync::Arc,
};

use libc::c_int;

use super::{
    Buffer, CmId, CompletionQueue, MemoryRegion, ProtectionDomain, WorkKind,
    cq::Cq,
    error::{Error, Result, check, check_code},
    id::Id,
    outstanding::{Flight, Held, Queue},
    pd::Pd,
    sys::{
        ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
        ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
    },
};

/// How many work requests each queue of a queue pair holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepths {
    /// SENDs and WRITEs (docs/wire/rdma.md §1: SEND_DEPTH).
    pub send: u32,
    /// RECVs (docs/wire/rdma.md §2.5: several).
    pub recv: u32,
}

/// Where a WRITE goes, as the other end told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteMemory {
    /// The first byte, in the other end's numbers.
    pub address: u64,
    /// The key to it.
    pub key: u32,
}

/// Why something was not posted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The queue holds as much as it can: take completions, then try again.
    #[error("the queue is full")]
    Full,
    /// The range is not in the memory, or longer than a message can be.
    #[error("{len} bytes at offset {offset:#x} are not in the {available:#x} bytes there are")]
    OutOfRange {
        /// Where it starts.
        offset: usize,
        /// How long it is.
        len: usize,
        /// What there is.
        available: usize,
    },
    /// The memory was registered for another connection.
    #[error("memory of another protection domain")]
    OtherDomain,
    /// The device says no.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<PostError> for mig_transport::Error {
    fn from(error: PostError) -> Self {
        match error {
            PostError::Failed(error) => error.into(),
            other => Self::Misuse { what: format!("posting a work request: {other}") },
        }
    }
}

/// A buffer that was not posted, and why.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct NotPosted {
    /// What was to be posted.
    pub buffer: Buffer,
    /// Why it was not.
    #[source]
    pub reason: PostError,
}

/// The reliable connection of a [`CmId`].
///
/// Dropping it disconnects, destroys it and lets go of everything still posted; keys of memory in its domain are then of no
/// use to the other end.
pub struct QueuePair {
    raw: NonNull<ibv_qp>,
    send: Arc<Queue>,
    recv: Arc<Queue>,
    send_cq: Arc<Cq>,
    recv_cq: Arc<Cq>,
    pd: Arc<Pd>,
    id: Arc<Id>,
}

// SAFETY: libibverbs may be called from any thread, from several at a time too; the connection manager is called under its
// channel's lock.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// Makes the queue pair of `id`, before connecting or accepting. RECVs may be posted at once.
    ///
    /// The completion queues must have room for everything that can be posted at a time; one queue may serve both ways.
    pub fn create(
        id: &CmId,
        pd: &ProtectionDomain,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
        depths: QueueDepths,
    ) -> Result<Self> {
        const CALL: &str = "rdma_create_qp";
        let (id, pd) = (Arc::clone(&id.inner), Arc::clone(&pd.inner));
        let (send_cq, recv_cq) = (Arc::clone(&send_cq.shared), Arc::clone(&recv_cq.shared));
        let context = id.context()?;
        // SAFETY: the domain is alive.
        let same_device = unsafe { (*pd.as_ptr()).context } == context
            && send_cq.context() == context
            && recv_cq.context() == context;
        if !same_device {
            return Err(Error::code(CALL, libc::EXDEV));
        }
        if !(send_cq.promise(depths.send) && recv_cq.promise(depths.recv)) {
            return Err(Error::code(CALL, libc::ENOSPC));
        }
        // SAFETY: zero is a value of every field.
        let mut attributes: ibv_qp_init_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attributes.send_cq = send_cq.as_ptr();
        attributes.recv_cq = recv_cq.as_ptr();
        attributes.cap.max_send_wr = depths.send;
        attributes.cap.max_recv_wr = depths.recv;
        attributes.cap.max_send_sge = 1;
        attributes.cap.max_recv_sge = 1;
        attributes.qp_type = ibv_qp_type::IBV_QPT_RC;
        let raw = id.with(|raw| {
            // SAFETY: the id is alive. It has one queue pair for life: two would each destroy the other's.
            if !unsafe { (*raw).qp }.is_null() {
                return Err(Error::code(CALL, libc::EEXIST));
            }
            // SAFETY: all objects are alive and of one device; the queue pair keeps them so.
            check(CALL, unsafe {
                (id.library.rdma_create_qp)(raw, pd.as_ptr(), &raw mut attributes)
            })?;
            // SAFETY: the call put it there.
            NonNull::new(unsafe { (*raw).qp }).ok_or_else(|| Error::code(CALL, libc::EPROTO))
        })?;
        let (send, recv) = (Arc::new(Queue::new(depths.send)), Arc::new(Queue::new(depths.recv)));
        Ok(Self { raw, send, recv, send_cq, recv_cq, pd, id })
    }

    /// Gives the device room for one message. Buffers are filled in the order of posting.
    pub fn post_recv(&self, buffer: Buffer, token: u64) -> Result<(), NotPosted> {
        let (address, key) = match self.entry_of(&buffer, 0, buffer.len()) {
            Ok(entry) => entry,
            Err(reason) => return Err(NotPosted { buffer, reason }),
        };
        let mut entry = ibv_sge { addr: address, length: buffer.len() as u32, lkey: key };
        let held = Held::Buffer(buffer);
        self.post(&self.recv_cq, &self.recv, WorkKind::Recv, token, held, |id| {
            let mut request = ibv_recv_wr {
                wr_id: id,
                next: ptr::null_mut(),
                sg_list: &raw mut entry,
                num_sge: 1,
            };
            let mut refused = ptr::null_mut();
            // SAFETY: the queue pair is alive; request and entry are copied by the call; the memory is the device's until
            // the completion, since the table holds the buffer.
            unsafe {
                let post = (*(*self.raw.as_ptr()).context).ops.post_recv;
                post.map(|post| post(self.raw.as_ptr(), &raw mut request, &raw mut refused))
            }
        })
        .map_err(NotPosted::of)
    }

    /// Sends the first `len` bytes of a buffer as one message.
    pub fn post_send(&self, buffer: Buffer, len: usize, token: u64) -> Result<(), NotPosted> {
        let (address, key) = match self.entry_of(&buffer, 0, len) {
            Ok(entry) => entry,
            Err(reason) => return Err(NotPosted { buffer, reason }),
        };
        let entry = ibv_sge { addr: address, length: len as u32, lkey: key };
        let held = Held::Buffer(buffer);
        self.post_to_send_queue(WorkKind::Send, Some(entry), None, token, held)
            .map_err(NotPosted::of)
    }

    /// Writes `len` bytes at `offset` of `memory` (counted from its own start) to the other end's memory.
    pub fn post_write(
        &self,
        memory: &MemoryRegion,
        offset: usize,
        len: usize,
        to: RemoteMemory,
        token: u64,
    ) -> Result<(), PostError> {
        let registration = memory.inner.registration();
        if !registration.is_in(&self.pd) {
            return Err(PostError::OtherDomain);
        }
        check_range(offset, len, memory.slice().len())?;
        let entry = ibv_sge {
            addr: memory.remote_address() + offset as u64,
            length: len as u32,
            lkey: registration.local_key(),
        };
        let held = Held::Region { _registered: Arc::clone(&memory.inner) };
        self.post_to_send_queue(WorkKind::Write, Some(entry), Some(to), token, held)
            .map_err(|(_, reason)| reason)
    }

    /// Writes nothing to nowhere: succeeds as long as the other end is there, and takes neither RECV nor memory of it
    /// (docs/wire/rdma.md §12).
    pub fn post_probe(&self, token: u64) -> Result<(), PostError> {
        let nowhere = RemoteMemory { address: 0, key: 0 };
        self.post_to_send_queue(WorkKind::Write, None, Some(nowhere), token, Held::Nothing)
            .map_err(|(_, reason)| reason)
    }

    /// How many SENDs and WRITEs can be posted now.
    pub fn send_room(&self) -> u32 {
        self.send.depth() - self.send.in_flight()
    }

    /// How many RECVs are posted, or their completions not yet taken.
    pub fn posted_recvs(&self) -> u32 {
        self.recv.in_flight()
    }

    /// Gives up: everything posted completes, most of it as [`WorkStatus::Flushed`](super::WorkStatus::Flushed). The other
    /// end is not told; [`CmId::disconnect`] does that as well.
    pub fn set_error(&self) -> Result<()> {
        // SAFETY: zero is a value of every field.
        let mut attributes: ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attributes.qp_state = ibv_qp_state::IBV_QPS_ERR;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int;
        // SAFETY: the queue pair is alive; attributes are copied by the call. Under the lock, since an event may move the
        // state too.
        let answer = self.id.with(|_| unsafe {
            (self.id.library.ibv_modify_qp)(self.raw.as_ptr(), &raw mut attributes, mask)
        });
        check_code("ibv_modify_qp", answer)
    }

    fn entry_of(
        &self,
        buffer: &Buffer,
        offset: usize,
        len: usize,
    ) -> Result<(u64, u32), PostError> {
        if !buffer.is_in(&self.pd) {
            return Err(PostError::OtherDomain);
        }
        check_range(offset, len, buffer.len())?;
        Ok(buffer.entry())
    }

    fn post_to_send_queue(
        &self,
        kind: WorkKind,
        entry: Option<ibv_sge>,
        to: Option<RemoteMemory>,
        token: u64,
        held: Held,
    ) -> Result<(), (Held, PostError)> {
        let mut entry = entry;
        self.post(&self.send_cq, &self.send, kind, token, held, |id| {
            // SAFETY: zero is a value of every field.
            let mut request: ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
            request.wr_id = id;
            request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.opcode = ibv_wr_opcode::IBV_WR_SEND;
            if let Some(entry) = &mut entry {
                request.sg_list = &raw mut *entry;
                request.num_sge = 1;
            }
            if let Some(to) = to {
                request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                request.wr.rdma.remote_addr = to.address;
                request.wr.rdma.rkey = to.key;
            }
            let mut refused = ptr::null_mut();
            // SAFETY: the queue pair is alive; request and entry are copied by the call; the memory stays registered, and
            // a buffer is the device's, until the completion, since the table holds it.
            unsafe {
                let post = (*(*self.raw.as_ptr()).context).ops.post_send;
                post.map(|post| post(self.raw.as_ptr(), &raw mut request, &raw mut refused))
            }
        })
    }

    /// Notes the work request, posts it, and takes the note back when that fails.
    fn post(
        &self,
        cq: &Cq,
        queue: &Arc<Queue>,
        kind: WorkKind,
        token: u64,
        held: Held,
        post: impl FnOnce(u64) -> Option<c_int>,
    ) -> Result<(), (Held, PostError)> {
        let flight = Flight { queue: Arc::clone(queue), kind, token, held };
        let noted = cq.outstanding().insert(flight);
        let id = noted.map_err(|flight| (flight.held, PostError::Full))?;
        let reason = match post(id) {
            Some(0) => return Ok(()),
            // Full by the device's own count, as long as a completion can change that: this one is noted too.
            Some(libc::ENOMEM) if queue.in_flight() > 1 => PostError::Full,
            Some(code) => {
                let call = if kind == WorkKind::Recv { "ibv_post_recv" } else { "ibv_post_send" };
                check_code(call, code).err().map_or(PostError::Full, PostError::Failed)
            }
            None => PostError::Failed(Error::code("ibv_post_send", libc::ENOSYS)),
        };
        let flight = cq.outstanding().take(id);
        Err((flight.map_or(Held::Nothing, |flight| flight.held), reason))
    }
}

/// Ranges are bounded by what one scatter entry can say.
fn check_range(offset: usize, len: usize, available: usize) -> Result<(), PostError> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= available);
    match fits && u32::try_from(len).is_ok() {
        true => Ok(()),
        false => Err(PostError::OutOfRange { offset, len, available }),
    }
}

impl NotPosted {
    fn of((held, reason): (Held, PostError)) -> Self {
        let Held::Buffer(buffer) = held else {
            unreachable!("what was not posted completes never, so it is still noted");
        };
        Self { buffer, reason }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("send_room", &self.send_room())
            .field("posted_recvs", &self.posted_recvs())
            .finish_non_exhaustive()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // What is not connected cannot be disconnected, which is as well. Without this, the other end would learn of it
        // only when the id goes, which memory still registered may delay.
        let _ = self.id.disconnect();
        self.id.with(|id| {
            // SAFETY: made by `rdma_create_qp` on this id, destroyed once.
            unsafe { (self.id.library.rdma_destroy_qp)(id) }
        });
        // Now the device has let go of everything.
        let sends = self.send_cq.outstanding().take_all(&self.send);
        let recvs = self.recv_cq.outstanding().take_all(&self.recv);
        drop((sends, recvs));
    }
}
