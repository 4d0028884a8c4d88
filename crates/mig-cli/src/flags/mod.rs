//! What can be typed: raw flags, without any judgement about whether they make sense together.
//!
//! One file a command. A command's plan (its own module, one floor up) turns them into what will be done, and refuses
//! what cannot be.

mod allow;
mod bench;
mod certs;
mod deadline;
mod doctor;
mod inspect;
mod multifd;
mod quantity;
mod recv;
mod send;
mod tls;

use clap::{ArgAction, Parser, Subcommand};

pub(crate) use crate::flags::{
    allow::DoorFlags,
    bench::BenchFlags,
    certs::CertsFlags,
    deadline::DeadlineFlags,
    doctor::DoctorFlags,
    inspect::InspectFlags,
    multifd::{Channels, Compression, MultifdFlags, Percent, Uuid},
    quantity::{Duration, Rate, Size},
    recv::RecvFlags,
    send::SendFlags,
    tls::{TlsDestinationFlags, TlsSourceFlags},
};

/// Exit codes, as `mig --help` tells them; `exit.rs` is where they are given.
const EXIT_CODES: &str = "\
Exit codes:
  0  done (also \"sent, not confirmed\")
  1  the link or a disk failed, or the peer does not fit
  2  wrong usage or local configuration, cannot bind
  3  the peer or the file broke the protocol (truncation included)
  4  cancelled (SIGINT, SIGTERM)
  5  a deadline ran out
  6  this machine lacks what was asked for

Addresses are QEMU's migration URIs: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, fd:N, exec:COMMAND,
file:PATH[,offset=N], rdma:HOST:PORT, or its JSON channel objects. Sizes: 512MiB (2^20), 512MB
(10^6), bare numbers are bytes. Rates: 200MiB/s. Durations: 10s, 300ms, bare numbers are
milliseconds.";

/// Live migration's transport layer: QEMU's wire format over any transport, by URI.
///
/// Measure transports, receive and store QEMU migrations, replay them, look into them.
#[derive(Debug, Parser)]
#[command(name = "mig", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Say more on stderr: -v what is done, -vv every step. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Migrate a synthetic guest over every transport usable here, and measure
    Bench(Box<BenchFlags>),
    /// Be a migration destination: keep everything received as one QEMU-loadable file
    Recv(RecvFlags),
    /// Be a migration source: replay a saved file to any QEMU-compatible destination
    Send(SendFlags),
    /// Decode every record of a stream: header, sections, commands, pages, devices
    Inspect(InspectFlags),
    /// Tell what works on this machine, what does not, and the exact reason and remedy
    Doctor(DoctorFlags),
    /// Make a set of certificates for a trial of TLS, and tell how to use them
    Certs(CertsFlags),
}

impl Command {
    /// Whether remarks are unwanted.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Bench(flags) => flags.quiet,
            Self::Recv(flags) => flags.quiet,
            Self::Send(flags) => flags.quiet,
            Self::Inspect(flags) => flags.quiet,
            Self::Doctor(_) => false,
            Self::Certs(flags) => flags.quiet,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
