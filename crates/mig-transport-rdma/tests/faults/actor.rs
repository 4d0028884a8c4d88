//! One end of a connection, played by hand: it sends whatever bytes it likes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use mig_transport_rdma::{
    protocol::{
        header::{CONTROL_BUFFER, Frame, Kind},
        message::{Element, Outgoing, Register, RegisterResult, RemoteBlock},
    },
    verbs::{
        Buffer, CmEvent, CmEventKind, CmId, CompletionQueue, ConnectParameters, EventChannel,
        ProtectionDomain, QueueDepths, QueuePair, WorkCompletion, WorkKind, WorkStatus,
    },
};

use crate::guarded;

const DEPTHS: QueueDepths = QueueDepths { send: 64, recv: 16 };
const RECVS: usize = 6;
const SENDS: usize = 8;

/// Private data of a QEMU source.
pub(crate) const QEMU: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0];

/// One end.
pub(crate) struct Actor {
    pub(crate) queue_pair: QueuePair,
    sends: CompletionQueue,
    recvs: CompletionQueue,
    pub(crate) domain: ProtectionDomain,
    pub(crate) id: CmId,
    pub(crate) events: EventChannel,
    spare: Vec<Buffer>,
    sent: VecDeque<WorkCompletion>,
    inbox: VecDeque<Vec<u8>>,
    over: bool,
}

fn parameters(private_data: &[u8]) -> ConnectParameters<'_> {
    ConnectParameters {
        private_data,
        responder_resources: 2,
        initiator_depth: 2,
        retry_count: 5,
        rnr_retry_count: 7,
    }
}

/// An id whose way to `to` is known.
pub(crate) async fn resolved(to: SocketAddr) -> (CmId, EventChannel) {
    let mut events = EventChannel::new().unwrap();
    let id = CmId::new(&events).unwrap();
    id.resolve_addr(to, Duration::from_secs(10)).unwrap();
    let event = guarded("an address", events.event()).await.unwrap();
    assert_eq!(event.kind, CmEventKind::AddrResolved);
    id.resolve_route(Duration::from_secs(10)).unwrap();
    let event = guarded("a route", events.event()).await.unwrap();
    assert_eq!(event.kind, CmEventKind::RouteResolved);
    (id, events)
}

impl Actor {
    async fn prepare(id: CmId, events: EventChannel) -> Self {
        let domain = ProtectionDomain::new(&id).unwrap();
        let sends = CompletionQueue::new(&id, 64).unwrap();
        let recvs = CompletionQueue::new(&id, 64).unwrap();
        let queue_pair = QueuePair::create(&id, &domain, &sends, &recvs, DEPTHS).unwrap();
        let mut spare = Buffer::allocate(&domain, RECVS + SENDS, CONTROL_BUFFER).await.unwrap();
        for buffer in spare.split_off(SENDS) {
            queue_pair.post_recv(buffer, 0).unwrap();
        }
        let (sent, inbox) = (VecDeque::new(), VecDeque::new());
        Self { queue_pair, sends, recvs, domain, id, events, spare, sent, inbox, over: false }
    }

    /// Asks for a connection, and does not look at the answer: half open.
    pub(crate) async fn ask(to: SocketAddr, private_data: &[u8]) -> Self {
        let (id, events) = resolved(to).await;
        let actor = Self::prepare(id, events).await;
        actor.id.connect(&parameters(private_data)).unwrap();
        actor
    }

    /// Connects, or says why not.
    pub(crate) async fn try_connect(to: SocketAddr, private_data: &[u8]) -> Result<Self, CmEvent> {
        let mut actor = Self::ask(to, private_data).await;
        let event = guarded("an answer", actor.events.event()).await.unwrap();
        if event.kind == CmEventKind::Established { Ok(actor) } else { Err(event) }
    }

