//! Connecting: every address that a name stands for, in order, inside one deadline.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, Result, address::InetAddress};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    channel,
    link::{Link, Preparing, broken, not_connected},
    options::RdmaOptions,
    protocol::private_data::{Agreed, Extensions, Reply, Request},
    resolve,
    sending::SendingEnd,
    verbs::{CmEventKind, CmId, ConnectParameters, EventChannel},
};

/// QEMU's own wait for an address, and again for the way there (docs/wire/rdma.md §1). The deadline is shorter.
const RESOLVING: Duration = Duration::from_secs(10);
/// Retransmissions before the device calls the link dead; QEMU's number is 5. Not 7, the most there is: soft-RoCE takes it for
/// "for ever", and never finds a dead peer (docs/wire/rdma.md §2.5).
const RETRIES: u8 = 6;
/// How long the destination's first READY is waited for before the return path is opened: it proves that a QEMU is past the
/// wait in which it would take the second connection for an answer to the first. One that waits for the return path before it
/// reads says nothing (docs/wire/rdma.md §11, §16).
const BEFORE_RETURN_PATH: Duration = Duration::from_millis(500);

/// Opens rdma channels to one address. The name is looked up anew for each channel.
#[derive(Clone, Debug)]
pub struct RdmaConnector {
    address: InetAddress,
    options: RdmaOptions,
}

impl RdmaConnector {
    /// A connector; nothing is looked up or opened yet.
    pub fn new(address: InetAddress, options: RdmaOptions) -> Self {
        Self { address, options }
    }

    fn check(&self) -> Result<()> {
        let misuse = |what: &str| {
            let what = format!("cannot connect to rdma:{}: {what}", self.address);
            Err(Error::Misuse { what })
        };
        self.address.check_rdma()?;
        if self.address.host.is_empty() {
            return misuse("name the destination, by an address of an RDMA device");
        }
        if self.address.port_number() == Some(0) {
            return misuse("port 0 is for listening; name the port the destination listens on");
        }
        Ok(())
    }

    /// Tries each address with a fair share of the time that is left.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays open.
    async fn try_each(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<Channel> {
        let mut failed = Vec::new();
        let mut all_timed_out = true;
        for (index, &address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (addresses.len() - index) as u32;
            match timeout(share, self.attempt(address)).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(error)) => {
                    all_timed_out = false;
                    failed.push((address, error));
                }
                Err(_) => {
                    let doing = "waiting for an answer".to_owned();
                    failed.push((address, Error::Deadline { doing, after: share }));
                }
            }
        }
        let doing = format!("connecting to rdma:{}", self.address);
        if all_timed_out {
            return Err(Error::Deadline { doing, after: self.options.deadline });
        }
        if failed.len() == 1
            && let Some((address, error)) = failed.pop()
        {
            return Err(match error {
                Error::Io { doing: what, source } => {
                    Error::Io { doing: format!("{doing} ({address}): {what}"), source }
                }
                other => other,
            });
        }
        let each = failed.iter().map(|(address, error)| format!("{address}: {error}"));
        let what = each.collect::<Vec<_>>().join("; ");
        Err(Error::io(doing, std::io::Error::new(std::io::ErrorKind::NotConnected, what)))
    }

    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays open.
    async fn attempt(&self, address: SocketAddr) -> Result<Channel> {
        let request = Request { pin_all: self.options.pin_all, extensions: Some(Extensions::ALL) };
        let (link, agreed) = self.open(address, &request).await?;
        if self.options.pin_all && !agreed.pin_all {
            tracing::warn!("the destination does not pin all memory; it is registered in windows");
        }
        let mut main = SendingEnd::new(link, Arc::clone(&self.options.counters));
        let back = if self.options.return_path {
            let ready = poll_fn(|cx| main.poll_may_send(cx));
            if let Ok(first) = timeout(BEFORE_RETURN_PATH, ready).await {
                first?;
            }
            // A QEMU that wants none just does not answer.
            let limit = self.options.handshake_deadline;
            let opening = timeout(limit, self.open(address, &request)).await;
            let back = opening.unwrap_or_else(|_| {
                let doing = "waiting for an answer".to_owned();
                Err(Error::Deadline { doing, after: limit })
            });
            let (link, _) = back.map_err(|error| Error::Io {
                doing: "opening the return path, which the destination must want as well".into(),
                source: error.into_io(),
            })?;
            Some(link)
        } else {
            None
        };
        Ok(channel::source(main, back, agreed, &self.options))
    }

    /// One connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays open.
    async fn open(&self, address: SocketAddr, request: &Request) -> Result<(Link, Agreed)> {
        let mut events = EventChannel::new()?;
        let id = CmId::new(&events)?;
        id.resolve_addr(address, RESOLVING)?;
        expect(&mut events, CmEventKind::AddrResolved).await?;
        id.resolve_route(RESOLVING)?;
        expect(&mut events, CmEventKind::RouteResolved).await?;
        let preparing = Preparing::new(id, events, self.options.keepalive).await?;
        preparing.id().connect(&ConnectParameters {
            private_data: &request.encode(),
            initiator_depth: 2,
            responder_resources: 0,
            retry_count: RETRIES,
            rnr_retry_count: 7,
        })?;
        let (link, said) = preparing.established().await?;
        let agreed = request.settle(&Reply::decode(&said)?);
        tracing::debug!(link = link.name(), ?agreed, "connected");
        Ok((link, agreed))
    }
}

/// # Cancel safety
///
/// An event that has come may be lost.
async fn expect(events: &mut EventChannel, kind: CmEventKind) -> Result<()> {
    let event = events.event().await?;
    if event.kind == kind { Ok(()) } else { Err(not_connected(&event)) }
}

#[async_trait]
impl Connector for RdmaConnector {
    async fn connect(&self) -> Result<Channel> {
        self.check()?;
        crate::availability()?;
        let deadline = Instant::now() + self.options.deadline;
        match timeout_at(deadline, resolve::resolve(&self.address)).await {
            Ok(addresses) => self.try_each(&addresses?, deadline).await,
            Err(_) => {
                let doing = format!("looking up the host {:?}", self.address.host);
                Err(Error::Deadline { doing, after: self.options.deadline })
            }
        }
    }

    fn is_two_way(&self) -> Option<bool> {
        Some(self.options.return_path)
    }

    fn has_ram_hooks(&self) -> bool {
        true
    }
}

/// The return path that was to come did not.
pub(crate) fn no_return_path() -> Error {
    broken(
        "the source opened no second connection for a return path: both ends must agree on it"
            .into(),
    )
}
