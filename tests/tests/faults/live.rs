//! A small guest migrates between two ends in this process, a batch of cases at a time.

use std::{
    io::Write,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
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
    faults::{Faults, LinkFault},
    pattern,
};
use mig_tests::{process::SLOWNESS, scratch::Scratch};
use rustix::process::{Resource, Rlimit};
use tokio::task::LocalSet;

use crate::{
    cases::{self, Trouble},
    judge,
    leaks::Held,
    rounds::{self, Judged},
    stored,
    table::Tally,
    way::Way,
};

/// Of all cases where the processor is emulated: all of them take ten minutes there.
const SLOWLY_ONE_IN: usize = 7;
/// Descriptors that so many may have open.
const DESCRIPTORS: u64 = 8192;
/// The longest an end may take; far beyond any deadline.
const HANG: Duration = Duration::from_secs(120 * SLOWNESS);
/// What TLS adds to the bytes behind the items (an alert of 24 bytes, 22 bytes a record), and by how much two of its
/// handshakes differ: signatures of some bytes more or less.
const FRAMING: u64 = 128;
/// Bytes of an operation: not a divisor of anything, and small enough for some dozens of operations.
pub(crate) const PIECE: usize = 4093;

/// What a migration is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Plain,
    ReturnPath,
    Multifd,
    MultifdZlib,
    Tls,
    TlsMultifd,
    /// A stored stream is replayed and recorded.
    Stored,
    StoredMultifd,
}

impl Mode {
    /// As the table has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ReturnPath => "return path",
            Self::Multifd => "multifd, 2 channels",
            Self::MultifdZlib => "multifd, 2 channels, zlib",
            Self::Tls => "TLS, return path",
            Self::TlsMultifd => "TLS, multifd, 2 channels",
            Self::Stored => "send to recv --save",
            Self::StoredMultifd => "send to recv --save, multifd, 2 channels",
        }
    }

    /// How much the sample of cases is thinned out where there are many bytes.
    fn thin(self) -> u64 {
        match self {
            Self::Plain | Self::ReturnPath => 1,
            Self::Stored | Self::Tls => 2,
            Self::Multifd => 3,
            Self::MultifdZlib | Self::StoredMultifd => 6,
            Self::TlsMultifd => 8,
        }
    }

    pub(crate) fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsMultifd)
    }

    pub(crate) fn has_data_channels(self) -> bool {
        matches!(self, Self::Multifd | Self::MultifdZlib | Self::TlsMultifd | Self::StoredMultifd)
    }

    /// The same without TLS, if it has any.
    fn without_tls(self) -> Option<Self> {
        match self {
            Self::Tls => Some(Self::ReturnPath),
            Self::TlsMultifd => Some(Self::Multifd),
            _ => None,
        }
    }

    fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::StoredMultifd)
    }

    fn capabilities(self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.return_path = self != Self::Plain;
        capabilities.multifd = matches!(self, Self::Multifd | Self::MultifdZlib | Self::TlsMultifd);
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
pub(crate) fn deadlines(all: Duration) -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.first_byte = all;
    deadlines.idle = Some(all);
    deadlines.final_acknowledgement = all;
    deadlines.accept = Some(all);
    deadlines.storage = all;
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
    /// Says what happens to it.
    talks: bool,
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
        if self.talks {
            say("guest started");
        }
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
    faults: [Faults; 2],
    link: LinkFault,
) -> Ended {
    let (ends, faults) = way.faulty(scratch.root(), mode, patience, faults, &link).await;
    let (connector, mut listener) = (ends.connector, ends.listener);
    let memories = [memory(), memory()];
    fill(&memories[0]);
    let lives = [Life::default(), Life::default()];
    let guest = |end: usize| SmallGuest {
        life: lives[end].clone(),
        memory: Arc::clone(&memories[end]),
        talks: false,
    };
    let mut source = Source::new(memories[0].clone(), Box::new(guest(0)))
        .with_capabilities(mode.capabilities())
        .with_parameters(mode.parameters())
        .with_deadlines(deadlines(patience));
    let mut destination = Destination::new(memories[1].clone(), Box::new(guest(1)))
        .with_capabilities(mode.capabilities())
        .with_parameters(mode.parameters())
        .with_deadlines(deadlines(patience));
    let sending = async move {
        let sent = source.run(&*connector).await;
        drop(connector);
        sent
    };
    let receiving = async move {
        let received = destination.run(&mut *listener).await;
        drop(listener);
        received
    };
    let (sent, received) = match way.is_stored() {
        true => (sending.await, receiving.await),
        false => tokio::join!(sending, receiving),
    };
    drop(ends.link);
    let [source, destination] = lives.map(|life| life.state());
    let same = contents(&memories[0]) == contents(&memories[1]) && destination.devices == devices();
    Ended { sent, received, source, destination, same, faults }
}

