//! The destination of a migration.
//!
//! ```text
//!   setup ──▶ active: pages land, devices load ──▶ SHUT 0 ──▶ completed: the guest starts
//!    │ listen,  │                                     │
//!    │ accept   └── cancel, error: SHUT 1, no guest ──┘
//! ```
//!
//! The guest is started only after SHUT 0 was written: until then it belongs to the source. On failure the source is
//! told where there is a way back, and the memory holds nothing of use.

mod ahead;
pub(crate) mod encoded;
mod loader;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mig_proto::{LocalMachine, Options, globalstate::RunState, state::DestinationEvent};
use mig_ram::{
    GuestMemory, PAGE_SIZE, PlaceMechanism, PlacePolicy, Placement, PlacementOptions, Warmth,
};
use mig_stream::{Stream, StreamReader};
use mig_transport::{Blame, Listener};

use self::{ahead::Ahead, loader::Loader};
use crate::{
    accept::accept_main,
    answers::{Answers, drain},
    error::{Error, Owner, Result},
    guest::Guest,
    handle::{MigrationHandle, Shared},
    hooks::Hooks,
    parameters::{Deadlines, Parameters},
    source::Outcome,
    walk::{InputEnd, StreamWalk},
};

/// Silence after which the decoder is asked whether the stream may have ended (docs/wire/stream.md §5).
const QUIET: Duration = Duration::from_secs(1);

/// How long the source may take to hang up after the verdict before it is hung up on.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);

/// How long a failed destination tries to say so.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// How long the source of a failed migration may take to hear that and to hang up.
const FAREWELL: Duration = Duration::from_secs(1);

/// The same after a cancel, which is promised to take no longer than 100 ms, [`LAST_WORDS`] included.
const HASTY_FAREWELL: Duration = Duration::from_millis(40);

/// One guest to be received, once.
pub struct Destination {
    memory: Arc<dyn GuestMemory>,
    guest: Box<dyn Guest>,
    deadlines: Deadlines,
    placing: PlacementOptions,
    uuid: Option<[u8; 16]>,
    placement: Option<Arc<Placement>>,
    handle: MigrationHandle,
}

impl Destination {
    /// A destination with default deadlines. The guest's memory must exist and must not be in use.
    pub fn new(memory: Arc<dyn GuestMemory>, guest: Box<dyn Guest>) -> Self {
        Self {
            memory,
            guest,
            deadlines: Deadlines::default(),
            placing: PlacementOptions::default(),
            uuid: None,
            placement: None,
            handle: MigrationHandle::new(Parameters::default(), PAGE_SIZE as u64),
        }
    }

    /// Sets the deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Chooses how pages are brought into place.
    #[must_use]
    pub fn with_placing(mut self, placing: PlacementOptions) -> Self {
        self.placing = placing;
        self
    }

    /// Names the guest that is expected: a source that names another is refused.
    #[must_use]
    pub fn with_uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// Watches and stops this migration, from any task, before and while it runs.
    pub fn handle(&self) -> MigrationHandle {
        self.handle.clone()
    }

    /// How pages were brought into place and what that cost; `None` before the first came.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_deref()
    }

    /// Gives the guest back after the migration.
    pub fn into_guest(self) -> Box<dyn Guest> {
        self.guest
    }

    /// Receives the guest and starts it.
    ///
    /// # Errors
    ///
    /// Whatever ended it. The guest was not started. A cancel that comes after it was is too late and no error.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a dropped future tells the source nothing and leaves memory half filled. Use
    /// [`MigrationHandle::cancel`].
    pub async fn run(&mut self, listener: &mut dyn Listener) -> Result<Outcome> {
        let shared = Arc::clone(self.handle.shared());
        shared.begin(Vec::new());
        shared.listening(listener.local_addresses());
        shared.destination_event(DestinationEvent::Listen)?;
        let progress = Progress::default();
        let mut answers = Answers::new(true, false);
        let mut link = None;
        let outcome = {
            let drive = pin!(self.drive(listener, &shared, &progress, &mut answers, &mut link));
            tokio::select! {
                biased;
                () = shared.cancelled() => Err(Error::cancelled()),
                outcome = drive => outcome,
            }
        };
        let outcome = match outcome {
            // A cancel that finds the guest running came too late.
            Err(error)
                if error.blame() == Blame::Cancelled
                    && progress.started.load(Ordering::Relaxed) =>
            {
                Ok(answers.is_open())
            }
            outcome => outcome,
        };
        let error = match outcome {
            Ok(confirmed) => {
                let total = shared.finished();
                shared.destination_event(DestinationEvent::Complete)?;
                return Ok(Outcome { confirmed, total, info: shared.info() });
            }
            Err(error) => error,
        };
        let owner = progress.owner();
        if owner == Owner::Source {
            answers.failure(LAST_WORDS).await;
            // A connection that is closed with bytes unread in it takes what was just said along.
            if let Some((_stream, reader)) = link.as_mut().filter(|_| answers.is_open()) {
                let limit = match error.blame() {
                    Blame::Cancelled => HASTY_FAREWELL,
                    _ => FAREWELL,
                };
                let _late = drain(reader, limit).await;
            }
        }
        let error = error.during(shared.status().as_str()).owned_by(owner);
        shared.destination_failed(&error);
        Err(error)
    }

    /// Everything from accepting to starting the guest; answers whether the source was told.
    async fn drive(
        &mut self,
        listener: &mut dyn Listener,
        shared: &Shared,
        progress: &Progress,
        answers: &mut Answers,
        link: &mut Option<(Stream, StreamReader)>,
    ) -> Result<bool> {
        // Outlives a failure, so that the source can be told.
        let (stream, reader) = link.insert(accept_main(listener, &self.deadlines).await?);
        shared.destination_event(DestinationEvent::Connected)?;
        let name = stream.endpoint().to_string();
        let machine = self.guest.machine_type();
        let mut options = Options::default();
        options.local =
            Some(LocalMachine { uuid: self.uuid, ..LocalMachine::new(machine.as_bytes()) });
        let hooks = Hooks::of(stream);
        let mut placing = self.placing;
        if hooks.active() {
            // The transport touches the memory behind the placement's back, and would wait for ever for a page that
            // only the placement may bring.
            placing.policy = PlacePolicy::Only(PlaceMechanism::Plain);
            // It writes pages of which the placement does not know: no zero page may be taken for untouched.
            placing.warmth = Warmth::Warm;
        }
        let mut loader = Loader::new(&*self.memory, &mut *self.guest, placing, &shared.statistics);
        let mut load = Load {
            stream: &mut *stream,
            reader: &mut *reader,
            answers,
            hooks,
            walk: StreamWalk::new(options),
            shared,
        };
        let loaded = load.all(&mut loader).await.map_err(|error| error.on(name.as_str()));
        self.placement = loader.placement().cloned();
        let state = loaded?;
        let confirmed = answers.is_open();
        if confirmed {
            progress.verdict_begun.store(true, Ordering::Relaxed);
            answers.success().await?;
        }
        progress.said.store(true, Ordering::Relaxed);
        self.guest.start(state).map_err(|error| {
            Error::misuse("the guest arrived and could not be started").caused_by(error)
        })?;
        progress.started.store(true, Ordering::Relaxed);
        // Lets the source read the verdict before the connection goes.
        match drain(reader, HANG_UP_GRACE).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("the source did not hang up"),
            Err(error) => tracing::debug!(%error, "hanging up"),
        }
        Ok(confirmed)
    }
}

