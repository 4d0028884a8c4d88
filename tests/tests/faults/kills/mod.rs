//! Either end is killed (SIGKILL) at random moments, over every transport and in every mode, some hundreds of times in all:
//! the other one comes to an end and says why, no process is left, no file looks complete that is not, and the next run
//! removes what is left.
//!
//! ```text
//!   control ── nobody is killed; everything arrives, and takes so long ──▶ the span of the moments
//!      ▼
//!   pair ──▶ source    (mig send, or this binary with a small guest)    ┐  one of them is killed
//!        └─▶ destination (mig recv --save, or this binary)              ┘  at a random moment ──▶ judge ──▶ the next run
//! ```
//! `MIG_FAULTS_SEED` repeats a run: the same ends are killed at the same parts of their spans.

mod child;
mod disk;
mod joint;
mod live;
mod tool;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mig_tests::{
    process::{Process, SLOWNESS},
    scratch::Scratch,
};
use mig_transport_tls::trial;
use rustix::process::Signal;

use self::joint::Joint;
pub(crate) use self::{
    child::{END, end},
    disk::{FULL_DISKS, a_full_disk},
};
use crate::{
    cases::{End, Kind, long, only},
    judge::Word,
    mode::Mode,
    product,
    table::Tally,
    way::Way,
};

/// How long the survivor may take: its deadlines are shorter, and a dead peer is noticed at once.
const BOUND: Duration = Duration::from_secs(300 * SLOWNESS);
/// How long a destination waits for a source that was killed before it connected.
const ACCEPT: Duration = Duration::from_secs(6);
/// Any other wait of a survivor: only a command's may run out, see [`Joint::may_wait`].
const PATIENCE: Duration = Duration::from_secs(10);
/// By how much both are longer where the processor is emulated.
const SLOWLY: u32 = 4;
/// Stretches a migration of some 120 KiB to a quarter of a second.
const BYTES_PER_SEC: u32 = 512 << 10;
/// What a migration takes where the processor is emulated, more or less: its sample has no time for a control.
const SPAN_SLOWLY: Duration = Duration::from_secs(4);
/// The latest moment of a kill, in hundredths of the span: some come when all is over.
const LATEST: u64 = 115;
/// So many kills of one transport do not all come when all is over. Half as many may: an end alone takes milliseconds, and its
/// control, with others beside it, took longer.
const ENOUGH: usize = 12;
/// Cases under way at a time, and where the processor is emulated.
const AT_ONCE: [usize; 2] = [8, 2];

/// A generator that a seed repeats (splitmix64).
struct Dice(u64);

impl Dice {
    /// The same for the same case, whatever else is tried.
    fn of(seed: u64, way: Way, mode: Mode, case: usize) -> Self {
        let case = (way as u64) << 48 | (mode as u64) << 32 | case as u64;
        Self(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % sides
    }
}

/// The seed of this run, printed.
fn seed() -> u64 {
    let given = std::env::var("MIG_FAULTS_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.expect("after 1970").as_nanos() as u64
    });
    eprintln!("MIG_FAULTS_SEED={seed}");
    seed
}

/// What all cases need.
struct Kit {
    scratch: Scratch,
    /// The stream of a small guest.
    stream: Vec<u8>,
}

impl Kit {
    fn new() -> Self {
        let kit = Self { scratch: Scratch::new(), stream: crate::live::small_stream() };
        fs::write(kit.stored(), &kit.stream).expect("a file");
        trial::make(&kit.certificates(), &[], false).expect("a set of certificates");
        kit
    }

    fn stored(&self) -> PathBuf {
        self.scratch.path("stored")
    }

    fn certificates(&self) -> PathBuf {
        self.scratch.path("set")
    }
}

/// One thing to try: an end that is killed after this time, or nobody.
#[derive(Clone, Copy, Debug)]
struct Kill {
    end: End,
    after: Duration,
}

