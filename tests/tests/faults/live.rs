//! A small guest migrates between two ends in this process, a batch of cases at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mig::{
    engine::{
        Capabilities, Deadlines, Destination, DeviceSection, Error, Guest, GuestError,
        MultifdCompression, Outcome, Parameters, Source, StreamWalk, walk_stored,
    },
    proto::{Event, Options, globalstate::RunState},
    ram::{GuestMemory, RamBlock, RamBlocks},
    transport::RegionSlice,
};
use mig_testkit::{
    faults::{Faults, FaultyConnector, FaultyListener, LinkFault},
    pattern,
};
use mig_tests::{process::SLOWNESS, scratch::Scratch};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
};

use crate::{
    cases::{self, End, Trouble},
    judge::{self, Word},
    leaks::Held,
    table::Tally,
    way::Way,
};

/// Cases under way at a time: most of them wait.
const AT_ONCE: usize = 64;
/// The longest an end may take; far beyond any deadline.
const HANG: Duration = Duration::from_secs(60 * SLOWNESS);
/// Bytes of an operation: not a divisor of anything, and small enough for some dozens of operations.
const PIECE: usize = 4093;

/// What a migration is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Plain,
    ReturnPath,
    Multifd,
    MultifdZlib,
}

impl Mode {
    /// As the table has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ReturnPath => "return path",
            Self::Multifd => "multifd, 2 channels",
            Self::MultifdZlib => "multifd, 2 channels, zlib",
        }
    }

    fn capabilities(self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.return_path = self != Self::Plain;
        capabilities.multifd = matches!(self, Self::Multifd | Self::MultifdZlib);
        capabilities
    }

    fn parameters(self) -> Parameters {
        let mut parameters = Parameters::default();
        if self == Self::MultifdZlib {
            parameters.multifd_compression = MultifdCompression::Zlib;
            parameters.multifd_zlib_level = Some(1);
        }
        parameters
    }
}

/// How long the waits of a case may be: all of them are cut short where something goes wrong.
fn deadlines(all: Duration) -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.first_byte = all;
    deadlines.idle = Some(all);
    deadlines.final_acknowledgement = all;
    deadlines.accept = Some(all);
    deadlines
}

/// What happened to a guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) stopped: bool,
    pub(crate) resumed: bool,
    pub(crate) started: bool,
    pub(crate) devices: Vec<DeviceSection>,
}

impl Life {
    pub(crate) fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A guest with two devices, which writes to its memory until it is stopped.
struct SmallGuest {
    life: Life,
    memory: Arc<RamBlocks>,
}

const PAGE: usize = 4096;
/// Pages of the main block; every third is zero.
const PAGES: usize = 36;
const ROM_PAGES: usize = 2;

fn memory() -> Arc<RamBlocks> {
    let ram = RamBlock::new("small.ram", (PAGES * PAGE) as u64).expect("a block");
    let rom = RamBlock::new("small.rom", (ROM_PAGES * PAGE) as u64).expect("a block");
    Arc::new(RamBlocks::new([ram, rom]).expect("blocks"))
}

fn pages(memory: &RamBlocks, block: usize, first: usize, count: usize) -> RegionSlice {
    let block = memory.block(block).expect("it exists");
    block.slice((first * PAGE) as u64, count * PAGE).expect("within it")
}

fn fill(memory: &RamBlocks) {
    for page in (0..PAGES).filter(|page| page % 3 != 0) {
        pattern::fill(&pages(memory, 0, page, 1), page as u64);
    }
    pattern::fill(&pages(memory, 1, 0, ROM_PAGES), 1000);
}

pub(crate) fn contents(memory: &RamBlocks) -> Vec<u8> {
    let mut all = Vec::new();
    for (block, count) in [(0, PAGES), (1, ROM_PAGES)] {
        let mut bytes = vec![0; count * PAGE];
        pages(memory, block, 0, count).copy_out(&mut bytes);
        all.extend(bytes);
    }
    all
}

fn devices() -> Vec<DeviceSection> {
    ["clock", "disk"]
        .map(|idstr| DeviceSection {
            idstr: idstr.into(),
            instance_id: 0,
            version_id: 3,
            payload: idstr.repeat(20).into_bytes(),
        })
        .into()
}

impl Guest for SmallGuest {
    fn machine_type(&self) -> String {
        "small-1.0".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        // Its last words: pages that are sent already, and one that was zero.
        for page in [1, 2, 3, 20] {
            pattern::fill(&pages(&self.memory, 0, page, 1), 500 + page as u64);
        }
        self.life.change(|state| state.stopped = true);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.life.change(|state| state.resumed = true);
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        Ok(devices())
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        self.life.change(|state| state.devices.push(section.clone()));
        Ok(())
    }

