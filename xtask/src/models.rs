//! `cargo xtask models`: what tasks and threads share, under loom, which tries every order of events (docs/testing.md).
//!
//! The models stand next to what they model, in modules that only `--cfg modelled` builds. That flag is for everything in the
//! build, so it has a target directory of its own, and a name of ours: with the customary `--cfg loom` tokio leaves out its
//! sockets.

use std::ffi::OsString;

use crate::repository::Repository;
use crate::summary::Counts;
use crate::test::counted;

/// The crates that have some. No more: each is built once more, with what it stands on.
const PACKAGES: &[&str] = &["mig-transport", "mig-stream", "mig-ram", "mig-engine"];

/// How the models' names begin, so that nothing else of these crates runs: outside of a model loom's types panic.
const PREFIX: &str = "loom_";

/// Runs all of them alone.
pub(crate) fn run(repository: &Repository) -> Result<(), String> {
    let mut counts = Counts::default();
    let succeeded = run_counted(repository, &mut counts)?;
    println!("xtask models: {} passed, {} failed", counts.passed, counts.failed);
    match succeeded && counts.passed > 0 {
        true => Ok(()),
        false => Err("models: failed".to_owned()),
    }
}

/// Runs and counts all of them; whether they succeeded.
pub(crate) fn run_counted(repository: &Repository, counts: &mut Counts) -> Result<bool, String> {
    let target = repository.target.join("models");
    let target = target.to_str().ok_or("the target directory's name is no text")?;
    let mut arguments = vec!["test", "--quiet", "--no-fail-fast", "--lib", "--target-dir", target];
    for package in PACKAGES {
        arguments.extend(["-p", package]);
    }
    arguments.push(PREFIX);
    counted(repository, &arguments, &[("RUSTFLAGS", &flags("--cfg modelled"))], counts)
}

/// `RUSTFLAGS` with more in it.
pub(crate) fn flags(more: &str) -> OsString {
    let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" ");
    flags.push(more);
    flags
}
