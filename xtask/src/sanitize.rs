//! `cargo xtask sanitize`: the rooms with unsafe code under the address sanitizer and its leak detector (docs/testing.md).
//!
//! ```text
//!   canary   a program that reads past its end, and one that leaks: both must be caught, else nothing below means a thing
//!   rooms    their tests, everything they stand on instrumented too, in a target directory of its own
//! ```
//!
//! The sanitizer is behind `-Z`, and the runtime comes with the stable toolchain: `RUSTC_BOOTSTRAP` is all that is missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::models::flags;
use crate::repository::Repository;
use crate::summary::Counts;
use crate::test::counted;

const FLAG: &str = "-Zsanitizer=address";

/// The rooms' crates, and tcp, whose tests drive zero copy over real sockets.
const PACKAGES: &[&str] =
    &["mig-transport", "mig-ram", "mig-transport-fd", "mig-transport-rdma", "mig-transport-tcp"];

/// Their tests. Not `leaks` of mig-ram, which counts the mappings of the process: the sanitizer makes some of its own. Not
/// `device` of mig-transport-rdma, which has no device here.
const TESTS: &[&str] =
    &["sigpipe", "placer", "tracker", "conformance", "fd", "faults", "zero_copy"];

/// What the canary is asked to do, and what the sanitizer must say.
const CANARIES: &[(&str, &str)] =
    &[("overflow", "heap-buffer-overflow"), ("leak", "detected memory leaks")];

/// Runs all of it alone.
pub(crate) fn run(repository: &Repository) -> Result<(), String> {
    let mut counts = Counts::default();
    let succeeded = run_counted(repository, &mut counts)?;
    println!("xtask sanitize: {} passed, {} failed", counts.passed, counts.failed);
    match succeeded && counts.passed > 0 {
        true => Ok(()),
        false => Err("sanitize: failed".to_owned()),
    }
}

/// Runs and counts all of it; whether it succeeded.
pub(crate) fn run_counted(repository: &Repository, counts: &mut Counts) -> Result<bool, String> {
    let directory = repository.target.join("sanitize");
    canaries_are_caught(repository, &directory)?;
    let directory = directory.to_str().ok_or("the target directory's name is no text")?;
    // Named, so that build scripts and procedural macros, which are the host's, are not instrumented.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut arguments = vec!["test", "--quiet", "--no-fail-fast", "--lib"];
    arguments.extend(["--target", &host, "--target-dir", directory]);
    PACKAGES.iter().for_each(|package| arguments.extend(["-p", package]));
    TESTS.iter().for_each(|test| arguments.extend(["--test", test]));
    let environment = [
        ("RUSTC_BOOTSTRAP", "1".as_ref()),
        ("RUSTFLAGS", &*flags(FLAG)),
        ("ASAN_OPTIONS", OPTIONS.as_ref()),
    ];
    counted(repository, &arguments, &environment, counts)
}

/// Leaks are looked for at exit; a handler of ours for SIGSEGV (`tracker::mprotect`) may replace the sanitizer's.
const OPTIONS: &str = "detect_leaks=1:allow_user_segv_handler=1";

fn canaries_are_caught(repository: &Repository, directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory)
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let program = directory.join("canary");
    let built = Command::new("rustc")
        .args(["--edition", "2024", FLAG, "-o"])
        .arg(&program)
        .arg(repository.root.join("xtask/src/sanitize/canary.rs"))
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    if !built.success() {
        return Err(format!("rustc {FLAG} failed ({built})"));
    }
    for (mistake, words) in CANARIES {
        let output = Command::new(&program)
            .arg(mistake)
            .env("ASAN_OPTIONS", OPTIONS)
            .output()
            .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let told = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !told.contains(words) {
            return Err(format!("the sanitizer does not see a planted {mistake}: {told}"));
        }
    }
    Ok(())
}
