//! Listening: requests are taken one after the other, handshakes run side by side.
//!
//! ```text
//!   CONNECT_REQUEST ─▶ private data sound? ─▶ queue pair, RECVs ─▶ accept ─▶ established ─┬─▶ Channel
//!                             └ no: rejected                             return path: the next request
//!                                                                        from there, the same way ┘
//! ```
//!
//! A stranger costs its handshake and nothing else; everybody else is served meanwhile. Of too many the oldest goes: a sound
//! handshake is over in no time, one that is not keeps its place until it is needed.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use mig_transport::{Channel, Error, Listener, LogLimit, Peer, Result, address::InetAddress};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    channel,
    connect::no_return_path,
    link::{Link, Preparing},
    options::RdmaOptions,
    protocol::private_data::{Agreed, Extensions, Request},
    receiving::ReceivingEnd,
    resolve,
    verbs::{CmEvent, CmEventKind, CmId, ConnectParameters, EventChannel},
};

/// Requests the system keeps waiting.
const BACKLOG: u32 = 16;
/// Handshakes under way; whoever comes beyond them takes the place of the oldest.
const MOST_HANDSHAKES: usize = 16;

/// Upgrades for as long as a channel lives.
type Alive = Weak<Mutex<ReceivingEnd>>;

/// Waits for rdma channels at one address.
pub struct RdmaListener {
    events: EventChannel,
    id: CmId,
    options: RdmaOptions,
    handshakes: JoinSet<Result<(Channel, Alive)>>,
    /// Channels that were given out and not dropped: they pin memory.
    given_out: Vec<Alive>,
    oldest_first: VecDeque<AbortHandle>,
    /// Who waits for the second connection of a return path.
    awaited: HashMap<IpAddr, oneshot::Sender<CmEvent>>,
    log: LogLimit,
}

impl RdmaListener {
    /// Begins to listen, at the first of the host's addresses that can be bound.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays bound.
    pub async fn bind(address: &InetAddress, options: RdmaOptions) -> Result<Self> {
        if address.host.is_empty() {
            return Err(Error::Misuse {
                what: format!(
                    "cannot listen at rdma:{address}: an empty host means nothing here; name an address of an RDMA device, \
                     or 0.0.0.0 or [::] for all"
                ),
            });
        }
        crate::availability()?;
        let events = EventChannel::new()?;
        let mut failed = Vec::new();
        for candidate in resolve::resolve(address).await? {
            let bound = CmId::new(&events).and_then(|id| {
                id.set_reuse_address()?;
                id.bind_addr(candidate)?;
                id.listen(BACKLOG)?;
                Ok(id)
            });
            match bound {
                Ok(id) => {
                    return Ok(Self {
                        events,
                        id,
                        options,
                        handshakes: JoinSet::new(),
                        given_out: Vec::new(),
                        oldest_first: VecDeque::new(),
                        awaited: HashMap::new(),
                        log: LogLimit::default(),
                    });
                }
                Err(error) => failed.push(format!("{candidate}: {error}")),
            }
        }
        let each = failed.join("; ");
        Err(Error::Misuse {
            what: format!(
                "cannot listen at rdma:{address}: {each}; `mig doctor` shows the addresses of RDMA devices"
            ),
        })
    }

