//! A source that has nothing to say says PING, and a destination that lives says PONG.
//!
//! ```text
//!   source ── last section of a pass ──▶ … silence … ── PING n ──▶ destination
//!          ◀──────────────────────────────────────────── PONG n ──
//! ```
//!
//! Only between two sections, and never once the end of the stream has left: elsewhere the grammar has no room for a
//! command (docs/wire/stream.md §4, §6). A PING keeps the destination's deadline on silence from running out, a PONG ours;
//! and a destination whose kernel still takes bytes, but which is stopped or stuck itself, is found by the PONG that does
//! not come. QEMU sends any value back (docs/wire/stream.md §7).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use mig_proto::{Command, encode, peer};
use mig_stream::StreamWriter;
use tokio::{sync::watch, time::Instant};

use crate::{
    deadlines::{Deadlines, Wait},
    error::{Error, Result},
};

/// The last PING that was answered, counted from 1.
pub(crate) type Answered = Arc<watch::Sender<u8>>;

/// PINGs whose PONG is awaited, at most: their count is a byte, and must mean one of them only.
const MOST_OPEN: usize = 128;

/// See the module.
pub(super) struct Heartbeat {
    every: Duration,
    limit: Duration,
    answered: Answered,
    last: u8,
    /// Those that were not answered, oldest first, and when they were sent. Of an answer that takes longer than a pulse there
    /// are always some: what counts is how long the oldest has waited.
    open: VecDeque<(u8, Instant)>,
}

impl Heartbeat {
    /// `None` if there is to be none.
    pub(super) fn new(deadlines: &Deadlines, answered: Answered) -> Option<Self> {
        let (every, limit) = (deadlines.pulse()?, deadlines.heartbeat?);
        Some(Self { every, limit, answered, last: 0, open: VecDeque::new() })
    }

    /// Says PING again and again, between two sections. Only a failure ends it.
    ///
    /// # Errors
    ///
    /// The destination has not answered for as long as it may, or the link broke.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe while it waits for its time; a PING that is on its way may be cut, which the next flush makes good.
    pub(super) async fn beat(
        &mut self,
        out: &mut StreamWriter,
    ) -> Result<std::convert::Infallible> {
        loop {
            tokio::time::sleep(self.every).await;
            self.check()?;
            // Beyond that the youngest is said again: it keeps up the destination's trust, and any answer means what it says.
            if self.open.len() < MOST_OPEN {
                self.last = self.last.wrapping_add(1);
                self.open.push_back((self.last, Instant::now()));
            }
            let mut ping = Vec::with_capacity(16);
            encode::command(&mut ping, &Command::Ping(peer::heartbeat(self.last)));
            out.put(&ping)?;
            match tokio::time::timeout(self.limit, out.flush()).await {
                Ok(flushed) => flushed?,
                Err(_elapsed) => return Err(self.ran_out()),
            }
        }
    }

    fn check(&mut self) -> Result<()> {
        let answered = *self.answered.borrow();
        // A PONG answers those before it, too: they go the same way, in order.
        if let Some(at) = self.open.iter().position(|(ping, _sent)| *ping == answered) {
            self.open.drain(..=at);
        }
        match self.open.front() {
            Some((_ping, since)) if since.elapsed() >= self.limit => Err(self.ran_out()),
            _ => Ok(()),
        }
    }

    fn ran_out(&self) -> Error {
        Error::deadline(Wait::Heartbeat, "waiting for the destination to answer a PING", self.limit)
    }
}
