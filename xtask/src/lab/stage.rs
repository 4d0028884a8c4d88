//! The lab's place in `cargo xtask test`: one boot for everything that only the lab can show.
//!
//! ```text
//!   build ── test target `lab` of mig-tests          ┐
//!         └─ targets with tests that were not        ├─▶ one virtual machine ─▶ counts, notes, results
//!            applicable on the host, to run those    ┘
//! ```
//! The test binaries are built here on the host, and run there one test at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::machine::{self, Ended, Size, Stream};
use super::run_directory::Order;
use super::{Lab, files, show};
use crate::repository::Repository;
use crate::summary::{Counts, Notes};

/// Many times what the stage takes on two free cores; single tests have guards of their own.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The target made for the lab.
const OWN: &str = "lab";

/// Targets of other crates whose tests may lack something that the lab has: (target, package)
const REPEATED: &[(&str, &str)] = &[("vsock", "mig-transport-vsock")];

/// What the script says before each binary.
const HEADING: &str = "in the lab: ";

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// What the tests said of themselves.
    pub(crate) notes: Notes,
    /// `target::test` of all that libtest calls passed.
    pub(crate) passed: BTreeSet<String>,
    /// What else went wrong.
    pub(crate) broken: Vec<String>,
}

/// Runs the stage: all tests of target `lab` (those that `filter` selects, if it has words), and each of `missed`
/// (`target::test`, not applicable on the host) whose target is known here.
pub(crate) fn run(
    repository: &Repository,
    lab: &Lab,
    filter: &[OsString],
    missed: &[&str],
    environment: &[(&str, &OsStr)],
) -> Result<Outcome, String> {
    let repeated = by_target(missed);
    let binaries = build(repository, repeated.keys().copied())?;
    let mut plan = vec![(OWN, filter.to_vec())];
    for (target, tests) in &repeated {
        let exactly = std::iter::once("--exact").chain(tests.iter().copied());
        plan.push((target, exactly.map(OsString::from).collect()));
    }
    let command = command(&binaries, &plan)?;
    let notes = repository.target.join("test-skips-lab.tsv");
    files::write(&notes, b"")?;
    let mut environment = environment.to_vec();
    environment.push(("MIG_TEST_SKIPS", notes.as_os_str()));
    let order = Order { command: &command, directory: &repository.root, environment: &environment };
    let size = Size { memory: "4G".to_owned(), cpus: 2, timeout: TIMEOUT };

    eprintln!("xtask: booting the lab for {} test binaries", plan.len());
    let mut lines = Lines::default();
    let ended = machine::run(lab, &order, &size, &mut |stream, piece| {
        show(stream, piece);
        if stream == Stream::Stdout {
            lines.push(piece);
        }
    });
    let mut outcome = lines.outcome;
    match ended {
        Ok(Ended::With(0)) if outcome.counts != Counts::default() => {}
        Ok(Ended::With(status)) => {
            outcome.broken.push(format!("the lab's tests ended with {status}"));
        }
        Ok(Ended::TimedOut) => outcome.broken.push("the lab's tests hung".to_owned()),
        Err(why) => outcome.broken.push(format!("the lab: {why}")),
    }
    outcome.notes = Notes::read(&notes, &repository.root.join("tests/not-applicable.toml"));
    Ok(outcome)
}

/// The known targets among `missed`, each with its tests.
fn by_target<'a>(missed: &[&'a str]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut targets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (target, test) in missed.iter().filter_map(|name| name.split_once("::")) {
        if REPEATED.iter().any(|(known, _)| *known == target) {
            targets.entry(target).or_default().push(test);
        }
    }
    targets
}

