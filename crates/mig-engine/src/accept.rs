//! Finding the channels of a migration among whoever connects.
//!
//! ```text
//!   Listener ──▶ candidate ──first bytes──▶ "QEVM"?         ──▶ the main channel
//!            ──▶ candidate ──first bytes──▶ 11 22 33 44?    ──hello──▶ a data channel, where some are expected
//!            ──▶ candidate ──nothing─────▶ dropped by its deadline, with a log line
//!            ──▶ candidate ──garbage─────▶ dropped at once, with a log line
//! ```
//!
//! Candidates are looked at side by side, so a stranger delays nobody, and at most [`MAX_CANDIDATES`] of them wait at a
//! time. A transport with one channel only (fd, exec, file) has no strangers: what comes over it is the answer, and if
//! that is no migration stream, the error says so.
//!
//! Data channels may come before main and after it, so where they are expected accepting goes on for as long as the
//! migration runs, beside it. Where none are expected it goes on as well: a hello is 64 bytes that anybody can say, so one
//! that comes all the same is dropped and remembered. It counts only if the single stream looks as if its pages had gone
//! elsewhere, or fails: the pages that a source sends over data channels are not in the stream, which ends as if whole.

use std::{convert::Infallible, sync::Arc, time::Duration};

use mig_proto::{FirstBytes, classify, multifd::Hello};
use mig_stream::{IdleClock, Stream, StreamOptions, StreamReader, within};
use mig_transport::{Blame, Channel, Listener};
use tokio::task::JoinSet;

use crate::{
    error::{Error, Result},
    multifd::receive::DataChannels,
    parameters::Deadlines,
};

/// Connections that may be waiting for their first bytes at a time. Each holds a descriptor and a buffer.
pub const MAX_CANDIDATES: usize = 64;

/// A channel whose first bytes were seen.
pub(crate) type Accepted = (Stream, StreamReader);

/// A channel that said what it is.
enum Arrival {
    /// Nothing of it was consumed.
    Main(Accepted),
    /// Its hello was consumed.
    Data(Hello, Accepted),
}

/// What those who have connected may take to say who they are, when the stream is over and something is missing: a
/// source's channels have said so long before.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Accepts for one migration.
pub(crate) struct Acceptor<'a> {
    listener: &'a mut dyn Listener,
    deadlines: Deadlines,
    candidates: JoinSet<Result<Arrival>>,
    /// What the listener said last, when it gives no more.
    exhausted: Option<Error>,
    /// Silence on the channels of the migration; strangers' words break none.
    idle: Option<Arc<IdleClock>>,
    /// About a data channel that came where none is expected.
    unexpected: Option<Error>,
}

impl<'a> Acceptor<'a> {
    /// Silence on the channels will be bounded by the idle deadline, all of them together.
    pub(crate) fn new(listener: &'a mut dyn Listener, deadlines: &Deadlines) -> Self {
        Self {
            listener,
            deadlines: *deadlines,
            candidates: JoinSet::new(),
            exhausted: None,
            idle: deadlines.idle.map(IdleClock::new),
            unexpected: None,
        }
    }

    /// Accepts until a main channel comes; data channels that come before are taken into `data`.
    ///
    /// # Errors
    ///
    /// The accept deadline; the listener's own failure when nobody is being looked at any more; or data channels that
    /// cannot be.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: connections accepted so far are closed.
    pub(crate) async fn main(&mut self, data: &mut Option<DataChannels>) -> Result<Accepted> {
        let limit = self.deadlines.accept;
        let accepted = async {
            loop {
                match (self.next().await?, &mut *data) {
                    (Arrival::Main(accepted), _) => return Ok(accepted),
                    (Arrival::Data(hello, (stream, reader)), Some(data)) => {
                        data.admit(hello, stream, reader).await?;
                    }
                    (Arrival::Data(_, (stream, _)), None) => self.remember(&stream),
                }
            }
        };
        let accepted = within("waiting for a source to connect", limit, accepted).await;
        accepted.map_err(|error: Error| match data {
            Some(data) if error.blame() == Blame::Deadline => {
                let (here, all) = (data.hub().arrived(), data.hub().expected());
                error
                    .noting(format!("{here} of {all} data channels have come, and no main channel"))
            }
            _ => error,
        })
    }

