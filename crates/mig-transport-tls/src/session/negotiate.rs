//! From a channel to a channel under TLS.
//!
//! ```text
//!   channel ─▶ halves ─▶ hello … finished ─▶ is it who it should be? ─▶ channel under TLS
//!                 │           │                     └ no: alert, closed
//!                 │           └ not TLS, an alert, a closed connection, the deadline: closed
//!                 └ one way only, or pages beside the stream: refused at once
//! ```
//! Dropping the future anywhere closes the connection; nothing runs on.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use mig_transport::{Channel, ChannelParts, Endpoint, Error, Receiver, Result, Sender};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    allowance::Allowance,
    engine::{Established, Handshake, Peer, Records, Step, Words},
    halves::{Role, StopInner, TlsReceiveHalf, TlsSendHalf},
    incoming::{Incoming, NotTls},
    link::Link,
    progress::Progress,
};

/// First bytes of a connection, for the words about one that is no TLS.
const FIRST_BYTES: usize = 8;
/// How long the peer may take to say why it hung up, once writing to it failed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A handshake before its first byte, and what to say if it fails.
pub(crate) struct Beginning {
    pub(crate) handshake: Box<dyn Handshake>,
    pub(crate) words: Arc<dyn Words>,
}

/// Decides about who the other end is; its answer names it, for messages.
pub(crate) type Admit = dyn Fn(&Peer) -> Result<Option<String>> + Send + Sync;

/// What both ends of a handshake have.
pub(crate) struct Terms {
    pub(crate) role: Role,
    /// From the connection on; where [`starts_with_the_first_byte`], from there.
    pub(crate) deadline: Duration,
    pub(crate) admit: Arc<Admit>,
    /// Whether data has come from the other end over a channel before this one, with the same credentials; set when it
    /// comes over this one.
    pub(crate) heard: Arc<AtomicBool>,
    /// Is told of each whole record of the other end.
    pub(crate) progress: Progress,
    /// See [`TlsOptions::key_update_after`](crate::TlsOptions::key_update_after).
    pub(crate) key_update_after: Option<u64>,
}

/// One handshake over `channel`, which then carries everything encrypted.
///
/// # Errors
///
/// [`Error::Misuse`] for a channel that cannot have TLS; [`Error::Deadline`]; else what the handshake, or `admit`, says.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub(crate) async fn negotiate(
    channel: Channel,
    begin: impl FnOnce(&Endpoint) -> Result<Beginning> + Send,
    terms: Terms,
) -> Result<Channel> {
    Ok(negotiate_link(channel, begin, terms).await?.0)
}

/// The same, with what both halves of the channel share.
///
/// # Cancel safety
///
/// See [`negotiate`].
pub(crate) async fn negotiate_link(
    mut channel: Channel,
    begin: impl FnOnce(&Endpoint) -> Result<Beginning> + Send,
    terms: Terms,
) -> Result<(Channel, Arc<Link>)> {
    let Terms { role, deadline, admit, heard, progress, key_update_after } = terms;
    let patient = starts_with_the_first_byte(role, &channel);
    let endpoint = channel.endpoint().clone();
    let (receiver, sender) = halves(&mut channel)?;
    let stop = channel.shutdown_handle();
    let peer = channel.peer();
    let capabilities = channel.capabilities().with(|can| {
        can.fd_passing = false;
        can.zero_copy = false;
        // Nobody between the ends can announce an end, and only a destination reads one that was not announced.
        can.relayed = false;
        can.announced_ends = role == Role::Source;
    });
    let beginning = begin(&endpoint)?;
    let doing = || format!("TLS handshake with {}", other_end(&endpoint));
    let words = Arc::clone(&beginning.words);
    let mut agreeing = Agreeing {
        receiver,
        sender,
        incoming: Incoming::new(),
        first: Vec::with_capacity(FIRST_BYTES),
        first_taken: false,
        progress,
        allowance: (role == Role::Destination).then(Allowance::new),
        doing: doing(),
    };
    if patient {
        agreeing.more(&words).await?;
    }
    let agreeing = async {
        let mut established = agreeing.agree(beginning).await?;
        let name = match admit(&established.peer) {
            Ok(name) => name,
            Err(error) => {
                agreeing.refuse(&mut established).await;
                return Err(error);
            }
        };
        Ok((agreeing, established, name))
    };
    let agreed = tokio::time::timeout(deadline, agreeing).await;
    let agreed =
        agreed.unwrap_or_else(|_| Err(Error::Deadline { doing: doing(), after: deadline }));
    let (Agreeing { receiver, sender, incoming, .. }, established, name) = agreed?;
    let Established { open, mut seal, agreed, peer: proven, most_bytes } = established;
    let capabilities = capabilities.with(|can| can.most_bytes = most_bytes);
    if let Some(records) = key_update_after {
        seal.change_keys_after(records);
    }
    tracing::debug!(channel = %endpoint, %agreed, peer = name.as_deref(), "TLS");
    let link = Link::new(seal, sender, words.hung_up_hint(), heard);
    let receive = TlsReceiveHalf::new(Arc::clone(&link), receiver, open, incoming, role);
    let channel = Channel::new(ChannelParts {
        receive: Some(Box::new(receive)),
        send: Some(Box::new(TlsSendHalf(Arc::clone(&link)))),
        force: Some(Box::new(StopInner(stop))),
        hooks: None,
        capabilities,
        endpoint: named(endpoint, &agreed, name),
        peer,
    })
    .with_identity(crate::identity::proven(&proven));
    Ok((channel, link))
}

