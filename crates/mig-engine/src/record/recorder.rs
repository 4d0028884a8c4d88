//! Drives a recording.

use std::{fmt, sync::Arc, time::Duration};

use mig_proto::{Configuration, Event, Options, UnknownIterables, state::DestinationEvent};
use mig_ram::PAGE_SIZE;
use mig_stream::{Stream, StreamReader};
use mig_transport::{Blame, Listener};

use crate::{
    accept::Acceptor,
    answers::{Answers, Farewell, drain},
    deadlines::Deadlines,
    destination::{BYTES, HANGING_UP, SOURCE, TELLING},
    error::{Error, Owner, Result},
    handle::{MigrationHandle, Shared},
    hang_up::HangUp,
    hooks::{Hooks, bytes_behind},
    multifd::receive::{Beside, DataChannels, Origin},
    parameters::{MultifdOptions, Parameters},
    record::{
        counts::PageCounts, keeper::Keeper, memory::RecordedMemory, sink::StreamSink,
        writer::SinkWriter,
    },
    statistics::MigrationInfo,
    turn::Turn,
    walk::{InputEnd, Piece, StreamWalk},
};

/// Silence after which the decoder is told so. Only a stream without VMDESCRIPTION needs it, and only to find its end.
const QUIET: Duration = Duration::from_millis(500);
/// Silence inside VMDESCRIPTION after which it is taken to be cut, which is legal (docs/wire/stream.md §5).
const CUT_DESCRIPTION: Duration = Duration::from_secs(10);
/// How long a source that cannot be answered may take to close its end; a child has as long to exit.
const CLOSE: Duration = Duration::from_secs(10);
/// How long data channels may take to end after the source was told.
const CLOSE_DATA: Duration = Duration::from_secs(2);
/// What a failure may spend on telling the source and on cleaning up.
const FAREWELL: Farewell =
    Farewell { telling: Duration::from_secs(1), hearing: Duration::from_secs(1) };
/// In which a cancel lets a name be given that nearly is.
const NAMING: Duration = Duration::from_millis(30);

/// What the writing of what came is called.
const DISK: &str = "what came to be written and durable";

/// What a recorder is told. Start from `RecordOptions::default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordOptions {
    /// Obey OPEN_RETURN_PATH where the channel can carry answers; otherwise such a source is refused.
    pub return_path: bool,
    /// Agree to the switchover as soon as the return path is open, for sources with `switchover-ack`.
    pub switchover_ack: bool,
    /// How long each wait may take.
    pub deadlines: Deadlines,
    /// What the decoder is told.
    pub stream: Options,
    /// The most guest memory that may be held, in bytes, where pages do not come in the order of the stream: over a
    /// transport that writes into memory by itself (rdma), and over data channels. Then all of the guest's is held until
    /// its last page came. `None` is as much as this machine has available. Others need none.
    pub max_guest_memory: Option<u64>,
    /// Expect pages over data channels (capability `multifd` of the source); they become records of the one stream.
    pub multifd: Option<MultifdOptions>,
    /// The guest that is expected: a source that names another is refused. Over data channels each says which guest it is
    /// of; the main channel says so only where the source has `validate-uuid` on. `None` takes any.
    pub uuid: Option<[u8; 16]>,
}

impl Default for RecordOptions {
    fn default() -> Self {
        let mut stream = Options::default();
        // A recorder stores what it does not understand.
        stream.unknown_iterables = UnknownIterables::KeepRaw;
        Self {
            return_path: true,
            switchover_ack: false,
            deadlines: Deadlines::default(),
            stream,
            max_guest_memory: None,
            multifd: None,
            uuid: None,
        }
    }
}

impl RecordOptions {
    fn memory(&self) -> Result<RecordedMemory> {
        let bytes = self.stream.target_page_size.bytes();
        if bytes as usize != PAGE_SIZE {
            return Err(Error::misuse(format!(
                "pages of {bytes} bytes over data channels or a transport that writes into memory by itself: only \
                 pages of {PAGE_SIZE} bytes can be held"
            )));
        }
        Ok(RecordedMemory::new(self.max_guest_memory))
    }
}

