//! The source of a migration.
//!
//! ```text
//!   setup ──▶ active: pass after pass ──▶ [pre-switchover] ──▶ device ──▶ completed
//!    │          │ header, START, PART …      guest stopped       │ END, devices, EOF
//!    └──────────┴──── cancel, error: the guest runs on here ─────┘    ▲ SHUT 0
//! ```
//!
//! The guest is handed back on every failure, except one: once everything was sent, only the destination's word tells
//! who owns it. If that word does not come, the guest stays stopped here and the error says [`Owner::Unknown`]. A
//! destination that answers with a failure, or ends the stream without a word, never started the guest.

mod bandwidth;
mod brake;
mod convergence;
mod heartbeat;
mod listening;
mod ownership;
pub(crate) mod pages;
mod progress;
pub(crate) mod ram;
mod return_path;
mod room;
mod throttle;
mod vmdesc;
mod xbzrle;

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use mig_proto::{
    Command, Configuration, Name, RamWord, SectionHeader, SectionKind, encode,
    globalstate::{GlobalState, RunState},
    multifd::Dialect,
    return_path::{BlockName, SourceBlock},
    state::{MigrationStatus, SourceEvent},
};
use mig_ram::{GuestMemory, PAGE_SIZE};
use mig_stream::{IdleClock, RateLimiter, Stream, StreamOptions, StreamWriter};
use mig_transport::{Connector, WindowReason};

use self::{
    bandwidth::Bandwidth,
    convergence::{Convergence, Decision},
    heartbeat::Heartbeat,
    listening::{decide, send_listening},
    ram::RamSource,
    throttle::{Interval, Throttle},
};
pub(crate) use self::{
    listening::{ended_by_whom, said_too_early, who_is_silent},
    ownership::Writing,
    progress::Progress,
    return_path::{End, ReturnPath, Verdict},
};
use crate::{
    blockers::Blockers,
    deadlines::{Deadlines, Wait},
    error::{Error, Owner, Result},
    guest::{DeviceSection, Guest},
    handle::{MigrationHandle, Shared},
    hang_up::HangUp,
    hooks::Hooks,
    multifd::{Beside, Main},
    parameters::{Capabilities, Parameters},
    statistics::MigrationInfo,
    turn::Turn,
    zero_copy,
};

/// The section id of `ram`; devices follow.
const RAM_SECTION: u32 = 1;

/// The `ram` section's version (docs/wire/ram.md, head).
const RAM_VERSION: u32 = 4;

/// How long a PART section may take before the next begins, as in QEMU: the far end sees a footer that often.
pub(crate) const PART_TIME: Duration = Duration::from_millis(50);
/// The same where pages go beside the stream: at the end of a window everything under way is waited for, and three more
/// messages go to and fro.
const WINDOW_TIME: Duration = Duration::from_secs(1);

/// How long a destination that has everything may take over what is still owed to it, from its verdict on.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(10);

/// What a source waits for first,
pub(crate) const CONNECTING: &str = "a connection to the destination";
/// and last.
pub(crate) const VERDICT: &str = "the destination's verdict";

/// A successful migration.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Whether the other end said that it has everything; false where the transport has no way back.
    pub confirmed: bool,
    /// From the start to the verdict; `info` has it in whole milliseconds.
    pub total: Duration,
    /// The final statistics.
    pub info: MigrationInfo,
}

/// One guest to be sent, once.
pub struct Source {
    memory: Arc<dyn GuestMemory>,
    guest: Box<dyn Guest>,
    blockers: Blockers,
    capabilities: Capabilities,
    deadlines: Deadlines,
    uuid: Option<[u8; 16]>,
    switchover_start: bool,
    handle: MigrationHandle,
}

impl Source {
    /// A source with default parameters and a return path.
    pub fn new(memory: Arc<dyn GuestMemory>, guest: Box<dyn Guest>) -> Self {
        Self {
            memory,
            guest,
            blockers: Blockers::default(),
            capabilities: Capabilities { return_path: true, ..Capabilities::default() },
            deadlines: Deadlines::default(),
            uuid: None,
            switchover_start: false,
            handle: MigrationHandle::new(Parameters::default(), PAGE_SIZE as u64),
        }
    }

