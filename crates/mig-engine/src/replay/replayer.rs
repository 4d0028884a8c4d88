//! Drives a replay.

use std::{
    fmt,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use mig_proto::{
    Options, UnknownIterables,
    state::{MigrationStatus, SourceEvent},
};
use mig_stream::{IdleClock, Stream, StreamWriter, within};
use mig_transport::{Blame, Connector, Error as TransportError};

use crate::{
    deadlines::{Deadlines, Wait},
    error::{Error, Owner, Result},
    handle::{MigrationHandle, Shared},
    hang_up::HangUp,
    hooks::Hooks,
    parameters::Parameters,
    record::PageCounts,
    replay::{
        cutter::{Cutter, Part},
        input::{Buffer, InputReader},
        memory::{Stored, StoredMemory, load},
    },
    source::{
        CONNECTING, Progress, ReturnPath, VERDICT, Verdict, Writing, check_several_channels,
        connect, ended_by_whom, said_too_early, who_is_silent,
    },
    statistics::MigrationInfo,
    turn::Turn,
    walk::{InputEnd, StreamWalk},
};

/// How long a destination's last words are waited for when writing to it failed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a replayer is told. Start from `ReplayOptions::default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplayOptions {
    /// Ask the destination to confirm. On a channel that cannot carry answers this is an error before anything is sent.
    pub return_path: ReturnPathWish,
    /// `max-bandwidth`.
    pub parameters: Parameters,
    /// How long each wait may take.
    pub deadlines: Deadlines,
    /// What the decoder is told.
    pub stream: Options,
    /// Capability `multifd`: pages go over as many data channels as the parameters say, each page once.
    pub multifd: bool,
    /// The guest's uuid for the data channels' hello; `None` is the stored one, or else zero.
    pub uuid: Option<[u8; 16]>,
    /// The most guest memory that may be held, in bytes, where the transport carries memory itself (rdma) or data
    /// channels do (multifd): then all of the guest's is brought into memory first. `None` is as much as this machine
    /// has available. Otherwise none is needed.
    pub max_guest_memory: Option<u64>,
}

/// Whether to ask for confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnPathWish {
    /// Where a socket carries the stream, because both ends of one can always talk. A pipe or a child may lead to
    /// something that listens only, so there the user has to ask.
    Sockets,
    /// Always; refused where the channel is one-way.
    Always,
    /// Never.
    Never,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        let mut stream = Options::default();
        stream.unknown_iterables = UnknownIterables::KeepRaw;
        Self {
            return_path: ReturnPathWish::Sockets,
            parameters: Parameters::default(),
            deadlines: Deadlines::default(),
            stream,
            multifd: false,
            uuid: None,
            max_guest_memory: None,
        }
    }
}

/// A replay that came to its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Replayed {
    /// The destination said that it has everything. False: everything was sent, and there was no way to hear.
    pub confirmed: bool,
    /// Bytes sent, ours included.
    pub bytes: u64,
    /// Records about pages.
    pub pages: PageCounts,
    /// What `query-migrate` would answer.
    pub info: MigrationInfo,
}

/// A source that replays a stored stream. It goes out byte for byte, checked on the way; a broken one is cut, not ended,
/// so that it never looks complete to the destination.
pub struct Replayer {
    options: ReplayOptions,
    handle: MigrationHandle,
    again: Option<Reopen>,
}

/// Opens the input once more.
type Reopen = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

impl Replayer {
    /// A replayer; nothing happens before [`run`](Self::run).
    pub fn new(options: ReplayOptions) -> Self {
        let page_size = u64::from(options.stream.target_page_size.bytes());
        let handle = MigrationHandle::new(options.parameters.clone(), page_size);
        Self { options, handle, again: None }
    }

    /// Tells how to read the input a second time, from the same place. A transport that carries memory itself (rdma)
    /// needs that: the memory is brought together first, which also finds out what is wrong with the input before
    /// anything is sent. Without this, such a transport is refused; others read once.
    #[must_use]
    pub fn with_second_reading(
        mut self,
        again: impl FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'static,
    ) -> Self {
        self.again = Some(Box::new(again));
        self
    }

    /// Watches and cancels the replay, from any task.
    pub fn handle(&self) -> MigrationHandle {
        self.handle.clone()
    }