/// Looks at everything that a recorder receives, what is not stored included.
pub trait EventObserver: Send {
    /// The next piece of the stream, in order.
    fn piece(&mut self, piece: &Piece<'_>);
}

/// A complete recording.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recorded {
    /// The source heard that everything is kept. False where there was no way to tell it.
    pub confirmed: bool,
    /// Bytes of the stored stream.
    pub bytes: u64,
    /// Records about pages.
    pub pages: PageCounts,
    /// What `query-migrate` would answer.
    pub info: MigrationInfo,
}

/// A destination that keeps the stream instead of loading it. What it keeps is one plain stream that QEMU loads; it gets
/// its name only when it is complete and durable, and only then the source hears SHUT 0.
#[derive(Debug)]
pub struct Recorder {
    options: RecordOptions,
    handle: MigrationHandle,
}

impl Recorder {
    /// A recorder; nothing happens before [`run`](Self::run).
    pub fn new(options: RecordOptions) -> Self {
        let page_size = u64::from(options.stream.target_page_size.bytes());
        Self { options, handle: MigrationHandle::new(Parameters::default(), page_size) }
    }

    /// Watches and cancels the recording, from any task.
    pub fn handle(&self) -> MigrationHandle {
        self.handle.clone()
    }

    /// Waits for a source, receives its stream into `sink`, commits, and tells the source.
    ///
    /// # Errors
    ///
    /// [`Error`]: nothing was committed, and the source was told so where that is possible. The one exception is named
    /// in its text: the stream was committed and the source could not be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the recording: nothing is committed. Use [`MigrationHandle::cancel`] to tell the
    /// source as well.
    pub async fn run(
        self,
        listener: &mut dyn Listener,
        sink: Box<dyn StreamSink>,
        observer: Option<&mut dyn EventObserver>,
    ) -> Result<Recorded> {
        let shared = Arc::clone(self.handle.shared());
        let outcome = self.run_inner(&shared, listener, sink, observer).await;
        match outcome {
            Ok(recorded) => {
                shared.finished();
                shared.destination_event(DestinationEvent::Complete)?;
                Ok(Recorded { info: shared.info(), ..recorded })
            }
            Err(error) => {
                shared.destination_failed(&error);
                Err(error)
            }
        }
    }

    async fn run_inner(
        self,
        shared: &Arc<Shared>,
        listener: &mut dyn Listener,
        sink: Box<dyn StreamSink>,
        observer: Option<&mut dyn EventObserver>,
    ) -> Result<Recorded> {
        shared.begin(Vec::new());
        shared.destination_event(DestinationEvent::Listen)?;
        shared.listening(listener.local_addresses());
        let multifd = self.options.multifd.as_ref();
        let mut data = multifd
            .map(|options| DataChannels::new(options, self.options.uuid, shared))
            .transpose()?;
        let mut acceptor = Acceptor::new(listener, &self.options.deadlines);
        shared.waits_for(SOURCE);
        let accepted = tokio::select! {
            biased;
            () = shared.cancelled() => Err(Error::cancelled()),
            accepted = acceptor.main(&mut data) => accepted,
        };
        let (mut stream, reader) = accepted.map_err(|error| error.during("setup"))?;
        let hang_up = HangUp::on(stream.shutdown_handle());
        shared.destination_event(DestinationEvent::Connected)?;
        let channel = stream.endpoint().to_string();
        let idle = stream.idle();
        let hooks = Hooks::of(&mut stream);
        let memory = match hooks.active() || data.is_some() {
            true => Some(self.options.memory()?),
            false => None,
        };
        let hub = data.as_ref().map(|data| Arc::clone(data.hub()));
        let arrival = self.options.deadlines.first_byte;
        let mut session = Session {
            answers: Answers::new(self.options.return_path, self.options.switchover_ack),
            stream,
            reader,
            walk: StreamWalk::new(self.options.stream),
            keeper: Keeper::default(),
            pages: PageCounts::default(),
            hooks,
            memory,
            data: hub.as_ref().map(|hub| Beside::new(hub, idle, arrival)),
            sink: SinkWriter::start(sink, self.options.deadlines.storage)?,
            observer,
            shared,
            flushed: false,
            uuid: self.options.uuid,
            turn: Turn::new(),
        };
        session.answers.take_any_number(hub.as_ref().is_some_and(|hub| hub.takes_any_number()));
        let received = tokio::select! {
            biased;
            () = shared.cancelled() => Err(Error::cancelled()),
            received = session.receive_beside(&mut data, &mut acceptor) => received,
        };
        match received {
            Ok(()) => {
                let concluded = session.conclude().await;
                if let Some(hub) = &hub {
                    let ended = tokio::time::timeout(CLOSE_DATA, hub.all_ended()).await;
                    tracing::debug!(ended = ended.is_ok(), "data channels");
                }
                if concluded.is_ok() {
                    hang_up.spare();
                }
                concluded
            }
            Err(error) => {
                if let Some(hub) = &hub {
                    hub.stop();
                }
                let error = error.during("active").on(channel);
                session.give_up(error.blame() == Blame::Cancelled).await;
                Err(error)
            }
        }
    }
}

