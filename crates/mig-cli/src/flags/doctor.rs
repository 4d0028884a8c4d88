//! `mig doctor`.

use clap::Args;

const EXAMPLES: &str = "\
Examples:
      mig doctor
      mig doctor --json | jq '.checks[] | select(.status != \"works\")'
      mig doctor --json | jq '.rdma.devices[].ports[].gids[]'

Nothing is changed on the machine. The exit code is 0 whatever was found.";

/// Tell what works on this machine, what does not, and the exact reason and remedy.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DoctorFlags {
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}
