//! One connection: its queue pair, its buffers, and what came out of its completion and event queues.
//!
//! ```text
//!   completion queues ─┐                       ┌▶ inbox     messages that came, in order
//!                      ├─▶ Link::poll_progress ├▶ spare     buffers to send from
//!   connection manager ┘                       ├▶ written   WRITEs that completed
//!                                              └▶ ended     the other end hung up
//! ```
//!
//! There is no task behind a link: whoever waits on it drives it. It is made by [`Preparing`] (RECVs are posted before
//! anybody is told of the connection), and its end is said by [`Farewell`], from any thread.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use mig_transport::{Error, ForceShutdown, Result};
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    protocol::{
        header::{CONTROL_BUFFER, Frame, HEADER_LEN},
        message::Outgoing,
    },
    verbs::{
        Buffer, CmEvent, CmEventKind, CmId, CompletionQueue, DeviceLimits, EventChannel,
        ProtectionDomain, QueueDepths, QueuePair, WorkCompletion, WorkKind, WorkStatus,
    },
};

/// RECVs posted, always: a response, READY, and room for an impatient peer (docs/wire/rdma.md §2.5).
pub(crate) const RECVS: usize = 4;
/// Messages that may be on their way out. The READY rule lets hardly more than one be.
const SENDS: usize = 3;
/// WRITEs that may be under way: enough to fill a fast link, and drained at once when a window closes.
const WRITES: u32 = 32;

/// Tokens of work that is nobody's page.
const MESSAGE: u64 = u64::MAX;
const PROBE: u64 = u64::MAX - 1;
const FAREWELL: u64 = u64::MAX - 2;

/// How long the words of a farewell get before the connection goes.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long an acknowledgement may come behind the news that the other end hung up, and the news behind its echo.
const AFTERMATH: Duration = Duration::from_millis(500);

/// A message that came: the buffer it is in, and its length.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) buffer: Buffer,
    pub(crate) len: usize,
}

impl Arrived {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// What [`Link::poll_progress`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Something is in the queues that was not there before.
    Some,
    /// The connection is over and nothing more will come.
    Ended,
}

/// See the module.
pub(crate) struct Link {
    name: Arc<str>,
    pd: ProtectionDomain,
    events: EventChannel,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    farewell: Arc<Farewell>,
    done: Vec<WorkCompletion>,
    /// Messages that came, in order.
    pub(crate) inbox: VecDeque<Arrived>,
    /// Buffers to send from.
    spare: Vec<Buffer>,
    /// Tokens of WRITEs that completed.
    pub(crate) written: Vec<u64>,
    in_flight: u32,
    limits: DeviceLimits,
    ended: bool,
    /// Messages whose arrival is not known.
    unsent: u32,
    /// Once the other end hung up, or the queue pair broke: how long acknowledgements, or the reason, are waited for.
    aftermath: Option<Pin<Box<Sleep>>>,
    /// The device gave work back undone: the queue pair is of no more use.
    flushed: bool,
    /// The reason sticks: what comes later is only its echo.
    failed: Option<String>,
    keepalive: Keepalive,
    /// Told of every sign of life.
    alive: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// Everything of a link but the connection.
pub(crate) struct Preparing {
    link: Link,
    id: Arc<CmId>,
}

impl Preparing {
    /// Queues, queue pair and buffers on the device that `id` leads to; RECVs are posted.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was made is given back.
    pub(crate) async fn new(id: CmId, events: EventChannel, keepalive: Duration) -> Result<Self> {
        let pd = ProtectionDomain::new(&id)?;
        let depths = QueueDepths { send: WRITES + SENDS as u32 + 2, recv: RECVS as u32 };
        let send_cq = CompletionQueue::new(&id, depths.send)?;
        let recv_cq = CompletionQueue::new(&id, depths.recv)?;
        let qp = QueuePair::create(&id, &pd, &send_cq, &recv_cq, depths)?;
        let mut buffers =
            Buffer::allocate(&pd, RECVS + SENDS, CONTROL_BUFFER).await.map_err(buffers_refused)?;
        for buffer in buffers.split_off(SENDS) {
            qp.post_recv(buffer, MESSAGE).map_err(|refused| Error::from(refused.reason))?;
        }
        let words = Buffer::allocate(&pd, 1, HEADER_LEN).await.map_err(buffers_refused)?.pop();
        let id = Arc::new(id);
        let farewell = Farewell {
            qp,
            id: Arc::clone(&id),
            words: Mutex::new(words),
            said: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
        };
        let link = Link {
            name: name_of(&id).into(),
            pd,
            events,
            send_cq,
            recv_cq,
            farewell: Arc::new(farewell),
            done: Vec::new(),
            inbox: VecDeque::new(),
            spare: buffers,
            written: Vec::new(),
            in_flight: 0,
            limits: id.limits()?,
            ended: false,
            unsent: 0,
            aftermath: None,
            flushed: false,
            failed: None,
            keepalive: Keepalive::every(keepalive),
            alive: None,
        };
        Ok(Self { link, id })
    }

