//! `mig send`.

use std::path::PathBuf;

use clap::Args;

use crate::flags::{
    DeadlineFlags, Duration, MultifdFlags, Percent, Rate, Size, TlsSourceFlags, Uuid,
};

const EXAMPLES: &str = "\
Examples:
  Start a saved guest in a QEMU that waits on port 4444:
      qemu-system-x86_64 … -incoming tcp:127.0.0.1:4444
      mig send vm.mig tcp:127.0.0.1:4444
  Let QEMU start mig itself:
      qemu-system-x86_64 … -incoming \"exec:mig send vm.mig fd:1\"
  From a pipe, at a tenth of a gigabyte a second:
      zstdcat vm.mig.zst | mig send - tcp:otherhost:4444 --max-bandwidth 100MB/s
  Over RDMA, with an answer; the destination's QEMU has the capability `return-path` on too:
      mig send vm.mig rdma:192.0.2.1:4444 --return-path

  Over four connections, into a QEMU with the capability `multifd` and four `multifd-channels`:
      mig send vm.mig tcp:otherhost:4444 --multifd 4
  Encrypted, to a destination whose certificate is for otherhost:
      mig send vm.mig tcp:otherhost:4444 --tls-creds tls

Where the transport can carry answers (tcp, unix, vsock, socket fds), the destination is asked to
confirm, and success is reported only after it did. Elsewhere (file, pipes, exec and rdma without
--return-path) the report says \"sent, not confirmed\".

Over rdma and with --multifd each page is sent once: the guest's memory is brought together here
first, so FILE must be a file, and this machine needs as much free memory as the guest has.";

/// Be a migration source: replay a saved file to any QEMU-compatible destination.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct SendFlags {
    /// The stored stream; `-` is stdin
    pub(crate) file: PathBuf,

    /// Where the destination waits: a migration URI
    pub(crate) uri: String,

    /// Ask for confirmation where that is not the rule (exec, pipes, rdma); both ends must agree there
    #[arg(long, overrides_with = "no_return_path")]
    pub(crate) return_path: bool,

    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) no_return_path: bool,

    /// Write no faster than this; 0 is unlimited
    #[arg(long, value_name = "RATE")]
    pub(crate) max_bandwidth: Option<Rate>,

    #[command(flatten)]
    pub(crate) multifd: MultifdFlags,

    /// Processor time that `--multifd auto` may use: 150% is one and a half processors
    #[arg(long, value_name = "PERCENT", requires = "multifd")]
    pub(crate) cpu_budget: Option<Percent>,

    /// The guest's UUID, as the data channels name it; default: that of the stored stream, or none
    #[arg(long, requires = "multifd")]
    pub(crate) uuid: Option<Uuid>,

    /// rdma: register all memory of both ends up front (QEMU's `rdma-pin-all`), not just what is being written
    #[arg(long, conflicts_with = "rdma_pinned_memory")]
    pub(crate) rdma_pin_all: bool,

    /// rdma: register at most this much memory at a time; default: a part of what may be locked here
    #[arg(long, value_name = "SIZE")]
    pub(crate) rdma_pinned_memory: Option<Size>,

    #[command(flatten)]
    pub(crate) tls: TlsSourceFlags,

    #[command(flatten)]
    pub(crate) deadlines: DeadlineFlags,

    /// Give up when the whole command takes longer than this
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,

    /// One JSON object a line on stdout while it runs; the last one is the result
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress, no remarks; errors are still told
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
