//! `cargo xtask test`: every test there is, counted, with the skipped ones named.
//!
//! The order: provide ─▶ build `mig` ─▶ unit, crate and scenario tests ─▶ documentation tests ─▶ models ─▶ the rooms with
//! unsafe code, sanitized ─▶ fuzz targets, a few seconds each ─▶ the lab's tests, in one virtual machine ─▶ summary. A failing
//! test does not stop the rest. The last line has the counts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;

use crate::faults;
use crate::fuzz;
use crate::interop;
use crate::lab::Lab;
use crate::lab::stage::{self, Outcome};
use crate::models;
use crate::provide::{self, Network};
use crate::repository::Repository;
use crate::sanitize;
use crate::second_qemu::{self, SecondQemu};
use crate::summary::{Counts, Notes};

/// Runs everything; an error carries the counts.
pub(crate) fn run(repository: &Repository, network: Network) -> Result<(), String> {
    provide::packages(network);
    let suite = Suite::prepare(repository, network)?;
    let environment = suite.environment();
    let mut tally = Tally::default();
    for arguments in commands(repository, suite.with_keys.is_some()) {
        match counted(repository, arguments, &environment, &mut tally.counts) {
            Ok(true) => {}
            Ok(false) => tally.broken.push(format!("cargo {} failed", arguments.join(" "))),
            Err(error) => tally.broken.push(error),
        }
    }
    for (part, run) in [
        ("models", models::run_counted as fn(&Repository, &mut Counts) -> Result<bool, String>),
        ("sanitize", sanitize::run_counted),
    ] {
        match run(repository, &mut tally.counts) {
            Ok(true) => {}
            Ok(false) => tally.broken.push(format!("cargo xtask {part} failed")),
            Err(error) => tally.broken.push(format!("{part}: {error}")),
        }
    }
    tally.notes = Notes::read(&suite.skips, &repository.root.join("tests/not-applicable.toml"));
    fuzzed(repository, network, &mut tally);
    in_the_lab(repository, network, &[], &environment, &mut tally);
    let complete = tally.broken.is_empty() && tally.skipped().is_empty();
    interop::render(repository, &suite.results, complete)?;
    faults::render(repository, &suite.faults, false)?;
    tally.conclude()
}

/// The suite of faults alone, here and in the lab; what it comes to is kept in docs/. All of it, or what a run of all
/// tests takes of it, too.
pub(crate) fn run_faults(repository: &Repository, all: bool) -> Result<(), String> {
    let suite = Suite::with(repository, SecondQemu::NotOffered("not needed here".to_owned()))?;
    let mut environment = suite.environment();
    if all {
        environment.push(("MIG_FAULTS", "all".as_ref()));
    }
    let mut tally = Tally::default();
    let arguments =
        ["test", "-p", "mig-tests", "--test", "faults", "--", "--nocapture", "--test-threads=1"];
    if !counted(repository, &arguments, &environment, &mut tally.counts)? {
        tally.broken.push("the suite of faults failed".to_owned());
    }
    tally.notes = Notes::read(&suite.skips, &repository.root.join("tests/not-applicable.toml"));
    let filter = ["faults".into()];
    in_the_lab(repository, Network::Allowed, &filter, &environment, &mut tally);
    // Without the lab the table would lose its rows.
    let complete = tally.broken.is_empty() && tally.skipped().is_empty();
    faults::render(repository, &suite.faults, complete)?;
    tally.conclude()
}

/// libFuzzer over each fuzz target, a few seconds each; each counts as a test. Without a network it is a skip where its
/// sources were never fetched.
fn fuzzed(repository: &Repository, network: Network, tally: &mut Tally) {
    if network == Network::Forbidden
        && let Err(why) = fuzz::is_fetched(repository)
    {
        return tally.unprovided.push(("libFuzzer over all fuzz targets".to_owned(), why));
    }
    match fuzz::smoke(repository) {
        Ok(smoke) => {
            tally.counts.passed += smoke.passed;
            tally.counts.failed += smoke.failed.len();
            tally.broken.extend(smoke.failed);
        }
        Err(why) => tally.broken.push(why),
    }
}