/// A recording in progress.
struct Session<'a, 'o> {
    stream: Stream,
    reader: StreamReader,
    answers: Answers,
    walk: StreamWalk,
    keeper: Keeper,
    pages: PageCounts,
    hooks: Hooks,
    /// Where data channels and a transport with hooks write.
    memory: Option<RecordedMemory>,
    /// Where data channels bring the pages.
    data: Option<Beside>,
    sink: SinkWriter,
    observer: Option<&'o mut (dyn EventObserver + 'o)>,
    shared: &'a Shared,
    /// MULTIFD_FLUSH came.
    flushed: bool,
    /// The guest that is expected.
    uuid: Option<[u8; 16]>,
    turn: Turn,
}

impl Session<'_, '_> {
    /// Receives everything, over data channels too.
    async fn receive_beside(
        &mut self,
        data: &mut Option<DataChannels>,
        acceptor: &mut Acceptor<'_>,
    ) -> Result<()> {
        let several = self.stream.capabilities().several_channels;
        let Some(beside) = data else {
            let received = tokio::select! {
                biased;
                never = acceptor.attend_none(), if several => match never {},
                received = self.receive() => received,
            };
            let whole = self.pages.normal + self.pages.xbzrle + self.pages.compressed;
            let lacks_pages = self.flushed || whole == 0;
            return match received {
                Ok(()) => acceptor.none_is_missing(lacks_pages && several).await,
                Err(error) => Err(acceptor.explain(error, lacks_pages)),
            };
        };
        if self.hooks.active() {
            return Err(Error::misuse(
                "multifd over a transport that brings memory by itself, on one channel: turn multifd off at both ends",
            ));
        }
        beside.start(Origin::of(&self.stream)).await?;
        let hub = Arc::clone(beside.hub());
        tokio::select! {
            biased;
            failed = hub.failure() => Err(failed),
            received = self.receive() => received.map_err(|error| hub.explain(error)),
            error = acceptor.attend(beside) => Err(error),
        }
        .map_err(|error| beside.explain(error))?;
        acceptor.last_look(beside).await?;
        beside.none_is_too_many()
    }

