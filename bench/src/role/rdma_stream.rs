//! Stream bytes over `rdma:`, as device state travels: spoken by mig, or as QEMU speaks (docs/wire/rdma.md §4, §5).
//!
//! ```text
//!   mig     messages of up to 512 KiB; READY as soon as a message is there, while it is being read
//!   QEMU    messages of 32 KiB, each sent and completed before the next is thought of; READY when all was read
//! ```
//! The reader has the clock: from READY for the first message, or mig's first look, to the last byte in its memory.

use std::time::Instant;

use mig_stream::{Stream, StreamOptions};
use mig_transport::{Address, MigrationAddress};
use mig_transport_rdma::{
    protocol::{
        header::{CONTROL_BUFFER, Frame, Kind},
        message::{Message, Outgoing},
        private_data::{Extensions, Request},
    },
    verbs::{
        Buffer, CmEvent, CmEventKind, CmId, CompletionQueue, ConnectParameters, EventChannel,
        ProtectionDomain, QueueDepths, QueuePair, WorkCompletion, WorkKind,
    },
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Go, Ready, cpu, hear,
    meeting::{PATIENCE, connector, listener},
    on_runtime, say,
};
use crate::failure::Result;

/// Stream bytes of a QEMU's message (docs/wire/rdma.md §5).
const QEMU_MESSAGE: usize = 32 << 10;

/// Bytes of one device's state.
const DEVICE: usize = 4 << 20;

/// Whose habits an end has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Speaker {
    /// Ours: the real transport and stream.
    Mig,
    /// QEMU's, over the verbs themselves.
    Qemu,
}

/// One end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamRole {
    pub(crate) speaker: Speaker,
    pub(crate) bytes: usize,
    /// Where the reader listens; the sender is told where to go.
    pub(crate) listen: String,
}

/// What it measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct StreamResult {
    /// By the reader's clock; the sender has none.
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// A sum of all that was sent or read.
    pub(crate) checksum: u64,
}

/// What a device's state is made of: nothing depends on it but the sum.
fn contents() -> Vec<u8> {
    (0..DEVICE).map(|at| (at * 7 + (at >> 12)) as u8).collect()
}