/// Whether a destination's deadline waits for the source to begin. A transport with one channel (fd, exec) is connected before
/// its far end exists: `ncat -l` runs long before anybody calls. Nobody else can be kept waiting there, and how long a source
/// may take to come is not about TLS.
fn starts_with_the_first_byte(role: Role, channel: &Channel) -> bool {
    role == Role::Destination && !channel.capabilities().several_channels
}

/// Both halves, or why there is no TLS over this.
fn halves(channel: &mut Channel) -> Result<(Receiver, Sender)> {
    let endpoint = channel.endpoint().clone();
    let cannot = |why: &str| Error::Misuse { what: format!("{endpoint}: no TLS here: {why}") };
    let capabilities = channel.capabilities();
    if capabilities.direct_ram_writes {
        return Err(cannot("pages go beside the stream, where nothing would encrypt them"));
    }
    if capabilities.storage {
        return Err(cannot("a file answers no handshake"));
    }
    let one_way = "it needs both directions (fd: a socket; exec: a command that reads and writes)";
    let receiver = channel.take_receiver().map_err(|_| cannot(one_way))?;
    let sender = channel.take_sender().map_err(|_| cannot(one_way))?;
    Ok((receiver, sender))
}

fn other_end(endpoint: &Endpoint) -> String {
    if endpoint.peer.is_empty() { endpoint.to_string() } else { endpoint.peer.clone() }
}

/// The transport's own names, and what TLS knows about the other end.
fn named(mut endpoint: Endpoint, agreed: &str, name: Option<String>) -> Endpoint {
    let about = match name {
        Some(name) => format!("{agreed}, {name}"),
        None => agreed.to_owned(),
    };
    endpoint.peer = match endpoint.peer.as_str() {
        "" => format!("({about})"),
        peer => format!("{peer} ({about})"),
    };
    endpoint
}

struct Agreeing {
    receiver: Receiver,
    sender: Sender,
    incoming: Incoming,
    /// What came first, for the words about what is no TLS; complete once a record was taken.
    first: Vec<u8>,
    first_taken: bool,
    progress: Progress,
    /// What may come before the other end is known; a source chose its destination.
    allowance: Option<Allowance>,
    doing: String,
}

impl Agreeing {
    async fn agree(&mut self, beginning: Beginning) -> Result<Established> {
        let Beginning { mut handshake, words } = beginning;
        let mut out = Vec::new();
        let mut step = handshake.advance(None, &mut out);
        // A peer that refused us said why before it closed; what it said is worth more than that writing failed.
        let mut unsent = None;
        loop {
            if unsent.is_none()
                && let Err(error) = self.say(&mut out).await
            {
                unsent = Some(error);
            }
            match (step?, unsent.take()) {
                (Step::Done, None) => return handshake.finish(),
                (Step::Done, Some(error)) => return Err(self.failed(error)),
                (Step::More, failed) => unsent = failed,
            }
            let len = match unsent.take() {
                None => self.record(&words).await?,
                Some(error) => match tokio::time::timeout(LAST_WORDS, self.record(&words)).await {
                    Ok(Ok(len)) => {
                        unsent = Some(error);
                        len
                    }
                    _ => return Err(self.failed(error)),
                },
            };
            let at = self.incoming.take(len);
            self.first_taken = true;
            self.progress.made();
            if let Some(allowance) = &mut self.allowance {
                allowance.take(len)?;
            }
            step = handshake.advance(Some(self.incoming.at_mut(at)), &mut out);
            if let Some(allowance) = &mut self.allowance
                && !out.is_empty()
            {
                allowance.answered();
            }
        }
    }

    /// Waits for one whole record.
    async fn record(&mut self, words: &Arc<dyn Words>) -> Result<usize> {
        loop {
            match self.incoming.whole_record() {
                Ok(Some(len)) => return Ok(len),
                Ok(None) => {}
                Err(NotTls(header)) => {
                    let broken = rustls::InvalidMessage::InvalidContentType;
                    tracing::debug!(?header, "no TLS record");
                    let not_tls = words.not_tls(&self.first);
                    return Err(not_tls.unwrap_or_else(|| words.failed(&broken.into())));
                }
            }
            self.more(words).await?;
        }
    }

    /// Waits for bytes, and takes them.
    async fn more(&mut self, words: &Arc<dyn Words>) -> Result<()> {
        let came = match self.receiver.read(self.incoming.room()).await {
            Ok(came) => came,
            Err(error) => return Err(self.failed(error)),
        };
        self.incoming.came(came);
        if came == 0 {
            return Err(words.ended(!self.first.is_empty()));
        }
        if !self.first_taken {
            let held = self.incoming.held();
            self.first = held[..held.len().min(FIRST_BYTES)].to_vec();
        }
        Ok(())
    }

    async fn say(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.sender.write_all(out).await?;
        out.clear();
        self.sender.flush().await
    }

    /// Tells the peer that it is refused, as far as it listens.
    async fn refuse(&mut self, established: &mut Established) {
        let mut records = Records::default();
        let mut told = established.seal.refuse(&mut records);
        while let (Ok(()), false) = (&told, records.is_empty()) {
            told = match self.sender.write(records.rest()).await {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    records.advance(sent);
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        if let Err(error) = told.and(self.sender.shutdown().await) {
            tracing::debug!(%error, "the peer does not hear that it is refused");
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(self.doing.clone(), error)
    }
}
