//! Tasks of the repository: `cargo xtask test`, `cargo xtask lab`, `cargo xtask fuzz`, `cargo xtask faults`, `cargo xtask ci`,
//! `cargo xtask floors`.
//!
//! ```text
//!   test    provide what the suite needs ─▶ build mig ─▶ run every test ─▶ count, name the skips, docs/interop.md
//!   lab     run a command in a throw-away virtual machine that has RDMA and vsock loopback
//!   fuzz    libFuzzer over the targets of fuzz/, a few seconds each or one for as long as it likes
//!   ci      fmt ─▶ clippy ─▶ doc ─▶ floors ─▶ test
//!   faults  the suite `faults` alone, every byte of it, for docs/faults.md
//!   models, sanitize, soak   parts of test, alone; the soak at full length
//!   floors  dependency arrows between our crates point downwards only
//! ```

use std::ffi::OsString;
use std::process::ExitCode;

mod faults;
mod floors;
mod fuzz;
mod interop;
mod lab;
mod models;
mod provide;
mod repository;
mod sanitize;
mod second_qemu;
mod soak;
mod summary;
mod test;

use repository::Repository;

pub(crate) const USAGE: &str = "\
usage: cargo xtask TASK

  test [--offline]   run every test there is; install what it needs where that is allowed (--offline: never)
  test --lab [WORD…] only the tests of the lab; WORDs are for their runner: a filter, --nocapture
  lab [--timeout SECONDS] [--memory 4G] [--cpus 2] [--offline] -- COMMAND…
                     run COMMAND as root, here, in a throw-away virtual machine with a soft-RoCE device
  faults [--sample]  the suite of faults, every byte tried (--sample: as many as in `test`), and docs/faults.md
  faults --render    docs/faults.md again, of the last results
  fuzz               libFuzzer over each target of fuzz/ for a few seconds, as `test` does
  fuzz TARGET [-- libFuzzer's arguments]
                     over one of them until it finds something; `fuzz --list` names them
  fuzz --minimize TARGET
                     put what such a run has learned into fuzz/corpus, as few files as cover the same
  ci                 fmt, clippy, doc, floors, then test
  models             what threads share, in every order of events (loom); part of test
  sanitize           the rooms with unsafe code under the address sanitizer; part of test
  soak               10 000 small migrations in one process: does anything grow? test runs a few hundred
  floors             check that dependencies between our crates only point downwards";

fn main() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&str> = given.iter().filter_map(|word| word.to_str()).collect();
    let repository = match Repository::find() {
        Ok(repository) => repository,
        Err(error) => return told(Err(error)),
    };
    match arguments.as_slice() {
        // Its command's words need not be text.
        ["lab", ..] => lab::command(&repository, &given[1..]),
        ["test", "--lab", ..] => told(test::run_lab(&repository, &given[2..])),
        ["test"] => told(test::run(&repository, provide::Network::Allowed)),
        ["test", "--offline"] => told(test::run(&repository, provide::Network::Forbidden)),
        ["faults"] => told(test::run_faults(&repository, true)),
        ["faults", "--sample"] => told(test::run_faults(&repository, false)),
        ["faults", "--render"] => told(test::render_faults(&repository)),
        ["fuzz", words @ ..] => told(fuzz::command(&repository, words)),
        ["models"] => told(models::run(&repository)),
        ["sanitize"] => told(sanitize::run(&repository)),
        ["soak"] => told(soak::run(&repository)),
        ["floors"] => told(floors::check(&repository)),
        ["ci"] => told(ci(&repository)),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn ci(repository: &Repository) -> Result<(), String> {
    repository.cargo(&["fmt", "--all", "--check"], &[])?;
    repository.cargo(
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &[],
    )?;
    repository.cargo(
        &[
            "clippy",
            "--quiet",
            "-p",
            "mig-tests",
            "--features",
            "lab",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    repository.cargo(
        &["doc", "--workspace", "--no-deps", "--quiet"],
        &[("RUSTDOCFLAGS", "-D warnings".as_ref())],
    )?;
    floors::check(repository)?;
    test::run(repository, provide::Network::Allowed)
}

fn told(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
