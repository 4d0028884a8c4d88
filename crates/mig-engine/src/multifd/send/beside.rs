//! A source with data channels: what the main channel does meanwhile.
//!
//! ```text
//!   main    hello │ START … mark EOS │ PART      EOS │ PART      mark EOS │ …       END  mark EOS │ devices
//!   data    hello           SYNC     │ packets ──────────────── SYNC      │ packets … SYNC        │ end
//! ```
//!
//! The mark is MULTIFD_FLUSH, or for old machine types the EOS itself, and then every section ends with SYNC
//! (docs/wire/ram.md §9.5).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mig_proto::{
    Command, SectionKind, encode,
    multifd::{Dialect, SyncMode},
    peer::{MAY_CHANNELS_CHANGE, channels_from_here},
};
use mig_stream::{IdleClock, StreamWriter};
use mig_transport::Connector;
use tokio::sync::watch;

use super::SendChannels;
use crate::{
    error::{Error, Result},
    handle::Shared,
    multifd::{Growth, Trial, lane::processors},
    parameters::Parameters,
    source::{PART_TIME, ram::RamSource},
};

/// How long a destination may take to say that it takes any number of channels. QEMU does not say anything before it
/// has all of those that it was told to expect.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// How long a section may take for whose end all channels stop.
const SECTION_TIME: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Beside {
    channels: SendChannels,
    sync: SyncMode,
    /// The search for the number of channels.
    growing: Option<Growing>,
    /// What the destination says to that.
    may_grow: Option<watch::Receiver<Option<bool>>>,
}

/// Where the last trial of a number of channels began.
struct Growing {
    growth: Growth,
    since: Instant,
    bytes: u64,
    cpu: Duration,
}

/// What belongs to the main channel.
pub(crate) struct Main<'a> {
    pub(crate) out: &'a mut StreamWriter,
    pub(crate) ram: &'a mut RamSource,
    pub(crate) connector: &'a dyn Connector,
    pub(crate) shared: &'a Shared,
}

impl Beside {
    /// No channel is open yet. `may_grow` is how the destination answers, where it can.
    pub(crate) fn new(
        migration: &Arc<Shared>,
        ram: &RamSource,
        dialect: Dialect,
        uuid: Option<[u8; 16]>,
        idle: Option<Arc<IdleClock>>,
        may_grow: Option<watch::Receiver<Option<bool>>>,
    ) -> Result<Self> {
        let channels = SendChannels::new(migration, ram.pages(), dialect, uuid, idle)?;
        Ok(Self { channels, sync: dialect.sync, growing: None, may_grow })
    }

    /// Puts the question whose answer [`open`](Self::open) waits for, if there is one. Behind OPEN_RETURN_PATH.
    pub(crate) fn ask(&self, parameters: &Parameters, out: &mut Vec<u8>) {
        if parameters.multifd_auto.is_some() && self.may_grow.is_some() {
            encode::command(out, &Command::Ping(MAY_CHANNELS_CHANGE));
        }
    }

