//! `mig recv`.

use std::path::PathBuf;

use clap::Args;

use crate::flags::{
    DeadlineFlags, DoorFlags, Duration, MultifdFlags, Size, TlsDestinationFlags, Uuid,
};

const EXAMPLES: &str = "\
Examples:
  Keep what a QEMU sends to port 4444 of this machine:
      mig recv tcp:127.0.0.1:4444 --save vm.mig
      (qemu) migrate tcp:127.0.0.1:4444
  Let QEMU start mig itself:
      (qemu) migrate \"exec:mig recv fd:0 --save vm.mig\"
  Straight into a second QEMU, without a file:
      mig recv unix:/run/mig.sock --save - | qemu-system-x86_64 … -incoming fd:0
  From a QEMU's memory by RDMA; the address is that of an RDMA device's network interface:
      mig recv rdma:192.0.2.1:4444 --save vm.mig
  From a QEMU with the capability `multifd` and four `multifd-channels`:
      mig recv tcp:127.0.0.1:4444 --multifd 4 --save vm.mig
  Encrypted, and from nobody but who has a certificate of the same authority:
      mig certs tls
      mig recv tcp:0.0.0.0:4444 --tls-creds tls --save vm.mig
  Only verify that a stream is sound, and throw it away:
      mig recv tcp:[::1]:4444

The file appears under its name only when everything was received and is on the disk; only then
is the source told that it may let go of its guest. It loads in a QEMU of the same machine type,
by file: and by exec:cat, also after --multifd. Over rdma and with --multifd the guest's memory is
held here until it is complete.";

/// Be a migration destination: keep everything received as one QEMU-loadable file.
///
/// Without --save the stream is verified and discarded.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RecvFlags {
    /// Where to wait for the source: a migration URI
    pub(crate) uri: String,

    /// Where to keep the stream; an existing file is replaced when everything arrived. `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,

    /// Answer where that is not the rule (exec, pipes, rdma); the source must have `return-path` on
    #[arg(long, overrides_with = "no_return_path")]
    pub(crate) return_path: bool,

    /// Never answer; a source that asks for answers is refused
    #[arg(long)]
    pub(crate) no_return_path: bool,

    /// The source has the capability `switchover-ack` on: agree to its switchover
    #[arg(long)]
    pub(crate) switchover_ack: bool,

    #[command(flatten)]
    pub(crate) multifd: MultifdFlags,

    /// rdma: register at most this much memory at a time, unless the source wants all of it pinned; default: a
    /// part of what may be locked here
    #[arg(long, value_name = "SIZE")]
    pub(crate) rdma_pinned_memory: Option<Size>,

    /// Which guest is expected: a source that names another is refused. Data channels name it, the main one only with
    /// QEMU's `validate-uuid`
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,

    #[command(flatten)]
    pub(crate) deadlines: DeadlineFlags,

    /// Give up when the whole command takes longer than this
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,

    #[command(flatten)]
    pub(crate) tls: TlsDestinationFlags,

    #[command(flatten)]
    pub(crate) door: DoorFlags,

    /// One JSON object a line on stdout while it runs; the last one is the result
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress, no remarks; errors are still told
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