    /// Sets the capabilities.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Sets the parameters to begin with.
    #[must_use]
    pub fn with_parameters(self, parameters: Parameters) -> Self {
        self.handle.set_parameters(parameters);
        self
    }

    /// Sets the deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Shares the guest's list of blockers.
    #[must_use]
    pub fn with_blockers(mut self, blockers: Blockers) -> Self {
        self.blockers = blockers;
        self
    }

    /// Names the guest in CONFIGURATION, so that a destination for another one refuses (capability `validate-uuid`).
    #[must_use]
    pub fn with_uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// Announces the switchover on the wire. Only for destinations that know the command: QEMU 10.0 and newer, and
    /// our own (docs/wire/stream.md §6).
    #[must_use]
    pub fn with_switchover_start(mut self) -> Self {
        self.switchover_start = true;
        self
    }

    /// Watches, steers and stops this migration, from any task, before and while it runs.
    pub fn handle(&self) -> MigrationHandle {
        self.handle.clone()
    }

    /// Gives the guest back after the migration.
    pub fn into_guest(self) -> Box<dyn Guest> {
        self.guest
    }

    /// Migrates.
    ///
    /// # Errors
    ///
    /// Whatever ended it; [`Error::owner`] tells who may run the guest. Unless that is unknown, the guest runs here
    /// again if it ran before. A cancel that comes after the destination's yes is too late and no error.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a dropped future leaves the guest as it is, perhaps stopped. Use
    /// [`MigrationHandle::cancel`], which hands it back.
    pub async fn run(&mut self, connector: &dyn Connector) -> Result<Outcome> {
        let shared = Arc::clone(self.handle.shared());
        let blocked = self.blockers.reasons();
        shared.begin(blocked.clone());
        if !blocked.is_empty() {
            return Err(Error::misuse(format!("migration is blocked: {}", blocked.join("; "))));
        }
        shared.source_event(SourceEvent::Start)?;
        let progress = Progress::default();
        let outcome = {
            let drive = pin!(self.drive(connector, &shared, &progress));
            tokio::select! {
                biased;
                () = shared.cancelled() => Err(Error::cancelled()),
                outcome = drive => outcome,
            }
        };
        let outcome = match outcome {
            // A cancel that came after the verdict came too late: the guest is the destination's.
            Err(error)
                if error.blame() == mig_transport::Blame::Cancelled
                    && progress.owner() == Owner::Destination =>
            {
                Ok(true)
            }
            outcome => outcome,
        };
        let outcome = match outcome {
            Ok(confirmed) => {
                let total = shared.finished();
                shared.source_event(SourceEvent::Complete)?;
                Ok(Outcome { confirmed, total, info: shared.info() })
            }
            Err(error) => Err(self.fail(error, &shared, &progress)),
        };
        // Only now: taking the protection off all of memory takes a while, and nobody waits for it.
        self.memory_log_ended();
        outcome
    }

    fn memory_log_ended(&self) {
        if let Err(error) = self.memory.stop_dirty_log() {
            tracing::warn!(%error, "the dirty log could not be ended");
        }
    }

    /// Ends a failed migration: states, the guest handed back, the error completed.
    fn fail(&mut self, error: Error, shared: &Shared, progress: &Progress) -> Error {
        let owner = progress.owner();
        if progress.throttled.load(Ordering::Relaxed) {
            self.guest.throttle(0);
            shared.statistics.cpu_throttle_percentage.set(0);
        }
        let phase = shared.status().as_str();
        let mut error = error.during(phase).owned_by(owner);
        if owner == Owner::Source
            && progress.guest_stopped.load(Ordering::Relaxed)
            && let Err(refused) = self.guest.resume()
        {
            tracing::error!(error = %refused, "the guest could not be resumed");
            error = error.noting(format!("the guest could not be resumed: {refused}"));
        }
        shared.source_failed(&error);
        error
    }