/// Counts, tries everything, and looks what is left behind.
pub(crate) fn batch(way: Way, mode: Mode) {
    let _alone = crate::leaks::alone();
    if !way.is_here() {
        return;
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_some_and(|now| now < wanted) {
        let more = Rlimit { current: Some(wanted), ..limit };
        rustix::process::setrlimit(Resource::Nofile, more).expect("within the hard limit");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tally = LocalSet::new().block_on(&runtime, async {
        // What is opened once in a process is open after this.
        let batch = Rc::new(Batch::counted(way, mode).await);
        let held = Held::now();
        let tally = batch.try_all().await;
        held.again().await;
        tally
    });
    drop(runtime);
    tally.conclude();
}

/// One transport in one mode.
pub(crate) struct Batch {
    pub(crate) way: Way,
    mode: Mode,
    /// What both ends did without faults.
    counted: [Faults; 2],
    /// The stream of a plain migration.
    stream: Arc<Vec<u8>>,
    /// The bytes of a main channel without which no destination can have everything.
    verge: u64,
}

impl Batch {
    /// A migration without faults, which must succeed.
    async fn counted(way: Way, mode: Mode) -> Self {
        let faults = || [(); 2].map(|()| Faults::recording().in_pieces(PIECE));
        let scratch = Scratch::new();
        let plain = if mode.is_stored() { Mode::Plain } else { mode };
        let ended = migrate(way, plain, HANG, &scratch, faults(), LinkFault::None).await;
        ended.sent.expect("nothing went wrong");
        ended.received.expect("nothing went wrong");
        assert!(ended.same, "both ends have the same");
        let mut counted = ended.faults;
        // TLS has more bytes than the stream in it.
        let stream = match mode.has_tls() {
            true => Vec::new(),
            false => counted[0].recorded()[&0].clone(),
        };
        let stream = Arc::new(stream);
        if mode.is_stored() {
            let scratch = Scratch::new();
            let input = Arc::clone(&stream);
            let none = LinkFault::None;
            let ended = stored::replay(way, mode, HANG, &scratch, faults(), none, input).await;
            ended.sent.expect("nothing went wrong");
            ended.kept.expect("nothing went wrong");
            counted = ended.faults;
        }
        let verge = match mode.without_tls() {
            Some(plain) => ciphertext_verge(way, plain, &counted[0]).await,
            None => verge(&counted[0].recorded()[&0]),
        };
        Self { way, mode, counted, stream, verge }
    }

    async fn try_all(self: Rc<Self>) -> Tally {
        let [source, destination] = &self.counted;
        let thin = self.way.thin() * self.mode.thin();
        let (has_link, has_tls) = (self.way.has_link(), self.mode.has_tls());
        let mut troubles = cases::all(source, destination, has_link, has_tls, thin);
        if self.way.is_slow() && !cases::long() {
            troubles = troubles.into_iter().step_by(SLOWLY_ONE_IN).collect();
        }
        let tally = Tally::new(self.way.name(), self.mode.name());
        rounds::all(&self, troubles, tally).await
    }

    /// One case, with so many times the shortest waits.
    pub(crate) async fn one(&self, trouble: &Trouble, faults: &[Faults; 2], times: u32) -> Judged {
        let scratch = Scratch::new();
        let tried = tokio::time::timeout(HANG, self.try_one(trouble, faults, times, &scratch));
        let judged = match tried.await {
            Ok((Err(why), doubt)) => return (Err(why), doubt),
            Ok(judged) => judged,
            Err(_) => return (Err(format!("hung: no end within {HANG:?}")), None),
        };
        // What a thread that was left behind takes away is gone in a moment.
        let mut left = scratch.names();
        for _ in 0..100 {
            left.retain(|name| !self.may_stay(trouble, name));
            if left.is_empty() {
                return judged;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            left = scratch.names();
        }
        (Err(format!("files are left: {left:?}")), None)
    }

    fn may_stay(&self, trouble: &Trouble, name: &str) -> bool {
        self.way.leaves(name)
            || trouble.leaves(name)
            || (self.mode.is_stored() && name == stored::FILE)
    }

    async fn try_one(
        &self,
        trouble: &Trouble,
        faults: &[Faults; 2],
        times: u32,
        scratch: &Scratch,
    ) -> Judged {
        let Self { way, mode, verge, .. } = *self;
        let (patience, link) = (times * judge::patience(trouble, way, mode), trouble.link());
        let begun = Instant::now();
        let judged = if mode.is_stored() {
            let (input, faults) = (Arc::clone(&self.stream), faults.clone());
            let ended = stored::replay(way, mode, patience, scratch, faults, link, input).await;
            let [sent, kept] = [ended.sent.as_ref().err(), ended.kept.as_ref().err()];
            let doubt = judge::doubt(trouble, way, mode, &ended.faults, sent, kept);
            (stored::judge(trouble, mode, &ended, scratch, &self.stream, verge), doubt)
        } else {
            let ended = migrate(way, mode, patience, scratch, faults.clone(), link).await;
            let [sent, received] = [ended.sent.as_ref().err(), ended.received.as_ref().err()];
            let doubt = judge::doubt(trouble, way, mode, &ended.faults, sent, received);
            (judge::live(trouble, mode, &ended, verge), doubt)
        };
        if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
            eprintln!("{:?} {trouble} {:?}", begun.elapsed(), judged.1);
        }
        judged
    }
}

/// The stream of a small guest, as a file has it.
pub(crate) fn small_stream() -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (scratch, faults) = (Scratch::new(), [(); 2].map(|()| Faults::recording()));
        let none = LinkFault::None;
        let ended = migrate(Way::FdPipe, Mode::Plain, HANG, &scratch, faults, none).await;
        ended.received.expect("nothing went wrong");
        ended.faults[0].recorded()[&0].clone()
    })
}