/// Kills ends over these transports: those of live migrations, or `mig send` and `mig recv --save`.
pub(crate) fn every(ways: &[Way], stored: bool) {
    let (seed, kit, only) = (seed(), Kit::new(), only());
    let mut combinations = product::killed(ways);
    combinations.retain(|(_, mode)| mode.is_stored() == stored);
    combinations.retain(|&(way, mode)| Tally::new(way, mode).name().contains(&only));
    // The lab has little time.
    let slow = ways.iter().any(|way| way.is_slow());
    let at_once = AT_ONCE[usize::from(slow)];
    let count = match (slow, long()) {
        (false, false) => 6,
        (false, true) => 24,
        (true, false) => 1,
        (true, true) => 6,
    };
    let spans = pool(at_once, combinations.len(), |index| {
        let (way, mode) = combinations[index];
        let control = match slow && !long() {
            true => Ok((Word::Arrived, [SPAN_SLOWLY; 2])),
            false => one(way, mode, &kit, None),
        };
        (index, control)
    });
    let mut tallies = BTreeMap::new();
    let mut cases = Vec::new();
    for (index, control) in spans {
        let (way, mode) = combinations[index];
        let mut tally = Tally::new(way, mode);
        match control {
            Ok((Word::Arrived, spans)) => {
                cases.extend((0..count).map(|case| (index, case, spans)));
            }
            Ok((word, _)) => tally.add_word(Kind::Killed, Err(format!("nobody killed: {word:?}"))),
            Err(why) => tally.add_word(Kind::Killed, Err(format!("nobody killed: {why}"))),
        }
        tallies.insert(index, tally);
    }
    // Cases of one combination lie apart, so that those that wait do not come together.
    cases.sort_by_key(|(index, case, _)| (*case, *index));
    let words = pool(at_once, cases.len(), |number| {
        let (index, case, spans) = cases[number];
        let (way, mode) = combinations[index];
        let mut dice = Dice::of(seed, way, mode, case);
        let end = if dice.roll(2) == 0 { End::Destination } else { End::Source };
        let part = dice.roll(LATEST * 10_000) as f64 / 1e6;
        let kill = Kill { end, after: spans[usize::from(end == End::Destination)].mul_f64(part) };
        let told = format!("MIG_FAULTS_SEED={seed}, case {case}: {end} after {:?}", kill.after);
        let word = one(way, mode, &kit, Some(kill)).map(|(word, _)| word);
        if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
            eprintln!("{}: {told}: {word:?}", Tally::new(way, mode).name());
        }
        (index, word.map_err(|why| format!("{told}: {why}")))
    });
    // The sample whose moments are not measured is too small to say.
    if count > 1 {
        demand_strikes(&combinations, &words, &mut tallies);
    }
    for (index, word) in words {
        tallies.get_mut(&index).expect("each has one").add_word(Kind::Killed, word);
    }
    Tally::conclude(tallies.into_values());
}

/// Of a transport's kills some must have come in time: if everything arrives, nothing was tried.
fn demand_strikes(
    combinations: &[(Way, Mode)],
    words: &[(usize, Result<Word, String>)],
    tallies: &mut BTreeMap<usize, Tally>,
) {
    let ways: BTreeMap<_, _> =
        words.iter().map(|(index, _)| (combinations[*index].0.name(), *index)).collect();
    for (name, first) in ways {
        let mut tried = words.iter().filter(|(index, _)| combinations[*index].0.name() == name);
        let enough = tried.clone().count() >= ENOUGH;
        if enough && tried.all(|(_, word)| matches!(word, Ok(Word::Arrived))) {
            let tally = tallies.get_mut(&first).expect("each has one");
            tally.add_word(Kind::Killed, Err(format!("{name}: no kill came before all was over")));
        }
    }
}

