//! What a test tells beyond passed and failed, in the form that `cargo xtask test` collects.

use std::{fs::OpenOptions, io::Write, process::Command};

/// Says that the running test does not apply to this machine, for the cause `id` of `tests/not-applicable.toml`. The
/// caller returns after it. The line `not-applicable<TAB>TEST<TAB>ID: REASON` goes to the end of the file that
/// `MIG_TEST_SKIPS` names, the same words to stderr.
///
/// # Panics
///
/// If that file cannot be written.
pub fn not_applicable(id: &str, reason: &str) {
    let thread = std::thread::current();
    let binary = std::env::current_exe().ok();
    let binary = binary.as_deref().and_then(|path| path.file_stem()).map(|s| s.to_string_lossy());
    // Cargo puts `-` and a hash after the target's name; libtest names a test's thread after the test.
    let target = binary.as_deref().map_or("?", |stem| stem.rsplit_once('-').map_or(stem, |s| s.0));
    let test = format!("{target}::{}", thread.name().unwrap_or("?"));
    eprintln!("not applicable here: {test}: {id}: {reason}");
    if let Some(file) = std::env::var_os("MIG_TEST_SKIPS") {
        let reason = reason.replace(['\t', '\n'], " ");
        let line = format!("not-applicable\t{test}\t{id}: {reason}\n");
        // One write in append mode, so that lines of tests that run beside each other do not mix.
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!("cannot write {}: {error}", file.display());
        }
    }
}

/// Set in a process that a test has started of itself.
const INSIDE: &str = "MIG_TEST_INSIDE";

/// Runs the test of this name once more, in a process that `command` starts with the words to be run at its end; answers
/// true within that process. Where such a process cannot be had, the test is [not applicable](not_applicable), for
/// the cause `network-namespace`.
///
/// # Panics
///
/// If the test fails there.
pub fn runs_inside(name: &str, command: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let outcome = std::env::current_exe().and_then(|test| {
        Command::new(command[0])
            .args(&command[1..])
            .arg(test)
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "yes")
            .output()
    });
    match outcome {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("running 1 test"), "{text}");
            not_applicable("network-namespace", &text);
        }
        Err(error) => not_applicable("network-namespace", &format!("{}: {error}", command[0])),
    }
    false
}