    /// Everything from connecting to the verdict; answers whether it was confirmed.
    async fn drive(
        &mut self,
        connector: &dyn Connector,
        shared: &Arc<Shared>,
        progress: &Progress,
    ) -> Result<bool> {
        xbzrle::check(self.capabilities, connector.has_ram_hooks())?;
        zero_copy::check(self.capabilities, &shared.parameters())?;
        if self.capabilities.zero_copy_send {
            shared.zero_copy.want();
        }
        self.check_throttle()?;
        let mut ram = RamSource::new(Arc::clone(&self.memory))?;
        if self.capabilities.xbzrle {
            ram.use_xbzrle(shared.parameters().xbzrle_cache_size, &shared.statistics)?;
        }
        let idle = self.deadlines.idle.map(IdleClock::new);
        shared.waits_for(CONNECTING);
        let mut stream =
            connect(connector, self.capabilities.return_path, &shared.limiter, idle.as_ref())
                .await?;
        let hang_up = HangUp::on(stream.shutdown_handle());
        let name = stream.endpoint().to_string();
        let channels = match self.capabilities.multifd {
            true => u64::from(shared.parameters().multifd_channels).max(1),
            false => 1,
        };
        let most_bytes = stream.capabilities().most_bytes;
        if let Some(warning) = room::warning(ram.total_bytes(), channels, most_bytes) {
            tracing::warn!("{warning}");
        }
        let mut back = match self.capabilities.return_path {
            true => Some(ReturnPath::new(
                stream.return_reader()?,
                stream.capabilities(),
                self.return_path_blocks()?,
                PAGE_SIZE as u64,
            )?),
            false => None,
        };
        let dialect = Dialect::of_machine(self.guest.machine_type().as_bytes());
        let hooks = Hooks::of(&mut stream);
        xbzrle::check(self.capabilities, hooks.active())?;
        let data = match self.capabilities.multifd {
            true => {
                check_several_channels(&stream, &hooks)?;
                let may_grow = back.as_ref().map(ReturnPath::channels_may_change);
                Some(Beside::new(shared, &ram, dialect, self.uuid, idle.clone(), may_grow)?)
            }
            false => None,
        };
        let mut job = Job {
            out: stream.writer()?,
            hooks,
            data,
            connector,
            ram: &mut ram,
            guest: &mut *self.guest,
            shared,
            progress,
            idle,
            return_path: self.capabilities.return_path,
            pause: self.capabilities.pause_before_switchover,
            heartbeat: back
                .as_ref()
                .and_then(|back| Heartbeat::new(&self.deadlines, back.heartbeat_answered())),
            throttle: self.capabilities.auto_converge.then(Throttle::default),
            switchover_start: self.switchover_start,
            uuid: self.uuid,
            stopped_at: None,
            turn: Turn::new(),
        };
        let sent = match &mut back {
            None => job.send().await,
            Some(back) => send_listening(&mut job, back, progress).await,
        };
        sent.map_err(|error| error.on(name.as_str()))?;
        let confirmed = match &mut back {
            None => false,
            Some(back) => {
                let limit = self.deadlines.final_acknowledgement;
                shared.waits_for(VERDICT);
                let verdict = tokio::time::timeout(limit, back.verdict()).await.map_err(|_| {
                    Error::deadline(
                        Wait::Acknowledgement,
                        "waiting for the destination's verdict",
                        limit,
                    )
                    .on(&name)
                })?;
                decide(verdict?, Writing::of(&job.out), progress)
                    .map_err(|error| error.on(name.as_str()))?;
                true
            }
        };
        if let Some(stopped) = job.stopped_at {
            shared.statistics.downtime_us.set_micros(stopped.elapsed());
        }
        // Before the verdict the far end might take the end of our stream for a lost source.
        if confirmed {
            // The destination has everything; how the channel ends says nothing any more.
            let ended = tokio::time::timeout_at(progress.owed_until(), job.out.finish()).await;
            tracing::debug!(?ended, "after the verdict");
        } else {
            job.out.finish().await?;
            // Nobody can say more than this: it has left us in good order.
            progress.let_go();
        }
        hang_up.spare();
        Ok(confirmed)
    }

