//! `--allow` and `--require-tls`: who may connect, and how.

use std::str::FromStr;

use clap::Args;
use mig::transport::AllowRule;

/// At whatever takes a guest.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DoorFlags {
    /// Who may connect; again for others. An address or network (192.0.2.0/24), a user of a unix socket (uid:1000), a
    /// context id of vsock (cid:3). Default: anybody
    #[arg(long, value_name = "WHO")]
    pub(crate) allow: Vec<Allow>,

    /// Do not listen on an address that others can reach without TLS (--tls-creds; rdma has none). Where fd: and exec:
    /// lead, to a network perhaps, cannot be known: they are taken at your word
    #[arg(long)]
    pub(crate) require_tls: bool,
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allow(pub(crate) AllowRule);

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: mig::transport::Error| error.to_string())
    }
}
