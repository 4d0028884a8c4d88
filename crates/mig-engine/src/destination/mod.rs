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
mod load;
mod loader;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mig_proto::{LocalMachine, Options, state::DestinationEvent};
use mig_ram::{
    GuestMemory, PAGE_SIZE, PlaceMechanism, PlacePolicy, Placement, PlacementOptions, Warmth,
};
use mig_transport::{Blame, Listener};

use self::{load::Load, loader::Loader};
use crate::{
    accept::{Accepted, Acceptor},
    answers::{Answers, Farewell, drain},
    deadlines::Deadlines,
    error::{Error, Owner, Result},
    guest::Guest,
    handle::{MigrationHandle, Shared},
    hang_up::HangUp,
    hooks::Hooks,
    multifd::receive::{Beside, DataChannels, Origin},
    parameters::{Capabilities, MultifdOptions, Parameters},
    source::Outcome,
    walk::StreamWalk,
};

/// What a destination waits for, one after the other.
pub(crate) const SOURCE: &str = "a source to connect";
pub(crate) const BYTES: &str = "more from the source";
pub(crate) const TELLING: &str = "the source to take the answer";
pub(crate) const HANGING_UP: &str = "the source to hang up";

/// How long the source may take to hang up after the verdict before it is hung up on.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);

/// What a failed destination may spend on saying so.
const FAREWELL: Farewell =
    Farewell { telling: Duration::from_millis(50), hearing: Duration::from_secs(1) };

/// One guest to be received, once.
pub struct Destination {
    memory: Arc<dyn GuestMemory>,
    guest: Box<dyn Guest>,
    capabilities: Capabilities,
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
            capabilities: Capabilities::default(),
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

    /// Switches capabilities. Only `multifd` concerns a destination: it obeys the source's return path in any case.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Sets the parameters: `multifd_channels` or `multifd_auto`, and `multifd_compression`, which must be those of the source.
    #[must_use]
    pub fn with_parameters(self, parameters: Parameters) -> Self {
        self.handle.set_parameters(parameters);
        self
    }

    /// Chooses how pages are brought into place.
    #[must_use]
    pub fn with_placing(mut self, placing: PlacementOptions) -> Self {
        self.placing = placing;
        self
    }

