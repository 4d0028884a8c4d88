//! The handle of a migration: watch it, steer it, stop it, from any task.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mig_proto::state::{BadMove, DestinationEvent, MigrationStatus, SourceEvent};
use mig_stream::RateLimiter;
use mig_transport::Blame;
use tokio::sync::{broadcast, watch};

use crate::{
    error::{Error, Result},
    multifd::MultifdInfo,
    parameters::Parameters,
    statistics::{MigrationInfo, Statistics},
    zero_copy::ZeroCopySends,
};

/// Events a slow subscriber may lag behind before it misses some.
const EVENT_QUEUE: usize = 256;

/// What a subscriber of [`MigrationHandle::subscribe`] hears.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The status changed (QEMU's MIGRATION event).
    Status(MigrationStatus),
    /// The dirty log was read and a new round begins (QEMU's MIGRATION_PASS).
    Pass {
        /// Counted from 1.
        pass: u64,
        /// Bytes of guest memory to be sent in it.
        remaining: u64,
    },
}

/// Watches, steers and stops one migration. Cheap to clone; it may outlive the migration.
#[derive(Clone, Debug)]
pub struct MigrationHandle(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) statistics: Statistics,
    pub(crate) zero_copy: ZeroCopySends,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) page_size: u64,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    cancel: watch::Sender<bool>,
    go_on: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    status: MigrationStatus,
    parameters: Parameters,
    started: Option<Instant>,
    error: Option<String>,
    blocked_reasons: Vec<String>,
    socket_address: Vec<String>,
    multifd: Option<MultifdInfo>,
    waits_for: &'static str,
}

