//! The lab: this program again, in a virtual machine that has an RDMA device (docs/testing.md).
//!
//! ```text
//!   mig-bench --lab ─▶ cargo xtask lab -- mig-bench --in-lab ─▶ stderr: what happens, passed on
//!                                                            └▶ stdout: Findings, one line of JSON
//! ```
//! Files written in there are lost, so the tables and the JSON file are written out here.

use std::{
    env,
    ffi::OsString,
    process::{Command, Stdio},
};

use crate::{
    failure::Result,
    flags::Flags,
    machine,
    suite::{Findings, wanted},
};

/// How long a round of one benchmark may take: emulated, each transfer takes seconds.
const SECONDS_PER_BENCHMARK_AND_RUN: u32 = 900;

/// Memory of the virtual machine.
const MEMORY: &str = "6G";

/// Measures there what was asked for.
pub(crate) fn measure(flags: &Flags) -> Result<Findings> {
    let load = machine::load().filter(|load| *load > machine::IDLE);
    if let Some(load) = load {
        machine::warn_of(load);
    }
    let benchmarks = u32::try_from(wanted(flags).count()).unwrap_or(u32::MAX).max(1);
    let seconds =
        SECONDS_PER_BENCHMARK_AND_RUN.saturating_mul(benchmarks).saturating_mul(flags.runs);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut arguments: Vec<OsString> =
        ["xtask", "lab", "--memory", MEMORY, "--timeout"].map(OsString::from).to_vec();
    arguments.push(seconds.to_string().into());
    arguments.push("--".into());
    arguments.push(env::current_exe()?.into());
    arguments.extend(["--in-lab", "--runs"].map(OsString::from));
    arguments.push(flags.runs.to_string().into());
    if let Some(size) = flags.size {
        arguments.extend(["--size".into(), size.as_u64().to_string().into()]);
    }
    arguments.extend(flags.names.iter().map(OsString::from));
    let lab = Command::new(cargo)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !lab.status.success() {
        return Err(format!("the lab failed ({})", lab.status).into());
    }
    let told = String::from_utf8_lossy(&lab.stdout);
    let mut findings: Findings = serde_json::from_str(told.trim())
        .map_err(|error| format!("the lab's findings are none ({error}): {told}"))?;
    if let Some(load) = load {
        findings.note(&machine::note_of(load));
    }
    Ok(findings)
}
