//! The binary `mig` as a child.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde_json::Value;

use crate::process::{Process, STEP};
use crate::qemu::target_directory;
use crate::report;

/// The built binary: what `MIG_BIN` names, else the one beside the running test.
///
/// # Panics
/// If it has not been built: building is `cargo xtask test`'s work.
#[must_use]
pub fn binary() -> PathBuf {
    let binary = match std::env::var_os("MIG_BIN") {
        Some(binary) => PathBuf::from(binary),
        None => target_directory().join("debug/mig"),
    };
    assert!(
        binary.is_file(),
        "no {}: run `cargo xtask test`, or `cargo build -p mig-cli` first",
        binary.display()
    );
    binary
}

/// `mig` with these arguments, not yet started.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(std::process::Stdio::null());
    command
}

/// The binary with TLS by pre-shared keys, which needs OpenSSL: what `MIG_PSK_BIN` names; or reports that the running
/// test cannot have it.
#[must_use]
pub fn with_keys_or_skip() -> Option<PathBuf> {
    let binary = std::env::var_os("MIG_PSK_BIN").map(PathBuf::from);
    if binary.is_none() {
        report::skip("no mig built with the feature tls-psk: `cargo xtask test` makes one");
    }
    binary
}

/// A started `mig`.
#[derive(Debug)]
pub struct Mig {
    /// The child.
    pub process: Process,
}

impl Mig {
    /// Starts `mig` with its stdout collected.
    #[must_use]
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self { process: Process::start(name, command(arguments), true) }
    }

    /// Starts another `mig`.
    #[must_use]
    pub fn of(binary: &Path, name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(arguments).stdin(std::process::Stdio::null());
        Self { process: Process::start(name, command, true) }
    }

    /// Starts `mig` with everything that these modules (`RUST_LOG`'s directives) trace on its stderr.
    #[must_use]
    pub fn traced(name: &str, directives: &str, arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        command.env("RUST_LOG", directives);
        Self { process: Process::start(name, command, true) }
    }

    /// Waits for the line that tells where it listens.
    #[must_use]
    #[track_caller]
    pub fn listening(&self) -> String {
        self.process.stderr().wait_for("`listening on URI`", STEP, listening_in)
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait(STEP)
    }

    /// Waits for the end, which must be exit code 0.
    #[track_caller]
    pub fn succeeds(&mut self) {
        self.exits_with(0);
    }

    /// Waits for the end, which must have this exit code.
    #[track_caller]
    pub fn exits_with(&mut self, code: i32) {
        let status = self.wait();
        let name = self.process.name();
        let stderr = self.process.stderr().all(STEP);
        assert_eq!(status.code(), Some(code), "{name} ended with {status}; its stderr:\n{stderr}");
    }

    /// The last line on stdout, as JSON (`--json`).
    #[must_use]
    #[track_caller]
    pub fn last_json(&self) -> Value {
        let all = self.process.stdout().all(STEP);
        let last = all.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("not JSON ({error}): {all:?}"))
    }
}

impl Drop for Mig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = self.process.name();
            eprintln!("stderr of {name}:\n{}", self.process.stderr().text());
        }
    }
}

/// The URI in a line "… listening on URI …".
#[must_use]
pub fn listening_in(line: &str) -> Option<String> {
    let (_, after) = line.split_once("listening on ")?;
    after.split_whitespace().next().map(|uri| uri.trim_end_matches([',', ';']).to_owned())
}
