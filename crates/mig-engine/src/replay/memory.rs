//! A stored stream's memory, for a transport that carries memory itself, or for data channels.
//!
//! ```text
//!   first reading:   records about pages ──▶ memory         (all of it is checked before anything is sent)
//!   second reading:  START ─ window ─ EOS                   PART: left out
//!                    END ─── window with every page ─ EOS                 everything else as it is stored
//! ```
//!
//! A window is HOOK and what follows it. Data channels carry every page between START and END, in sections of our own,
//! so that their number can grow; their windows are marks.
//!
//! It costs as much memory as the guest has. Each page is sent once, as it was last stored.

use std::{io::Read, sync::Arc};

use mig_proto::{
    Event, Name, Options, RamWord, SectionHeader, SectionKind, encode,
    multifd::{Dialect, SyncMode, ZeroPages},
};
use mig_ram::PAGE_SIZE;
use mig_stream::{IdleClock, StreamWriter};
use mig_transport::{Connector, WindowReason};
use tokio::sync::watch;

use crate::{
    error::{Error, Result},
    handle::Shared,
    held::{HeldMemory, Needed},
    hooks::Hooks,
    multifd::{Beside, Main},
    replay::{cutter::Window, input::InputReader, replayer::unsound},
    source::ram::RamSource,
    turn::Turn,
    walk::{InputEnd, StreamWalk},
};

/// The memory to be sent, and who takes it.
pub(super) struct StoredMemory {
    /// `None` if the stored stream has none; the connection may need its hooks all the same.
    ram: Option<RamSource>,
    carrier: Carrier,
    _needed: Option<Arc<Needed>>,
}

/// Who carries the pages.
enum Carrier {
    Hooks(Hooks),
    Data(Box<Beside>),
}

/// What the first reading found.
pub(super) struct Stored {
    pub(super) held: HeldMemory,
    machine: Option<Vec<u8>>,
    uuid: Option<[u8; 16]>,
}

/// Reads all of `input`, the memory into memory.
///
/// # Cancel safety
///
/// Cancel safe: nothing was sent.
pub(super) async fn load(
    input: Box<dyn Read + Send>,
    name: &str,
    options: &Options,
    limit: Option<u64>,
) -> Result<Stored> {
    let bytes = options.target_page_size.bytes();
    if bytes as usize != PAGE_SIZE {
        return Err(Error::misuse(format!(
            "pages of {bytes} bytes over data channels or a transport that carries memory itself: only pages of \
             {PAGE_SIZE} bytes can be held"
        )));
    }
    let mut input = InputReader::start(input, name.into())?;
    let mut walk = StreamWalk::new(options.clone());
    let mut stored = Stored { held: HeldMemory::new(limit), machine: None, uuid: None };
    let mut turn = Turn::new();
    loop {
        let (buffer, ended) = input.next().await?;
        let end = if ended { InputEnd::Closed } else { InputEnd::Open };
        let mut consumed = 0;
        loop {
            let walked = walk
                .walk_while::<Error>(&buffer.bytes()[consumed..], end, |piece| {
                    if let Some(event) = &piece.event {
                        stored.visit(event, piece.position)?;
                    }
                    Ok(!turn.work(piece.cost()))
                })
                .map_err(|error| unsound(name, error))?;
            consumed += walked.consumed;
            if !turn.is_over() {
                break;
            }
            turn.give_way().await;
        }
        input.used(buffer, consumed);
        if ended {
            return Ok(stored);
        }
    }
}

impl Stored {
    fn visit(&mut self, event: &Event<'_>, position: u64) -> Result<()> {
        refuse_host_pages(event, position)?;
        if let Event::Configuration(configuration) = event {
            self.machine = Some(configuration.machine().to_vec());
            self.uuid = configuration.uuid();
        }
        self.held.visit(event, position).map(drop)
    }
}

/// Words that only a destination in the same postcopy would expect.
fn refuse_host_pages(event: &Event<'_>, position: u64) -> Result<()> {
    let Event::BlockList { entries, .. } = event else { return Ok(()) };
    let Some(entry) = entries.iter().find(|entry| entry.host_page_size.is_some()) else {
        return Ok(());
    };
    Err(Error::peer_incompatible(format!(
        "byte {position} ({position:#x}): the block list gives a host page size for '{}': it was stored with postcopy-ram \
         on, which destinations refuse over data channels and over a transport that carries memory itself. Store it with \
         postcopy-ram off, or send it over a single channel of a transport that carries the stream alone",
        entry.name()
    ))
    .at(position))
}

impl StoredMemory {
    /// `held` is to be sent through `hooks`.
    pub(super) fn through_hooks(held: &HeldMemory, hooks: Hooks) -> Result<Self> {
        Ok(Self { ram: all_of(held)?, carrier: Carrier::Hooks(hooks), _needed: held.needed() })
    }

