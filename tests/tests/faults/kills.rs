//! Either end is killed (SIGKILL) at random moments, some hundreds of times: the other one comes to an end and says why,
//! no file looks complete that is not, and the next run removes what is left.
//!
//! `MIG_FAULTS_SEED` repeats a run: the same ends are killed after the same times.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use mig::engine::{StreamWalk, walk_stored};
use mig::proto::{Options, Presence};
use mig_tests::{
    mig::{Mig, command},
    process::{Process, SLOWNESS},
    scratch::Scratch,
};
use rustix::{fs::FlockOperation, process::Signal};

use crate::{live, table::Tally};

/// How long the survivor may take: its deadlines are those of the tool, but a dead peer is noticed at once.
const BOUND: Duration = Duration::from_secs(60 * SLOWNESS);
/// Stretches a migration of some 120 KiB to a quarter of a second.
const SLOWLY: &str = "512KiB";
/// The latest moment of a kill: some come when all is over.
const WINDOW_US: u64 = 450_000;
/// Cases under way at a time.
const AT_ONCE: usize = 6;

/// A generator that a seed repeats (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    fn of(seed: u64, case: usize) -> Self {
        Self(seed ^ (case as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
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

/// Runs `one` for each number, some at a time; its answer is a word for the table, or what is wrong.
fn all(
    count: usize,
    mode: &'static str,
    one: impl Fn(&mut Dice) -> Result<&'static str, String> + Sync,
) {
    let seed = seed();
    let tally = Mutex::new(Tally::new("unix", mode));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let case = next.fetch_add(1, Ordering::Relaxed);
                    if case >= count {
                        return;
                    }
                    let word = one(&mut Dice::of(seed, case))
                        .map_err(|why| format!("MIG_FAULTS_SEED={seed}, case {case}: {why}"));
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.add_word("killed (SIGKILL)", word);
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner).conclude();
}

/// How often, at each of both places.
fn count(short: usize) -> usize {
    if crate::cases::long() { 4 * short } else { short }
}

// ---- the tool ----

/// `mig send` and `mig recv --save`.
pub(crate) fn the_tool() {
    let kept = Scratch::new();
    let stored = kept.path("stored");
    let stream = live::small_stream();
    fs::write(&stored, &stream).expect("a file");
    all(count(160), "mig send to mig recv --save", |dice| one_pair(dice, &stored, &stream));
}

fn one_pair(dice: &mut Dice, stored: &Path, stream: &[u8]) -> Result<&'static str, String> {
    let scratch = Scratch::new();
    let (kills_recv, after) = (dice.roll(2) == 0, dice.roll(WINDOW_US));
    let what = format!("{} after {after} us", if kills_recv { "recv" } else { "send" });
    // A sender that is killed before it connects never comes.
    let mut recv = receiver(&scratch, "15s");
    let _uri = recv.listening();
    let mut send = sender(&scratch, stored, Some(SLOWLY));
    std::thread::sleep(Duration::from_micros(after));
    let (victim, survivor) = match kills_recv {
        true => (&mut recv, &mut send),
        false => (&mut send, &mut recv),
    };
    victim.process.signal(Signal::KILL);
    let _dead = victim.wait();
    let ended = ends(&mut survivor.process).map_err(|why| format!("{what}: {why}"))?;
    let wrong = |why: &str| Err(format!("{what}: {why}; {} files", scratch.names().join(", ")));

    let file = scratch.path("FILE");
    let whole = match fs::read(&file) {
        Ok(kept) if is_whole(&kept) && kept == stream => true,
        Ok(_) => return wrong("FILE looks complete and is not"),
        Err(_) => false,
    };
    // The one exception: it has everything, and could not say so.
    let untold = survivor.process.stderr().text().contains("could not be told");
    if !kills_recv && ended.success() != (whole && !untold) {
        return wrong("recv's exit code and its file differ");
    }
    if kills_recv && ended.success() && !whole {
        return wrong("send was told that it is kept, and it is not");
    }
    let stray = |name: &String| name != "FILE" && name != "s" && !is_leftover(name);
    if scratch.names().iter().any(stray) {
        return wrong("something is left that nobody can know");
    }
    if !kills_recv && scratch.names().iter().any(|name| name != "FILE") {
        return wrong("recv was not killed, and left something");
    }
    if kills_recv {
        next_run(&scratch, stored, stream, recv.process.id())
            .map_err(|why| format!("{what}: the next run: {why}"))?;
    }
    Ok(match (whole, ended.success()) {
        (true, true) => "arrived whole",
        (true, false) => "failed, owner unknown",
        (false, _) => "failed, guest at its source",
    })
}