/// One end in a process of its own, which somebody kills: says on stdout what happens to it.
pub(crate) fn end(which: &str, uri: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let memory = memory();
    let guest = SmallGuest { life: Life::default(), memory: Arc::clone(&memory), talks: true };
    let patience = Duration::from_secs(20 * SLOWNESS);
    let mut parameters = Parameters::default();
    // A quarter of a second.
    parameters.max_bandwidth = 512 << 10;
    let address = uri.parse().expect("an address");
    let outcome = runtime.expect("a runtime").block_on(async {
        if which == "source" {
            fill(&memory);
            let connector = mig::connector(&address, &Default::default()).expect("an address");
            let mut source = Source::new(memory, Box::new(guest))
                .with_parameters(parameters)
                .with_deadlines(deadlines(patience));
            source.run(&*connector).await
        } else {
            let listener = mig::listener(&address, &Default::default()).await;
            say("listening");
            let mut destination =
                Destination::new(memory, Box::new(guest)).with_deadlines(deadlines(patience));
            destination.run(&mut *listener.expect("it listens")).await
        }
    });
    match outcome {
        Ok(_) => say("ended: completed"),
        Err(error) => say(&format!("ended: owner {:?}: {}", error.owner(), judge::chain(&error))),
    }
}

/// A line at once, whatever becomes of this process.
fn say(what: &str) {
    let line = format!("\n{what}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("somebody reads");
}

/// The least ciphertext of a main channel with every item in it: what follows the items in a migration without TLS, and
/// some records' framing, may be missing.
async fn ciphertext_verge(way: Way, plain: Mode, with_tls: &Faults) -> u64 {
    let (scratch, faults) =
        (Scratch::new(), [(); 2].map(|()| Faults::recording().in_pieces(PIECE)));
    let ended = migrate(way, plain, HANG, &scratch, faults, LinkFault::None).await;
    ended.received.expect("nothing went wrong");
    let stream = &ended.faults[0].recorded()[&0];
    let verge = verge(stream);
    let behind = stream.len() as u64 - verge;
    let least = with_tls.written()[&0].saturating_sub(behind + FRAMING);
    assert!(least >= verge, "ciphertext is longer: {least} and {verge}");
    least
}

/// Where the items of a stream end.
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