    fn return_path_blocks(&self) -> Result<Vec<SourceBlock>> {
        (0..self.memory.block_count())
            .filter_map(|index| self.memory.block(index))
            .map(|block| {
                Ok(SourceBlock {
                    name: BlockName::new(&block.idstr)
                        .map_err(|error| Error::misuse(error.to_string()))?,
                    used_length: block.used_length,
                    host_page_size: PAGE_SIZE as u64,
                })
            })
            .collect()
    }
}

/// Opens the main channel. A return path that cannot be is refused before anything happens.
pub(crate) async fn connect(
    connector: &dyn Connector,
    return_path: bool,
    limiter: &Arc<RateLimiter>,
    idle: Option<&Arc<IdleClock>>,
) -> Result<Stream> {
    if return_path && connector.is_two_way() == Some(false) {
        return Err(Error::misuse(
            "a return path was asked for, and this transport carries bytes one way only as it was opened: open it with a \
             way back where it can have one (at both ends), use tcp:, unix: or vsock:, or migrate without return path",
        ));
    }
    let mut options = StreamOptions::default().limiter(Arc::clone(limiter));
    if let Some(idle) = idle {
        options = options.idle(Arc::clone(idle));
    }
    let channel = connector.connect().await;
    let channel = channel.map_err(Error::of_opening)?;
    Ok(Stream::open(channel, options))
}

/// Refuses data channels on a transport that cannot have them, before anything is sent.
pub(crate) fn check_several_channels(stream: &Stream, hooks: &Hooks) -> Result<()> {
    if stream.capabilities().several_channels && !hooks.active() {
        return Ok(());
    }
    Err(Error::misuse(format!(
        "{} has no data channels beside the main one: use tcp:, unix: or vsock: for multifd, or turn it off",
        stream.endpoint().transport
    )))
}

/// The sending half of a migration, with all it needs.
struct Job<'a> {
    out: StreamWriter,
    hooks: Hooks,
    /// The channels that carry pages in the place of the main one.
    data: Option<Beside>,
    connector: &'a dyn Connector,
    ram: &'a mut RamSource,
    guest: &'a mut dyn Guest,
    shared: &'a Shared,
    progress: &'a Progress,
    idle: Option<Arc<IdleClock>>,
    return_path: bool,
    pause: bool,
    heartbeat: Option<Heartbeat>,
    throttle: Option<Throttle>,
    switchover_start: bool,
    uuid: Option<[u8; 16]>,
    stopped_at: Option<Instant>,
    turn: Turn,
}