/// What `one` answers for each number, so many at a time.
fn pool<T: Send>(at_once: usize, count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(count) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let answer = one(number);
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                }
            });
        }
    });
    answers.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A word for the table, and how long the source and the destination took.
type Judged = Result<(Word, [Duration; 2]), String>;

/// What is wrong with an end that waited until its deadline, and need not have. On a machine without time to spare that may be
/// all that is wrong, so the same is tried again with longer waits.
const WAITED: &str = "a deadline was needed to end it";
const TIMES: [u32; 2] = [1, 3];

/// One migration, with somebody killed or not.
fn one(way: Way, mode: Mode, kit: &Kit, kill: Option<Kill>) -> Judged {
    let mut judged = Err(String::new());
    for times in TIMES {
        let joint = Joint::new(way, mode, kit, times);
        judged = match way.is_stored() {
            true => one_after_the_other(&joint, kill),
            false => both(&joint, kill),
        };
        judged = judged.and_then(|judged| joint.nobody_is_left().map(|()| judged));
        if !matches!(&judged, Err(why) if why.starts_with(WAITED)) {
            break;
        }
    }
    judged
}

/// Two processes at the same time.
fn both(joint: &Joint<'_>, kill: Option<Kill>) -> Judged {
    let [from, to] = joint.plugs();
    let mut destination = joint.start(End::Destination, to, Some(BYTES_PER_SEC));
    let from = from.at(joint.listening(&destination));
    let begun = Instant::now();
    let mut source = joint.start(End::Source, from, Some(BYTES_PER_SEC));
    if let Some(kill) = kill {
        std::thread::sleep(kill.after);
        let victim = match kill.end {
            End::Source => &mut source,
            End::Destination => &mut destination,
        };
        victim.signal(Signal::KILL);
        let _dead = victim.wait(BOUND);
    }
    for process in [&mut source, &mut destination] {
        process
            .ends_within(BOUND)
            .ok_or_else(|| format!("{}: no end: {}", process.name(), process.stderr().text()))?;
    }
    let span = begun.elapsed();
    let killed = kill.map(|kill| kill.end);
    let word = match joint.mode.is_stored() {
        true => tool::judge(joint, [&mut source, &mut destination], killed),
        false => live::judge(joint, [&mut source, &mut destination], killed),
    };
    Ok((word?, [span; 2]))
}

/// A source that writes a file, and the destination that reads it when that is done.
fn one_after_the_other(joint: &Joint<'_>, kill: Option<Kill>) -> Judged {
    let judge = match joint.mode.is_stored() {
        true => tool::judge_alone,
        false => live::judge_alone,
    };
    let mut spans = [Duration::ZERO; 2];
    let mut word = Word::Arrived;
    for (end, span) in [End::Source, End::Destination].into_iter().zip(&mut spans) {
        let begun = Instant::now();
        let process = alone(joint, end, kill)?;
        *span = begun.elapsed();
        word = judge(joint, process, end, kill)?;
        if kill.is_some_and(|kill| kill.end == end) {
            break;
        }
    }
    Ok((word, spans))
}

/// One end of a file, killed if it is its turn.
fn alone(joint: &Joint<'_>, end: End, kill: Option<Kill>) -> Result<Process, String> {
    let [from, to] = joint.plugs();
    let plug = if end == End::Source { from } else { to };
    let mut process = joint.start(end, plug, Some(BYTES_PER_SEC));
    if let Some(kill) = kill.filter(|kill| kill.end == end) {
        std::thread::sleep(kill.after);
        process.signal(Signal::KILL);
    }
    match process.ends_within(BOUND) {
        Some(_) => Ok(process),
        None => Err(format!("{end}: no end: {}", process.stderr().text())),
    }
}

/// Names in the directory of a case that belong neither to what is on its way nor to a FILE.
fn strangers(joint: &Joint<'_>, known: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names = joint.scratch.names();
    names.retain(|name| !joint.way.leaves(name) && !known(name));
    names
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
