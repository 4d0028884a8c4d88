//! `mig` to `mig` over `rdma:` where one end dies, is cancelled, or loses its link, at several moments: the other end says
//! what happened, in bounded time, no file looks complete, and the kernel has everything back.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::paused::{Paused, incompressible};
use mig_tests::process::STEP;
use mig_tests::qemu::{Release, text};
use mig_tests::scratch::Scratch;
use mig_tests::spare::Spare;
use rustix::process::Signal;

use crate::in_the_lab_without_a_trace;

/// Enough for a dozen WRITEs of 1 MiB.
const FILLED: usize = 16 << 20;

/// Stretches a migration, so that each [`Moment`] comes long before its end.
const SLOWLY: [&str; 2] = ["--max-bandwidth", "2MiB"];

/// The end of a `recv` that waits for somebody better: from whom it took nothing, it does not count as served.
const TIMEOUT: [&str; 2] = ["--timeout", "25s"];

/// A hang guard: the device asks 7 times before it calls a link dead, some seconds in all, and the keepalive asks every 5.
const BOUND: Duration = Duration::from_secs(120);

/// A moment of a migration, as the source traces it.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Before anything was said.
    Connected,
    /// The source asks for memory to be opened.
    Registering,
    /// This many WRITEs were posted.
    Writing(usize),
}

impl Moment {
    fn wait(self, source: &Mig) {
        let (word, mut count) = match self {
            Self::Connected => (" connected ", 1),
            Self::Registering => ("sending", 1),
            Self::Writing(count) => (" writing ", count),
        };
        let this = self;
        source.process.stderr().wait_for(&format!("{self:?}"), STEP, |line| {
            let is_it = line.contains(word)
                && (!matches!(this, Self::Registering) || line.contains("Register("));
            count -= usize::from(is_it);
            (count == 0).then_some(())
        });
    }
}

/// A stored guest of a real QEMU, to be sent again and again.
struct Stored {
    scratch: Scratch,
}

impl Stored {
    fn new() -> Option<Self> {
        let binary = Release::Installed.or_skip()?;
        let scratch = Scratch::new();
        let paused = Paused { machine: "pc", ram_mib: 64, scratch: &scratch };
        let mut source = paused.source(&binary, "stored", &incompressible(FILLED, 1));
        source.migrate(&format!("exec:cat > {}", text(&scratch.path("stored"))));
        source.completed();
        drop(source);
        Some(Self { scratch })
    }

    /// Starts both ends at this address.
    fn start(&self, host: &str, more: &[&str]) -> Ends {
        let (stored, saved) = (self.scratch.path("stored"), self.scratch.path("saved"));
        let uri = format!("rdma:{host}:{}", lab::port());
        let words = ["recv", &uri, "--save", text(&saved)];
        let words: Vec<&str> = words.iter().chain(&TIMEOUT).copied().collect();
        let recv = Mig::traced("mig recv", "mig_transport_rdma=debug", &words);
        let at = recv.listening();
        let words: Vec<&str> = ["send", text(&stored), &at].iter().chain(more).copied().collect();
        let send = Mig::traced("mig send", "mig_transport_rdma=trace", &words);
        Ends { send, recv, saved, since: Instant::now() }
    }

    /// Both ends, at this address, at this moment.
    fn at(&self, host: &str, moment: Moment) -> Ends {
        let mut ends = self.start(host, &SLOWLY);
        moment.wait(&ends.send);
        ends.since = Instant::now();
        ends
    }

    /// What was broken is whole again, and what was not to be broken is whole.
    fn arrives(&self) {
        let mut ends = self.start(lab::IPV4, &[]);
        ends.send.succeeds();
        ends.recv.succeeds();
        assert!(ends.saved.exists(), "recv says that it is there");
        let _ = std::fs::remove_file(ends.saved);
    }
}

/// A migration under way.
struct Ends {
    send: Mig,
    recv: Mig,
    saved: PathBuf,
    /// When the fault was.
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

impl Ends {
    /// (this end, the other one).
    fn sorted(&mut self, end: End) -> (&mut Mig, &mut Mig) {
        match end {
            End::Source => (&mut self.send, &mut self.recv),
            End::Destination => (&mut self.recv, &mut self.send),
        }
    }