    /// Connects, sends `input` (called `name` in messages), and waits for the destination's verdict.
    ///
    /// # Errors
    ///
    /// [`Error`], whose owner tells whether the destination may have started the guest.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts the channel, which the destination cannot take for a complete stream.
    pub async fn run(
        self,
        connector: &dyn Connector,
        input: Box<dyn Read + Send>,
        name: &str,
    ) -> Result<Replayed> {
        let shared = Arc::clone(self.handle.shared());
        let outcome = self.run_inner(&shared, connector, input, name).await;
        match outcome {
            Ok(replayed) => {
                shared.finished();
                shared.source_event(SourceEvent::Complete)?;
                Ok(Replayed { info: shared.info(), ..replayed })
            }
            Err(error) => {
                shared.source_failed(&error);
                Err(error)
            }
        }
    }

    async fn run_inner(
        mut self,
        shared: &Arc<Shared>,
        connector: &dyn Connector,
        input: Box<dyn Read + Send>,
        name: &str,
    ) -> Result<Replayed> {
        shared.begin(Vec::new());
        shared.source_event(SourceEvent::Start)?;
        let ready = tokio::select! {
            biased;
            () = shared.cancelled() => Err(Error::cancelled()),
            ready = self.prepare(shared, connector, input, name) => ready,
        };
        let Ready { stream, hang_up, writer, answers, input, memory } =
            ready.map_err(|error| error.during("setup"))?;
        shared.source_event(SourceEvent::Ready)?;
        let channel = stream.endpoint().to_string();
        let progress = Progress::default();
        let cutter = match &memory {
            None => Cutter::new(answers.is_some()),
            Some(memory) => Cutter::with_windows(answers.is_some(), memory.question(shared)),
        };
        let mut session = Session {
            idle: stream.idle(),
            connector,
            writer,
            input,
            walk: StreamWalk::new(self.options.stream),
            cutter,
            memory,
            name,
            shared,
            progress: &progress,
        };
        let acknowledgement = self.options.deadlines.final_acknowledgement;
        let replayed = tokio::select! {
            biased;
            () = shared.cancelled() => Err(Error::cancelled()),
            replayed = session.run(answers, acknowledgement) => replayed,
        };
        match replayed {
            // A cancel that came after the verdict came too late.
            Err(error)
                if error.blame() == Blame::Cancelled && progress.owner() == Owner::Destination =>
            {
                session.reached_device()?;
                hang_up.spare();
                Ok(session.replayed(true))
            }
            Err(error) => {
                // Cut, not ended: what arrived must not look complete.
                drop(hang_up);
                Err(error.owned_by(progress.owner()).on(channel).during(shared.status().as_str()))
            }
            Ok(replayed) => {
                hang_up.spare();
                Ok(replayed)
            }
        }
    }

    /// Connects, with the memory brought together where the transport carries it: before, where it can be known, since
    /// the other end waits for its first byte.
    async fn prepare(
        &mut self,
        shared: &Arc<Shared>,
        connector: &dyn Connector,
        input: Box<dyn Read + Send>,
        name: &str,
    ) -> Result<Ready> {
        let mut input = Some(input);
        let mut stored = None;
        if connector.has_ram_hooks() || self.options.multifd {
            shared.waits_for("the guest's memory to be read from the input");
            stored = self.load(input.take(), name).await?;
        }
        shared.waits_for(CONNECTING);
        let (mut stream, writer, answers) = self.open(shared, connector).await?;
        let hang_up = HangUp::on(stream.shutdown_handle());
        let hooks = Hooks::of(&mut stream);
        if self.options.multifd {
            check_several_channels(&stream, &hooks)?;
        }
        if hooks.active() && stored.is_none() {
            shared.waits_for("the guest's memory to be read from the input");
            stored = self.load(input.take(), name).await?;
        }
        let memory = match &stored {
            Some(stored) if self.options.multifd => {
                let (uuid, idle) = (self.options.uuid, stream.idle());
                let may_grow = answers.as_ref().map(ReturnPath::channels_may_change);
                Some(StoredMemory::over_data_channels(stored, uuid, shared, idle, may_grow)?)
            }
            Some(stored) if hooks.active() => {
                Some(StoredMemory::through_hooks(&stored.held, hooks)?)
            }
            _ => None,
        };
        let input = match input {
            Some(input) => input,
            None => self.reopen(name)?().map_err(|error| {
                Error::from(TransportError::io(format!("reading {name} again"), error))
            })?,
        };
        let input = InputReader::start(input, name.into())?;
        Ok(Ready { stream, hang_up, writer, answers, input, memory })
    }

