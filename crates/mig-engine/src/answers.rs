//! The way back to the source: what a destination says, with a guest or without.

use std::time::Duration;

use mig_proto::{
    peer::{CHANNELS_MAY_CHANGE, MAY_CHANNELS_CHANGE},
    return_path::{Message, SHUT_OK},
};
use mig_stream::{Stream, StreamReader, StreamWriter, within};

use crate::{
    error::{Error, Result},
    turn::Turn,
};

/// The status a source hears when its stream was not kept; any value but 0 means failure.
const SHUT_FAILED: u32 = 1;

/// How long a failed end tells its source so, and how long it lets it hear that and hang up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Farewell {
    pub(crate) telling: Duration,
    pub(crate) hearing: Duration,
}

impl Farewell {
    /// After a cancel, which is promised to take no longer than 100 ms: half of that, for the other half is the machine's.
    pub(crate) const HASTY: Self =
        Self { telling: Duration::from_millis(20), hearing: Duration::from_millis(30) };

    /// Both together.
    pub(crate) const fn whole(self) -> Duration {
        self.telling.saturating_add(self.hearing)
    }
}

/// What the source wants to hear, found while deciding what to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    OpenReturnPath,
    Pong(u32),
}

/// The return path, once the source opened it.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Whether the source may open it at all.
    allowed: bool,
    switchover_ack: bool,
    /// Any number of data channels is taken, and who asks hears so.
    any_number: bool,
    asked: Vec<Ask>,
    writer: Option<StreamWriter>,
}

impl Answers {
    pub(crate) fn new(allowed: bool, switchover_ack: bool) -> Self {
        Self { allowed, switchover_ack, any_number: false, asked: Vec::new(), writer: None }
    }

    /// Whether the number of data channels may change while the migration runs.
    pub(crate) fn take_any_number(&mut self, any_number: bool) {
        self.any_number = any_number;
    }

    /// Notes what the source wants to hear. Bounded by what one read brings.
    pub(crate) fn ask(&mut self, question: Ask) {
        self.asked.push(question);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Says everything that was asked for.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: answers may be lost; only a failure message may follow.
    pub(crate) async fn give(&mut self, stream: &mut Stream) -> Result<()> {
        if self.asked.is_empty() {
            return Ok(());
        }
        for question in std::mem::take(&mut self.asked) {
            match question {
                Ask::OpenReturnPath if self.writer.is_some() => {}
                Ask::OpenReturnPath => self.open(stream)?,
                // Without a return path the decoder refuses PING.
                Ask::Pong(MAY_CHANNELS_CHANGE) if self.any_number => {
                    self.say(&Message::Pong { value: CHANNELS_MAY_CHANGE })?;
                }
                Ask::Pong(value) => self.say(&Message::Pong { value })?,
            }
            // One read can bring more questions than the writer has room for answers.
            if let Some(writer) = &mut self.writer {
                writer.make_room().await?;
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.flush().await?;
        }
        Ok(())
    }

    /// Tells the source that it may let go of its guest.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the message may be cut.
    pub(crate) async fn success(&mut self) -> Result<()> {
        self.say(&Message::Shut { status: SHUT_OK })?;
        if let Some(writer) = &mut self.writer {
            writer.flush().await?;
        }
        Ok(())
    }

    /// Tells the source that its guest stays with it, as well as that works in the time there is, and lets it hear that:
    /// a connection that is closed with bytes unread in it takes what was just said along. Where nothing can be said
    /// nothing is waited for.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it is a courtesy; the end of the channel says the same.
    pub(crate) async fn farewell(
        &mut self,
        stream: &mut Stream,
        reader: &mut StreamReader,
        limits: Farewell,
    ) {
        let telling = async {
            // The way back may have been asked for in the same bytes that broke a rule.
            self.give(stream).await?;
            self.failure().await
        };
        match within("telling the source", limits.telling, telling).await {
            Ok(true) => {
                let _late = drain(reader, limits.hearing).await;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the source could not be told"),
        }
    }

    /// Says no; answers false where there is no way to say it.
    async fn failure(&mut self) -> Result<bool> {
        self.say(&Message::Shut { status: SHUT_FAILED })?;
        let Some(writer) = &mut self.writer else { return Ok(false) };
        writer.flush().await?;
        Ok(true)
    }

    fn open(&mut self, stream: &mut Stream) -> Result<()> {
        if !self.allowed {
            return Err(Error::misuse(
                "the source opened a return path, which was forbidden here: allow it, or switch the capability \
                 return-path off at the source",
            ));
        }
        let writer = stream.return_writer().map_err(|error| {
            Error::peer_incompatible(format!(
                "the source opened a return path and would wait for an answer for ever: switch its capability \
                 return-path off, or use a two-way transport; {error}"
            ))
        })?;
        self.writer = Some(writer);
        if self.switchover_ack {
            // Before PONG 1, as a destination without devices that gate the switchover does.
            self.say(&Message::SwitchoverAck)?;
        }
        Ok(())
    }

    fn say(&mut self, message: &Message) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            tracing::debug!(?message, "answering");
            writer.put(&message.to_bytes())?;
        }
        Ok(())
    }
}

/// Reads and drops what still comes until the source ends the channel, so that closing ours cannot take from the kernel
/// what the source has not read yet. Answers false when the time was over first.
///
/// # Cancel safety
///
/// Cancel safe.
pub(crate) async fn drain(
    reader: &mut StreamReader,
    limit: Duration,
) -> Result<bool, mig_stream::Error> {
    let drained = tokio::time::timeout(limit, async {
        let mut turn = Turn::new();
        loop {
            let buffered = reader.buffer().len();
            reader.consume(buffered);
            if reader.fill().await? == 0 {
                return Ok::<(), mig_stream::Error>(());
            }
            turn.pause().await;
        }
    });
    match drained.await {
        Ok(outcome) => outcome.map(|()| true),
        Err(_elapsed) => Ok(false),
    }
}