/// docs/faults.md of the last results, whichever run made them.
pub(crate) fn render_faults(repository: &Repository) -> Result<(), String> {
    faults::render(repository, &fault_results(repository), true)
}

fn fault_results(repository: &Repository) -> PathBuf {
    repository.target.join("fault-results.jsonl")
}

/// The lab's stage alone, with words for its test runner: a filter, say.
pub(crate) fn run_lab(repository: &Repository, filter: &[OsString]) -> Result<(), String> {
    let suite = Suite::prepare(repository, Network::Allowed)?;
    let mut tally = Tally::default();
    in_the_lab(repository, Network::Allowed, filter, &suite.environment(), &mut tally);
    interop::render(repository, &suite.results, false)?;
    faults::render(repository, &suite.faults, false)?;
    tally.conclude()
}

/// What the tests are told, and where they tell.
struct Suite {
    binary: PathBuf,
    /// The same with the feature `tls-psk`, where it can be built.
    with_keys: Option<PathBuf>,
    skips: PathBuf,
    results: PathBuf,
    faults: PathBuf,
    second_qemu: SecondQemu,
}

impl Suite {
    fn prepare(repository: &Repository, network: Network) -> Result<Self, String> {
        let second_qemu = second_qemu::provide(repository, network);
        let with_keys = build_with_keys(repository)
            .inspect_err(|why| eprintln!("xtask: no mig with pre-shared keys: {why}"));
        Ok(Self { with_keys: with_keys.ok(), ..Self::with(repository, second_qemu)? })
    }

    fn with(repository: &Repository, second_qemu: SecondQemu) -> Result<Self, String> {
        match &second_qemu {
            SecondQemu::Ready(_) => {}
            SecondQemu::NotOffered(why) => eprintln!("xtask: no second QEMU: {why}"),
            SecondQemu::Missing(why) => {
                eprintln!("xtask: no second QEMU, though it should be: {why}");
            }
        }
        // The scenarios run the debug binary: arithmetic overflow and debug assertions are checked against real peers.
        repository.cargo(&["build", "--quiet", "-p", "mig-cli"], &[])?;
        let suite = Self {
            binary: repository.target.join("debug/mig"),
            with_keys: None,
            skips: repository.target.join("test-skips.tsv"),
            results: repository.target.join("interop-results.jsonl"),
            faults: fault_results(repository),
            second_qemu,
        };
        for file in [&suite.skips, &suite.results, &suite.faults] {
            fs::write(file, "")
                .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        }
        Ok(suite)
    }

    fn environment(&self) -> Vec<(&'static str, &OsStr)> {
        let mut environment: Vec<(&str, &OsStr)> = vec![
            ("MIG_BIN", self.binary.as_os_str()),
            ("MIG_TEST_SKIPS", self.skips.as_os_str()),
            ("MIG_INTEROP_RESULTS", self.results.as_os_str()),
            ("MIG_FAULT_RESULTS", self.faults.as_os_str()),
        ];
        if let Some(with_keys) = &self.with_keys {
            environment.push(("MIG_PSK_BIN", with_keys.as_os_str()));
        }
        match &self.second_qemu {
            SecondQemu::Ready(root) => environment.push(("MIG_SECOND_QEMU", root.as_os_str())),
            SecondQemu::NotOffered(why) => {
                environment.push(("MIG_NO_SECOND_QEMU", why.as_ref()));
            }
            SecondQemu::Missing(_) => {}
        }
        environment
    }
}