    /// Goes on accepting while the migration runs. Answers only with what must end it.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: connections that are being looked at are closed.
    pub(crate) async fn attend(&mut self, data: &mut DataChannels) -> Error {
        let limit = self.deadlines.first_byte;
        loop {
            let surplus = data.has_surplus();
            let arrival = tokio::select! {
                biased;
                arrival = self.next() => arrival,
                // A source that was hung up on, on a channel too many, may neither go on nor end (docs/wire/ram.md §9.3).
                error = data.stalled_by_surplus(limit), if surplus => return error,
            };
            match arrival {
                Ok(arrival) => {
                    if let Err(error) = arrival.join(data).await {
                        return error;
                    }
                }
                Err(error) => {
                    let (here, all) = (data.hub().arrived(), data.hub().expected());
                    if here < all {
                        return Error::new(
                            error.blame(),
                            format!(
                                "{here} of {all} data channels have come, and no more can: use a transport that opens \
                                 several channels (tcp, unix, vsock), or turn multifd off at both ends"
                            ),
                        )
                        .caused_by(error);
                    }
                    tracing::debug!(%error, "accepting no more, and nobody is missing");
                    return std::future::pending().await;
                }
            }
        }
    }

    /// The same where none are expected: one that comes is dropped, and [remembered](Self::none_is_missing).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: connections that are being looked at are closed.
    pub(crate) async fn attend_none(&mut self) -> Infallible {
        loop {
            match self.next().await {
                Ok(Arrival::Data(_, (stream, _))) => self.remember(&stream),
                Ok(arrival @ Arrival::Main(_)) => arrival.drop_second_main(),
                Err(error) => {
                    tracing::debug!(%error, "accepting no more");
                    return std::future::pending().await;
                }
            }
        }
    }

    fn remember(&mut self, stream: &Stream) {
        tracing::warn!(channel = %stream.endpoint(), "a data channel that is not expected was dropped");
        self.unexpected.get_or_insert_with(|| unexpected(stream));
    }

    /// The single stream is over. Where it `lacks_pages` by its looks, a data channel that came, or comes now, means that
    /// they went there.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: connections that are being looked at are closed.
    pub(crate) async fn none_is_missing(&mut self, lacks_pages: bool) -> Result<()> {
        if !lacks_pages {
            return Ok(());
        }
        let looked = tokio::time::timeout(LAST_LOOK, async {
            while self.unexpected.is_none() {
                match self.next().await {
                    Ok(Arrival::Data(_, (stream, _))) => self.remember(&stream),
                    Ok(arrival @ Arrival::Main(_)) => arrival.drop_second_main(),
                    Err(_no_more) => return,
                }
            }
        });
        let _silent = looked.await;
        self.unexpected.take().map_or(Ok(()), Err)
    }

    /// The single stream failed: if it lacks pages and a data channel came, that is the reason, for its source has been
    /// hung up on there.
    pub(crate) fn explain(&mut self, error: Error, lacks_pages: bool) -> Error {
        match self.unexpected.take() {
            Some(unexpected) if lacks_pages && error.blame() != Blame::Cancelled => {
                unexpected.caused_by(error)
            }
            _ => error,
        }
    }

    /// The stream is over: looks at those who have connected by now, for a channel that the source has too many.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: connections that are being looked at are closed.
    pub(crate) async fn last_look(&mut self, data: &mut DataChannels) -> Result<()> {
        let looked = tokio::time::timeout(LAST_LOOK, async {
            loop {
                tokio::select! {
                    biased;
                    arrival = self.next() => match arrival {
                        Ok(arrival) => arrival.join(data).await?,
                        Err(error) => {
                            tracing::debug!(%error, "accepting no more");
                            return Ok(());
                        }
                    },
                    // Nobody waits; the silent ones are strangers.
                    () = tokio::task::yield_now() => return Ok(()),
                }
            }
        });
        looked.await.unwrap_or(Ok(()))
    }

    async fn next(&mut self) -> Result<Arrival> {
        loop {
            tokio::select! {
                biased;
                Some(looked_at) = self.candidates.join_next(), if !self.candidates.is_empty() => {
                    match looked_at {
                        Ok(Ok(arrival)) => return Ok(arrival.under(self.idle.as_ref())),
                        Ok(Err(error)) if self.exhausted.is_some() && self.candidates.is_empty() => {
                            return Err(error);
                        }
                        Ok(Err(error)) => tracing::warn!(%error, "a connection was dropped"),
                        Err(panicked) => tracing::error!(%panicked, "looking at a connection"),
                    }
                }
                accepted = self.listener.accept(),
                    if self.exhausted.is_none() && self.candidates.len() < MAX_CANDIDATES =>
                {
                    match accepted {
                        Ok(channel) => {
                            tracing::debug!(channel = %channel.endpoint(), "connected");
                            let limit = self.deadlines.first_byte;
                            self.candidates.spawn(look_at(channel, limit));
                        }
                        Err(error) if self.candidates.is_empty() => return Err(error.into()),
                        Err(error) => self.exhausted = Some(error.into()),
                    }
                }
                else => {
                    let over = || Error::misuse("no more channels can come");
                    return Err(self.exhausted.take().unwrap_or_else(over));
                }
            }
        }
    }
}