/// Builds the test binaries; gives (target, file).
fn build<'a>(
    repository: &Repository,
    repeated: impl Iterator<Item = &'a str>,
) -> Result<Vec<(String, PathBuf)>, String> {
    let mut arguments =
        vec!["test", "--quiet", "--no-run", "--message-format=json-render-diagnostics"];
    arguments.extend(["-p", "mig-tests", "--features", "mig-tests/lab", "--test", OWN]);
    for target in repeated {
        let package = REPEATED.iter().find(|(known, _)| *known == target);
        let (_, package) = package.expect("by_target gives known ones only");
        arguments.extend(["-p", package, "--test", target]);
    }
    eprintln!("xtask: cargo {}", arguments.join(" "));
    let output = repository
        .cargo_command(&arguments, &[])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the lab's tests do not build ({})", output.status));
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// From cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let target = message["target"]["name"].as_str()?.to_owned();
            Some((target, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// A shell that runs each binary with its arguments, heading each, and fails if one of them does.
///
/// The words of all binaries are the shell's arguments, so that none needs quoting.
fn command(
    binaries: &[(String, PathBuf)],
    plan: &[(&str, Vec<OsString>)],
) -> Result<Vec<OsString>, String> {
    let mut script = String::from("failed=0\n");
    let mut words = Vec::new();
    for (target, arguments) in plan {
        let binary = binaries.iter().find(|(name, _)| name == target);
        let (_, binary) = binary.ok_or_else(|| format!("cargo built no test target {target}"))?;
        words.push(binary.into());
        words.push("--test-threads=1".into());
        words.extend(arguments.iter().cloned());
        let count = arguments.len() + 2;
        script.push_str(&format!("echo '{HEADING}{target}'\n"));
        script.push_str(&format!("\"${{@:1:{count}}}\" || failed=1\nshift {count}\n"));
    }
    script.push_str("exit $failed\n");
    let shell = ["bash", "-c", &script, "lab"].map(OsString::from);
    Ok(shell.into_iter().chain(words).collect())
}

/// Reads what libtest prints.
#[derive(Debug, Default)]
struct Lines {
    unfinished: Vec<u8>,
    target: String,
    outcome: Outcome,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) {
        self.unfinished.extend_from_slice(piece);
        while let Some(end) = self.unfinished.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end());
        }
    }

    fn line(&mut self, line: &str) {
        self.outcome.counts.add_line(line);
        if let Some(target) = line.strip_prefix(HEADING) {
            self.target = target.to_owned();
        }
        let test = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok"));
        if let Some(test) = test {
            let _ = self.outcome.passed.insert(format!("{}::{test}", self.target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tests_print_is_read_with_their_targets() {
        let mut lines = Lines::default();
        for piece in [
            "in the lab: lab\n\nrunning 2 tests\ntest a::b ... ok\ntest a::c ... FA",
            "ILED\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out\n",
            "in the lab: vsock\ntest d ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n",
        ] {
            lines.push(piece.as_bytes());
        }
        let passed: Vec<&str> = lines.outcome.passed.iter().map(String::as_str).collect();
        assert_eq!(passed, ["lab::a::b", "vsock::d"]);
        assert_eq!(lines.outcome.counts, Counts { passed: 2, failed: 1, ignored: 0 });
    }

    #[test]
    fn each_binary_gets_its_own_words() {
        let binaries =
            [("lab".to_owned(), "/bin/echo".into()), ("x".to_owned(), "/bin/echo".into())];
        let plan = [("lab", vec![]), ("x", vec!["a b".into(), "--exact".into()])];
        let words = command(&binaries, &plan).unwrap();
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            printed,
            "in the lab: lab\n--test-threads=1\nin the lab: x\n--test-threads=1 a b --exact\n"
        );
    }

    #[test]
    fn only_known_targets_are_repeated() {
        let missed = ["vsock::a", "data::b", "vsock::c::d"];
        assert_eq!(by_target(&missed), BTreeMap::from([("vsock", vec!["a", "c::d"])]));
    }

    #[test]
    fn the_binaries_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lab"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"lab"},"executable":"/t/lab-1"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executables(messages), [("lab".to_owned(), PathBuf::from("/t/lab-1"))]);
    }
}