/// What a killed receiver left is removed, what a living one has is not.
fn next_run(scratch: &Scratch, stored: &Path, stream: &[u8], dead: u32) -> Result<(), String> {
    let left = scratch.path(&format!(".FILE.{dead}.mig-partial"));
    fs::write(&left, &stream[..stream.len() / 2]).expect("a file");
    let alive = scratch.path(&format!(".FILE.{}.mig-partial", std::process::id()));
    let held = File::create(&alive).expect("a file");
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    let mut recv = receiver(scratch, "60s");
    let _uri = recv.listening();
    let mut send = sender(scratch, stored, None);
    let (sent, kept) = (ends(&mut send.process)?, ends(&mut recv.process)?);
    if !(sent.success() && kept.success()) {
        return Err(format!("it failed: {sent}, {kept}: {}", recv.process.stderr().text()));
    }
    if fs::read(scratch.path("FILE")).ok().as_deref() != Some(stream) {
        return Err("another file".into());
    }
    if left.exists() {
        return Err("a dead process's temporary is still there".into());
    }
    if !alive.exists() {
        return Err("a living process's temporary is gone".into());
    }
    fs::remove_file(&alive).expect("it is there");
    match scratch.names() {
        names if names == ["FILE"] => Ok(()),
        names => Err(format!("files are left: {names:?}")),
    }
}

fn receiver(scratch: &Scratch, timeout: &str) -> Mig {
    let uri = format!("unix:{}", scratch.path("s").display());
    let file = scratch.path("FILE").display().to_string();
    Mig::start("recv", &["recv", &uri, "--save", &file, "--timeout", timeout])
}

fn sender(scratch: &Scratch, stored: &Path, bandwidth: Option<&str>) -> Mig {
    let uri = format!("unix:{}", scratch.path("s").display());
    let stored = stored.display().to_string();
    let mut words = vec!["send", &stored, &uri];
    words.extend(bandwidth.iter().flat_map(|rate| ["--max-bandwidth", *rate]));
    Mig::start("send", &words)
}

/// Bounded, and with a word if it failed.
fn ends(process: &mut Process) -> Result<ExitStatus, String> {
    let name = process.name().to_owned();
    let status = process.ends_within(BOUND).ok_or_else(|| format!("{name}: no end"))?;
    let words = process.stderr().all(BOUND);
    match status.code() {
        Some(0) => Ok(status),
        Some(_) if !words.trim().is_empty() && !words.contains("panicked") => Ok(status),
        _ => Err(format!("{name} ended with {status}: {words:?}")),
    }
}

fn is_leftover(name: &str) -> bool {
    let middle = name.strip_prefix(".FILE.").and_then(|rest| rest.strip_suffix(".mig-partial"));
    middle.is_some_and(|middle| middle.split('.').all(|part| part.parse::<u32>().is_ok()))
}

fn is_whole(stream: &[u8]) -> bool {
    let mut options = Options::default();
    options.configuration = Presence::IfPresent;
    let mut walk = StreamWalk::new(options);
    walk_stored::<Box<dyn std::error::Error>>(&mut walk, stream, |_| Ok(())).is_ok()
}

// ---- live ends, each in a process of its own ----

/// Says in this process's environment that it is to be an end.
pub(crate) const END: &str = "MIG_FAULTS_END";

/// A live source and a live destination.
pub(crate) fn live_ends() {
    all(count(120), "live, return path", one_live_pair);
}

fn one_live_pair(dice: &mut Dice) -> Result<&'static str, String> {
    let scratch = Scratch::new();
    let (kills_source, after) = (dice.roll(2) == 0, dice.roll(WINDOW_US));
    let what = format!("{} after {after} us", if kills_source { "source" } else { "destination" });
    let uri = format!("unix:{}", scratch.path("s").display());
    let mut destination = end("destination", &uri);
    let said = |process: &Process, word: &str| process.stdout().text().contains(word);
    destination
        .stdout()
        .wait_for("`listening`", BOUND, |line| line.contains("listening").then_some(()));
    let mut source = end("source", &uri);
    std::thread::sleep(Duration::from_micros(after));
    let (victim, survivor) = match kills_source {
        true => (&mut source, &mut destination),
        false => (&mut destination, &mut source),
    };
    victim.signal(Signal::KILL);
    let _dead = victim.wait(BOUND);
    let Some(status) = survivor.ends_within(BOUND) else {
        return Err(format!("{what}: no end: {}", survivor.stdout().text()));
    };
    let words = survivor.stdout().all(BOUND);
    let _all = victim.stdout().all(BOUND);
    if !status.success() || !words.contains("ended") {
        return Err(format!("{what}: ended with {status}: {words}; {}", survivor.stderr().text()));
    }
    // What somebody said before it was killed counts.
    if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
        eprintln!("{what}: {:?} / {:?}", source.stdout().text(), destination.stdout().text());
    }
    let started = said(&destination, "guest started");
    let keeps = said(&source, "owner Source");
    if started && keeps {
        let (here, there) = (source.stdout().text(), destination.stdout().text());
        return Err(format!("{what}: two owners: {here}; {there}"));
    }
    // A destination that was killed may have said yes a moment before it would have started its guest.
    if said(&source, "ended: completed") && !started && kills_source {
        return Err(format!("{what}: confirmed, and it was not started"));
    }
    if let Some(name) = scratch.names().into_iter().find(|name| name != "s") {
        return Err(format!("{what}: {name} is left"));
    }
    if !kills_source && !scratch.names().is_empty() {
        // A killed listener's socket is stale: the next one takes its place.
        let mut next = end("destination", &uri);
        next.stdout()
            .wait_for("`listening`", BOUND, |line| line.contains("listening").then_some(()));
        next.signal(Signal::KILL);
    }
    Ok(match () {
        () if started => "arrived whole",
        () if keeps => "failed, guest at its source",
        // Of a killed source nobody knows but the destination: it has nothing.
        () if kills_source => "failed, guest at its source",
        () => "failed, owner unknown",
    })
}

