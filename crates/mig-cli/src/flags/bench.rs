//! `mig bench`.

use std::path::PathBuf;

use clap::Args;

use crate::flags::{Channels, Compression, Percent, Rate, Size};

const EXAMPLES: &str = "\
Examples:
  Everything that works here:
      mig bench
  One gigabyte over tcp and unix, five times each, with a guest that writes 200 MiB a second:
      mig bench --transport tcp --transport unix --size 1GiB --dirty-rate 200MiB/s --runs 5
  One, two and four data channels, and as many as are worth it:
      mig bench --transport tcp --channels 0,1,2,4,auto
  What TLS costs:
      mig bench --transport tcp --tls --warm
  RDMA next to tcp, at the address of an RDMA device's network interface (port 0: any):
      mig bench --transport tcp --transport rdma:192.0.2.1:0
  Numbers for a script:
      mig bench --json -";

/// Migrate a synthetic guest over every transport usable here, and measure.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BenchFlags {
    /// A transport's name or a URI; may be repeated. Default: all that work here
    #[arg(long, value_name = "URI|SCHEME")]
    pub(crate) transport: Vec<String>,

    /// Guest memory
    #[arg(long, default_value = "1GiB")]
    pub(crate) size: Size,

    /// What the guest writes while it migrates; 0 is nothing
    #[arg(long, value_name = "RATE", default_value = "200MiB/s")]
    pub(crate) dirty_rate: Rate,

    /// How much of its memory the guest writes to; default: an eighth
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Size>,

    /// Percentage of pages that are zero
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) zero: u8,

    /// Percentage of pages that compress well
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) compressible: u8,

    /// The destination's memory is untouched when the clock starts, as that of a new guest is (the default)
    #[arg(long, conflicts_with = "warm")]
    pub(crate) cold: bool,

    /// The destination's memory was touched before
    #[arg(long)]
    pub(crate) warm: bool,

    /// Data channels beside the main one (multifd), or `auto`; may be repeated or a list: 0,1,2,4. 0 is none, which is the
    /// default. Transports that cannot have any are left out for the others
    #[arg(long, value_name = "N|auto", value_delimiter = ',')]
    pub(crate) channels: Vec<Channels>,

    /// How the pages of the data channels are compressed (`multifd-compression`)
    #[arg(long, value_name = "METHOD", value_enum, requires = "channels")]
    pub(crate) compression: Option<Compression>,

    /// Processor time that `--channels auto` may use at the source: 150% is one and a half processors
    #[arg(long, value_name = "PERCENT", requires = "channels")]
    pub(crate) cpu_budget: Option<Percent>,

    /// Run each transport that can have TLS a second time with it; the certificates are made for this run alone
    #[arg(long)]
    pub(crate) tls: bool,

    /// Runs of each transport
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,

    /// Write no faster than this; 0 is unlimited
    #[arg(long, value_name = "RATE")]
    pub(crate) max_bandwidth: Option<Rate>,

    /// How long the guest may stand still at the end
    #[arg(long, value_name = "DURATION")]
    pub(crate) downtime_limit: Option<crate::flags::Duration>,

    /// rdma: register all memory of both ends up front (QEMU's `rdma-pin-all`)
    #[arg(long, conflicts_with = "rdma_pinned_memory")]
    pub(crate) rdma_pin_all: bool,

    /// rdma: register at most this much memory at a time at each end; default: a part of what may be locked here
    #[arg(long, value_name = "SIZE")]
    pub(crate) rdma_pinned_memory: Option<Size>,

    /// Where to write the results as JSON; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// No progress, no remarks; errors are still told
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