/// What the failure path has to know.
#[derive(Debug, Default)]
struct Progress {
    verdict_begun: AtomicBool,
    said: AtomicBool,
    started: AtomicBool,
}

impl Progress {
    fn owner(&self) -> Owner {
        if self.said.load(Ordering::Relaxed) {
            Owner::Destination
        } else if self.verdict_begun.load(Ordering::Relaxed) {
            // Some of the verdict may have left; the source decides by what reached it.
            Owner::Unknown
        } else {
            Owner::Source
        }
    }
}

/// The receiving half of a migration, with all it needs.
struct Load<'a> {
    stream: &'a mut Stream,
    reader: &'a mut StreamReader,
    answers: &'a mut Answers,
    hooks: Hooks,
    walk: StreamWalk,
    shared: &'a Shared,
}

impl Load<'_> {
    /// Reads the stream to its end; answers the state the guest was in.
    async fn all(&mut self, loader: &mut Loader<'_>) -> Result<RunState> {
        let counters = self.reader.counters();
        let mut registered = false;
        let mut ahead = Ahead::new();
        let mut end = InputEnd::Open;
        loop {
            let walked = self.walk.walk(self.reader.buffer(), end, |piece| loader.visit(&piece))?;
            self.reader.consume(walked.consumed);
            loader.tell_statistics();
            self.shared.statistics.transferred.set(counters.bytes_received());
            for ask in std::mem::take(&mut loader.asked) {
                self.answers.ask(ask);
            }
            self.answers.give(self.stream).await?;
            self.serve_window(loader, &mut registered).await?;
            if self.walk.is_complete() || walked.at_least == 0 {
                break;
            }
            let tell = |loader: &mut Loader<'_>| {
                loader.tell_statistics();
                self.shared.statistics.transferred.set(counters.bytes_received());
            };
            end = if ahead.receive(self.reader, &mut self.walk, loader, tell).await? {
                InputEnd::Open
            } else {
                self.more().await?
            };
            if end == InputEnd::Quiet && self.walk.is_past_eof() {
                break;
            }
        }
        let state = loader.finish()?;
        if self.hooks.active() {
            // The guest may only be started where nobody else writes (docs/wire/rdma.md §12).
            self.hooks.release().await?;
        }
        Ok(state)
    }

    /// Lets the transport bring the pages of the window that was opened.
    async fn serve_window(&mut self, loader: &mut Loader<'_>, registered: &mut bool) -> Result<()> {
        // A receiver without RDMA ignores the record (docs/wire/ram.md §1).
        let Some(end) = loader.hook.take().filter(|_| self.hooks.active()) else { return Ok(()) };
        if !std::mem::replace(registered, true) {
            self.hooks.register(loader.hook_blocks()).await?;
        }
        self.hooks.serve(end, self.reader).await
    }

    /// Waits for bytes, for the end, or for a silence that the decoder may make sense of: where no VMDESCRIPTION comes,
    /// nothing else tells that a device section was the last.
    async fn more(&mut self) -> Result<InputEnd> {
        match tokio::time::timeout(QUIET, self.reader.fill()).await {
            Ok(Ok(0)) => Ok(InputEnd::Closed),
            Ok(got) => got.map(|_| InputEnd::Open).map_err(Into::into),
            Err(_) => Ok(InputEnd::Quiet),
        }
    }
}
