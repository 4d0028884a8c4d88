//! What the suite needs from the system, and bringing it where that is allowed.
//!
//! Allowed means: root, or `sudo` without a password, on a machine with `apt-get`. Everywhere else the one command
//! that would do it is printed, and the tests that miss something say so themselves.

use std::process::{Command, Stdio};

use crate::repository::in_path;

/// Whether anything may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Install and unpack what is missing.
    Allowed,
    /// `--offline`: use what is there.
    Forbidden,
}

/// (program, Debian's and Ubuntu's package of it, who uses it)
const NEEDED: &[(&str, &str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86", "the scenarios with real QEMU"),
    ("iperf3", "iperf3", "the yardstick of bench/"),
    ("c++", "g++", "libFuzzer, of the fuzz targets"),
];

/// (package, what for): what has no program to look for.
const NEEDED_TO_BUILD: &[(&str, &str)] =
    &[("libssl-dev", "TLS with pre-shared keys"), ("pkg-config", "finding libssl-dev")];

/// (package, what for)
const NEEDED_BY_THE_LAB: &[(&str, &str)] = &[
    ("qemu-system-x86", "the virtual machine"),
    ("busybox-static", "its first program"),
    ("kmod", "the order of its kernel's modules"),
    ("iproute2", "its network and its soft-RoCE device"),
    ("rdma-core", "RDMA in it"),
    ("librdmacm1", "RDMA in it"),
    ("ibverbs-providers", "RDMA in it"),
    ("ibverbs-utils", "looking at RDMA devices"),
    ("rdmacm-utils", "rping"),
    ("perftest", "the yardstick of RDMA"),
];

/// Installs what the tests need and is missing, or prints how.
pub(crate) fn packages(network: Network) {
    let programs = NEEDED.iter().filter(|(program, _, _)| !in_path(program));
    let mut missing: Vec<(&str, &str)> =
        programs.map(|(_, package, user)| (*package, *user)).collect();
    for (package, user) in missing_of(&[NEEDED_TO_BUILD, NEEDED_BY_THE_LAB].concat()) {
        if !missing.iter().any(|(already, _)| *already == package) {
            missing.push((package, user));
        }
    }
    // Whoever misses something will say so; here it is only advice.
    let _ = bring(network, &missing);
}

/// Installs what the lab needs and is missing; an error if it is not there afterwards.
pub(crate) fn packages_of_the_lab(network: Network) -> Result<(), String> {
    if !in_path("dpkg-query") || !in_path("apt-get") {
        return Err("the lab is made of Debian packages, and this is not Debian".to_owned());
    }
    bring(network, &missing_of(NEEDED_BY_THE_LAB))
}

fn missing_of(needed: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${Status}\n"]);
    query.args(needed.iter().map(|(package, _)| package)).stderr(Stdio::null());
    // It fails if it does not know one of them, having told about the others.
    let told = query.output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told);
    let is_there =
        |package: &str| told.lines().any(|line| line == format!("{package} install ok installed"));
    needed.iter().copied().filter(|(package, _)| !is_there(package)).collect()
}

fn bring(network: Network, missing: &[(&str, &str)]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    for (package, user) in missing {
        eprintln!("xtask: package {package} is missing, for {user}");
    }
    let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    let packages_in_words = packages.join(" ");
    let installed = match (network, privilege()) {
        (Network::Allowed, Some(prefix)) => install(prefix, &packages),
        (Network::Allowed, None) => Err("neither root nor sudo without a password".to_owned()),
        (Network::Forbidden, _) => Err("--offline".to_owned()),
    };
    installed.map_err(|why| {
        eprintln!(
            "xtask: not installed ({why}); this would do it:\n\n    sudo apt-get update && sudo apt-get \
             install -y --no-install-recommends {packages_in_words}\n"
        );
        format!("missing: {packages_in_words} ({why})")
    })
}

/// Fetches the lists of packages anew.
pub(crate) fn update_lists() -> Result<(), String> {
    let prefix = privilege().ok_or("neither root nor sudo without a password")?;
    apt(prefix, &["apt-get", "update", "-qq"])
}

/// The words to put before a command that needs root; `None` where there is no way.
fn privilege() -> Option<&'static [&'static str]> {
    if !in_path("apt-get") {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    let silent = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    matches!(silent, Ok(status) if status.success()).then_some(&["sudo", "-n"])
}

fn install(prefix: &[&str], packages: &[&str]) -> Result<(), String> {
    apt(prefix, &["apt-get", "update", "-qq"])?;
    let install: &[&str] = &["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    apt(prefix, &[install, packages].concat())
}

fn apt(prefix: &[&str], words: &[&str]) -> Result<(), String> {
    // `env` and not our environment: sudo does not pass that on.
    let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive"], words].concat();
    eprintln!("xtask: {}", words.join(" "));
    run_quietly(Command::new(words[0]).args(&words[1..])).map(drop)
}

/// Runs a command whose output matters only if it fails; gives its stdout.
pub(crate) fn run_quietly(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?} failed ({}): {}", output.status, said.trim()))
    }
}
