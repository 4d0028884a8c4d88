//! A source with data channels: what the main channel does meanwhile.
//!
//! ```text
//!   main    START … mark EOS │ PART      EOS │ PART      mark EOS │ …       END  mark EOS │ devices
//!   data    hello       SYNC │ packets ──────────────── SYNC      │ packets … SYNC        │ end
//! ```
//!
//! The mark is MULTIFD_FLUSH, or for old machine types the EOS itself, and then every section ends with SYNC
//! (docs/wire/ram.md §9.5).

use std::{
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use mig_proto::{Command, SectionKind, encode, multifd::SyncMode, peer::channels_from_here};

use super::{Job, PART_TIME, WINDOW_TIME};
use crate::{
    error::Result,
    multifd::{Growth, Trial},
    parameters::Parameters,
};

/// How long a destination may take to say that it takes any number of channels. QEMU does not say anything before it
/// has all of those that it was told to expect.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The search for the number of channels, and where its last trial began.
pub(super) struct Growing {
    growth: Growth,
    since: Instant,
    bytes: u64,
    cpu: Duration,
}

impl Job<'_> {
    /// Opens the data channels, if there are to be any.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(super) async fn open_data_channels(&mut self) -> Result<()> {
        if self.data.is_none() {
            return Ok(());
        }
        // A destination that looks at the first bytes of one connection after the other waits for these.
        self.out.flush().await?;
        let parameters = self.shared.parameters();
        let Some(limits) = parameters.multifd_auto else {
            return self.open_channels(parameters.multifd_channels).await;
        };
        let growth = match self.destination_takes_any_number().await {
            Ok(()) => {
                let processors = thread::available_parallelism().map_or(1, NonZero::get);
                Growth::new(limits, processors)
            }
            Err(why) => Growth::settled(why.to_owned()),
        };
        match growth.is_settled() {
            true => self.open_channels(Parameters::QEMU_MULTIFD_CHANNELS).await?,
            false => {
                self.open_channels(1).await?;
                self.say_how_many().await?;
            }
        }
        if let Some(data) = &mut self.data {
            data.chosen(growth.why());
        }
        self.growth =
            Some(Growing { growth, since: Instant::now(), bytes: 0, cpu: Duration::ZERO });
        Ok(())
    }

    async fn open_channels(&mut self, count: u8) -> Result<()> {
        let Some(data) = &mut self.data else { return Ok(()) };
        for _ in 0..count {
            data.open(self.connector).await?;
        }
        Ok(())
    }

    /// Waits for the destination's word on that; the error is why it did not come.
    async fn destination_takes_any_number(&mut self) -> Result<(), &'static str> {
        let Some(may_grow) = &mut self.may_grow else {
            return Err("without a return path nobody can ask the destination: QEMU's default");
        };
        let said = may_grow.wait_for(Option::is_some);
        match tokio::time::timeout(ANSWER_TIME, said).await {
            Ok(Ok(said)) if *said == Some(true) => Ok(()),
            _ => Err("the destination takes a number that it was given: QEMU's default"),
        }
    }

    /// Tells the destination how many channels take part in every SYNC from here on.
    async fn say_how_many(&mut self) -> Result<()> {
        let Some(data) = &self.data else { return Ok(()) };
        // There are no more than `AutoChannels::most`.
        let channels = u8::try_from(data.len()).unwrap_or(u8::MAX);
        let mut said = Vec::new();
        encode::command(&mut said, &Command::Ping(channels_from_here(channels)));
        self.out.write_all(&said).await?;
        Ok(self.out.flush().await?)
    }

    /// Opens another data channel, if their number is to be found out and the last one brought something. Between two
    /// sections.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(super) async fn grow(&mut self) -> Result<()> {
        let bytes = self.bytes_out();
        let (Some(growing), Some(data)) = (&mut self.growth, &mut self.data) else { return Ok(()) };
        let trial = Trial {
            channels: data.len(),
            bytes: bytes.saturating_sub(growing.bytes),
            time: growing.since.elapsed(),
            cpu: data.cpu().saturating_sub(growing.cpu),
        };
        let another = growing.growth.wants_another(&trial);
        data.chosen(growing.growth.why());
        if !another {
            return Ok(());
        }
        data.open(self.connector).await?;
        (growing.since, growing.bytes, growing.cpu) = (Instant::now(), bytes, data.cpu());
        self.say_how_many().await
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