    /// Opens the channels, before START.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(crate) async fn open(&mut self, main: &mut Main<'_>) -> Result<()> {
        // A destination that looks at the first bytes of one connection after the other waits for these.
        main.out.flush().await?;
        let parameters = main.shared.parameters();
        let Some(limits) = parameters.multifd_auto else {
            self.open_so_many(parameters.multifd_channels, main.connector).await?;
            return self.say_how_many(main.out).await;
        };
        let growth = match self.destination_takes_any_number().await {
            Ok(()) => {
                let processors = processors();
                Growth::new(limits, processors)
            }
            Err(why) => Growth::settled(why.to_owned()),
        };
        let first = match growth.is_settled() {
            true => Parameters::QEMU_MULTIFD_CHANNELS,
            false => 1,
        };
        self.open_so_many(first, main.connector).await?;
        self.say_how_many(main.out).await?;
        self.channels.chosen(growth.why());
        let (since, cpu) = (Instant::now(), Duration::ZERO);
        self.growing = Some(Growing { growth, since, bytes: main.out.counters().bytes_out(), cpu });
        Ok(())
    }

    async fn open_so_many(&mut self, count: u8, connector: &dyn Connector) -> Result<()> {
        for _ in 0..count {
            self.channels.open(connector).await?;
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

    /// Tells the destination how many channels take part in every SYNC from here on, where it can be told: one of our own
    /// may have been told to take any number. QEMU sends the value back and makes nothing of it.
    async fn say_how_many(&self, out: &mut StreamWriter) -> Result<()> {
        if self.may_grow.is_none() {
            return Ok(());
        }
        // There are no more than `AutoChannels::most`.
        let channels = u8::try_from(self.channels.len()).unwrap_or(u8::MAX);
        let mut said = Vec::new();
        encode::command(&mut said, &Command::Ping(channels_from_here(channels)));
        out.write_all(&said).await?;
        Ok(out.flush().await?)
    }

    /// Opens another channel, if their number is to be found out and the last one brought something. Between two
    /// sections.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(crate) async fn grow(&mut self, main: &mut Main<'_>) -> Result<()> {
        let Self { channels, growing: Some(growing), .. } = self else { return Ok(()) };
        let bytes = main.out.counters().bytes_out() + channels.bytes_out();
        let trial = Trial {
            channels: channels.len(),
            bytes: bytes.saturating_sub(growing.bytes),
            time: growing.since.elapsed(),
            cpu: channels.cpu().saturating_sub(growing.cpu),
        };
        let another = growing.growth.wants_another(&trial);
        channels.chosen(growing.growth.why());
        if !another {
            return Ok(());
        }
        if let Err(error) = channels.open(main.connector).await {
            // Nobody has heard of it yet, and it was only to make things faster.
            growing.growth.refused(channels.len(), &error.to_string());
            channels.chosen(growing.growth.why());
            return Ok(());
        }
        (growing.since, growing.bytes, growing.cpu) = (Instant::now(), bytes, channels.cpu());
        self.say_how_many(main.out).await
    }

    /// The pages of a section; answers whether the pass goes on. A PART takes about as long as one without data channels,
    /// an END as long as it takes.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(crate) async fn part(&mut self, main: &mut Main<'_>, kind: SectionKind) -> Result<bool> {
        let most = match (kind, self.sync) {
            (SectionKind::Part, SyncMode::PerRound) => Some(PART_TIME),
            // Every section ends with a sync, for which all channels stop.
            (SectionKind::Part, SyncMode::PerSection) => Some(SECTION_TIME),
            _ => None,
        };
        if self.channels.is_idle() {
            // The channels stand still until the destination has read the last mark.
            main.out.flush().await?;
            self.channels.begin_pass(kind == SectionKind::End);
        }
        if !self.pass_ends_within(main, most).await? {
            if self.sync == SyncMode::PerRound {
                return Ok(true);
            }
            self.channels.hold();
            self.channels.settled().await?;
        }
        main.ram.put_zeros(main.out, &main.shared.statistics).await?;
        self.mark(main.out).await?;
        Ok(!main.ram.pass_is_over())
    }

    /// Waits for all channels to be idle, `most` at the longest; answers whether they are.
    async fn pass_ends_within(
        &mut self,
        main: &mut Main<'_>,
        most: Option<Duration>,
    ) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let left = most.map_or(PART_TIME, |most| most.saturating_sub(begun.elapsed()));
            let settled = tokio::time::timeout(left.min(PART_TIME), self.channels.settled()).await;
            let statistics = &main.shared.statistics;
            let data = self.bytes_out();
            statistics.multifd_bytes.set(data);
            statistics.transferred.set(main.out.counters().bytes_out() + data);
            statistics.remaining.set(main.ram.unsent_bytes());
            main.shared.tell_multifd(self.channels.info());
            match settled {
                Ok(settled) => return settled.map(|()| true),
                Err(_elapsed) if most.is_some_and(|most| begun.elapsed() >= most) => {
                    return Ok(false);
                }
                Err(_elapsed) => {}
            }
        }
    }

    /// A sync: SYNC on every channel, and the mark.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(crate) async fn mark(&mut self, out: &mut StreamWriter) -> Result<()> {
        self.channels.mark(self.sync, out).await
    }

    /// Ends every channel in its orderly way.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: give the migration up.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.channels.end().await
    }

    /// Tells that a channel has failed, to whoever waits for something else; [`failure`](Self::failure) has the reason.
    pub(crate) fn alarm(&self) -> watch::Receiver<bool> {
        self.channels.alarm()
    }

    /// Waits for a channel to fail; answers why.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn failure(&mut self) -> Error {
        self.channels.failure().await
    }

    /// Bytes that all of them have sent.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.channels.bytes_out()
    }
}
