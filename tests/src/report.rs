//! What a test tells beyond passed and failed: skips, things not applicable here, results for docs/interop.md.
//!
//! A test that cannot run says so with [`skip`] and returns. libtest calls that "passed", so the word also goes, as
//! one line `KIND<TAB>TEST<TAB>REASON`, to the end of the file that `MIG_TEST_SKIPS` names; `cargo xtask test` sets
//! it, counts and names the lines. With `CI` set a skip panics: there the machine is ours and has to have everything.
//! What a machine cannot have at all is [`not_applicable`]: only for the ids listed in `tests/not-applicable.toml`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::json;

/// The ids a test may give as not applicable; a plain file so that a reviewer sees the list grow.
const NOT_APPLICABLE: &str = include_str!("../not-applicable.toml");

/// Says that the running test is skipped and why. The caller returns after it.
///
/// # Panics
/// With `CI` set.
#[track_caller]
pub fn skip(reason: &str) {
    note("skip", reason);
    assert!(std::env::var_os("CI").is_none(), "CI is set, so this may not be skipped: {reason}");
}

/// Says that the running test does not apply to this machine, for the listed cause `id`.
///
/// # Panics
/// If `id` is not on the list.
#[track_caller]
pub fn not_applicable(id: &str, reason: &str) {
    let listed = NOT_APPLICABLE.lines().any(|line| line.trim() == format!("[{id}]"));
    assert!(listed, "{id} is not in tests/not-applicable.toml ({reason})");
    note("not-applicable", &format!("{id}: {reason}"));
}

fn note(kind: &str, reason: &str) {
    let test = test_name();
    eprintln!("{kind}: {test}: {reason}");
    if let Some(file) = std::env::var_os("MIG_TEST_SKIPS") {
        let reason = reason.replace(['\t', '\n'], " ");
        append(Path::new(&file), &format!("{kind}\t{test}\t{reason}\n"));
    }
}

/// libtest names a test's thread after the test.
fn test_name() -> String {
    let thread = std::thread::current();
    let binary = std::env::current_exe().ok();
    let binary = binary.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy());
    // Cargo puts `-` and a hash after the target's name.
    let target = binary.as_deref().map_or("?", |stem| stem.rsplit_once('-').map_or(stem, |s| s.0));
    format!("{target}::{}", thread.name().unwrap_or("?"))
}

/// One write with O_APPEND, so that lines of tests that run beside each other do not mix.
fn append(file: &Path, line: &str) {
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!("cannot write {}: {error}", file.display());
    }
}

/// One cell of docs/interop.md. Dropped without [`Cell::passed`], it counts as failed.
#[derive(Debug)]
pub struct Cell {
    qemu: String,
    machine: &'static str,
    transport: &'static str,
    feature: &'static str,
    result: Option<&'static str>,
}

impl Cell {
    /// Opens the cell at the start of its test.
    #[must_use]
    pub fn new(
        qemu: &str,
        machine: &'static str,
        transport: &'static str,
        feature: &'static str,
    ) -> Self {
        Self { qemu: qemu.to_owned(), machine, transport, feature, result: None }
    }

    /// Everything that the cell promises held; `result` is the word for the table, "works" or "refused by both".
    pub fn passed(mut self, result: &'static str) {
        self.result = Some(result);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(file) = std::env::var_os("MIG_INTEROP_RESULTS") {
            let line = json!({
                "qemu": self.qemu, "machine": self.machine, "transport": self.transport,
                "feature": self.feature, "result": self.result.unwrap_or("FAILED"),
            });
            append(Path::new(&file), &format!("{line}\n"));
        }
    }
}

/// A number of faults of one kind that ended alike, for docs/faults.md.
pub fn fault(transport: &str, mode: &str, fault: &str, outcome: &str, count: usize) {
    if let Some(file) = std::env::var_os("MIG_FAULT_RESULTS") {
        let line = json!({
            "transport": transport, "mode": mode, "fault": fault, "outcome": outcome, "count": count,
        });
        append(Path::new(&file), &format!("{line}\n"));
    }
}

/// What the suite of faults does not try, for docs/faults.md: transports, modes and faults (none named is all of them), and why.
pub fn no_fault(what: [&[&str]; 3], why: &str) {
    if let Some(file) = std::env::var_os("MIG_FAULT_RESULTS") {
        let [transports, modes, faults] = what;
        let line = json!({
            "not_tried": { "transports": transports, "modes": modes, "faults": faults }, "why": why,
        });
        append(Path::new(&file), &format!("{line}\n"));
    }
}
