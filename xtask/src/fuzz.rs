//! `cargo xtask fuzz`: libFuzzer over the targets of `fuzz/`, with the toolchain that builds mig and without cargo-fuzz.
//!
//! ```text
//!   no TARGET        all of them, a few seconds each, over what is checked in: the step of `cargo xtask test`
//!   TARGET           one of them, until it is stopped or finds something; what it learns stays in target/fuzz/corpus
//!   --minimize       what it learned, as few files as cover the same, into fuzz/corpus
//! ```
//! The flags are those that cargo-fuzz passes, less the sanitizer: `-Cpasses=sancov-module` is stable, `-Zsanitizer` is
//! not. Whoever has nightly and cargo-fuzz uses `cargo +nightly fuzz run TARGET`, address sanitizer included.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::provide::run_quietly;
use crate::repository::Repository;

/// Seconds for each target where all are run: with the build less than three minutes of CI.
const SMOKE_SECONDS: u32 = 2;

/// Targets that are not built for a run over all: building the cryptography once more takes longer than all the rest, and
/// the bytes are decoded by rustls. Their corpora are replayed by the tests all the same.
const NOT_IN_SMOKE: &str = "tls_";

/// As `cargo fuzz build` has them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing";

/// Records the comparisons as well: finds magic numbers sooner, at half the speed.
const COMPARISONS: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";

/// What a run over all targets came to.
#[derive(Debug, Default)]
pub(crate) struct Smoke {
    /// Targets that found nothing.
    pub(crate) passed: usize,
    /// What the others found.
    pub(crate) failed: Vec<String>,
}

/// The command line: `[--minimize] [TARGET] [-- libFuzzer's arguments]`.
pub(crate) fn command(repository: &Repository, arguments: &[&str]) -> Result<(), String> {
    let split = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
    let (ours, theirs) = arguments.split_at(split);
    let theirs = theirs.get(1..).unwrap_or_default();
    let fuzz = Fuzz::new(repository)?;
    match ours {
        [] => {
            let smoke = fuzz.smoke(&fuzz.build(Profile::Smoke)?)?;
            if smoke.failed.is_empty() { Ok(()) } else { Err(smoke.failed.join("\n")) }
        }
        ["--list"] => {
            fuzz.targets.iter().for_each(|target| println!("{target}"));
            Ok(())
        }
        ["--minimize", target] => fuzz.minimize(target),
        [target] if !target.starts_with('-') => fuzz.run(target, theirs),
        other => Err(format!("fuzz: {other:?} is not understood\n{}", crate::USAGE)),
    }
}

/// All targets for a few seconds each.
pub(crate) fn smoke(repository: &Repository) -> Result<Smoke, String> {
    let fuzz = Fuzz::new(repository)?;
    fuzz.smoke(&fuzz.build(Profile::Smoke)?)
}

/// Whether everything that the build needs is there already; the error says what is not.
pub(crate) fn is_fetched(repository: &Repository) -> Result<(), String> {
    let manifest = Fuzz::new(repository)?.directory.join("Cargo.toml");
    let mut fetch = repository.cargo_command(&["fetch", "--offline"], &[]);
    run_quietly(fetch.arg("--manifest-path").arg(manifest)).map(drop)
}

/// How the targets are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Profile {
    /// Fast to build.
    Smoke,
    /// Fast to run.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Release => "release",
        }
    }
}

struct Fuzz<'r> {
    repository: &'r Repository,
    directory: PathBuf,
    /// Where the builds, the corpora that grow, and what was found go.
    target: PathBuf,
    host: String,
    targets: Vec<String>,
}

