//! The lab: a throw-away virtual machine on this machine's own root, with the devices its kernel does not have.
//!
//! ```text
//!   kernel ── the distribution's, unpacked into target/lab/kernel/      ┐
//!   initramfs ── busybox, a few modules, init.sh                        ├─ Lab ─▶ machine::run(order)
//!   packages ── QEMU, busybox-static, kmod, rdma-core, …, installed     ┘            │
//!                                       run_directory: script, exit status, results ─┘
//! ```
//! Inside: the host's whole file system at its own paths, read-only below an overlay in memory; a soft-RoCE device
//! `rxe0` on `dummy0` (10.55.0.1/24 and fd55::1/64, MTU 4200); vsock loopback; kernel TLS; netem. Emulated, since KVM cannot be
//! counted on, so everything in it is slow. See docs/testing.md, "The lab".

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::FlockOperation;

mod files;
mod initramfs;
mod kernel;
mod machine;
mod marker;
mod run_directory;
pub(crate) mod stage;

use crate::provide::{self, Network};
use crate::repository::Repository;
use kernel::Kernel;
use machine::{Ended, Size, Stream};
use run_directory::Order;

/// Exit code after `--timeout`, as coreutils' `timeout` has it.
const TIMED_OUT: u8 = 124;
/// Exit code when it was the lab that failed and not the command, as the same tool has it.
const LAB_FAILED: u8 = 125;

/// Everything that a virtual machine needs to boot.
#[derive(Debug)]
pub(crate) struct Lab {
    /// `target/lab`.
    directory: PathBuf,
    kernel: Kernel,
    initramfs: PathBuf,
}

impl Lab {
    /// Finds or brings all of it; the error says what cannot be had.
    pub(crate) fn provide(repository: &Repository, network: Network) -> Result<Self, String> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(format!("the lab has not been tried on {}", std::env::consts::ARCH));
        }
        provide::packages_of_the_lab(network)?;
        let directory = repository.target.join("lab");
        files::create(&directory)?;
        let directory = directory
            .canonicalize()
            .map_err(|error| format!("cannot resolve {}: {error}", directory.display()))?;
        // Labs may start side by side; one of them brings what is missing.
        let lock = directory.join("lock");
        let lock = std::fs::File::create(&lock)
            .map_err(|error| format!("cannot write {}: {error}", lock.display()))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| format!("cannot lock {}: {error}", directory.display()))?;
        let kernel = kernel::provide(&directory, network)?;
        let initramfs = initramfs::provide(&directory, &kernel)?;
        Ok(Self { directory, kernel, initramfs })
    }
}

/// `cargo xtask lab [OPTION…] -- COMMAND…`: ends with COMMAND's exit status.
pub(crate) fn command(repository: &Repository, arguments: &[OsString]) -> ExitCode {
    let Some((network, size, command)) = parse(arguments) else {
        eprintln!("{}", crate::USAGE);
        return ExitCode::from(2);
    };
    match run(repository, network, &size, command) {
        Ok(Ended::With(status)) => ExitCode::from(status),
        Ok(Ended::TimedOut) => ExitCode::from(TIMED_OUT),
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn run(
    repository: &Repository,
    network: Network,
    size: &Size,
    command: &[OsString],
) -> Result<Ended, String> {
    let lab = Lab::provide(repository, network)?;
    let directory = std::env::current_dir().map_err(|error| format!("no directory: {error}"))?;
    machine::run(&lab, &Order { command, directory: &directory, environment: &[] }, size, &mut show)
}

/// Straight to our own streams.
fn show(stream: Stream, piece: &[u8]) {
    // A reader who has left does not matter to the command.
    let _ = match stream {
        Stream::Stdout => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(piece).and_then(|()| stdout.flush())
        }
        Stream::Stderr => std::io::stderr().write_all(piece),
    };
}

fn parse(arguments: &[OsString]) -> Option<(Network, Size, &[OsString])> {
    let mut network = Network::Allowed;
    let mut size = Size { memory: "4G".to_owned(), cpus: 2, timeout: Duration::from_secs(600) };
    let mut rest = arguments.iter();
    loop {
        match rest.next()?.to_str()? {
            "--" => break,
            "--offline" => network = Network::Forbidden,
            "--memory" => size.memory = rest.next()?.to_str()?.to_owned(),
            "--cpus" => size.cpus = rest.next()?.to_str()?.parse().ok()?,
            "--timeout" => {
                size.timeout = Duration::from_secs(rest.next()?.to_str()?.parse().ok()?);
            }
            _ => return None,
        }
    }
    (!rest.as_slice().is_empty()).then_some((network, size, rest.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn options_come_before_the_command() {
        let arguments = words("--memory 1G --cpus 4 --timeout 5 -- ls --cpus");
        let (network, size, command) = parse(&arguments).unwrap();
        assert_eq!(network, Network::Allowed);
        assert_eq!((size.memory.as_str(), size.cpus, size.timeout.as_secs()), ("1G", 4, 5));
        assert_eq!(command, words("ls --cpus"));
        for wrong in ["ls", "--", "--cpus -- ls", "--cpus x -- ls", "--fast -- ls"] {
            assert!(parse(&words(wrong)).is_none(), "{wrong}");
        }
    }
}