    /// Connects as a QEMU source does.
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to, QEMU).await.expect("a connection")
    }

    /// Takes the next request as a QEMU destination does.
    pub(crate) async fn accept(listening: &mut Listening, private_data: &[u8]) -> Self {
        let id = listening.request().await;
        let events = EventChannel::new().unwrap();
        id.migrate(&events).unwrap();
        let mut actor = Self::prepare(id, events).await;
        actor.id.accept(&parameters(private_data)).unwrap();
        let event = guarded("a confirmation", actor.events.event()).await.unwrap();
        assert_eq!(event.kind, CmEventKind::Established);
        actor
    }

    /// Sends exactly these bytes, and waits for nothing.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        while self.spare.is_empty() {
            self.completion().await;
        }
        let mut buffer = self.spare.pop().unwrap();
        buffer[..bytes.len()].copy_from_slice(bytes);
        if let Err(refused) = self.queue_pair.post_send(buffer, bytes.len(), 0) {
            println!("not posted: {}", refused.reason);
        }
    }

    /// Waits for READY, then sends exactly these bytes.
    pub(crate) async fn expect_and_send(&mut self, bytes: &[u8]) {
        self.expect(Kind::Ready).await;
        self.send(bytes).await;
    }

    /// Sends a sound message.
    pub(crate) async fn say(&mut self, message: &Outgoing<'_>) {
        let mut bytes = vec![0; message.encoded_len()];
        message.encode(&mut bytes).unwrap();
        self.send(&bytes).await;
    }

    /// The outcome of the next SEND or WRITE.
    pub(crate) async fn completion(&mut self) -> (WorkKind, WorkStatus) {
        let mut done = Vec::new();
        if self.sent.is_empty() {
            guarded("a completion", self.sends.completions(&mut done)).await.unwrap();
            self.sent.extend(done);
        }
        let mut completion = self.sent.pop_front().unwrap();
        if let Some(buffer) = completion.buffer.take() {
            self.spare.push(buffer);
        }
        (completion.kind, completion.status)
    }

    /// The outcome of the next WRITE.
    pub(crate) async fn write_completion(&mut self) -> WorkStatus {
        loop {
            if let (WorkKind::Write, status) = self.completion().await {
                return status;
            }
        }
    }

    /// The next message; `None` once the connection is over.
    pub(crate) async fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(message) = self.inbox.pop_front() {
                return Some(message);
            }
            if self.over {
                return None;
            }
            guarded("a message", poll_fn(|cx| self.poll_more(cx))).await;
        }
    }

    /// The next message is this one again.
    pub(crate) fn put_back(&mut self, message: Vec<u8>) {
        self.inbox.push_front(message);
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut some = false;
        while let Poll::Ready(event) = self.events.poll_event(cx) {
            let event = event.unwrap();
            assert_eq!(event.kind, CmEventKind::Disconnected, "{event:?}");
            (self.over, some) = (true, true);
        }
        let mut done = Vec::new();
        while let Poll::Ready(polled) = self.recvs.poll_completions(cx, &mut done) {
            polled.unwrap();
            for completion in done.drain(..) {
                let (Some(buffer), WorkStatus::Success) = (completion.buffer, completion.status)
                else {
                    continue;
                };
                self.inbox.push_back(buffer[..completion.byte_len].to_vec());
                let _ = self.queue_pair.post_recv(buffer, 0);
            }
            some = true;
            if self.over {
                break;
            }
        }
        if some { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The next message, which must be of this kind; its payload.
    #[track_caller]
    pub(crate) fn expect(&mut self, kind: Kind) -> impl Future<Output = Vec<u8>> {
        let place = std::panic::Location::caller();
        async move {
            let message = self.message().await;
            let message = message.unwrap_or_else(|| panic!("{place}: no {kind}, hung up"));
            let frame = Frame::decode(&message).unwrap();
            assert_eq!(frame.header.kind, kind, "{place}");
            frame.payload.to_vec()
        }
    }

    /// Whether the other end said ERROR before it hung up; whatever else it says is skipped.
    pub(crate) async fn told_of_failure(&mut self) -> bool {
        let mut told = false;
        while let Some(message) = self.message().await {
            told |= Frame::decode(&message).unwrap().header.kind == Kind::Error;
        }
        told
    }

    /// Opens a window as a source does where stream bytes are none of the test's business: the block exchange.
    pub(crate) async fn exchange(&mut self) -> Vec<RemoteBlock> {
        self.expect(Kind::Ready).await;
        self.say(&Outgoing::RamBlocksRequest).await;
        let payload = self.expect(Kind::RamBlocksResult).await;
        payload.chunks_exact(RemoteBlock::LEN).map(RemoteBlock::read).collect()
    }

    /// Asks for a registration of whole mebibytes.
    pub(crate) async fn register(&mut self, request: Register) -> RegisterResult {
        self.expect(Kind::Ready).await;
        self.say(&Outgoing::Register(request)).await;
        RegisterResult::read(&self.expect(Kind::RegisterResult).await)
    }
}

/// Where an actor is called.
pub(crate) struct Listening {
    events: EventChannel,
    _id: CmId,
    pub(crate) at: SocketAddr,
}

impl Listening {
    pub(crate) fn new() -> Self {
        let events = EventChannel::new().unwrap();
        let id = CmId::new(&events).unwrap();
        id.bind_addr(crate::any_port()).unwrap();
        id.listen(8).unwrap();
        let at = id.local_addr().unwrap();
        Self { events, _id: id, at }
    }

    /// The next request.
    pub(crate) async fn request(&mut self) -> CmId {
        loop {
            let event = guarded("a request", self.events.event()).await.unwrap();
            if let Some(id) = event.request {
                return id;
            }
        }
    }
}