/// The tool with TLS by pre-shared keys, under a name of its own: the tests of the tool build the usual one again.
fn build_with_keys(repository: &Repository) -> Result<PathBuf, String> {
    repository.cargo(&["build", "--quiet", "-p", "mig-cli", "--features", "tls-psk"], &[])?;
    let kept = repository.target.join("debug/mig-psk");
    fs::copy(repository.target.join("debug/mig"), &kept)
        .map_err(|error| format!("cannot write {}: {error}", kept.display()))?;
    Ok(kept)
}

/// Runs the lab's stage. A lab that cannot be had is a skip with its reason, and so a failure in CI.
fn in_the_lab(
    repository: &Repository,
    network: Network,
    filter: &[OsString],
    environment: &[(&str, &OsStr)],
    tally: &mut Tally,
) {
    let lab = match Lab::provide(repository, network) {
        Ok(lab) => lab,
        Err(why) => return tally.unprovided.push(("all tests of the lab".to_owned(), why)),
    };
    match stage::run(repository, &lab, filter, &tally.notes.not_applicable, environment) {
        Ok(outcome) => tally.add_lab(outcome),
        Err(why) => tally.broken.push(why),
    }
}

/// TLS with keys is a feature that is off, so the workspace's run has none of its tests.
const WITH_KEYS: &[&str] =
    &["test", "-p", "mig-transport-tls", "--lib", "--features", "tls-psk,trial", "--quiet"];