    /// Ends with one of these codes and an error that has one of these words.
    #[track_caller]
    fn fails(&mut self, what: &str, end: End, codes: &[i32], any_of: &[&str]) {
        let since = self.since;
        let (mig, _) = self.sorted(end);
        let status = mig.process.wait(BOUND);
        let stderr = mig.process.stderr().all(STEP);
        // A trace tells the same words: only what is for people counts.
        let is_told = |line: &&str| line.starts_with("mig: ") || line.starts_with("  ");
        let told: Vec<&str> = stderr.lines().filter(is_told).collect();
        let told = told.join("\n");
        let name = mig.process.name();
        println!("{what}: {name} {status} after {:.1} s:\n{told}", since.elapsed().as_secs_f64());
        assert!(is_one_of(status, codes), "{what}: {name}: {status}\n{stderr}");
        let said = any_of.iter().any(|word| told.contains(word));
        assert!(said, "{what}: {name} says none of {any_of:?}:\n{stderr}");
        assert!(!self.saved.exists(), "{what}: a file that looks complete");
    }
}

fn is_one_of(status: ExitStatus, codes: &[i32]) -> bool {
    status.code().is_some_and(|code| codes.contains(&code))
}

const MOMENTS: [Moment; 3] = [Moment::Connected, Moment::Registering, Moment::Writing(5)];

/// What a survivor may say: the other end hung up (its kernel does that for the dead), or does not answer any more.
const GONE: [&str; 5] =
    ["hung up", "is dead", "has given up", "gave the connection up", "ended after"];

/// From whom nothing was taken `recv` takes nothing amiss, and waits for another one until its time is up. Who hangs up in
/// the middle without a word has broken the protocol, as far as it can tell.
fn codes_of_survivor(survivor: End, moment: Moment) -> &'static [i32] {
    match (survivor, moment) {
        (End::Destination, Moment::Connected) => &[1, 3, 5],
        (End::Destination, _) => &[1, 3],
        (End::Source, _) => &[1],
    }
}

fn killed(victim: End) {
    let Some(stored) = Stored::new() else { return };
    for moment in MOMENTS {
        let before = lab::given_out();
        let what = format!("{victim:?} killed, {moment:?}");
        let mut ends = stored.at(lab::IPV4, moment);
        ends.sorted(victim).0.process.signal(Signal::KILL);
        let survivor = other(victim);
        let codes = codes_of_survivor(survivor, moment);
        ends.fails(&what, survivor, codes, &[&GONE[..], &["not done within"]].concat());
        drop(ends);
        lab::wait_until_given_back(&before);
    }
    stored.arrives();
}

fn cancelled(end: End) {
    let Some(stored) = Stored::new() else { return };
    for moment in MOMENTS {
        let before = lab::given_out();
        let what = format!("{end:?} cancelled, {moment:?}");
        let mut ends = stored.at(lab::IPV4, moment);
        ends.sorted(end).0.process.signal(Signal::INT);
        ends.fails(&what, end, &[4], &["cancel"]);
        let codes = codes_of_survivor(other(end), moment);
        let words = [&GONE[..], &["ERROR message", "not done within"]].concat();
        ends.fails(&what, other(end), codes, &words);
        drop(ends);
        lab::wait_until_given_back(&before);
    }
    stored.arrives();
}

fn other(end: End) -> End {
    match end {
        End::Source => End::Destination,
        End::Destination => End::Source,
    }
}

#[test]
fn the_source_is_killed() {
    in_the_lab_without_a_trace(|| killed(End::Source));
}

#[test]
fn the_destination_is_killed() {
    in_the_lab_without_a_trace(|| killed(End::Destination));
}

#[test]
fn the_source_is_cancelled() {
    in_the_lab_without_a_trace(|| cancelled(End::Source));
}

#[test]
fn the_destination_is_cancelled() {
    in_the_lab_without_a_trace(|| cancelled(End::Destination));
}

// The device of these two is one of their own, declared first and so dropped last: it can be removed only when nobody
// has it open.

#[test]
fn the_link_is_cut() {
    in_the_lab_without_a_trace(|| {
        let Some(stored) = Stored::new() else { return };
        let spare = Spare::new();
        let before = lab::given_out_by(&spare.device());
        {
            let mut ends = stored.at(&spare.ipv4(), Moment::Writing(4));
            spare.cut();
            ends.since = Instant::now();
            ends.fails("link cut", End::Source, &[1], &GONE);
            ends.fails("link cut", End::Destination, &[1], &GONE);
        }
        lab::wait_until_given_back_to(&spare.device(), &before);
        drop(spare);
        stored.arrives();
    });
}

#[test]
fn the_device_is_removed() {
    in_the_lab_without_a_trace(|| {
        let Some(stored) = Stored::new() else { return };
        let mut spare = Spare::new();
        {
            let mut ends = stored.at(&spare.ipv4(), Moment::Writing(4));
            spare.remove();
            ends.since = Instant::now();
            // Who notices first still tells the other end, at times before the device is gone there.
            let words = ["the RDMA device went away", "reports by an ERROR message"];
            let words = [&GONE[..], &words].concat();
            ends.fails("device removed", End::Source, &[1], &words);
            ends.fails("device removed", End::Destination, &[1], &words);
        }
        spare.removed();
        drop(spare);
        stored.arrives();
    });
}