    fn take_request(&mut self, mut event: CmEvent) {
        if event.kind != CmEventKind::ConnectRequest {
            tracing::debug!(event = %event.kind, "ignored");
            return;
        }
        let Some(id) = event.request.take() else { return };
        let from = id.peer_addr().map(|address| address.ip());
        if let Some(allow) = &self.options.allow
            && !allow.permits(from.map_or(Peer::Unknown, Peer::address))
        {
            if let Some(unsaid) = self.log.say() {
                tracing::warn!(from = ?from, unsaid, "not allowed to connect: refused");
            }
            if let Err(error) = id.reject(&[]) {
                tracing::debug!(%error, "refusing a connection");
            }
            return;
        }
        self.awaited.retain(|_, waiting| !waiting.is_closed());
        if let Some(waiting) = from.and_then(|ip| self.awaited.remove(&ip)) {
            event.request = Some(id);
            // Whoever gave up waiting drops it, which refuses it.
            let _ = waiting.send(event);
            return;
        }
        self.oldest_first.retain(|handshake| !handshake.is_finished());
        if self.oldest_first.len() >= MOST_HANDSHAKES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            tracing::warn!(from = ?from, "too many handshakes under way, dropped the oldest");
            oldest.abort();
        }
        let back = self.options.return_path.then(|| {
            let (send, receive) = oneshot::channel();
            if let Some(ip) = from {
                self.awaited.insert(ip, send);
            }
            receive
        });
        let options = self.options.clone();
        let handshake = self.handshakes.spawn(async move {
            let outcome = handshake(id, &event.private_data, back, &options).await;
            outcome
                .inspect_err(|error| tracing::warn!(from = ?from, %error, "dropped a connection"))
        });
        self.oldest_first.push_back(handshake);
    }
}

/// # Cancel safety
///
/// Dropping the future closes the connections.
async fn handshake(
    id: CmId,
    said: &[u8],
    back: Option<oneshot::Receiver<CmEvent>>,
    options: &RdmaOptions,
) -> Result<(Channel, Alive)> {
    let (main, agreed) = accept(id, said, options).await?;
    let back = match back {
        None => None,
        Some(second) => {
            let mut event = match timeout(options.handshake_deadline, second).await {
                Ok(Ok(event)) => event,
                Ok(Err(_)) | Err(_) => return Err(no_return_path()),
            };
            let Some(id) = event.request.take() else { return Err(no_return_path()) };
            Some(accept(id, &event.private_data, options).await?.0)
        }
    };
    Ok(channel::destination(main, back, agreed, options))
}

/// # Cancel safety
///
/// Dropping the future closes the connection.
async fn accept(id: CmId, said: &[u8], options: &RdmaOptions) -> Result<(Link, Agreed)> {
    let reply = match Request::decode(said) {
        Ok(request) => request.answer(true, Extensions::ALL),
        Err(error) => {
            if let Err(error) = id.reject(&[]) {
                tracing::debug!(%error, "refusing a connection");
            }
            return Err(error.into());
        }
    };
    let events = EventChannel::new()?;
    id.migrate(&events)?;
    let preparing = Preparing::new(id, events, options.keepalive).await?;
    preparing.id().accept(&ConnectParameters {
        private_data: &reply.encode(),
        responder_resources: 2,
        initiator_depth: 0,
        // The request's counts.
        retry_count: 0,
        rnr_retry_count: 7,
    })?;
    let deadline: Duration = options.handshake_deadline;
    let established = timeout(deadline, preparing.established()).await;
    let (link, _) = established.map_err(|_| Error::Deadline {
        doing: "waiting for an rdma connection to be confirmed".into(),
        after: deadline,
    })??;
    tracing::debug!(link = link.name(), agreed = ?reply.agreed(), "accepted");
    Ok((link, reply.agreed()))
}

impl std::fmt::Debug for RdmaListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaListener").field("id", &self.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Listener for RdmaListener {
    async fn accept(&mut self) -> Result<Channel> {
        loop {
            tokio::select! {
                event = self.events.event() => {
                    let event = event?;
                    self.take_request(event);
                }
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok((channel, alive))) => {
                        self.given_out.retain(|channel| channel.strong_count() > 0);
                        self.given_out.push(alive);
                        return Ok(channel);
                    }
                    Ok(Err(error @ Error::Unavailable { .. })) => {
                        // What this machine lacks it will lack for the next one too, unless strangers have it.
                        self.given_out.retain(|channel| channel.strong_count() > 0);
                        if self.handshakes.is_empty() && self.given_out.is_empty() {
                            return Err(error);
                        }
                    }
                    _ => {}
                },
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        self.id.local_addr().map(|address| format!("rdma:{address}")).into_iter().collect()
    }
}
