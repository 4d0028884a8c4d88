//! The lab's place in `cargo xtask test`: one boot for everything that only the lab can show.
//!
//! ```text
//!   build ── test target `lab` of mig-tests            ┐
//!         └─ every target with tests that told on the  ├─▶ one virtual machine ─▶ counts, notes, results
//!            host of a cause the lab cures: just those ┘
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

/// Causes of `tests/not-applicable.toml` that the lab has a cure for.
const CURED: &[&str] = &["vsock-loopback", "rdma-device"];

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

/// Runs the stage: all tests of target `lab` (those that `filter` selects, if it has words), and each test that has
/// told on the host, in `told` as (`target::test`, `cause: reason`), of a cause that the lab cures.
pub(crate) fn run(
    repository: &Repository,
    lab: &Lab,
    filter: &[OsString],
    told: &[(String, String)],
    environment: &[(&str, &OsStr)],
) -> Result<Outcome, String> {
    let mut plan = vec![Part {
        package: "mig-tests".to_owned(),
        target: OWN.to_owned(),
        is_library: false,
        arguments: filter.to_vec(),
    }];
    for (target, tests) in curable(told) {
        let exactly: Vec<_> = std::iter::once("--exact").chain(tests).map(OsString::from).collect();
        let parts = plan.len();
        for (package, is_library) in owners(&repository.packages, target) {
            let (target, arguments) = (target.to_owned(), exactly.clone());
            plan.push(Part { package, target, is_library, arguments });
        }
        if plan.len() == parts {
            return Err(format!(
                "no package has the test target {target}, whose tests missed something"
            ));
        }
    }
    let mut words = Vec::new();
    for part in &plan {
        words.push((part.target.as_str(), part.build(repository)?, part.arguments.as_slice()));
    }
    let command = command(&words);
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

/// One test binary and what it is to run.
#[derive(Debug)]
struct Part {
    package: String,
    target: String,
    /// Unit tests, not a file of `tests/`.
    is_library: bool,
    arguments: Vec<OsString>,
}

impl Part {
    /// Builds the binary.
    fn build(&self, repository: &Repository) -> Result<PathBuf, String> {
        let mut arguments = vec!["test", "--quiet", "--no-run"];
        arguments.extend(["--message-format=json-render-diagnostics", "-p", &self.package]);
        if self.target == OWN {
            arguments.extend(["--features", "lab"]);
        }
        if self.is_library {
            arguments.push("--lib");
        } else {
            arguments.extend(["--test", &self.target]);
        }
        eprintln!("xtask: cargo {}", arguments.join(" "));
        let output = repository
            .cargo_command(&arguments, &[])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("{} of {} does not build", self.target, self.package));
        }
        executable(&String::from_utf8_lossy(&output.stdout), &self.target)
            .ok_or_else(|| format!("cargo has built no {} of {}", self.target, self.package))
    }
}

/// The targets with tests that the lab can run, each with those tests.
fn curable(told: &[(String, String)]) -> BTreeMap<&str, Vec<&str>> {
    let mut targets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in told {
        let cause = reason.split(':').next().unwrap_or_default();
        if let (true, Some((target, test))) = (CURED.contains(&cause), name.split_once("::")) {
            targets.entry(target).or_default().push(test);
        }
    }
    targets
}

/// (package, whether it is its library) of everything that cargo builds under this target's name. More than one is no
/// harm: where the tests are not, nothing is run.
fn owners(packages: &[Value], target: &str) -> Vec<(String, bool)> {
    let mut owners = Vec::new();
    for package in packages {
        for other in package["targets"].as_array().into_iter().flatten() {
            let kind = other["kind"][0].as_str().unwrap_or_default();
            let name = package["name"].as_str().unwrap_or_default().to_owned();
            if other["name"] == target && matches!(kind, "test" | "lib") {
                owners.push((name, kind == "lib"));
            }
        }
    }
    owners
}

/// The file, from cargo's messages, one JSON object a line.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// A shell that runs each binary with its arguments, heading each, and fails if one of them does.
///
/// The words of all binaries are the shell's arguments, so that none needs quoting.
fn command(plan: &[(&str, PathBuf, &[OsString])]) -> Vec<OsString> {
    let mut script = String::from("failed=0\n");
    let mut words = Vec::new();
    for (target, binary, arguments) in plan {
        words.push(binary.into());
        words.push("--test-threads=1".into());
        words.extend(arguments.iter().cloned());
        let count = arguments.len() + 2;
        script.push_str(&format!("echo '{HEADING}{target}'\n"));
        script.push_str(&format!("\"${{@:1:{count}}}\" || failed=1\nshift {count}\n"));
    }
    script.push_str("exit $failed\n");
    let shell = ["bash", "-c", &script, "lab"].map(OsString::from);
    shell.into_iter().chain(words).collect()
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
        let echo = PathBuf::from("/bin/echo");
        let arguments = ["a b", "--exact"].map(OsString::from);
        let words = command(&[("lab", echo.clone(), &[]), ("x", echo, &arguments)]);
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            printed,
            "in the lab: lab\n--test-threads=1\nin the lab: x\n--test-threads=1 a b --exact\n"
        );
    }

    #[test]
    fn only_what_the_lab_cures_is_run_there() {
        let told = [
            ("vsock::a", "vsock-loopback: no"),
            ("data::b", "older-qemu: no"),
            ("vsock::c::d", "vsock-loopback: no"),
        ];
        let told = told.map(|(test, reason)| (test.to_owned(), reason.to_owned()));
        assert_eq!(curable(&told), BTreeMap::from([("vsock", vec!["a", "c::d"])]));
    }

    #[test]
    fn targets_are_found_by_name_in_all_packages() {
        let packages = serde_json::json!([
            {"name": "one-x", "targets": [{"kind": ["lib"], "name": "one_x"}, {"kind": ["test"], "name": "t"}]},
            {"name": "two", "targets": [{"kind": ["test"], "name": "t"}, {"kind": ["bin"], "name": "one_x"}]},
        ]);
        let packages = packages.as_array().unwrap();
        let owner = |name: &str, is_library| (name.to_owned(), is_library);
        assert_eq!(owners(packages, "t"), [owner("one-x", false), owner("two", false)]);
        assert_eq!(owners(packages, "one_x"), [owner("one-x", true)]);
    }

    #[test]
    fn the_binary_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lab"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"lab"},"executable":"/t/lab-1"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executable(messages, "lab"), Some(PathBuf::from("/t/lab-1")));
    }
}
