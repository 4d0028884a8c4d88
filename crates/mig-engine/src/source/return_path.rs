//! The source's ear: reads what the destination says until its verdict.

use mig_proto::{
    peer::{CHANNELS_MAY_CHANGE, MAY_CHANNELS_CHANGE, heartbeat_answered},
    return_path::{ReturnPathDecoder, SourceBlock, SourceEvent, SourceReturnPath},
};
use mig_stream::StreamReader;
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
    /// It closed in order without a SHUT. A destination says SHUT before it starts a guest, and what it said arrives
    /// before its end of stream: so it never started this one.
    Closed,
    /// The channel ended in order without a SHUT, and somebody between the ends may have ended it, with a SHUT on its way
    /// (`Capabilities::relayed`).
    Ended,
}

/// Reads the return path to its end (docs/wire/stream.md §7).
pub(crate) struct ReturnPath {
    reader: StreamReader,
    relayed: bool,
    decoder: ReturnPathDecoder,
    rules: SourceReturnPath,
    pub(crate) switchover_ack: Notify,
    peer: watch::Sender<Option<bool>>,
    answered: Answered,
}

impl ReturnPath {
    /// Of a channel that is `relayed` its end says nothing about the destination.
    pub(crate) fn new(
        reader: StreamReader,
        relayed: bool,
        blocks: Vec<SourceBlock>,
        page_size: u64,
    ) -> Result<Self> {
        let rules = SourceReturnPath::new(blocks, page_size)
            .map_err(|error| Error::misuse(error.to_string()))?;
        Ok(Self {
            reader,
            relayed,
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
                return Ok(if self.relayed { Verdict::Ended } else { Verdict::Closed });
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
