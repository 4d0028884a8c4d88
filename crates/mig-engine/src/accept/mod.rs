//! Finding the channels of a migration among whoever connects.
//!
//! ```text
//!   Listener ──▶ candidate ──first bytes──▶ "QEVM"?         ──▶ the main channel
//!            ──▶ candidate ──first bytes──▶ 11 22 33 44?    ──hello──▶ a data channel, where some are expected
//!            ──▶ candidate ──nothing─────▶ dropped by its deadline, or when its seat is needed
//!            ──▶ candidate ──garbage─────▶ dropped at once
//! ```
//!
//! Candidates are looked at side by side, so a stranger delays nobody; at most [`MAX_CANDIDATES`] of them wait at a
//! time, and one more gets the seat of the oldest of the largest crowd, unless half of all connected a moment ago. Of whom was dropped a few
//! lines are logged and then a number. A transport with one channel only (fd, exec, file) has no strangers: what comes over it is the answer, and if
//! that is no migration stream, the error says so.
//!
//! Data channels may come before main and after it, so where they are expected accepting goes on for as long as the
//! migration runs, beside it. Where none are expected it goes on as well: a hello is 64 bytes that anybody can say, so one
//! that comes all the same is dropped and remembered. It counts only if the single stream looks as if its pages had gone
//! elsewhere, or fails: the pages that a source sends over data channels are not in the stream, which ends as if whole.

mod candidates;
mod look;

use std::{convert::Infallible, sync::Arc, time::Duration};

use mig_stream::{IdleClock, Stream, StreamReader, within};
use mig_transport::{Blame, Listener, LogLimit};
use tokio::time::{Instant, sleep_until};

pub use self::candidates::MAX_CANDIDATES;
pub(crate) use self::look::Accepted;
use self::{candidates::Candidates, look::Arrival};
use crate::{
    deadlines::{Deadlines, Wait},
    error::{Error, Result},
    multifd::receive::DataChannels,
};

/// Connections in a row after which others of the same task get a turn: a flood must not hold up the migration that it is
/// polled beside.
const AT_ONCE: u32 = 8;

/// What those who have connected may take to say who they are, when the stream is over and something is missing: a
/// source's channels have said so long before.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Accepts for one migration.
pub(crate) struct Acceptor<'a> {
    listener: &'a mut dyn Listener,
    deadlines: Deadlines,
    candidates: Candidates,
    /// What the listener said last, when it gives no more.
    exhausted: Option<Error>,
    /// Silence on the channels of the migration; strangers' words break none.
    idle: Option<Arc<IdleClock>>,
    /// About a data channel that came where none is expected.
    unexpected: Option<Error>,
    log: LogLimit,
}

impl<'a> Acceptor<'a> {
    /// Silence on the channels will be bounded by the idle deadline, all of them together.
    pub(crate) fn new(listener: &'a mut dyn Listener, deadlines: &Deadlines) -> Self {
        Self {
            listener,
            deadlines: *deadlines,
            candidates: Candidates::new(),
            exhausted: None,
            idle: deadlines.idle.map(IdleClock::new),
            unexpected: None,
            log: LogLimit::default(),
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
        // The listener may have served another migration, or this one before its network failed.
        self.listener.nobody_is_missing(false);
        let accepted = async {
            loop {
                match (self.next().await?, &mut *data) {
                    (Arrival::Main((stream, mut reader)), _) => {
                        reader.grow(StreamReader::BUFFER_BYTES);
                        return Ok((stream, reader));
                    }
                    (Arrival::Data(hello, (stream, reader)), Some(data)) => {
                        data.admit(hello, stream, reader).await?;
                    }
                    (Arrival::Data(_, (stream, _)), None) => self.remember(&stream),
                }
            }
        };
        let accepted = within("waiting for a source to connect", limit, accepted).await;
        let accepted = accepted.map_err(|error: Error| {
            let error = error.ran_out(Wait::Accept);
            if error.blame() != Blame::Deadline {
                return error;
            }
            // Who was let in and was no source got furthest.
            let dropped = self.candidates.last_dropped();
            match dropped.or_else(|| self.listener.last_dropped().map(Error::from)) {
                Some(dropped) => error.caused_by(dropped),
                None => error,
            }
        });
        accepted.map_err(|error| match data {
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
            let hub = data.hub();
            let complete = !hub.takes_any_number() && hub.arrived() == hub.expected();
            self.candidates.nobody_is_missing(complete);
            self.listener.nobody_is_missing(complete);
            let arrival = tokio::select! {
                biased;
                arrival = self.next() => arrival,
                // A source that was hung up on, on a channel too many, may neither go on nor end (docs/wire/ram.md §9.3).
                error = data.stalled_by_surplus(limit), if surplus => return error,
            };
            match arrival {
                Ok(arrival) => {
                    if let Err(error) = self.join(arrival, data).await {
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
        self.candidates.nobody_is_missing(true);
        self.listener.nobody_is_missing(true);
        loop {
            match self.next().await {
                Ok(Arrival::Data(_, (stream, _))) => self.remember(&stream),
                Ok(Arrival::Main((stream, _))) => self.drop_second_main(&stream),
                Err(error) => {
                    tracing::debug!(%error, "accepting no more");
                    return std::future::pending().await;
                }
            }
        }
    }

    fn remember(&mut self, stream: &Stream) {
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(channel = %stream.endpoint(), unsaid, "a data channel that is not expected was dropped");
        }
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
                    Ok(Arrival::Main((stream, _))) => self.drop_second_main(&stream),
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
                        Ok(arrival) => self.join(arrival, data).await?,
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

    /// # Cancel safety
    ///
    /// Cancel safe: nobody is lost.
    async fn next(&mut self) -> Result<Arrival> {
        let mut turns = 0;
        loop {
            let full_until = self.candidates.full_until();
            tokio::select! {
                biased;
                Some(looked_at) = self.candidates.next(), if !self.candidates.is_empty() => {
                    match looked_at {
                        None => {}
                        Some(Ok(arrival)) => return Ok(arrival.under(self.idle.as_ref())),
                        Some(Err(error)) if self.exhausted.is_some() && self.candidates.is_empty() => {
                            return Err(error);
                        }
                        Some(Err(error)) => self.candidates.tell_of(error),
                    }
                }
                accepted = self.listener.accept(),
                    if self.exhausted.is_none() && full_until.is_none() && self.candidates.has_room() =>
                {
                    match accepted {
                        Ok(channel) => {
                            tracing::debug!(channel = %channel.endpoint(), "connected");
                            self.candidates.seat(channel, self.deadlines.first_byte);
                        }
                        Err(error) if self.candidates.is_empty() => return Err(error.into()),
                        Err(error) => self.exhausted = Some(error.into()),
                    }
                }
                // Asks again whether there is a seat.
                () = sleep_until(full_until.unwrap_or_else(Instant::now)), if full_until.is_some() => {}
                else => {
                    let over = || Error::misuse("no more channels can come");
                    return Err(self.exhausted.take().unwrap_or_else(over));
                }
            }
            turns += 1;
            if turns % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes a channel that comes beside the main one to where it belongs.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channel may be dropped.
    async fn join(&mut self, arrival: Arrival, data: &mut DataChannels) -> Result<()> {
        match arrival {
            Arrival::Data(hello, (stream, reader)) => data.admit(hello, stream, reader).await,
            Arrival::Main((stream, _)) => {
                self.drop_second_main(&stream);
                Ok(())
            }
        }
    }

    fn drop_second_main(&mut self, stream: &Stream) {
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(channel = %stream.endpoint(), unsaid, "a second main channel was dropped");
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