fn add(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

fn sum_of(bytes: usize) -> u64 {
    let contents = contents();
    (0..bytes / DEVICE).fold(0, |sum, _| add(sum, &contents))
}

pub(super) fn send(role: &StreamRole) -> Result<()> {
    let contents = contents();
    let checksum = sum_of(role.bytes);
    say(&Ready { address: None })?;
    let go: Go = hear()?;
    let used = cpu();
    on_runtime(async {
        match role.speaker {
            Speaker::Mig => {
                let channel = connector(&go.address, false, None)?.connect().await?;
                let mut stream = Stream::open(channel, StreamOptions::default());
                let mut writer = stream.writer()?;
                for _ in 0..role.bytes / DEVICE {
                    writer.write_all(&contents).await?;
                }
                writer.finish().await?;
            }
            Speaker::Qemu => {
                let mut wire = Wire::connect(&go.address).await?;
                for _ in 0..role.bytes / DEVICE {
                    for piece in contents.chunks(QEMU_MESSAGE) {
                        let ready = wire.receive().await?;
                        wire.expect(&ready, Kind::Ready)?;
                        wire.repost(ready)?;
                        wire.send(&Outgoing::QemuFile(piece)).await?;
                    }
                }
                wire.hung_up().await?;
            }
        }
        Ok(())
    })?;
    say(&StreamResult { seconds: 0.0, cpu_seconds: (cpu() - used).as_secs_f64(), checksum })
}

pub(super) fn read(role: &StreamRole) -> Result<()> {
    let mut bytes = vec![1; role.bytes];
    let result = on_runtime(async {
        match role.speaker {
            Speaker::Mig => {
                let mut listener = listener(&role.listen, None).await?;
                say(&Ready { address: listener.local_addresses().into_iter().next() })?;
                let channel = listener.accept().await?;
                let mut stream = Stream::open(channel, StreamOptions::default());
                let mut reader = stream.reader()?;
                let (begun, used) = (Instant::now(), cpu());
                reader.read_exact(&mut bytes).await?;
                Ok((begun.elapsed(), cpu() - used))
            }
            Speaker::Qemu => {
                let mut wire =
                    Wire::accept(&role.listen, |address| say(&Ready { address: Some(address) }))
                        .await?;
                let (begun, used) = (Instant::now(), cpu());
                let mut at = 0;
                while at < bytes.len() {
                    wire.send(&Outgoing::Ready).await?;
                    let arrived = wire.receive().await?;
                    let Message::QemuFile(came) = Message::decode(arrived.bytes())? else {
                        return Err("something else than stream bytes came".into());
                    };
                    let room = bytes.get_mut(at..at + came.len()).ok_or("too much came")?;
                    room.copy_from_slice(came);
                    at += came.len();
                    wire.repost(arrived)?;
                }
                let took = (begun.elapsed(), cpu() - used);
                wire.hang_up()?;
                Ok(took)
            }
        }
    })?;
    let (seconds, cpu_seconds) = (result.0.as_secs_f64(), result.1.as_secs_f64());
    say(&StreamResult { seconds, cpu_seconds, checksum: add(0, &bytes) })
}

/// A connection used as QEMU uses one: one RECV posted, one message under way, each SEND waited for.
struct Wire {
    id: CmId,
    events: EventChannel,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    qp: QueuePair,
    spare: Option<Buffer>,
}

struct Arrived {
    buffer: Buffer,
    len: usize,
}

impl Arrived {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Wire {
    async fn connect(uri: &str) -> Result<Self> {
        let mut events = EventChannel::new()?;
        let id = CmId::new(&events)?;
        id.resolve_addr(socket_address(uri)?, PATIENCE)?;
        event(&mut events, CmEventKind::AddrResolved).await?;
        id.resolve_route(PATIENCE)?;
        event(&mut events, CmEventKind::RouteResolved).await?;
        let mut wire = Self::prepare(id, events).await?;
        let request = Request { pin_all: false, extensions: None };
        wire.id.connect(&parameters(&request.encode()))?;
        event(&mut wire.events, CmEventKind::Established).await?;
        Ok(wire)
    }

    async fn accept(uri: &str, tell: impl FnOnce(String) -> Result<()>) -> Result<Self> {
        let mut events = EventChannel::new()?;
        let listening = CmId::new(&events)?;
        listening.bind_addr(socket_address(uri)?)?;
        listening.listen(1)?;
        let address = listening.local_addr().ok_or("the listener has no address")?;
        tell(format!("rdma:{address}"))?;
        let mut asked = event(&mut events, CmEventKind::ConnectRequest).await?;
        let id = asked.request.take().ok_or("a request without an id")?;
        let own = EventChannel::new()?;
        id.migrate(&own)?;
        let request = Request::decode(&asked.private_data)?;
        let mut wire = Self::prepare(id, own).await?;
        let reply = request.answer(false, Extensions::default());
        wire.id.accept(&parameters(&reply.encode()))?;
        event(&mut wire.events, CmEventKind::Established).await?;
        Ok(wire)
    }

    async fn prepare(id: CmId, events: EventChannel) -> Result<Self> {
        let pd = ProtectionDomain::new(&id)?;
        let depths = QueueDepths { send: 2, recv: 2 };
        let send_cq = CompletionQueue::new(&id, depths.send)?;
        let recv_cq = CompletionQueue::new(&id, depths.recv)?;
        let qp = QueuePair::create(&id, &pd, &send_cq, &recv_cq, depths)?;
        let mut buffers = Buffer::allocate(&pd, 2, CONTROL_BUFFER).await?;
        let spare = buffers.pop();
        if let Some(buffer) = buffers.pop() {
            qp.post_recv(buffer, 0).map_err(|refused| refused.reason)?;
        }
        Ok(Self { id, events, send_cq, recv_cq, qp, spare })
    }

    async fn send(&mut self, message: &Outgoing<'_>) -> Result<()> {
        let mut buffer = self.spare.take().ok_or("a message is still under way")?;
        let len = message.encode(&mut buffer)?;
        self.qp.post_send(buffer, len, 0).map_err(|refused| refused.reason)?;
        self.spare = completion(&mut self.send_cq, WorkKind::Send).await?.buffer;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Arrived> {
        let done = completion(&mut self.recv_cq, WorkKind::Recv).await?;
        let buffer = done.buffer.ok_or("a RECV without its buffer")?;
        Ok(Arrived { buffer, len: done.byte_len })
    }

    fn expect(&self, arrived: &Arrived, kind: Kind) -> Result<()> {
        match Frame::decode(arrived.bytes())?.header.kind {
            came if came == kind => Ok(()),
            came => Err(format!("{came} came instead of {kind}").into()),
        }
    }

    fn repost(&self, arrived: Arrived) -> Result<()> {
        Ok(self.qp.post_recv(arrived.buffer, 0).map_err(|refused| refused.reason)?)
    }

    fn hang_up(&self) -> Result<()> {
        Ok(self.id.disconnect()?)
    }

    async fn hung_up(&mut self) -> Result<()> {
        event(&mut self.events, CmEventKind::Disconnected).await?;
        Ok(())
    }
}

fn parameters(private_data: &[u8]) -> ConnectParameters<'_> {
    ConnectParameters {
        private_data,
        responder_resources: 2,
        initiator_depth: 2,
        retry_count: 7,
        rnr_retry_count: 7,
    }
}

async fn event(events: &mut EventChannel, kind: CmEventKind) -> Result<CmEvent> {
    let event =
        timeout(PATIENCE, events.event()).await.map_err(|_| format!("no {kind} came"))??;
    if event.kind == kind {
        Ok(event)
    } else {
        Err(format!("{} instead of {kind}", event.kind).into())
    }
}

async fn completion(queue: &mut CompletionQueue, kind: WorkKind) -> Result<WorkCompletion> {
    let mut done = Vec::new();
    let waiting = timeout(PATIENCE, queue.completions(&mut done)).await;
    waiting.map_err(|_| format!("no {kind} was completed"))??;
    let done = done.pop().ok_or("a completion that is none")?;
    if done.status.is_success() { Ok(done) } else { Err(format!("{kind}: {}", done.status).into()) }
}

fn socket_address(uri: &str) -> Result<std::net::SocketAddr> {
    match MigrationAddress::parse(uri)?.into_address() {
        Address::Rdma(inet) => Ok(inet.to_string().parse()?),
        other => Err(format!("{} is not rdma", other.scheme()).into()),
    }
}
