//! `mig doctor`: what works on this machine, what does not, and the exact reason and remedy.
//!
//! Everything is tried, not looked up: sockets are connected over loopback, commands are run, memory is tracked. Where
//! trying would change something or needs a far end, the kernel's own files are read. Nothing stays behind.

mod memory;
mod rdma;
mod report;
mod system;
mod tls;
mod transports;

use std::io::{self, Write};

use mig::transport::Blame;

use crate::{
    doctor::report::{Group, Report},
    failure::{Failure, Outcome},
    flags::DoctorFlags,
    supervise::block_on,
};

/// Runs the command.
pub(crate) fn run(flags: &DoctorFlags) -> Outcome {
    let mut checks = block_on(async { Ok(transports::checks().await) })?;
    checks.extend(memory::checks());
    checks.extend(system::checks());
    checks.extend(tls::checks());
    let report = Report { machine: system::machine(), checks, rdma: rdma::look() };
    let written = match flags.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(io::Error::from)
            .and_then(|json| writeln!(io::stdout(), "{json}")),
        false => list(&mut io::stdout().lock(), &report),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Blame::Io, "writing to stdout").caused_by(&error)),
        Ok(()) => Ok(()),
    }
}

fn list(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let machine = &report.machine;
    writeln!(
        out,
        "mig {} on {} {}, {} cores, {} MiB of memory",
        machine.mig,
        machine.kernel,
        machine.architecture,
        machine.cores,
        machine.memory_bytes >> 20
    )?;
    for group in [Group::Transport, Group::Memory, Group::System] {
        writeln!(out, "\n{}", group.title())?;
        for check in report.checks.iter().filter(|check| check.group == group) {
            let mark = check.status.mark();
            writeln!(out, "  {mark} {:<26} {}", check.name, check.detail)?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "    {:<26} remedy: {remedy}", "")?;
            }
        }
    }
    writeln!(out, "\nRDMA")?;
    rdma::list(out, &report.rdma)
}
