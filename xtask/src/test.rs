//! `cargo xtask test`: every test there is, counted, with the skipped ones named.
//!
//! The order: provide ─▶ build `mig` ─▶ unit, crate and scenario tests ─▶ documentation tests ─▶ summary. A failing
//! test does not stop the rest. The last line has the counts.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::sync::Mutex;

use crate::interop;
use crate::provide::{self, Network};
use crate::repository::Repository;
use crate::second_qemu::{self, SecondQemu};
use crate::summary::{Counts, Notes};

/// Runs everything; an error carries the counts.
pub(crate) fn run(repository: &Repository, network: Network) -> Result<(), String> {
    provide::packages(network);
    let second_qemu = second_qemu::provide(repository, network);
    // The scenarios run the debug binary: arithmetic overflow and debug assertions are checked against real peers.
    repository.cargo(&["build", "--quiet", "-p", "mig-cli"], &[])?;

    let skips = repository.target.join("test-skips.tsv");
    let results = repository.target.join("interop-results.jsonl");
    for file in [&skips, &results] {
        fs::write(file, "").map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    let binary = repository.target.join("debug/mig");
    let mut environment: Vec<(&str, &OsStr)> = vec![
        ("MIG_BIN", binary.as_os_str()),
        ("MIG_TEST_SKIPS", skips.as_os_str()),
        ("MIG_INTEROP_RESULTS", results.as_os_str()),
    ];
    match &second_qemu {
        SecondQemu::Ready(root) => environment.push(("MIG_SECOND_QEMU", root.as_os_str())),
        SecondQemu::NotOffered(why) => {
            eprintln!("xtask: no second QEMU: {why}");
            environment.push(("MIG_NO_SECOND_QEMU", why.as_ref()));
        }
        SecondQemu::Missing(why) => eprintln!("xtask: no second QEMU, though it should be: {why}"),
    }

    let mut counts = Counts::default();
    let mut broken = Vec::new();
    for arguments in commands(repository) {
        match counted(repository, arguments, &environment, &mut counts) {
            Ok(true) => {}
            Ok(false) => broken.push(format!("cargo {} failed", arguments.join(" "))),
            Err(error) => broken.push(error),
        }
    }
    let notes = Notes::read(&skips, &repository.root.join("tests/not-applicable.toml"));
    let complete = broken.is_empty() && notes.skipped.is_empty();
    interop::render(repository, &results, complete)?;
    conclude(counts, &notes, &broken)
}

/// nextest where it is installed (it runs no documentation tests), else cargo's own runner.
fn commands(repository: &Repository) -> &'static [&'static [&'static str]] {
    let nextest = repository
        .cargo_command(&["nextest", "--version"], &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if matches!(nextest, Ok(status) if status.success()) {
        &[
            &["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "slow"],
            &["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"],
        ]
    } else {
        &[&["test", "--workspace", "--no-fail-fast", "--quiet"]]
    }
}

/// Runs one cargo command, showing and counting its output; whether it succeeded.
fn counted(
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

/// Prints what was skipped, then the line with the counts, which is also the error if there is one.
fn conclude(counts: Counts, notes: &Notes, broken: &[String]) -> Result<(), String> {
    let ci = std::env::var_os("CI").is_some();
    let distinct = |list: &[(String, String)]| {
        let mut tests: Vec<&str> = list.iter().map(|(test, _)| test.as_str()).collect();
        tests.dedup();
        tests.len()
    };
    let not_applicable = distinct(&notes.not_applicable);
    let noted = distinct(&notes.skipped);
    // For libtest a test that says "skipped" has passed, except in CI, where it panics instead.
    let passed = counts.passed.saturating_sub(not_applicable + if ci { 0 } else { noted });
    let skipped = noted + counts.ignored;

    for (title, list) in
        [("skipped", &notes.skipped), ("not applicable here", &notes.not_applicable)]
    {
        if !list.is_empty() {
            println!("{title}:");
        }
        for (test, reason) in list {
            println!("  {test}: {reason}");
        }
    }
    let mut line = format!("{passed} passed, {} failed, {skipped} skipped", counts.failed);
    if not_applicable > 0 {
        line.push_str(&format!(", {not_applicable} not applicable here"));
    }
    let mut why = broken.to_vec();
    if ci && skipped > 0 {
        why.push("with CI set a skip is a failure".to_owned());
    }
    if passed == 0 {
        why.push("no test has passed".to_owned());
    }
    if why.is_empty() && counts.failed == 0 {
        println!("xtask test: {line}");
        Ok(())
    } else {
        for reason in why {
            eprintln!("xtask: {reason}");
        }
        Err(format!("test: {line}"))
    }
}