impl Arrival {
    /// From here on its bytes are the migration's, and silence on it counts.
    fn under(self, idle: Option<&Arc<IdleClock>>) -> Self {
        let under = |(mut stream, mut reader): Accepted| {
            stream.set_idle(idle.cloned());
            reader.set_idle(idle.cloned());
            (stream, reader)
        };
        match self {
            Self::Main(accepted) => Self::Main(under(accepted)),
            Self::Data(hello, accepted) => Self::Data(hello, under(accepted)),
        }
    }

    /// Takes a channel that comes beside the main one to where it belongs.
    async fn join(self, data: &mut DataChannels) -> Result<()> {
        match self {
            Self::Data(hello, (stream, reader)) => data.admit(hello, stream, reader).await,
            Self::Main(_) => {
                self.drop_second_main();
                Ok(())
            }
        }
    }

    fn drop_second_main(self) {
        if let Self::Main((stream, _)) = self {
            tracing::warn!(channel = %stream.endpoint(), "a second main channel was dropped");
        }
    }
}

/// A data channel where none is expected. The rest of its source's migration may come, whole by its looks.
fn unexpected(stream: &Stream) -> Error {
    Error::peer_incompatible(
        "a data channel came, and a single stream is expected here, without the pages that the source sends there: turn \
         multifd off at the source, or on here, with the source's number of channels (multifd-channels)",
    )
    .on(stream.endpoint().to_string())
}

/// Reads the first bytes of a channel and decides what it is.
async fn look_at(channel: Channel, first_byte: Duration) -> Result<Arrival> {
    let name = channel.endpoint().to_string();
    let mut stream = Stream::open(channel, StreamOptions::default());
    let mut reader = stream.reader()?;
    // A single-channel transport is connected before its far end exists: only several channels can hold strangers.
    let deadline = stream.capabilities().several_channels.then_some(first_byte);
    let first = within::<_, Error>("waiting for the first bytes", deadline, async {
        loop {
            match classify(reader.buffer()) {
                FirstBytes::TooFew if reader.fill().await? == 0 => return Ok(FirstBytes::TooFew),
                FirstBytes::TooFew => {}
                FirstBytes::Multifd => {
                    reader.peek(Hello::LEN).await?;
                    return Ok(FirstBytes::Multifd);
                }
                decided => return Ok(decided),
            }
        }
    })
    .await
    .map_err(|error| error.on(name.as_str()))?;
    match first {
        FirstBytes::Main => Ok(Arrival::Main((stream, reader))),
        FirstBytes::TooFew => Err(Error::peer_misbehaved(format!(
            "the stream ended after {} bytes, before its header",
            reader.buffer().len()
        ))),
        FirstBytes::Multifd => hello(&mut reader).map(|hello| {
            reader.consume(Hello::LEN);
            Arrival::Data(hello, (stream, reader))
        }),
        FirstBytes::Other => Err(no_stream(reader.buffer())),
    }
    .map_err(|error| error.on(name.as_str()).at(0))
}

/// What comes is neither a main channel nor a data channel. One stranger is worth knowing: the source that is set to TLS, whose
/// first record is a handshake (22) of version 3.x.
fn no_stream(first: &[u8]) -> Error {
    match first {
        [0x16, 0x03, ..] => Error::peer_incompatible(
            "the source speaks TLS, and a plain stream is expected here: give this end credentials too (tls-creds, \
             --tls-creds DIR), or turn TLS off at the source",
        ),
        _ => Error::peer_misbehaved(format!(
            "not a migration stream: it begins with {:02x?} instead of \"QEVM\"",
            &first[..first.len().min(4)]
        )),
    }
}

fn hello(reader: &mut StreamReader) -> Result<Hello> {
    let bytes = reader.buffer().first_chunk().expect("as many were waited for");
    Hello::decode(bytes).map_err(|error| match error.blame() {
        mig_proto::Fault::PeerMisbehaved => Error::peer_misbehaved(error.to_string()),
        _ => Error::peer_incompatible(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_speaks_tls_is_recognised() {
        let error = no_stream(&[0x16, 0x03, 0x01, 0x02, 0x00]);
        assert_eq!(error.blame(), Blame::PeerIncompatible);
        assert!(error.to_string().contains("the source speaks TLS"), "{error}");
        let error = no_stream(b"GET / HTTP/1.1");
        assert_eq!(error.blame(), Blame::PeerMisbehaved);
        assert!(error.to_string().contains("it begins with [47, 45, 54, 20]"), "{error}");
    }
}