    /// Receives everything and makes it durable; after that only the name is missing.
    async fn receive(&mut self) -> Result<()> {
        let mut end = InputEnd::Open;
        loop {
            let at_least = self.take(end)?;
            self.answers.give(&mut self.stream).await?;
            self.serve_window().await?;
            let marked = self.pass_mark().await?;
            self.shared.waits_for(DISK);
            self.write_memory().await?;
            self.sink.pass_on().await?;
            if marked {
                continue;
            }
            if at_least == 0 {
                break;
            }
            if self.turn.is_over() {
                self.turn.give_way().await;
                continue;
            }
            if self.walk.is_complete() {
                break;
            }
            self.shared.waits_for(BYTES);
            end = self.more(end).await?;
        }
        if let Some(data) = &self.data {
            data.check_closed()?;
        }
        if self.hooks.active() {
            self.hooks.release().await?;
        }
        if !self.answers.is_open() {
            // Nothing can be told to this source. It closes when it is done, and its transport may still have something
            // to say: that the command failed which fed us.
            match drain(&mut self.reader, CLOSE).await {
                Ok(true) => {}
                Ok(false) => tracing::debug!("the source does not close its end"),
                // The system's word about a link that is no longer needed, or that of a transport which was told so.
                Err(error)
                    if self.hooks.active() || matches!(error, mig_stream::Error::Io { .. }) =>
                {
                    tracing::debug!(%error, "after the end of the stream");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.shared.waits_for(DISK);
        self.sink.sync().await
    }

    /// Decodes what is buffered, for as long as the turn lasts, and keeps what is to be kept.
    fn take(&mut self, end: InputEnd) -> Result<usize> {
        let Self {
            reader,
            walk,
            keeper,
            answers,
            sink,
            pages,
            observer,
            shared,
            memory,
            data,
            flushed,
            uuid,
            turn,
            ..
        } = self;
        let walked = walk.walk_while::<Error>(reader.buffer(), end, |piece| {
            let mut go_on = !turn.work(piece.cost());
            if let Some(event) = &piece.event {
                if let Event::Configuration(configuration) = event {
                    check_guest(*uuid, configuration).map_err(|error| error.at(piece.position))?;
                }
                *flushed |= matches!(event, Event::MultifdFlush(_));
                if let Some(data) = data {
                    go_on &= data.note(event);
                    // Of a source that looks for zero pages on its main thread.
                    shared.statistics.duplicate.add(u64::from(matches!(event, Event::Zero(_))));
                }
                // Pages that are held are counted when they are written.
                if memory.is_none() {
                    pages.count(event);
                }
                if let Event::BlockList { entries, .. } = event {
                    shared
                        .statistics
                        .total
                        .set(entries.iter().map(|entry| entry.used_length).sum());
                }
            }
            if let Some(observer) = observer {
                observer.piece(&piece);
            }
            let keep = match memory {
                None => sink.chunk(),
                Some(memory) => match (memory.take(&piece)?, memory.is_due()) {
                    (false, _) => return Ok(go_on),
                    (true, true) => &mut memory.behind,
                    (true, false) => sink.chunk(),
                },
            };
            keeper.handle(&piece, keep, |question| answers.ask(question)).map(|()| go_on)
        })?;
        reader.consume(walked.consumed);
        self.publish();
        Ok(walked.at_least)
    }

    fn publish(&self) {
        if self.data.is_some() {
            // Data channels count their own pages.
            return self.shared.statistics.received(self.reader.position());
        }
        publish(self.shared, self.reader.position(), &self.pages, self.memory.is_some());
    }

    /// Lets the transport bring the pages of the window that was opened.
    async fn serve_window(&mut self) -> Result<()> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let Some(end) = memory.hook.take() else { return Ok(()) };
        if !std::mem::replace(&mut memory.registered, true) {
            self.hooks.register(memory.held().hook_blocks()).await?;
        }
        let behind = bytes_behind(&self.reader, end);
        self.hooks.serve(end, behind).await
    }

    /// Waits for the data channels, if main came to a mark; answers whether it did.
    async fn pass_mark(&mut self) -> Result<bool> {
        let (Some(data), Some(memory)) = (&mut self.data, &mut self.memory) else {
            return Ok(false);
        };
        let Some(stop) = data.take_due() else { return Ok(false) };
        data.tell_layout(memory.layout()?);
        data.pass(stop, &mut self.reader).await?;
        Ok(true)
    }

    /// Writes the pages that were held, where they belong.
    async fn write_memory(&mut self) -> Result<()> {
        let Some(memory) = self.memory.as_mut().filter(|memory| memory.is_due()) else {
            return Ok(());
        };
        let (shared, received) = (self.shared, self.reader.position());
        let beside = self.data.is_none();
        let tell = |pages: &PageCounts| {
            if beside {
                publish(shared, received, pages, true);
            }
        };
        memory.write(&mut self.sink, &mut self.pages, tell).await
    }

    /// Waits for bytes, for the end, or for silence that means something.
    async fn more(&mut self, last: InputEnd) -> Result<InputEnd> {
        let wanted = self.sink.wanted();
        let patience = if self.walk.is_in_description() {
            CUT_DESCRIPTION
        } else if self.walk.is_past_eof() || last == InputEnd::Open {
            QUIET
        } else {
            // The decoder was told and still wants more; now only the idle deadline counts.
            return Ok(ended(self.reader.fill_at_most(wanted).await?));
        };
        match tokio::time::timeout(patience, self.reader.fill_at_most(wanted)).await {
            Ok(filled) => Ok(ended(filled?)),
            Err(_elapsed) if self.walk.is_past_eof() => Ok(InputEnd::Closed),
            Err(_elapsed) => Ok(InputEnd::Quiet),
        }
    }

    /// Names the file, then tells the source. A cancel comes too late, unless the disk takes its time.
    async fn conclude(self) -> Result<Recorded> {
        let Self {
            mut reader, mut answers, sink, pages, shared, mut stream, memory, hooks, ..
        } = self;
        // All of it is written, and nobody else may touch it any more.
        drop(memory);
        let stop = stream.shutdown_handle();
        let committed = tokio::select! {
            biased;
            committed = sink.commit() => committed,
            () = too_late_for_a_name(shared) => Err(Error::cancelled().noting(
                "the disk was busy giving the stream its name, and the name may still appear: the source is told that \
                 it failed, so do not start that copy"
                    .into(),
            )),
        };
        let bytes = match committed {
            Ok(bytes) => bytes,
            Err(error) => {
                let hasty = error.blame() == Blame::Cancelled;
                let limits = if hasty { Farewell::HASTY } else { FAREWELL };
                answers.farewell(&mut stream, &mut reader, limits).await;
                stop.shutdown();
                return Err(error.during("device"));
            }
        };
        let confirmed = answers.is_open();
        if confirmed {
            shared.waits_for(TELLING);
            let told = tokio::select! {
                biased;
                told = answers.success() => told,
                // A source that reads no answers must not hold up who wants to go.
                () = shared.cancelled() => Err(Error::cancelled()),
            };
            told.map_err(|error| {
                Error::new(
                    Blame::Io,
                    "the stream is kept and complete, but the source could not be told: its guest probably goes on \
                     there, so do not start this copy without asking",
                )
                .caused_by(error)
                .owned_by(Owner::Unknown)
            })?;
            shared.waits_for(HANGING_UP);
            let closed = tokio::select! {
                closed = drain(&mut reader, CLOSE) => closed,
                () = shared.cancelled() => Ok(false),
            };
            tracing::debug!(?closed, "the source was told");
        }
        // The transport's connection ends with its hooks, perhaps: not before the source was told.
        drop(hooks);
        Ok(Recorded { confirmed, bytes, pages, info: shared.info() })
    }

    /// Leaves nothing that looks complete, and tells the source.
    async fn give_up(self, hasty: bool) {
        let Self { mut reader, mut answers, sink, mut stream, memory, hooks, .. } = self;
        // First out of the transport's reach.
        drop(hooks);
        drop(memory);
        let limits = if hasty { Farewell::HASTY } else { FAREWELL };
        let farewell = async {
            answers.farewell(&mut stream, &mut reader, limits).await;
            stream.shutdown_handle().shutdown();
        };
        tokio::join!(farewell, sink.abandon(limits.whole()));
    }
}

impl fmt::Debug for Session<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Refuses a source that names another guest.
fn check_guest(expected: Option<[u8; 16]>, configuration: &Configuration) -> Result<()> {
    match (expected, configuration.uuid()) {
        (Some(expected), Some(named)) if expected != named => {
            Err(Error::peer_incompatible(format!(
                "the source sends guest {:032x}, and {:032x} is expected here: it is another guest, or the wrong UUID was \
                 named at this end",
                u128::from_be_bytes(named),
                u128::from_be_bytes(expected)
            )))
        }
        _ => Ok(()),
    }
}

/// A cancel, and the moment after it in which a name is given nearly always.
///
/// # Cancel safety
///
/// Cancel safe.
async fn too_late_for_a_name(shared: &Shared) {
    shared.cancelled().await;
    tokio::time::sleep(NAMING).await;
}

/// Brings the statistics up to date. Pages that came `beside` the stream are no bytes of it.
fn publish(shared: &Shared, received: u64, pages: &PageCounts, beside: bool) {
    let statistics = &shared.statistics;
    let normal = pages.normal + pages.xbzrle + pages.compressed;
    let bytes_beside = if beside { normal * PAGE_SIZE as u64 } else { 0 };
    statistics.transferred.set(received + bytes_beside);
    statistics.normal.set(normal);
    statistics.duplicate.set(pages.zero);
}

fn ended(filled: usize) -> InputEnd {
    if filled == 0 { InputEnd::Closed } else { InputEnd::Open }
}