    /// Names the guest that is expected: a source that names another is refused. With `multifd` say it where you can:
    /// otherwise the first data channel decides, which may be a stranger's, and the right source would be kept out until a
    /// deadline ends the wait.
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
        let mut link = Link { main: None, data: self.data_channels(&shared)?, hang_up: None };
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
                if let Some(hang_up) = link.hang_up.take() {
                    hang_up.spare();
                }
                return Ok(Outcome { confirmed, total, info: shared.info() });
            }
            Err(error) => error,
        };
        if let Some(data) = &link.data {
            data.hub().stop();
        }
        let owner = progress.owner();
        if let (Owner::Source, Some((stream, reader))) = (owner, &mut link.main) {
            let limits = match error.blame() {
                Blame::Cancelled => Farewell::HASTY,
                _ => FAREWELL,
            };
            answers.farewell(stream, reader, limits).await;
        }
        drop(link);
        let error = error.during(shared.status().as_str()).owned_by(owner);
        shared.destination_failed(&error);
        Err(error)
    }

    /// What is needed for data channels, where they are expected.
    fn data_channels(&self, shared: &Arc<Shared>) -> Result<Option<DataChannels>> {
        if !self.capabilities.multifd {
            return Ok(None);
        }
        let parameters = shared.parameters();
        let options = match parameters.multifd_auto {
            Some(_) => MultifdOptions::any_number(),
            None => MultifdOptions::new(parameters.multifd_channels),
        };
        let options = options.compression(parameters.multifd_compression);
        DataChannels::new(&options, self.uuid, shared).map(Some)
    }

    /// Everything from accepting to starting the guest; answers whether the source was told.
    async fn drive(
        &mut self,
        listener: &mut dyn Listener,
        shared: &Shared,
        progress: &Progress,
        answers: &mut Answers,
        link: &mut Link,
    ) -> Result<bool> {
        shared.waits_for(SOURCE);
        let mut acceptor = Acceptor::new(listener, &self.deadlines);
        let (stream, reader) = link.main.insert(acceptor.main(&mut link.data).await?);
        link.hang_up = Some(HangUp::on(stream.shutdown_handle()));
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
        let hub = link.data.as_ref().map(|data| Arc::clone(data.hub()));
        let mut device_states = None;
        if let Some(data) = &mut link.data {
            if hooks.active() {
                return Err(Error::misuse(format!(
                    "multifd over {name}: this transport brings memory by itself, on one channel; turn multifd off at \
                     both ends"
                )));
            }
            placing = data.placing(placing);
            device_states = Some(data.accept_device_states());
            data.start(Origin::of(stream)).await?;
            answers.take_any_number(data.hub().takes_any_number());
        }
        let mut loader = Loader::new(&*self.memory, &mut *self.guest, placing, &shared.statistics);
        if let Some(hub) = &hub {
            loader = loader.with_data_channels(hub);
        }
        let idle = stream.idle();
        let several = stream.capabilities().several_channels;
        let load = Load {
            stream: &mut *stream,
            reader: &mut *reader,
            answers,
            hooks,
            walk: StreamWalk::new(options),
            shared,
            data: hub.as_ref().map(|hub| Beside::new(hub, idle, self.deadlines.first_byte)),
            device_states,
        };
        shared.waits_for(BYTES);
        let loaded = {
            let load = pin!(load.all(&mut loader));
            match (&hub, &mut link.data) {
                (Some(hub), Some(data)) => tokio::select! {
                    biased;
                    failed = hub.failure() => Err(failed),
                    loaded = load => loaded.map_err(|error| hub.explain(error)),
                    error = acceptor.attend(data) => Err(error),
                },
                _ => tokio::select! {
                    biased;
                    never = acceptor.attend_none(), if several => match never {},
                    loaded = load => loaded,
                },
            }
        };
        let lacks_pages = loader.lacks_pages();
        let loaded = match (loaded, &mut link.data) {
            (Ok(state), Some(data)) => {
                acceptor.last_look(data).await?;
                data.none_is_too_many().map(|()| state)
            }
            (Ok(state), None) => acceptor.none_is_missing(lacks_pages).await.map(|()| state),
            (Err(error), Some(data)) => Err(data.explain(error)),
            (Err(error), None) => Err(acceptor.explain(error, lacks_pages)),
        };
        let loaded = loaded.map_err(|error| error.on(name.as_str()));
        self.placement = loader.placement().cloned();
        let state = loaded?;
        let confirmed = answers.is_open();
        shared.waits_for(TELLING);
        if confirmed {
            progress.verdict_begun.store(true, Ordering::Relaxed);
            answers.success().await?;
        }
        progress.said.store(true, Ordering::Relaxed);
        self.guest.start(state).map_err(|error| {
            Error::misuse("the guest arrived and could not be started").caused_by(error)
        })?;
        progress.started.store(true, Ordering::Relaxed);
        shared.waits_for(HANGING_UP);
        // Lets the source read the verdict before the connections go.
        if let Some(hub) = &hub {
            let ended = tokio::time::timeout(HANG_UP_GRACE, hub.all_ended()).await;
            tracing::debug!(ended = ended.is_ok(), "data channels");
        }
        match drain(reader, HANG_UP_GRACE).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("the source did not hang up"),
            Err(error) => tracing::debug!(%error, "hanging up"),
        }
        Ok(confirmed)
    }
}

/// The connections. They outlive a failure, so that the source can be told.
struct Link {
    main: Option<Accepted>,
    data: Option<DataChannels>,
    hang_up: Option<HangUp>,
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