/// This binary again, as one end.
fn end(which: &str, uri: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", "an_end_in_a_process_of_its_own", "--nocapture", "--test-threads=1"])
        .env(END, format!("{which} {uri}"))
        .stdin(Stdio::null());
    Process::start(which, command, true)
}

// ---- a full disk ----

/// A disk of some pages, in a namespace of its own.
pub(crate) fn a_full_disk() {
    let kept = Scratch::new();
    let stored = kept.path("stored");
    let stream = live::small_stream();
    fs::write(&stored, &stream).expect("a file");
    let may = Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "none", &kept.root().display().to_string()])
        .output();
    if !may.as_ref().is_ok_and(|tried| tried.status.success()) {
        let why = may.map_or_else(
            |error| error.to_string(),
            |tried| String::from_utf8_lossy(&tried.stderr).into_owned(),
        );
        return mig_tests::report::not_applicable("network-namespace", &why);
    }
    let mut tally = Tally::new("unix", "mig send to mig recv --save");
    let mut file = Tally::new("file", "mig send to file:");
    for kib in [4, 16, 64, 100, 120] {
        tally.add_word("full disk (ENOSPC)", full_recv(&stored, kib));
        file.add_word("full disk (ENOSPC)", full_file(&stored, kib));
    }
    tally.conclude();
    file.conclude();
}

/// Mounts a disk of `kib` KiB on DISK and runs `words` there; what is in the disk then is on stdout.
fn on_a_disk(disk: &Path, kib: u32, words: &[&str]) -> Process {
    let script = "mount -t tmpfs -o size=\"$1\"k none \"$2\" || exit 99; disk=$2; shift 2; \
                  \"$@\"; code=$?; ls -A \"$disk\"; \
                  if [ -e \"$disk/out\" ]; then \"$1\" inspect \"$disk/out\" >/dev/null 2>&1; \
                  echo \"inspect $?\"; fi; exit $code";
    let tool = command(&[]);
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c", script, "sh", &kib.to_string()])
        .arg(disk)
        .arg(tool.get_program())
        .args(words)
        .stdin(Stdio::null());
    Process::start("on a small disk", command, true)
}

fn full_recv(stored: &Path, kib: u32) -> Result<&'static str, String> {
    let scratch = Scratch::new();
    let disk = scratch.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let uri = format!("unix:{}", scratch.path("s").display());
    let file = disk.join("FILE").display().to_string();
    let mut recv = on_a_disk(&disk, kib, &["recv", &uri, "--save", &file]);
    recv.stderr().wait_for("`listening on`", BOUND, mig_tests::mig::listening_in);
    let mut send = sender(&scratch, stored, None);
    let (sent, kept) = (ends(&mut send.process)?, ends(&mut recv)?);
    let (words, left) = (recv.stderr().text(), recv.stdout().text());
    if kept.code() != Some(1) || !words.contains("(os error 28)") {
        return Err(format!("{kib} KiB: recv ended with {kept}: {words}"));
    }
    if sent.success() {
        return Err(format!("{kib} KiB: send was told that it is kept"));
    }
    if !left.trim().is_empty() {
        return Err(format!("{kib} KiB: left on the disk: {left}"));
    }
    Ok("failed, guest at its source")
}

fn full_file(stored: &Path, kib: u32) -> Result<&'static str, String> {
    let scratch = Scratch::new();
    let disk = scratch.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let uri = format!("file:{}", disk.join("out").display());
    let stored = stored.display().to_string();
    let mut send = on_a_disk(&disk, kib, &["send", &stored, &uri]);
    let sent = ends(&mut send)?;
    let (words, left) = (send.stderr().text(), send.stdout().text());
    if sent.code() != Some(1) || !words.contains("(os error 28)") {
        return Err(format!("{kib} KiB: send ended with {sent}: {words}"));
    }
    // A part of it stays, as with QEMU, and does not pass for the whole.
    if left.contains("inspect 0") {
        return Err(format!("{kib} KiB: what is left looks complete: {left}"));
    }
    Ok("failed, guest at its source")
}