    /// To connect or accept with.
    pub(crate) fn id(&self) -> &CmId {
        &self.id
    }

    /// Waits for the connection to stand; answers it and what the other end said with it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was made is given back.
    pub(crate) async fn established(mut self) -> Result<(Link, Vec<u8>)> {
        let event = self.link.events.event().await?;
        if event.kind != CmEventKind::Established {
            return Err(not_connected(&event));
        }
        self.link.name = name_of(&self.id).into();
        Ok((self.link, event.private_data))
    }
}

impl Link {
    /// What the two ends are called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// This end's address and the other's.
    pub(crate) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let id = &self.farewell.id;
        (id.local_addr(), id.peer_addr())
    }

    /// Where memory for this connection is registered.
    pub(crate) fn pd(&self) -> &ProtectionDomain {
        &self.pd
    }

    pub(crate) fn queue_pair(&self) -> &QueuePair {
        &self.farewell.qp
    }

    /// What the device can do.
    pub(crate) fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// How the connection is ended.
    pub(crate) fn farewell(&self) -> &Arc<Farewell> {
        &self.farewell
    }

    /// Takes whom to tell of every sign of life.
    pub(crate) fn report_life(&mut self, alive: Arc<dyn Fn() + Send + Sync>) {
        self.alive = Some(alive);
    }

    /// Tells of a sign of life: from the other end, or that work here which it waits for gets on.
    pub(crate) fn tell_life(&self) {
        if let Some(alive) = &self.alive {
            alive();
        }
    }

    /// Whether the other end hung up. Messages may still be in the inbox.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether a message can be sent without waiting for a buffer.
    pub(crate) fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Whether every message has arrived.
    pub(crate) fn all_sent(&self) -> bool {
        self.unsent == 0
    }

    /// A buffer to send from.
    pub(crate) fn take_spare(&mut self) -> Option<Buffer> {
        self.spare.pop()
    }

    /// Whether another WRITE may be posted.
    pub(crate) fn has_write_room(&self) -> bool {
        self.in_flight < WRITES
    }

    /// A WRITE was posted.
    pub(crate) fn wrote(&mut self) {
        self.in_flight += 1;
    }

    /// Sends a message; there must be a spare buffer.
    pub(crate) fn post(&mut self, message: &Outgoing<'_>) -> Result<()> {
        let mut buffer =
            self.take_spare().expect("whoever posts has looked for a spare buffer before");
        let len = message.encode(&mut buffer)?;
        tracing::trace!(link = %self.name, ?message, "sending");
        self.post_buffer(buffer, len)
    }

    /// Sends the first `len` bytes of a buffer.
    pub(crate) fn post_buffer(&mut self, buffer: Buffer, len: usize) -> Result<()> {
        self.check()?;
        self.queue_pair()
            .post_send(buffer, len, MESSAGE)
            .map_err(|refused| Error::from(refused.reason))?;
        self.unsent += 1;
        Ok(())
    }

    /// Posts a RECV again.
    pub(crate) fn repost(&mut self, buffer: Buffer) -> Result<()> {
        match self.queue_pair().post_recv(buffer, MESSAGE) {
            Ok(()) => Ok(()),
            // A connection that has ended takes none, and needs none.
            Err(_) if self.ended => Ok(()),
            Err(refused) => Err(refused.reason.into()),
        }
    }