impl Job<'_> {
    /// Header to VMDESCRIPTION. A data channel that fails ends it, whatever is being waited for.
    async fn send(&mut self) -> Result<()> {
        let Some(mut alarm) = self.data.as_ref().map(Beside::alarm) else {
            return self.send_stream().await;
        };
        let sent = tokio::select! {
            biased;
            sent = self.send_stream() => Some(sent),
            // The sender lives as long as the channels.
            _failed = alarm.wait_for(|failed| *failed) => None,
        };
        match (sent, &mut self.data) {
            (Some(sent), _) => sent,
            (None, Some(data)) => Err(data.failure().await),
            (None, None) => Err(Error::cancelled()),
        }
    }

    /// docs/wire/stream.md §8.1.
    async fn send_stream(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.shared.waits_for("the destination to take the beginning of the stream");
        self.set_up().await?;
        self.shared.source_event(SourceEvent::Ready)?;
        self.shared.statistics.setup_us.set_micros(begun.elapsed());
        self.shared.waits_for("the destination to take pages");
        self.iterate().await?;
        let state = self.switch_over().await?;
        self.complete(state).await
    }

    async fn set_up(&mut self) -> Result<()> {
        let machine = self.guest.machine_type();
        let mut configuration = Configuration::new(machine.as_bytes())
            .map_err(|error| Error::misuse(format!("machine type: {error}")))?;
        if let Some(uuid) = self.uuid {
            configuration = configuration.with_uuid(uuid);
        }
        let mut head = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut head, &configuration);
        if self.return_path {
            encode::command(&mut head, &Command::OpenReturnPath);
            encode::command(&mut head, &Command::Ping(1));
            if let Some(data) = &self.data {
                data.ask(&self.shared.parameters(), &mut head);
            }
        }
        self.out.write_all(&head).await?;
        if let Some((data, mut main)) = self.data_and_main() {
            data.open(&mut main).await?;
        }
        head.clear();
        encode::section(&mut head, &ram_section(SectionKind::Start));
        self.ram.encode_block_list(&mut head);
        self.out.write_all(&head).await?;
        self.shared.statistics.total.set(self.ram.total_bytes());
        if self.hooks.active() {
            // Pinning memory takes long, and the other end waits for its first bytes.
            self.out.flush().await?;
            self.hooks.register(self.ram.hook_blocks()).await?;
        }
        self.hooks.open(&mut self.out, WindowReason::Setup).await?;
        self.hooks.close(&mut self.out, WindowReason::Setup).await?;
        if let Some(data) = &mut self.data {
            data.mark(&mut self.out).await?;
        }
        self.end_ram_section().await?;
        self.out.flush().await?;
        self.ram.start()?;
        Ok(())
    }

    /// Pass after pass, until what is left fits the downtime.
    async fn iterate(&mut self) -> Result<()> {
        let statistics = &self.shared.statistics;
        let mut bandwidth = Bandwidth::new(Instant::now(), self.bytes_out(), 0);
        let mut convergence = Convergence::default();
        let mut pass = 1;
        let mut synced = Instant::now();
        let mut synced_bytes = self.bytes_out();
        loop {
            statistics.dirty_sync_count.set(pass);
            self.shared.pass(pass, self.ram.unsent_bytes());
            loop {
                let more = self.send_part(SectionKind::Part, WindowReason::Round).await?;
                let pages = statistics.normal.value()
                    + statistics.duplicate.value()
                    + statistics.xbzrle.pages.value();
                let rates = bandwidth.update(Instant::now(), self.bytes_out(), pages);
                statistics.bandwidth_bytes_per_sec.set(rates.bytes_per_sec);
                statistics.pages_per_second.set(rates.pages_per_sec);
                if !more {
                    break;
                }
                if let Some((data, mut main)) = self.data_and_main() {
                    data.grow(&mut main).await?;
                }
            }
            let dirtied = self.ram.sync()?;
            self.shared.zero_copy.synced(statistics);
            let sent = self.bytes_out();
            self.brake(Interval {
                dirtied_bytes: self.ram.expected_bytes(dirtied),
                transferred_bytes: sent - synced_bytes,
                elapsed: synced.elapsed(),
            });
            let millis = synced.elapsed().as_millis().max(1);
            (synced, synced_bytes) = (Instant::now(), sent);
            let rate = u128::from(dirtied) * 1000 / millis;
            statistics.dirty_pages_rate.set(u64::try_from(rate).unwrap_or(u64::MAX));
            let remaining = self.ram.unsent_bytes();
            statistics.remaining.set(remaining);
            let to_send = self.ram.expected_bytes(remaining / PAGE_SIZE as u64);
            let measured = statistics.bandwidth_bytes_per_sec.value();
            if let Some(millis) = (to_send * 1000).checked_div(measured) {
                statistics.expected_downtime_ms.set(millis);
            }
            let threshold = self.shared.parameters().switchover_threshold(measured);
            match convergence.decide(to_send, threshold, measured) {
                Decision::SwitchOver => return Ok(()),
                Decision::AnotherPass => pass += 1,
            }
        }
    }

    /// Stops the guest; answers the state it was in.
    async fn switch_over(&mut self) -> Result<RunState> {
        let statistics = &self.shared.statistics;
        statistics.precopy_bytes.set(self.bytes_out());
        let state = self.guest.run_state();
        self.stopped_at = Some(Instant::now());
        self.progress.guest_stopped.store(true, Ordering::Relaxed);
        self.guest
            .stop()
            .map_err(|error| Error::misuse("the guest could not be stopped").caused_by(error))?;
        self.release_brake();
        if self.pause {
            self.shared.source_event(SourceEvent::ConvergedPausing)?;
            self.shared.waits_for("the word to continue (migrate-continue)");
            self.wait_to_continue().await?;
            self.shared.source_event(SourceEvent::Continue)?;
        } else {
            self.shared.source_event(SourceEvent::Converged)?;
        }
        debug_assert_eq!(self.shared.status(), MigrationStatus::Device);
        self.ram.sync()?;
        self.shared.zero_copy.synced(statistics);
        statistics.dirty_sync_count.add(1);
        Ok(state)
    }

    /// # Errors
    ///
    /// The destination does not answer the heartbeat.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a PING may be cut.
    async fn wait_to_continue(&mut self) -> Result<()> {
        let told = self.shared.told_to_continue();
        let Some(heartbeat) = &mut self.heartbeat else {
            wait_in_silence(told, self.idle.as_deref()).await;
            return Ok(());
        };
        let waited = tokio::select! {
            biased;
            () = told => Ok(()),
            dead = heartbeat.beat(&mut self.out) => dead.map(|never| match never {}),
        };
        waited?;
        // What was being said when the word came is said to its end.
        Ok(self.out.flush().await?)
    }

    /// The last pages, the devices, the end.
    async fn complete(&mut self, state: RunState) -> Result<()> {
        // The guest stands still: the rate is for those who share the link with a running one.
        self.out.set_urgent(true);
        self.shared.waits_for("the destination to take the last pages and the devices");
        if self.switchover_start {
            let mut command = Vec::new();
            encode::command(&mut command, &Command::SwitchoverStart);
            self.out.write_all(&command).await?;
        }
        self.send_part(SectionKind::End, WindowReason::Finish).await?;
        let mut devices = self.guest.save_devices().map_err(|error| {
            Error::misuse("the guest's devices could not be saved").caused_by(error)
        })?;
        let global = GlobalState { run_state: state, vm_was_suspended: Some(false) };
        devices.push(DeviceSection {
            idstr: "globalstate".into(),
            instance_id: 0,
            version_id: 1,
            payload: global.encode().to_vec(),
        });
        for (section_id, device) in (RAM_SECTION + 1..).zip(&devices) {
            self.send_device(section_id, device).await?;
        }
        self.out.flush().await?;
        if let Some(data) = &mut self.data {
            data.end().await?;
        }
        self.progress.reached_verge(&self.out);
        let description = vmdesc::describe(PAGE_SIZE as u64, &devices);
        let len = u32::try_from(description.len())
            .map_err(|_| Error::misuse("the devices' description is longer than 4 GiB"))?;
        let mut tail = vec![encode::EOF];
        tail.extend_from_slice(&encode::vmdescription_header(len));
        self.out.write_all(&tail).await?;
        self.out.write_all(&description).await?;
        self.out.flush().await?;
        let statistics = &self.shared.statistics;
        let sent = self.bytes_out();
        statistics.transferred.set(sent);
        statistics.downtime_bytes.set(sent.saturating_sub(statistics.precopy_bytes.value()));
        statistics.remaining.set(0);
        Ok(())
    }

    async fn send_device(&mut self, section_id: u32, device: &DeviceSection) -> Result<()> {
        let idstr = Name::new(device.idstr.as_bytes())
            .map_err(|error| Error::misuse(format!("device {:?}: {error}", device.idstr)))?;
        let header = SectionHeader {
            kind: SectionKind::Full,
            section_id,
            idstr,
            instance_id: device.instance_id,
            version_id: device.version_id,
        };
        let mut head = Vec::with_capacity(300);
        encode::section(&mut head, &header);
        self.out.write_all(&head).await?;
        self.out.write_all(&device.payload).await?;
        self.out.write_all(&encode::footer(section_id)).await?;
        Ok(())
    }

    /// One PART, as long as [`PART_TIME`] or [`WINDOW_TIME`] lasts, or all that is left in an END; answers whether the pass goes on.
    async fn send_part(&mut self, kind: SectionKind, reason: WindowReason) -> Result<bool> {
        if self.ram.has_xbzrle() {
            let bytes = self.shared.parameters().xbzrle_cache_size;
            self.ram.resize_xbzrle(bytes, &self.shared.statistics).await;
        }
        let mut head = Vec::with_capacity(8);
        encode::section(&mut head, &ram_section(kind));
        self.out.write_all(&head).await?;
        let more = match self.data_and_main() {
            Some((data, mut main)) => data.part(&mut main, kind).await?,
            None => self.send_pages(kind, reason).await?,
        };
        self.end_ram_section().await?;
        // The far end sees the footer now, and the counters are true at the end of a pass.
        self.out.flush().await?;
        self.tell_progress();
        Ok(more)
    }

    /// The pages of a section, on the main channel or through the transport's hooks.
    async fn send_pages(&mut self, kind: SectionKind, reason: WindowReason) -> Result<bool> {
        let begun = Instant::now();
        let most = if self.hooks.active() { WINDOW_TIME } else { PART_TIME };
        self.hooks.open(&mut self.out, reason).await?;
        let statistics = &self.shared.statistics;
        let more = loop {
            let more = if self.hooks.active() {
                self.ram.offer_pages(&mut self.out, &mut self.hooks, statistics).await?
            } else {
                self.ram.put_pages(&mut self.out, &mut self.turn, statistics)?
            };
            if !more {
                break false;
            }
            self.out.make_room().await?;
            self.turn.pause().await;
            self.tell_progress();
            if kind == SectionKind::Part && begun.elapsed() >= most {
                break true;
            }
        };
        self.hooks.close(&mut self.out, reason).await?;
        self.ram.put_refused(&mut self.out, statistics).await?;
        Ok(more)
    }

    /// The data channels, if there are any, and what they need of the main one.
    fn data_and_main(&mut self) -> Option<(&mut Beside, Main<'_>)> {
        let Self { data, out, ram, connector, shared, .. } = self;
        let main = Main { out, ram, connector: *connector, shared };
        data.as_mut().map(|data| (data, main))
    }

    fn bytes_out(&self) -> u64 {
        let data = self.data.as_ref().map_or(0, Beside::bytes_out);
        self.out.counters().bytes_out() + data
    }

    fn tell_progress(&self) {
        let statistics = &self.shared.statistics;
        statistics.transferred.set(self.bytes_out());
        statistics.remaining.set(self.ram.unsent_bytes());
    }

    async fn end_ram_section(&mut self) -> Result<()> {
        let mut tail = RamWord::EOS.to_be_bytes().to_vec();
        tail.extend_from_slice(&encode::footer(RAM_SECTION));
        Ok(self.out.write_all(&tail).await?)
    }
}

fn ram_section(kind: SectionKind) -> SectionHeader<'static> {
    SectionHeader {
        kind,
        section_id: RAM_SECTION,
        idstr: Name::new(b"ram").expect("three bytes"),
        instance_id: 0,
        version_id: RAM_VERSION,
    }
}

/// The wire is silent for as long as the operator thinks: that is no dead link.
///
/// # Cancel safety
///
/// Cancel safe.
async fn wait_in_silence(told: impl Future<Output = ()>, idle: Option<&IdleClock>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut told = pin!(told);
    loop {
        tokio::select! {
            () = &mut told => return,
            _ = tick.tick() => {
                if let Some(idle) = idle {
                    idle.touch();
                }
            }
        }
    }
}