    async fn load(
        &mut self,
        input: Option<Box<dyn Read + Send>>,
        name: &str,
    ) -> Result<Option<Stored>> {
        // Refused before it is read.
        let again = self.reopen(name)?;
        self.again = Some(again);
        let Some(input) = input else { return Ok(None) };
        load(input, name, &self.options.stream, self.options.max_guest_memory).await.map(Some)
    }

    fn reopen(&mut self, name: &str) -> Result<Reopen> {
        self.again.take().ok_or_else(|| {
            Error::misuse(format!(
                "{name} can be read only once, and its memory must be brought together before the rest is sent, because \
                 data channels or the transport itself carry it: store the stream in a file and send that, or use a \
                 single channel of a transport that carries the stream alone (tcp:, unix:)"
            ))
        })
    }

    async fn open(
        &mut self,
        shared: &Shared,
        connector: &dyn Connector,
    ) -> Result<(Stream, StreamWriter, Option<ReturnPath>)> {
        let idle = self.options.deadlines.idle.map(IdleClock::new);
        let asked = self.options.return_path == ReturnPathWish::Always;
        let mut stream = connect(connector, asked, &shared.limiter, idle.as_ref()).await?;
        let capabilities = stream.capabilities();
        let wanted = match self.options.return_path {
            ReturnPathWish::Always => true,
            ReturnPathWish::Never => false,
            ReturnPathWish::Sockets => capabilities.return_path && capabilities.forced_shutdown,
        };
        let answers = match wanted {
            // Blocks are not known yet. Nobody may ask a stored stream for pages anyway.
            true => Some(ReturnPath::new(
                stream.return_reader()?,
                capabilities,
                Vec::new(),
                u64::from(self.options.stream.target_page_size.bytes()),
            )?),
            false => None,
        };
        let writer = stream.writer()?;
        Ok((stream, writer, answers))
    }
}

impl fmt::Debug for Replayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replayer")
            .field("options", &self.options)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

/// All that a replay needs.
struct Ready {
    stream: Stream,
    hang_up: HangUp,
    writer: StreamWriter,
    answers: Option<ReturnPath>,
    input: InputReader,
    memory: Option<StoredMemory>,
}

/// A replay in progress.
struct Session<'a> {
    idle: Option<Arc<IdleClock>>,
    /// For data channels.
    connector: &'a dyn Connector,
    writer: StreamWriter,
    input: InputReader,
    walk: StreamWalk,
    cutter: Cutter,
    /// What a transport with hooks is given.
    memory: Option<StoredMemory>,
    name: &'a str,
    shared: &'a Shared,
    /// Who owns the guest, should it go wrong now.
    progress: &'a Progress,
}