impl MigrationHandle {
    pub(crate) fn new(parameters: Parameters, page_size: u64) -> Self {
        let limiter = Arc::new(RateLimiter::new(parameters.max_bandwidth));
        Self(Arc::new(Shared {
            statistics: Statistics::default(),
            zero_copy: ZeroCopySends::default(),
            limiter,
            page_size,
            state: Mutex::new(State {
                status: MigrationStatus::None,
                parameters,
                started: None,
                error: None,
                blocked_reasons: Vec::new(),
                socket_address: Vec::new(),
                multifd: None,
                waits_for: "its start",
            }),
            events: broadcast::Sender::new(EVENT_QUEUE),
            cancel: watch::Sender::new(false),
            go_on: watch::Sender::new(false),
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Asks the migration to stop: from any task, any number of times, before it starts as well as while it runs.
    /// Whatever it waits for is abandoned within 100 ms; `run` then answers with [`Blame::Cancelled`].
    ///
    /// [`Blame::Cancelled`]: mig_transport::Blame::Cancelled
    pub fn cancel(&self) {
        self.0.cancel.send_replace(true);
    }

    /// Leaves `pre-switchover` (QEMU's `migrate-continue`). Said earlier, the pause is skipped.
    pub fn continue_switchover(&self) {
        self.0.go_on.send_replace(true);
    }

    /// Where the migration is.
    pub fn status(&self) -> MigrationStatus {
        self.0.state().status
    }

    /// What it waits for, in words that follow "waiting for"; after its end, what it waited for last.
    pub fn waits_for(&self) -> &'static str {
        self.0.state().waits_for
    }

    /// What `query-migrate` would answer now.
    pub fn info(&self) -> MigrationInfo {
        self.0.info()
    }

    /// Status changes and rounds from now on. A subscriber that falls more than 256 events behind misses some.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// The parameters in force.
    pub fn parameters(&self) -> Parameters {
        self.0.state().parameters.clone()
    }

    /// Changes the live parameters; they are in force at once.
    pub fn set_parameters(&self, parameters: Parameters) {
        self.0.limiter.set_rate_bytes_per_sec(parameters.max_bandwidth);
        self.0.state().parameters = parameters;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements: nothing in here can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn parameters(&self) -> Parameters {
        self.state().parameters.clone()
    }

    pub(crate) fn status(&self) -> MigrationStatus {
        self.state().status
    }

    pub(crate) fn begin(&self, blocked_reasons: Vec<String>) {
        let mut state = self.state();
        state.started = Some(Instant::now());
        state.blocked_reasons = blocked_reasons;
    }

    pub(crate) fn listening(&self, addresses: Vec<String>) {
        self.state().socket_address = addresses;
    }

    /// Notes what comes next, for who asks why it takes so long. Not for what lasts no time.
    pub(crate) fn waits_for(&self, what: &'static str) {
        self.state().waits_for = what;
    }

    pub(crate) fn tell_multifd(&self, info: MultifdInfo) {
        self.state().multifd = Some(info);
    }

    /// Ends a failed or cancelled migration at the source: clock, reason, states.
    pub(crate) fn source_failed(&self, error: &Error) {
        self.failed(error);
        let events = match error.blame() {
            Blame::Cancelled => [SourceEvent::Cancel, SourceEvent::Cancelled],
            _ => [SourceEvent::Fail, SourceEvent::Failed],
        };
        for event in events {
            self.told_of_failure(self.source_event(event));
        }
    }

    /// Ends a failed or cancelled migration at the destination: clock, reason, states.
    pub(crate) fn destination_failed(&self, error: &Error) {
        self.failed(error);
        let events = match error.blame() {
            Blame::Cancelled => [DestinationEvent::Cancel, DestinationEvent::Cancelled],
            _ => [DestinationEvent::Fail, DestinationEvent::Failed],
        };
        for event in events {
            self.told_of_failure(self.destination_event(event));
        }
    }

    fn failed(&self, error: &Error) {
        self.state().error = Some(error.to_string());
        self.finished();
    }

    /// A state that does not end like this must not hide why the migration failed.
    fn told_of_failure(&self, told: Result<()>) {
        if let Err(bad) = told {
            tracing::debug!(error = %bad, "ending a migration");
        }
    }

    /// Stops the clock; answers what it shows.
    pub(crate) fn finished(&self) -> Duration {
        let total = self.state().started.map(|started| started.elapsed()).unwrap_or_default();
        self.statistics.total_us.set_micros(total);
        total
    }

    pub(crate) fn pass(&self, pass: u64, remaining: u64) {
        // Nobody listening is no error.
        let _nobody = self.events.send(Event::Pass { pass, remaining });
    }

    pub(crate) fn source_event(&self, event: SourceEvent) -> Result<()> {
        self.advance(|status| status.next_at_source(event))
    }

    pub(crate) fn destination_event(&self, event: DestinationEvent) -> Result<()> {
        self.advance(|status| status.next_at_destination(event))
    }

    fn advance(
        &self,
        step: impl FnOnce(MigrationStatus) -> Result<MigrationStatus, BadMove>,
    ) -> Result<()> {
        let mut state = self.state();
        let next = step(state.status).map_err(|bad| Error::misuse(bad.to_string()))?;
        if next != state.status {
            state.status = next;
            tracing::debug!(status = next.as_str(), "migration");
            let _nobody = self.events.send(Event::Status(next));
        }
        Ok(())
    }

    /// Waits for [`MigrationHandle::cancel`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is consumed.
    pub(crate) async fn cancelled(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let mut cancelled = self.cancel.subscribe();
        let _closed = cancelled.wait_for(|cancelled| *cancelled).await;
    }

    /// Waits for [`MigrationHandle::continue_switchover`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is consumed.
    pub(crate) async fn told_to_continue(&self) {
        let mut told = self.go_on.subscribe();
        let _closed = told.wait_for(|go_on| *go_on).await;
    }

    pub(crate) fn info(&self) -> MigrationInfo {
        let statistics = &self.statistics;
        let state = self.state();
        let over = state.status.is_over();
        let total_us = match (over, state.started) {
            (false, Some(started)) => u64::try_from(started.elapsed().as_micros()).unwrap_or(0),
            _ => statistics.total_us.value(),
        };
        let completed = state.status == MigrationStatus::Completed;
        let active = state.status == MigrationStatus::Active;
        MigrationInfo {
            status: state.status.as_str(),
            ram: statistics.ram(self.page_size),
            total_time: total_us / 1000,
            downtime: completed.then(|| statistics.downtime_us.value() as f64 / 1000.0),
            expected_downtime: active.then(|| statistics.expected_downtime_ms.value()),
            setup_time: statistics.setup_us.value() / 1000,
            xbzrle_cache: statistics.xbzrle_cache(),
            multifd: state.multifd.clone(),
            multifd_cpu_seconds: Some(statistics.lanes_cpu_us.value())
                .filter(|micros| *micros > 0)
                .map(|micros| micros as f64 / 1e6),
            zero_copy_send: self.zero_copy.info(),
            cpu_throttle_percentage: statistics.cpu_throttle_percentage(),
            error_desc: state.error.clone(),
            blocked_reasons: state.blocked_reasons.clone(),
            socket_address: state.socket_address.clone(),
        }
    }
}