    /// What is `stored` is to be sent over data channels, as the parameters of `shared` say. `may_grow` is how the
    /// destination answers, where it can.
    pub(super) fn over_data_channels(
        stored: &Stored,
        uuid: Option<[u8; 16]>,
        shared: &Arc<Shared>,
        idle: Option<Arc<IdleClock>>,
        may_grow: Option<watch::Receiver<Option<bool>>>,
    ) -> Result<Self> {
        let Some(ram) = all_of(&stored.held)? else {
            return Err(Error::misuse(
                "the stored stream has no memory for data channels to carry",
            ));
        };
        // Without CONFIGURATION it comes from a machine older than any dialect.
        let dialect = stored.machine.as_deref().map_or(OLDEST, Dialect::of_machine);
        let uuid = uuid.or(stored.uuid);
        let beside = Beside::new(shared, &ram, dialect, uuid, idle, may_grow)?;
        let carrier = Carrier::Data(Box::new(beside));
        Ok(Self { ram: Some(ram), carrier, _needed: stored.held.needed() })
    }

    /// What is to be asked behind OPEN_RETURN_PATH.
    pub(super) fn question(&self, shared: &Shared) -> Vec<u8> {
        let mut question = Vec::new();
        if let Carrier::Data(beside) = &self.carrier {
            beside.ask(&shared.parameters(), &mut question);
        }
        question
    }

    /// Bytes that went over data channels.
    pub(super) fn bytes_out(&self) -> u64 {
        match &self.carrier {
            Carrier::Hooks(_) => 0,
            Carrier::Data(beside) => beside.bytes_out(),
        }
    }

    /// Carries what belongs where the stream is now. Every page goes within END through hooks, and in sections of our own
    /// before END over data channels.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channels must be cut.
    pub(super) async fn window(
        &mut self,
        out: &mut StreamWriter,
        connector: &dyn Connector,
        window: Window,
        listed: u64,
        shared: &Shared,
    ) -> Result<()> {
        let Self { ram: Some(ram), carrier, .. } = self else { return Ok(()) };
        if window == Window::Setup && listed != ram.total_bytes() {
            return Err(Error::misuse("the stored stream changed while it was read"));
        }
        match carrier {
            Carrier::Hooks(hooks) => match window {
                Window::BeforeStart | Window::BeforeEnd { .. } => Ok(()),
                Window::Setup => through_hooks(ram, hooks, out, WindowReason::Setup, shared).await,
                Window::Finish => {
                    through_hooks(ram, hooks, out, WindowReason::Finish, shared).await
                }
            },
            Carrier::Data(beside) => {
                let mut alarm = beside.alarm();
                let main = Main { out, ram, connector, shared };
                let carried = tokio::select! {
                    biased;
                    carried = over_channels(beside, main, window) => Some(carried),
                    // Whatever else is being waited for.
                    _failed = alarm.wait_for(|failed| *failed) => None,
                };
                match carried {
                    Some(carried) => carried,
                    None => Err(beside.failure().await),
                }
            }
        }
    }
}

async fn over_channels(beside: &mut Beside, mut main: Main<'_>, window: Window) -> Result<()> {
    match window {
        Window::BeforeStart => beside.open(&mut main).await,
        Window::Setup => beside.mark(main.out).await,
        Window::BeforeEnd { section_id } => beside_in_parts(beside, &mut main, section_id).await,
        Window::Finish => {
            // Nothing is left: only the sync that belongs to every END.
            beside.mark(main.out).await?;
            beside.end().await
        }
    }
}

/// Every page, in sections of our own.
async fn beside_in_parts(beside: &mut Beside, main: &mut Main<'_>, section_id: u32) -> Result<()> {
    loop {
        let mut head = Vec::with_capacity(8);
        let name = Name::new(b"ram").expect("three bytes");
        // A PART carries its kind and its id; the rest is START's.
        let header = SectionHeader {
            kind: SectionKind::Part,
            section_id,
            idstr: name,
            instance_id: 0,
            version_id: 4,
        };
        encode::section(&mut head, &header);
        main.out.write_all(&head).await?;
        let more = beside.part(main, SectionKind::Part).await?;
        let mut tail = RamWord::EOS.to_be_bytes().to_vec();
        tail.extend_from_slice(&encode::footer(section_id));
        main.out.write_all(&tail).await?;
        main.out.flush().await?;
        if !more {
            return Ok(());
        }
        beside.grow(main).await?;
    }
}

const OLDEST: Dialect = Dialect { sync: SyncMode::PerSection, zero_pages: ZeroPages::OnMain };

/// Every page of it is to be sent; `None` where there are none.
fn all_of(held: &HeldMemory) -> Result<Option<RamSource>> {
    let Some(memory) = held.memory() else { return Ok(None) };
    let mut ram = RamSource::new(Arc::clone(memory) as _)?;
    ram.all_unsent();
    Ok(Some(ram))
}

async fn through_hooks(
    ram: &mut RamSource,
    hooks: &mut Hooks,
    out: &mut StreamWriter,
    reason: WindowReason,
    shared: &Shared,
) -> Result<()> {
    let statistics = &shared.statistics;
    if reason == WindowReason::Setup {
        out.flush().await?;
        hooks.register(ram.hook_blocks()).await?;
    }
    hooks.open(out, reason).await?;
    if reason == WindowReason::Finish {
        while ram.offer_pages(out, hooks, statistics).await? {
            statistics.transferred.set(out.position() + out.counters().bytes_beside());
            statistics.remaining.set(ram.unsent_bytes());
        }
    }
    hooks.close(out, reason).await?;
    ram.put_refused(out, statistics).await
}