impl<'r> Fuzz<'r> {
    fn new(repository: &'r Repository) -> Result<Self, String> {
        let directory = repository.root.join("fuzz");
        let mut targets = Vec::new();
        for entry in entries(&directory.join("fuzz_targets"))? {
            targets.extend(entry.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
        targets.sort();
        let told = run_quietly(Command::new(rustc()).arg("-vV"))?;
        let host = told.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.ok_or("rustc -vV names no host")?.to_owned();
        Ok(Self { repository, directory, target: repository.target.join("fuzz"), host, targets })
    }

    /// Builds all targets; answers the directory they are in.
    fn build(&self, profile: Profile) -> Result<PathBuf, String> {
        let manifest = self.directory.join("Cargo.toml");
        let mut arguments = vec!["build", "--bins", "--quiet"];
        // Naming the target keeps the flags away from build scripts and macros.
        arguments.extend(["--target", &self.host, "--profile", profile.name()]);
        if profile == Profile::Smoke {
            arguments.push("--no-default-features");
        }
        eprintln!("xtask: cargo {} (fuzz)", arguments.join(" "));
        let flags = match profile {
            Profile::Smoke => COVERAGE.to_owned(),
            Profile::Release => format!("{COVERAGE} {COMPARISONS}"),
        };
        let mut build = self.repository.cargo_command(&arguments, &[("RUSTFLAGS", flags.as_ref())]);
        build.arg("--manifest-path").arg(manifest);
        build.arg("--target-dir").arg(&self.target).env_remove("CARGO_ENCODED_RUSTFLAGS");
        let status = build.status().map_err(|error| format!("cannot run cargo: {error}"))?;
        if !status.success() {
            return Err(format!(
                "the fuzz targets cannot be built ({status}); libFuzzer needs a C++ compiler"
            ));
        }
        Ok(self.target.join(&self.host).join(profile.name()))
    }

    fn smoke(&self, binaries: &Path) -> Result<Smoke, String> {
        let mut smoke = Smoke::default();
        for target in &self.targets {
            if target.starts_with(NOT_IN_SMOKE) {
                eprintln!("xtask: fuzz {target}: not here, its corpus is replayed by the tests");
                continue;
            }
            let corpus = self.fresh(&self.target.join("smoke").join(target))?;
            let seconds = format!("-max_total_time={SMOKE_SECONDS}");
            let mut command = self.libfuzzer(binaries, target, &corpus)?;
            command.arg(seconds).args(["-print_final_stats=1", "-max_len=512", "-timeout=20"]);
            let output = command.output().map_err(|error| format!("cannot run it: {error}"))?;
            let said = String::from_utf8_lossy(&output.stderr);
            let executions = said
                .lines()
                .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
                .and_then(|number| number.trim().parse::<u64>().ok());
            match executions {
                Some(executions) if output.status.success() && executions > 0 => {
                    eprintln!("xtask: fuzz {target}: {executions} executions");
                    smoke.passed += 1;
                }
                _ => smoke.failed.push(format!(
                    "fuzz {target} ({}); again: cargo xtask fuzz {target}\n{}",
                    output.status,
                    tail(&said, 60)
                )),
            }
        }
        if smoke.passed == 0 && smoke.failed.is_empty() {
            return Err("fuzz/fuzz_targets holds no target".to_owned());
        }
        Ok(smoke)
    }

    fn run(&self, target: &str, arguments: &[&str]) -> Result<(), String> {
        let grown = self.target.join("corpus").join(self.known(target)?);
        make(&grown)?;
        let binaries = self.build(Profile::Release)?;
        let mut command = self.libfuzzer(&binaries, target, &grown)?;
        let status = command
            .args(arguments)
            .status()
            .map_err(|error| format!("cannot run {target}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("fuzz {target}: {status}")) }
    }

    fn minimize(&self, target: &str) -> Result<(), String> {
        let kept = self.directory.join("corpus").join(self.known(target)?);
        let binaries = self.build(Profile::Release)?;
        let grown = self.target.join("corpus").join(target);
        let minimal = self.fresh(&self.target.join("minimal"))?;
        let mut merge = Command::new(binaries.join(target));
        // By what is reached alone, not how often: some tens of files and not some thousands.
        merge
            .args(["-set_cover_merge=1", "-use_counters=0", "-max_len=512"])
            .args([&minimal, &kept, &grown]);
        run_quietly(&mut merge)?;
        for file in entries(&kept)?.into_iter().filter(|file| is_libfuzzers(file)) {
            fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        for file in entries(&minimal)? {
            let name = file.file_name().ok_or("a file without a name")?;
            fs::copy(&file, kept.join(name)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// libFuzzer over a corpus that may grow and the one that is checked in. What it finds is written beside the former.
    fn libfuzzer(&self, binaries: &Path, target: &str, grows: &Path) -> Result<Command, String> {
        let found = self.target.join("found").join(target);
        make(&found)?;
        let mut command = Command::new(binaries.join(target));
        command.arg(grows).arg(self.directory.join("corpus").join(target)).current_dir(found);
        let dictionary = self.directory.join("dictionaries").join(format!("{target}.dict"));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    fn known<'t>(&self, target: &'t str) -> Result<&'t str, String> {
        if self.targets.iter().any(|known| known == target) {
            return Ok(target);
        }
        Err(format!("there is no fuzz target {target:?}; there are {}", self.targets.join(", ")))
    }

    /// The directory, empty.
    fn fresh(&self, directory: &Path) -> Result<PathBuf, String> {
        // None is as good as an empty one.
        let _none = fs::remove_dir_all(directory);
        make(directory)?;
        Ok(directory.to_owned())
    }
}

fn rustc() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

fn make(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let read = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()));
    Ok(read?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
}

/// Whether libFuzzer named the file, by a hash. Other names were given by somebody, who wants the file kept.
fn is_libfuzzers(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
