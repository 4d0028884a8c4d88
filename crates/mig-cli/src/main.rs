//! The `mig` tool.
//!
//! ```text
//!   flags (what was typed) ──▶ plan (what will be done, or why not) ──▶ run ──▶ exit code by blame
//!                                                    stdout: data, JSON    stderr: talk
//! ```

mod bench;
mod certs;
mod doctor;
mod exit;
mod failure;
mod flags;
mod inspect;
mod logging;
mod multifd;
mod pinning;
mod quote;
mod recv;
mod result;
mod send;
mod standard;
mod supervise;
mod talk;
mod tls;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    flags::{Cli, Command},
    talk::Talk,
};

fn main() -> ExitCode {
    // clap leaves with 2 on wrong usage, and with 0 after --help.
    let cli = Cli::parse();
    logging::start(cli.verbose, cli.command.is_quiet());
    let outcome = match &cli.command {
        Command::Bench(flags) => bench::run(flags),
        Command::Recv(flags) => recv::run(flags),
        Command::Send(flags) => send::run(flags),
        Command::Inspect(flags) => inspect::run(flags),
        Command::Doctor(flags) => doctor::run(flags),
        Command::Certs(flags) => certs::run(flags),
    };
    if let Err(failure) = &outcome {
        Talk::new(false, false).failure(failure);
    }
    exit::code(outcome.map_err(|failure| failure.blame))
}