    /// What failed is told to everybody who comes later.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.to_string());
    }

    /// The failure that ended the connection, if one did.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(broken(reason.clone())),
        }
    }

    /// Whether the other end hung up, as far as the connection manager has told: costs next to nothing, and asks for no
    /// wake-up by the completion queues as [`poll_progress`](Self::poll_progress) does, which tells the rest.
    pub(crate) fn look_for_end(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        while let Poll::Ready(event) = self.events.poll_event(cx) {
            if let Err(error) = event.map_err(Error::from).and_then(|event| self.take_event(&event))
            {
                self.failed = Some(error.to_string());
                return Err(error);
            }
        }
        Ok(self.ended)
    }

    /// Takes what the device and the connection manager have done since the last call into the queues. Ready only if that
    /// was something, or the connection is over.
    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<Progress>> {
        self.check()?;
        let outcome = self.poll_once(cx);
        if let Poll::Ready(Err(error)) = &outcome {
            self.failed = Some(error.to_string());
        }
        outcome
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<Result<Progress>> {
        loop {
            let mut some = false;
            // Before the completions: what came before the end is in their queue when the end is known.
            while let Poll::Ready(event) = self.events.poll_event(cx) {
                some |= self.take_event(&event?)?;
            }
            let mut done = std::mem::take(&mut self.done);
            while let Poll::Ready(polled) = self.recv_cq.poll_completions(cx, &mut done) {
                polled?;
                for completion in done.drain(..) {
                    some |= self.take_completion(completion)?;
                }
                if self.ended {
                    break;
                }
            }
            while let Poll::Ready(polled) = self.send_cq.poll_completions(cx, &mut done) {
                polled?;
                for completion in done.drain(..) {
                    some |= self.take_completion(completion)?;
                }
            }
            self.done = done;
            if some {
                self.keepalive.alive();
                self.tell_life();
                return Poll::Ready(Ok(Progress::Some));
            }
            if self.ended {
                if self.unsent > 0 {
                    ready!(self.poll_aftermath(cx));
                }
                return Poll::Ready(Ok(Progress::Ended));
            }
            if self.flushed {
                ready!(self.poll_aftermath(cx));
                return Poll::Ready(Err(gave_up()));
            }
            ready!(self.keepalive.poll_due(cx));
            // A full queue needs no probe: what fills it is one.
            self.keepalive.asked = self.queue_pair().post_probe(PROBE).is_ok();
            tracing::trace!(link = %self.name, "probing");
        }
    }

    fn poll_aftermath(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.aftermath.get_or_insert_with(|| Box::pin(sleep(AFTERMATH))).as_mut().poll(cx)
    }

    fn take_event(&mut self, event: &CmEvent) -> Result<bool> {
        match event.kind {
            CmEventKind::Disconnected => {
                tracing::debug!(link = %self.name, "the other end hung up");
                self.ended = true;
                Ok(true)
            }
            CmEventKind::DeviceRemoval => Err(broken("the RDMA device went away".into())),
            other => {
                tracing::debug!(link = %self.name, event = %other, "ignored");
                Ok(false)
            }
        }
    }

    fn take_completion(&mut self, completion: WorkCompletion) -> Result<bool> {
        let WorkCompletion { kind, token, status, vendor_error, byte_len, buffer } = completion;
        match (kind, token) {
            // What failed has not arrived: a flush that waits for it must not take it for done.
            (WorkKind::Send, MESSAGE) if status.is_success() => self.unsent -= 1,
            (WorkKind::Write, token) if token != PROBE => self.in_flight -= 1,
            _ => {}
        }
        match status {
            WorkStatus::Success => {}
            WorkStatus::Flushed => {
                // The echo of an end. Its cause comes as another completion, or as an event; hardly ever as neither.
                self.flushed = true;
                return Ok(false);
            }
            failed => return Err(work_failed(kind, failed, vendor_error)),
        }
        match (kind, buffer) {
            (WorkKind::Recv, Some(buffer)) => {
                let arrived = Arrived { buffer, len: byte_len };
                if let Ok(frame) = Frame::decode(arrived.bytes()) {
                    tracing::trace!(link = %self.name, header = ?frame.header, "received");
                }
                self.inbox.push_back(arrived);
            }
            (WorkKind::Send, Some(buffer)) if token == MESSAGE => self.spare.push(buffer),
            (WorkKind::Write, _) if token == PROBE => {
                self.keepalive.answered();
                tracing::trace!(link = %self.name, "the probe came through");
                return Ok(false);
            }
            (WorkKind::Write, _) => self.written.push(token),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.name).field("ended", &self.ended).finish()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.farewell.say(false);
    }
}

/// Asks a silent connection whether it still stands (docs/wire/rdma.md §12).
struct Keepalive {
    every: Duration,
    due: Pin<Box<Sleep>>,
    /// A probe is under way.
    asked: bool,
}

impl Keepalive {
    fn every(every: Duration) -> Self {
        Self { every, due: Box::pin(sleep(every)), asked: false }
    }

    fn alive(&mut self) {
        // Moving a timer costs more than letting it run out once in vain.
        if self.due.is_elapsed() {
            self.due.as_mut().reset(Instant::now() + self.every);
        }
    }

    fn answered(&mut self) {
        self.asked = false;
    }

