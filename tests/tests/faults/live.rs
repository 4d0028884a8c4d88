//! A small guest migrates between two ends in this process, a batch of cases at a time.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mig::{
    engine::{Deadlines, Destination, Error, Outcome, Source, StreamWalk, walk_stored},
    proto::{Event, Options},
};
use mig_testkit::faults::{Faults, LinkFault};
use mig_tests::{process::SLOWNESS, scratch::Scratch};
use rustix::process::{Resource, Rlimit};
use tokio::task::LocalSet;

use crate::{
    cases::{self, Trouble},
    guest::{Life, SmallGuest, State, contents, devices, fill, memory},
    judge,
    leaks::Held,
    mode::Mode,
    product,
    rounds::{self, Judged},
    stored,
    table::Tally,
    way::Way,
};

/// Of all cases where the processor is emulated: each takes some half a second there, and a run of the lab ends after an hour.
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
        says: None,
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
    let mut tally = LocalSet::new().block_on(&runtime, async {
        // What is opened once in a process is open after this.
        let batch = Rc::new(Batch::counted(way, mode).await);
        let held = Held::now();
        let tally = batch.try_all().await;
        held.again().await;
        tally
    });
    drop(runtime);
    tally.demand(&product::kinds(way, mode), way.is_slow());
    Tally::conclude([tally]);
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
        let kinds = product::kinds(self.way, self.mode);
        let thin = self.way.thin(self.mode) * self.mode.thin();
        let mut troubles = cases::all(source, destination, &kinds, thin);
        if self.way.is_slow() {
            troubles = troubles.into_iter().step_by(SLOWLY_ONE_IN).collect();
        }
        let tally = Tally::new(self.way, self.mode);
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
            (judge::live(trouble, way, mode, &ended, verge), doubt)
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