    fn start(&mut self, _state: RunState) -> Result<(), GuestError> {
        self.life.change(|state| state.started = true);
        Ok(())
    }
}

/// What became of a migration.
pub(crate) struct Ended {
    pub(crate) sent: Result<Outcome, Error>,
    pub(crate) received: Result<Outcome, Error>,
    pub(crate) source: State,
    pub(crate) destination: State,
    /// Whether memory and devices are the same at both ends.
    pub(crate) same: bool,
    /// What the source's transport did, and the destination's.
    pub(crate) faults: [Faults; 2],
}

/// One migration. Each end lets go of its transport as soon as it is done, as two processes would.
async fn migrate(
    way: Way,
    mode: Mode,
    patience: Duration,
    scratch: &Scratch,
    mut faults: [Faults; 2],
    link: LinkFault,
) -> Ended {
    let ends = way.ends(scratch.root(), patience, &link).await;
    if let Some(link) = &ends.link {
        faults = faults.map(|faults| faults.with_link(link));
    }
    let connector = FaultyConnector::new(ends.connector, &faults[0]);
    let mut listener = FaultyListener::new(ends.listener, &faults[1]);
    let memories = [memory(), memory()];
    fill(&memories[0]);
    let lives = [Life::default(), Life::default()];
    let guest =
        |end: usize| SmallGuest { life: lives[end].clone(), memory: Arc::clone(&memories[end]) };
    let mut source = Source::new(memories[0].clone(), Box::new(guest(0)))
        .with_capabilities(mode.capabilities())
        .with_parameters(mode.parameters())
        .with_deadlines(deadlines(patience));
    let mut destination = Destination::new(memories[1].clone(), Box::new(guest(1)))
        .with_capabilities(mode.capabilities())
        .with_parameters(mode.parameters())
        .with_deadlines(deadlines(patience));
    let sending = async move {
        let sent = source.run(&connector).await;
        drop(connector);
        sent
    };
    let receiving = async move {
        let received = destination.run(&mut listener).await;
        drop(listener);
        received
    };
    let (sent, received) = tokio::join!(sending, receiving);
    drop(ends.link);
    let [source, destination] = lives.map(|life| life.state());
    let same = contents(&memories[0]) == contents(&memories[1]) && destination.devices == devices();
    Ended { sent, received, source, destination, same, faults }
}

/// Counts, tries everything, and looks what is left behind.
pub(crate) fn batch(way: Way, mode: Mode) {
    let _alone = crate::leaks::alone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tally = LocalSet::new().block_on(&runtime, async {
        // What is opened once in a process is open after this.
        let counted = count(way, mode).await;
        let held = Held::now();
        let tally = try_all(way, mode, &counted).await;
        held.again().await;
        tally
    });
    drop(runtime);
    tally.conclude();
}

/// A migration without faults, which must succeed.
async fn count(way: Way, mode: Mode) -> [Faults; 2] {
    let scratch = Scratch::new();
    let faults = [(); 2].map(|()| Faults::recording().in_pieces(PIECE));
    let ended = migrate(way, mode, HANG, &scratch, faults, LinkFault::None).await;
    ended.sent.expect("nothing went wrong");
    ended.received.expect("nothing went wrong");
    assert!(ended.same, "both ends have the same");
    assert_eq!(scratch.names(), Vec::<String>::new(), "files are left");
    ended.faults
}

async fn try_all(way: Way, mode: Mode, counted: &[Faults; 2]) -> Tally {
    let troubles = cases::all(&counted[0], &counted[1], way.has_link());
    let verge = verge(&counted[0].recorded()[&0]);
    let tally = Arc::new(Mutex::new(Tally::new(way.name(), mode.name())));
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for trouble in troubles {
        let permit = Arc::clone(&room).acquire_owned().await.expect("never closed");
        let tally = Arc::clone(&tally);
        running.spawn_local(async move {
            let word = one(way, mode, &trouble, verge).await;
            tally.lock().unwrap_or_else(PoisonError::into_inner).add(&trouble, word);
            drop(permit);
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("a case does not panic");
    }
    Arc::into_inner(tally)
        .expect("all cases are over")
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a main channel without which no destination can have everything: up to the end of the items.
fn verge(stream: &[u8]) -> u64 {
    let mut verge = None;
    let mut walk = StreamWalk::new(Options::default());
    let walked = walk_stored::<Box<dyn std::error::Error>>(&mut walk, stream, |piece| {
        if matches!(piece.event, Some(Event::Eof { .. })) {
            verge = Some(piece.position + piece.bytes.len() as u64);
        }
        Ok(())
    });
    walked.expect("a sound stream");
    verge.expect("a stream ends")
}

async fn one(way: Way, mode: Mode, trouble: &Trouble, verge: u64) -> Result<Word, String> {
    let scratch = Scratch::new();
    let faults = [End::Source, End::Destination].map(|end| trouble.of(end).in_pieces(PIECE));
    let patience = judge::patience(trouble);
    let begun = std::time::Instant::now();
    let migration = migrate(way, mode, patience, &scratch, faults, trouble.link());
    let ended = tokio::time::timeout(HANG, migration)
        .await
        .map_err(|_| format!("hung: no end within {HANG:?}"))?;
    if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
        eprintln!("{:?} {trouble}", begun.elapsed());
    }
    let word = judge::live(trouble, mode, &ended, verge)?;
    match scratch.names() {
        left if trouble.link_leaves(&left) => Ok(word),
        left => Err(format!("files are left: {left:?}")),
    }
}
