//! A source with data channels: what the main channel does meanwhile.
//!
//! ```text
//!   main    START … mark EOS │ PART      EOS │ PART      mark EOS │ …       END  mark EOS │ devices
//!   data    hello       SYNC │ packets ──────────────── SYNC      │ packets … SYNC        │ end
//! ```
//!
//! The mark is MULTIFD_FLUSH, or for old machine types the EOS itself, and then every section ends with SYNC
//! (docs/wire/ram.md §9.5).

use std::time::{Duration, Instant};

use mig_proto::{SectionKind, multifd::SyncMode};

use super::{Job, PART_TIME, WINDOW_TIME};
use crate::error::Result;

impl Job<'_> {
    /// Opens the data channels, if there are to be any.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(super) async fn open_data_channels(&mut self) -> Result<()> {
        let Some(data) = &mut self.data else { return Ok(()) };
        // A destination that looks at the first bytes of one connection after the other waits for these.
        self.out.flush().await?;
        for _ in 0..self.shared.parameters().multifd_channels {
            data.open(self.connector).await?;
        }
        Ok(())
    }

    /// The pages of a section, on the data channels; answers whether the pass goes on.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(super) async fn send_pages_beside(&mut self, kind: SectionKind) -> Result<bool> {
        let most = match (kind, self.sync) {
            (SectionKind::Part, SyncMode::PerRound) => Some(PART_TIME),
            // Every section ends with a sync, for which all channels stop.
            (SectionKind::Part, SyncMode::PerSection) => Some(WINDOW_TIME),
            _ => None,
        };
        let Some(data) = &mut self.data else { return Ok(false) };
        if data.is_idle() {
            // The channels stand still until the destination has read the last mark.
            self.out.flush().await?;
            data.begin_pass(kind == SectionKind::End);
        }
        if !self.pass_ends_within(most).await? && self.sync == SyncMode::PerRound {
            return Ok(true);
        }
        let Some(data) = &mut self.data else { return Ok(false) };
        if !data.is_idle() {
            data.hold();
            data.settled().await?;
        }
        self.ram.put_zeros(&mut self.out, &self.shared.statistics).await?;
        data.mark(self.sync, &mut self.out).await?;
        Ok(!self.ram.pass_is_over())
    }

    /// Waits for all channels to be idle, `most` at the longest; answers whether they are.
    async fn pass_ends_within(&mut self, most: Option<Duration>) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let left = most.map_or(PART_TIME, |most| most.saturating_sub(begun.elapsed()));
            let Some(data) = &mut self.data else { return Ok(true) };
            let settled = tokio::time::timeout(left.min(PART_TIME), data.settled()).await;
            self.tell_progress();
            match settled {
                Ok(settled) => return settled.map(|()| true),
                Err(_elapsed) if most.is_some_and(|most| begun.elapsed() >= most) => {
                    return Ok(false);
                }
                Err(_elapsed) => {}
            }
        }
    }
}
