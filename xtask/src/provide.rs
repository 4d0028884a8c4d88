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
];

/// Installs what is missing, or prints how.
pub(crate) fn packages(network: Network) {
    let missing: Vec<_> = NEEDED.iter().filter(|(program, _, _)| !in_path(program)).collect();
    if missing.is_empty() {
        return;
    }
    for (program, package, user) in &missing {
        eprintln!("xtask: {program} is missing (package {package}), for {user}");
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    let advice = format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    let installed = match (network, privilege()) {
        (Network::Allowed, Some(prefix)) => install(prefix, &packages),
        (Network::Allowed, None) => Err("neither root nor sudo without a password".to_owned()),
        (Network::Forbidden, _) => Err("--offline".to_owned()),
    };
    if let Err(why) = installed {
        eprintln!("xtask: not installed ({why}); this would do it:\n\n    {advice}\n");
    }
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
    let steps: [&[&str]; 2] = [
        &["apt-get", "update", "-qq"],
        &["apt-get", "install", "-y", "-qq", "--no-install-recommends"],
    ];
    for (step, more) in steps.into_iter().zip([&[] as &[&str], packages]) {
        // `env` and not our environment: sudo does not pass that on.
        let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive"], step, more].concat();
        eprintln!("xtask: {}", words.join(" "));
        run_quietly(Command::new(words[0]).args(&words[1..]))?;
    }
    Ok(())
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
