//! The command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Parser;

use crate::benchmark;

/// Measures mig against iperf3, bare loops and QEMU on this machine, and prints ratios.
#[derive(Debug, Parser)]
#[command(name = "mig-bench", after_help = names())]
pub(crate) struct Flags {
    /// Which benchmarks; all of them if none is named
    #[arg(value_name = "NAME", value_parser = known)]
    pub(crate) names: Vec<String>,
    /// Rounds of each contest; a median of fewer than five says little
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Guest memory of the throughput contests [default: 2GiB, over rdma 256MiB]
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<ByteSize>,
    /// Measure in the lab, a virtual machine with an RDMA device and netem; what needs those, if nothing is named
    #[arg(long)]
    pub(crate) lab: bool,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Replace the tables between the markers of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// In the lab: findings go to stdout as JSON
    #[arg(long, hide = true)]
    pub(crate) in_lab: bool,
}

/// The flags of this process; ends it with a message if they are wrong.
pub(crate) fn parse() -> Flags {
    Flags::parse()
}

fn known(name: &str) -> Result<String, String> {
    if benchmark::ALL.iter().any(|benchmark| benchmark.name == name) {
        return Ok(name.to_owned());
    }
    let names: Vec<_> = benchmark::ALL.iter().map(|benchmark| benchmark.name).collect();
    Err(format!("there are {}", names.join(", ")))
}

fn names() -> String {
    let lines: Vec<_> =
        benchmark::ALL.iter().map(|all| format!("  {:<15} {}", all.name, all.title)).collect();
    format!("Benchmarks:\n{}", lines.join("\n"))
}