/// nextest where it is installed (it runs no documentation tests), else cargo's own runner.
fn commands(repository: &Repository, with_keys: bool) -> Vec<&'static [&'static str]> {
    let nextest = repository
        .cargo_command(&["nextest", "--version"], &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let mut commands: Vec<&[&str]> = if matches!(nextest, Ok(status) if status.success()) {
        vec![
            &["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "slow"],
            &["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"],
        ]
    } else {
        vec![&["test", "--workspace", "--no-fail-fast", "--quiet"]]
    };
    // Where it cannot be built, the scenarios that need it say so.
    if with_keys {
        commands.push(WITH_KEYS);
    }
    commands
}

/// Runs one cargo command, showing and counting its output; whether it succeeded.
pub(crate) fn counted(
    repository: &Repository,
    arguments: &[&str],
    environment: &[(&str, &OsStr)],
    counts: &mut Counts,
) -> Result<bool, String> {
    eprintln!("xtask: cargo {}", arguments.join(" "));
    let mut child = repository
        .cargo_command(arguments, environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let stdout = child.stdout.take().expect("piped above");
    let stderr = child.stderr.take().expect("piped above");
    let counts = Mutex::new(counts);
    std::thread::scope(|scope| {
        let _ = scope.spawn(|| pass_on(stdout, std::io::stdout(), &counts));
        pass_on(stderr, std::io::stderr(), &counts);
    });
    let status = child.wait().map_err(|error| format!("cannot wait for cargo: {error}"))?;
    Ok(status.success())
}

fn pass_on(from: impl Read, mut to: impl Write, counts: &Mutex<&mut Counts>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
        // A closed terminal must not lose the counts.
        let _ = to.write_all(&line);
        let text = String::from_utf8_lossy(&line);
        counts.lock().expect("nobody panics while counting").add_line(&text);
        line.clear();
    }
}

/// Everything there is to say at the end.
#[derive(Debug, Default)]
struct Tally {
    counts: Counts,
    /// From the tests on this machine; after the lab's stage, from both.
    notes: Notes,
    /// Tests that the runners call passed and that did nothing.
    idle: usize,
    /// (tests that could not even be started, why)
    unprovided: Vec<(String, String)>,
    broken: Vec<String>,
}

impl Tally {
    /// Adds what the lab's stage came to. What did not apply to this machine and has passed there is settled.
    fn add_lab(&mut self, outcome: Outcome) {
        let Outcome { counts, notes, passed, broken } = outcome;
        self.counts.add(&counts);
        self.broken.extend(broken);
        let all = distinct(&self.notes.not_applicable);
        let idle_there = |test: &str| {
            let told = notes.not_applicable.iter().chain(&notes.skipped);
            told.map(|(other, _)| other).any(|other| other == test)
        };
        self.notes.not_applicable.retain(|(test, _)| !passed.contains(test) || idle_there(test));
        self.idle += all - distinct(&self.notes.not_applicable);
        // One that does not apply in either place has been idle twice and is told once.
        let both = notes
            .not_applicable
            .iter()
            .filter(|(test, _)| self.notes.not_applicable.iter().any(|(other, _)| other == test));
        self.idle += distinct(&both.cloned().collect::<Vec<_>>());
        self.notes.add(notes);
    }

    fn skipped(&self) -> Vec<&(String, String)> {
        self.notes.skipped.iter().chain(&self.unprovided).collect()
    }

    /// Prints what was skipped, then the line with the counts, which is also the error if there is one.
    fn conclude(&self) -> Result<(), String> {
        let ci = std::env::var_os("CI").is_some();
        let not_applicable = distinct(&self.notes.not_applicable);
        let noted = distinct(&self.notes.skipped);
        // For libtest a test that says "skipped" has passed, except in CI, where it panics instead.
        let idle = self.idle + not_applicable + if ci { 0 } else { noted };
        let passed = self.counts.passed.saturating_sub(idle);
        let failed = self.counts.failed;
        let skipped = noted + self.unprovided.len() + self.counts.ignored;

        let applicable = self.notes.not_applicable.iter().collect();
        for (title, list) in [("skipped", self.skipped()), ("not applicable here", applicable)] {
            if !list.is_empty() {
                println!("{title}:");
            }
            for (test, reason) in list {
                println!("  {test}: {reason}");
            }
        }
        let mut line = format!("{passed} passed, {failed} failed, {skipped} skipped");
        if not_applicable > 0 {
            line.push_str(&format!(", {not_applicable} not applicable here"));
        }
        let mut why = self.broken.clone();
        if ci && skipped > 0 {
            why.push("with CI set a skip is a failure".to_owned());
        }
        if passed == 0 {
            why.push("no test has passed".to_owned());
        }
        if why.is_empty() && failed == 0 {
            println!("xtask test: {line}");
            Ok(())
        } else {
            for reason in why {
                eprintln!("xtask: {reason}");
            }
            Err(format!("test: {line}"))
        }
    }
}

/// How many tests a sorted list of notes is about.
fn distinct(list: &[(String, String)]) -> usize {
    let mut tests: Vec<&str> = list.iter().map(|(test, _)| test.as_str()).collect();
    tests.dedup();
    tests.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(not_applicable: &[&str]) -> Notes {
        let note = |test: &&str| ((*test).to_owned(), "why".to_owned());
        Notes { skipped: Vec::new(), not_applicable: not_applicable.iter().map(note).collect() }
    }

    #[test]
    fn what_passed_in_the_lab_is_no_longer_not_applicable() {
        let mut tally = Tally {
            counts: Counts { passed: 10, failed: 0, ignored: 0 },
            notes: notes(&["data::a", "vsock::b", "vsock::c", "vsock::d"]),
            ..Tally::default()
        };
        tally.add_lab(Outcome {
            // b passed, c could not run there either, d failed, and two of the lab's own
            counts: Counts { passed: 4, failed: 1, ignored: 0 },
            notes: notes(&["vsock::c"]),
            passed: ["vsock::b", "vsock::c", "lab::x", "lab::y"].map(str::to_owned).into(),
            broken: Vec::new(),
        });
        let left: Vec<&str> =
            tally.notes.not_applicable.iter().map(|(test, _)| test.as_str()).collect();
        assert_eq!(left, ["data::a", "vsock::c", "vsock::d"]);
        // 14 by the runners' count; a, b, c, d idle on the host and c in the lab.
        assert_eq!(tally.counts.passed - tally.idle - distinct(&tally.notes.not_applicable), 9);
    }
}
