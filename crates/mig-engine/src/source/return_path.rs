//! The source's ear: reads what the destination says until its verdict.

use mig_proto::{
    peer::{CHANNELS_MAY_CHANGE, MAY_CHANNELS_CHANGE, heartbeat_answered},
    return_path::{ReturnPathDecoder, SourceBlock, SourceEvent, SourceReturnPath},
};
use mig_stream::StreamReader;
use mig_transport::Capabilities;
use tokio::sync::{Notify, watch};

use super::heartbeat::Answered;
use crate::{
    error::{Error, Result},
    turn::Turn,
};

/// What the destination decided, or why it will never be known.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// SHUT 0: it has everything and owns the guest.
    Succeeded,
    /// SHUT with another status: it gave up, and never started the guest.
    Failed(u32),
    /// The way back ended in order, without a SHUT. A destination says SHUT before it starts a guest, and what it said
    /// arrives before its end of stream: if that end is its own, it never started this one.
    Ended(End),
}

/// Whose word it is that the way back ended; what it means for the guest is in [`ownership`](super::ownership).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The destination's own, whatever became of the connection (`Capabilities::announced_ends`).
    Announced,
    /// That of the destination's kernel, unless this is how ours shows the remains of a connection that broke.
    Orderly,
    /// Perhaps of somebody between the ends, with a SHUT on its way (`Capabilities::relayed`).
    Relayed,
}

impl End {
    /// How a channel of this kind ends.
    fn of(capabilities: Capabilities) -> Self {
        match capabilities {
            Capabilities { announced_ends: true, .. } => Self::Announced,
            Capabilities { relayed: true, .. } => Self::Relayed,
            _ => Self::Orderly,
        }
    }
}

/// Reads the return path to its end (docs/wire/stream.md §7).
pub(crate) struct ReturnPath {
    reader: StreamReader,
    end: End,
    decoder: ReturnPathDecoder,
    rules: SourceReturnPath,
    pub(crate) switchover_ack: Notify,
    peer: watch::Sender<Option<bool>>,
    answered: Answered,
}

impl ReturnPath {
    /// Of a channel with these capabilities.
    pub(crate) fn new(
        reader: StreamReader,
        capabilities: Capabilities,
        blocks: Vec<SourceBlock>,
        page_size: u64,
    ) -> Result<Self> {
        let rules = SourceReturnPath::new(blocks, page_size)
            .map_err(|error| Error::misuse(error.to_string()))?;
        Ok(Self {
            reader,
            end: End::of(capabilities),
            decoder: ReturnPathDecoder::new(),
            rules,
            switchover_ack: Notify::new(),
            peer: watch::Sender::new(None),
            answered: Answered::new(watch::Sender::new(0)),
        })
    }

    /// The destination's answer to whether the number of data channels may change, while it is listened to.
    pub(crate) fn channels_may_change(&self) -> watch::Receiver<Option<bool>> {
        self.peer.subscribe()
    }

    /// Which PING of a heartbeat was answered last, while it is listened to.
    pub(crate) fn heartbeat_answered(&self) -> Answered {
        Answered::clone(&self.answered)
    }

    /// Reads until the destination has decided.
    ///
    /// # Errors
    ///
    /// The link broke, or the destination broke a rule: what it decided cannot be known any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: messages are taken whole, and a verdict is kept by the rules.
    pub(crate) async fn verdict(&mut self) -> Result<Verdict> {
        let mut turn = Turn::new();
        loop {
            match self.rules.shut_status() {
                Some(0) => return Ok(Verdict::Succeeded),
                Some(status) => return Ok(Verdict::Failed(status)),
                None => {}
            }
            if turn.work(1) {
                turn.give_way().await;
            }
            if self.reader.buffer().is_empty() && self.reader.fill().await? == 0 {
                self.decoder.finish()?;
                return Ok(Verdict::Ended(self.end));
            }
            let mut input = self.reader.buffer();
            let before = input.len();
            let message = self.decoder.next(&mut input, &self.rules)?;
            let taken = before - input.len();
            self.reader.consume(taken);
            let Some(message) = message else { continue };
            match self.rules.handle_message(message)? {
                SourceEvent::SwitchoverAcknowledged => self.switchover_ack.notify_one(),
                SourceEvent::Pong { value: CHANNELS_MAY_CHANGE } => {
                    self.peer.send_replace(Some(true));
                }
                SourceEvent::Pong { value: MAY_CHANNELS_CHANGE } => {
                    self.peer.send_replace(Some(false));
                }
                SourceEvent::Pong { value } => {
                    if let Some(count) = heartbeat_answered(value) {
                        self.answered.send_replace(count);
                    }
                }
                SourceEvent::PagesRequested { .. } => {
                    tracing::debug!("page requests mean nothing in precopy");
                }
                _ => {}
            }
        }
    }
}