    /// Ready when a probe should be sent.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.due.as_mut().poll(cx));
            self.due.as_mut().reset(Instant::now() + self.every);
            if !self.asked {
                return Poll::Ready(());
            }
        }
    }
}

/// Ends a connection, from any thread: says ERROR if asked to, and disconnects a little later, so that it gets through.
pub(crate) struct Farewell {
    qp: QueuePair,
    id: Arc<CmId>,
    words: Mutex<Option<Buffer>>,
    said: AtomicBool,
    complete: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl Farewell {
    /// All that was to be said on this connection was said: no ERROR from here on.
    pub(crate) fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Whether [`complete`](Self::complete) was called.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// The first call counts.
    pub(crate) fn say(self: &Arc<Self>, failed: bool) {
        if self.said.swap(true, Ordering::AcqRel) {
            return;
        }
        if !failed || self.is_complete() {
            self.disconnect();
            return;
        }
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner).take();
        let posted = words.is_some_and(|mut words| {
            Outgoing::Error
                .encode(&mut words)
                .is_ok_and(|len| self.qp.post_send(words, len, FAREWELL).is_ok())
        });
        if !posted {
            self.disconnect();
            return;
        }
        let disconnecting = Disconnecting(Arc::clone(self));
        // Where the runtime is going, dropping the future, which may never have begun, disconnects at once.
        self.runtime.spawn(async move {
            sleep(LAST_WORDS).await;
            drop(disconnecting);
        });
    }

    fn disconnect(&self) {
        if let Err(error) = self.id.disconnect() {
            tracing::debug!(%error, "disconnecting");
        }
    }
}

struct Disconnecting(Arc<Farewell>);

impl Drop for Disconnecting {
    fn drop(&mut self) {
        self.0.disconnect();
    }
}

/// Stops all connections of a channel.
pub(crate) struct StopAll(pub(crate) Vec<Arc<Farewell>>);

impl ForceShutdown for StopAll {
    fn force_shutdown(&self) {
        for farewell in &self.0 {
            farewell.say(true);
        }
    }
}

/// What an event means that came instead of the one that was due.
pub(crate) fn not_connected(event: &CmEvent) -> Error {
    let reason = event.reason().map_or_else(String::new, |reason| format!(": {reason}"));
    let what = match event.kind {
        CmEventKind::Rejected => {
            format!("refused{reason}; nobody listens there, or it speaks another version")
        }
        CmEventKind::Unreachable => format!("no answer from the other end{reason}"),
        CmEventKind::AddrError => format!("no RDMA device leads there{reason}"),
        CmEventKind::RouteError => format!("no way leads there{reason}"),
        CmEventKind::Disconnected => format!("the other end hung up{reason}"),
        other => format!("{other}{reason}"),
    };
    broken(what)
}

fn work_failed(kind: WorkKind, status: WorkStatus, vendor_error: u32) -> Error {
    let hint = match status {
        WorkStatus::RetryExceeded | WorkStatus::ResponseTimeout => {
            "; the other end or the network between is dead"
        }
        WorkStatus::RnrRetryExceeded => "; the other end had posted no RECV",
        WorkStatus::RemoteAccess => {
            "; the other end has not opened the memory that it named: its memory differs, or it has given up"
        }
        _ => "",
    };
    broken(format!("{kind} failed: {status} (vendor error {vendor_error:#x}){hint}"))
}

/// All work came back undone, and nobody says why: this end's device refuses what the other end does to it without a word to
/// us, a WRITE to memory that is not open, say; soft-RoCE does the same when its network interface goes down.
fn gave_up() -> Error {
    broken(
        "this end's device gave the connection up: its link went down, the other end wrote where it may not, or the connection \
         was stopped here"
            .into(),
    )
}

/// The link is broken.
pub(crate) fn broken(what: String) -> Error {
    Error::io("rdma connection", std::io::Error::new(std::io::ErrorKind::ConnectionAborted, what))
}

fn buffers_refused(error: crate::verbs::Error) -> Error {
    if !error.is_out_of_memory() {
        return error.into();
    }
    let needed = ((RECVS + SENDS) * CONTROL_BUFFER + HEADER_LEN) as u64;
    crate::memlock::too_little(
        needed.saturating_add(crate::memlock::pinned_now()),
        "the control buffers of a connection alone, guest memory apart",
    )
}

fn name_of(id: &CmId) -> String {
    let text = |address: Option<SocketAddr>| address.map_or_else(String::new, |a| a.to_string());
    match (text(id.local_addr()), text(id.peer_addr())) {
        (local, peer) if peer.is_empty() => format!("rdma {local}"),
        (local, peer) => format!("rdma {local} to {peer}"),
    }
}
