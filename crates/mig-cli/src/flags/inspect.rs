//! `mig inspect`.

use clap::Args;

use crate::flags::{DeadlineFlags, DoorFlags, Duration, TlsDestinationFlags};

const EXAMPLES: &str = "\
Examples:
  What is in a saved stream:
      mig inspect vm.mig
  Which devices it has:
      mig inspect vm.mig --json | jq -r '.items[] | select(.kind == \"full\") | .idstr'
  Look at what a QEMU would send, without keeping it:
      mig inspect tcp:127.0.0.1:4444
      (qemu) migrate tcp:127.0.0.1:4444

A stream that breaks the protocol is listed as far as it could be read; the exit code is then 3
and stderr names the byte.";

/// Decode every record of a stream: header, sections, commands, pages, devices.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct InspectFlags {
    /// A stored stream, `-` for stdin, or a migration URI on which to wait for a source
    pub(crate) source: String,

    /// One JSON object on stdout instead of the listing
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) deadlines: DeadlineFlags,

    /// With a URI: give up when the whole command takes longer than this
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,

    #[command(flatten)]
    pub(crate) tls: TlsDestinationFlags,

    #[command(flatten)]
    pub(crate) door: DoorFlags,

    /// No remarks; errors are still told
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