impl Session<'_> {
    async fn run(
        &mut self,
        answers: Option<ReturnPath>,
        acknowledgement: Duration,
    ) -> Result<Replayed> {
        let confirmed = match answers {
            Some(answers) => {
                self.send_and_listen(answers, acknowledgement).await?;
                // The destination has everything; how the channel ends says nothing any more.
                let until = self.progress.owed_until();
                let ended = tokio::time::timeout_at(until, self.writer.finish()).await;
                tracing::debug!(?ended, "after the verdict");
                true
            }
            None => {
                self.send().await?;
                self.writer.finish().await?;
                false
            }
        };
        Ok(self.replayed(confirmed))
    }

    fn replayed(&self, confirmed: bool) -> Replayed {
        Replayed { confirmed, bytes: self.sent(), pages: self.pages(), info: self.shared.info() }
    }

    /// Bytes sent, those included that the transport or data channels carried beside the stream.
    fn sent(&self) -> u64 {
        let data = self.memory.as_ref().map_or(0, StoredMemory::bytes_out);
        self.writer.position() + self.writer.counters().bytes_beside() + data
    }

    fn pages(&self) -> PageCounts {
        let mut pages = self.cutter.pages;
        if self.memory.is_some() {
            let statistics = &self.shared.statistics;
            pages.normal = statistics.normal.value();
            pages.zero = statistics.duplicate.value();
        }
        pages
    }

    async fn send_and_listen(
        &mut self,
        mut answers: ReturnPath,
        acknowledgement: Duration,
    ) -> Result<()> {
        let progress = self.progress;
        // What came first; the other one goes on where it still matters.
        let early = {
            let mut sending = std::pin::pin!(self.send());
            tokio::select! {
                // In this order: a failure of writing is known before what is heard is judged by it.
                biased;
                sent = &mut sending => Err(sent),
                verdict = answers.verdict() => match verdict {
                    Ok(verdict) => {
                        let owner = progress.settle(Writing::Well, &verdict);
                        if owner == Owner::Destination {
                            // Legal before the last byte (docs/wire/stream.md §7). The rest is still owed; that nobody
                            // reads it is no failure any more.
                            let rest = tokio::time::timeout_at(progress.owed_until(), sending).await;
                            tracing::debug!(?rest, "after the verdict");
                        }
                        Ok(Ok((verdict, owner)))
                    }
                    Err(silence) => Ok(Err(who_is_silent(silence, sending).await)),
                }
            }
        };
        match early {
            Ok(Ok((verdict, owner))) => self.decide(verdict, owner),
            Ok(Err(error)) => Err(error.at(self.writer.position())),
            Err(Ok(())) => {
                self.shared.waits_for(VERDICT);
                let verdict = within::<_, Error>(
                    "waiting for the destination's verdict",
                    acknowledgement,
                    answers.verdict(),
                )
                .await
                .map_err(|error| error.ran_out(Wait::Acknowledgement))?;
                let owner = progress.settle(Writing::of(&self.writer), &verdict);
                self.decide(verdict, owner)
            }
            // The link's word for a destination that gave up is "broken pipe"; its own may be on the way.
            Err(Err(error)) if error.blame() == Blame::Io => {
                self.last_words(&mut answers, error).await
            }
            Err(Err(error)) => Err(error),
        }
    }

    /// Sending failed by `error`. Listens once more for what the destination has to say.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn last_words(&mut self, answers: &mut ReturnPath, error: Error) -> Result<()> {
        match tokio::time::timeout(LAST_WORDS, answers.verdict()).await {
            Ok(Ok(verdict)) => {
                let owner = self.progress.settle(Writing::of(&self.writer), &verdict);
                match (&verdict, owner) {
                    (Verdict::Succeeded, _) => self.decide(verdict, owner),
                    // How it ended says nothing that the error does not.
                    (Verdict::Ended(_), Owner::Unknown) => Err(error),
                    _ => Err(self.refused(&verdict, owner).caused_by(error)),
                }
            }
            // A transport's own reason (a TLS alert) says more than that writing failed; silence says less.
            Ok(Err(heard)) if !matches!(heard.blame(), Blame::Io | Blame::Deadline) => {
                tracing::debug!(%error, "and sending failed");
                Err(heard)
            }
            Ok(Err(_)) | Err(_) => Err(error),
        }
    }

    /// What the destination's word means.
    fn decide(&self, verdict: Verdict, owner: Owner) -> Result<()> {
        match (verdict, owner) {
            (Verdict::Succeeded, Owner::Destination) => self.reached_device(),
            (Verdict::Succeeded, _) => Err(said_too_early()),
            (refused, owner) => Err(self.refused(&refused, owner)),
        }
    }

    /// Sends what is left of the input, each buffer only after all of it was found sound.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes are lost. The channel must be cut then.
    async fn send(&mut self) -> Result<()> {
        let mut turn = Turn::new();
        loop {
            self.shared.waits_for("more of the input");
            let (buffer, ended) = self.next_input().await?;
            self.shared.waits_for("the destination to take bytes");
            let end = if ended { InputEnd::Closed } else { InputEnd::Open };
            let Self { walk, cutter, .. } = self;
            let bytes = buffer.bytes();
            let mut consumed = 0;
            loop {
                let mut at = consumed;
                let walked = walk
                    .walk_while::<Error>(&bytes[consumed..], end, |piece| {
                        cutter.handle(&piece, at)?;
                        at += piece.bytes.len();
                        Ok(!turn.work(piece.cost()))
                    })
                    .map_err(|error| unsound(self.name, error))?;
                consumed += walked.consumed;
                if !turn.is_over() {
                    break;
                }
                turn.give_way().await;
            }
            for part in std::mem::take(&mut self.cutter.parts) {
                match part {
                    Part::Stored(place) => self.writer.write_all(&bytes[place]).await?,
                    Part::Ours(ours) => self.writer.write_all(&ours).await?,
                    Part::Window(window) => {
                        let (writer, listed) = (&mut self.writer, self.cutter.total);
                        if let Some(memory) = &mut self.memory {
                            memory
                                .window(writer, self.connector, window, listed, self.shared)
                                .await?;
                        }
                    }
                    Part::Verge => {
                        self.writer.flush().await?;
                        self.progress.reached_verge(&self.writer);
                    }
                }
                self.shared.statistics.transferred.set(self.sent());
            }
            self.input.used(buffer, consumed);
            self.writer.flush().await?;
            self.publish();
            if ended {
                // Only the verdict is missing now.
                return self.reached_device();
            }
        }
    }

    /// An input that gives nothing is silence too, and the destination is not to blame for it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    async fn next_input(&mut self) -> Result<(Buffer, bool)> {
        match &self.idle {
            Some(idle) => {
                let doing = format!("waiting for {} to give more of the stream", self.name);
                idle.attend(doing, self.input.next()).await
            }
            None => self.input.next().await,
        }
    }

    fn reached_device(&self) -> Result<()> {
        if self.shared.status() == MigrationStatus::Active {
            self.shared.source_event(SourceEvent::Converged)?;
        }
        Ok(())
    }

    fn publish(&self) {
        let statistics = &self.shared.statistics;
        let pages = self.pages();
        statistics.transferred.set(self.sent());
        statistics.normal.set(pages.normal + pages.xbzrle + pages.compressed);
        statistics.duplicate.set(pages.zero);
        statistics.total.set(self.cutter.total);
    }

    /// The destination did not take the guest, or nobody can know.
    fn refused(&self, verdict: &Verdict, owner: Owner) -> Error {
        let sent = self.writer.position();
        let how = match (verdict, owner) {
            (Verdict::Ended(end), Owner::Unknown) => return ended_by_whom(*end).at(sent),
            (Verdict::Failed(status), _) => format!("gave up (SHUT {status})"),
            (Verdict::Ended(_), _) => "closed the channel without a verdict".into(),
            (Verdict::Succeeded, _) => "contradicted itself".into(),
        };
        let section = match &self.cutter.section {
            Some(section) => format!(", at or before section \"{section}\""),
            None => String::new(),
        };
        let machine = self.cutter.machine.as_deref().unwrap_or("of an old machine type");
        let fits = format!(
            "it must have the same machine type ({machine}), memory size and devices as the guest in {}",
            self.name
        );
        let has_read = !matches!(verdict, Verdict::Ended(_));
        let what = match (sent, has_read) {
            (0, false) => format!(
                "the destination {how} before it was sent anything: look at its log; it {TURNS_AWAY}"
            ),
            (1..=UNREAD, false) => format!(
                "the destination {how} within the first {sent} bytes{section}, perhaps before it read any: look at its log; it \
                 {TURNS_AWAY}, or else {fits}"
            ),
            _ => format!(
                "the destination {how} within the first {sent} bytes{section}: look at its log; {fits}"
            ),
        };
        let error = Error::peer_incompatible(what).at(sent);
        // With data channels or memory of its own there is more that may not fit.
        if self.memory.is_some() { error } else { error.with_advice() }
    }
}

/// Why a destination hangs up without having read a byte, or a word about it.
const TURNS_AWAY: &str = "turns away who is not allowed (--allow, --tls-authz), and plain streams where it has TLS (tls-creds, \
                          --tls-creds)";
/// What the sockets between the ends may hold: so much may be sent to a destination that reads nothing.
const UNREAD: u64 = 16 << 20;

/// The input itself is at fault; the destination is not.
pub(super) fn unsound(name: &str, error: Error) -> Error {
    let what = format!("{name} cannot be sent: {error}");
    let position = error.position();
    let unsound = Error::new(error.blame(), what);
    match position {
        Some(position) => unsound.at(position),
        None => unsound,
    }
}
