//! Finding the main channel among whoever connects.
//!
//! ```text
//!   Listener ──▶ candidate ──first bytes──▶ "QEVM"?  ──▶ the main channel
//!            ──▶ candidate ──nothing─────▶ dropped by its deadline, with a log line
//!            ──▶ candidate ──garbage─────▶ dropped at once, with a log line
//! ```
//!
//! Candidates are looked at side by side, so a stranger delays nobody, and at most [`MAX_CANDIDATES`] of them wait at a
//! time. A transport with one channel only (fd, exec, file) has no strangers: what comes over it is the answer, and if
//! that is no migration stream, the error says so.

use std::time::Duration;

use mig_proto::{FirstBytes, classify};
use mig_stream::{IdleClock, Stream, StreamOptions, StreamReader, within};
use mig_transport::{Channel, Listener};
use tokio::task::JoinSet;

use crate::{
    error::{Error, Result},
    parameters::Deadlines,
};

/// Connections that may be waiting for their first bytes at a time. Each holds a descriptor and a buffer.
pub const MAX_CANDIDATES: usize = 64;

/// A main channel whose first bytes were seen and not consumed.
pub(crate) type Accepted = (Stream, StreamReader);

/// Accepts until a main channel comes. Silence on it is bounded by the idle deadline.
///
/// # Errors
///
/// The accept deadline, or the listener's own failure when nobody is being looked at any more.
///
/// # Cancel safety
///
/// Not cancel safe: connections accepted so far are closed.
pub(crate) async fn accept_main(
    listener: &mut dyn Listener,
    deadlines: &Deadlines,
) -> Result<Accepted> {
    let mut options = StreamOptions::default();
    if let Some(limit) = deadlines.idle {
        options = options.idle(IdleClock::new(limit));
    }
    let accepted = find_main(listener, &options, deadlines);
    within("waiting for a source to connect", deadlines.accept, accepted).await
}

async fn find_main(
    listener: &mut dyn Listener,
    options: &StreamOptions,
    deadlines: &Deadlines,
) -> Result<Accepted> {
    let mut candidates = JoinSet::new();
    let mut exhausted: Option<Error> = None;
    loop {
        tokio::select! {
            biased;
            Some(looked_at) = candidates.join_next(), if !candidates.is_empty() => {
                match looked_at {
                    Ok(Ok(accepted)) => return Ok(accepted),
                    Ok(Err(error)) if exhausted.is_some() && candidates.is_empty() => {
                        return Err(error);
                    }
                    Ok(Err(error)) => tracing::warn!(%error, "a connection was dropped"),
                    Err(panicked) => tracing::error!(%panicked, "looking at a connection"),
                }
            }
            accepted = listener.accept(), if exhausted.is_none() && candidates.len() < MAX_CANDIDATES => {
                match accepted {
                    Ok(channel) => {
                        tracing::debug!(channel = %channel.endpoint(), "connected");
                        candidates.spawn(look_at(channel, options.clone(), deadlines.first_byte));
                    }
                    Err(error) if candidates.is_empty() => return Err(error.into()),
                    Err(error) => exhausted = Some(error.into()),
                }
            }
        }
    }
}

/// Reads the first four bytes of a channel and decides what it is.
async fn look_at(
    channel: Channel,
    options: StreamOptions,
    first_byte: Duration,
) -> Result<Accepted> {
    let name = channel.endpoint().to_string();
    let mut stream = Stream::open(channel, options);
    let mut reader = stream.reader()?;
    // A single-channel transport is connected before its far end exists: only several channels can hold strangers.
    let deadline = stream.capabilities().several_channels.then_some(first_byte);
    let first = within::<_, Error>("waiting for the first bytes", deadline, async {
        loop {
            match classify(reader.buffer()) {
                FirstBytes::TooFew if reader.fill().await? == 0 => return Ok(FirstBytes::TooFew),
                FirstBytes::TooFew => {}
                decided => return Ok(decided),
            }
        }
    })
    .await
    .map_err(|error| error.on(name.as_str()))?;
    match first {
        FirstBytes::Main => Ok((stream, reader)),
        FirstBytes::TooFew => Err(Error::peer_misbehaved(format!(
            "the stream ended after {} bytes, before its header",
            reader.buffer().len()
        ))),
        FirstBytes::Multifd => Err(Error::peer_incompatible(
            "a multifd channel came, and this destination expects a single stream: turn multifd off at the source",
        )),
        FirstBytes::Other => Err(Error::peer_misbehaved(format!(
            "not a migration stream: it begins with {:02x?} instead of \"QEVM\"",
            &reader.buffer()[..reader.buffer().len().min(4)]
        ))),
    }
    .map_err(|error| error.on(name.as_str()).at(0))
}
