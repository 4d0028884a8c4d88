//! What this program does as a child of itself: one end of a transfer, or another program's cradle.
//!
//! ```text
//!   parent ── argument: the role, as JSON ──▶ child
//!          ◀── "ready" (where it listens) ──
//!          ── "go" (where to connect) ─────▶          preparing is over: from here on it counts
//!          ◀── what it measured of itself ──
//! ```

mod contents;
mod destination;
mod foreign;
mod guest;
mod meeting;
mod multifd;
mod paced;
mod patterned;
mod plain_loop;
mod rdma_stream;
mod sink;
mod source;
mod touched;
mod touching_guest;

use std::{
    ffi::OsString,
    io::{BufRead, Write, stdin, stdout},
    process::ExitCode,
    time::Duration,
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use self::{
    contents::Contents,
    destination::{DestinationResult, DestinationRole},
    foreign::Foreign,
    guest::IdleGuest,
    meeting::{connector, listener},
    multifd::{Compression, Multifd},
    paced::{PacedQuestion, PacedResult, PacedRole},
    patterned::{Pattern, Patterned},
    plain_loop::{LoopResult, LoopRole, Walk},
    rdma_stream::{Speaker, StreamResult, StreamRole},
    source::{SourceResult, SourceRole},
    touched::{TouchedResult, TouchedRole},
    touching_guest::Touch,
};
use crate::failure::{Result, chain};

/// The hidden first argument that makes this program a child.
pub(crate) const ARGUMENT: &str = "as-child";

/// What a child is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// A migration's source.
    Source(SourceRole),
    /// A migration's destination.
    Destination(DestinationRole),
    /// The writing end of a bare loop.
    LoopWriter(LoopRole),
    /// The reading end of a bare loop.
    LoopReader(LoopRole),
    /// Sends stream bytes over `rdma:`.
    RdmaStreamSender(StreamRole),
    /// Reads them.
    RdmaStreamReader(StreamRole),
    /// Reads a stream and notes when what came.
    Paced(PacedRole),
    /// A source whose guest touches every page again and again.
    Touched(TouchedRole),
    /// Reads over tcp and throws away.
    Sink,
    /// Somebody else's program.
    Foreign(Foreign),
}

/// "I am ready", and where to find me.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) address: Option<String>,
}

/// "Now", and where to go.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go {
    pub(crate) address: String,
}

/// The whole life of a child.
pub(crate) fn main(role: Option<OsString>) -> ExitCode {
    match live(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn live(role: Option<OsString>) -> Result<()> {
    // Whatever happens to the parent, nothing stays behind; it survives an exec.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let role = role.and_then(|role| role.into_string().ok()).ok_or("a child without a role")?;
    match serde_json::from_str(&role)? {
        Role::Source(role) => source::live(&role),
        Role::Destination(role) => destination::live(&role),
        Role::LoopWriter(role) => plain_loop::write(&role),
        Role::LoopReader(role) => plain_loop::read(&role),
        Role::RdmaStreamSender(role) => rdma_stream::send(&role),
        Role::RdmaStreamReader(role) => rdma_stream::read(&role),
        Role::Paced(role) => paced::live(&role),
        Role::Touched(role) => touched::live(&role),
        Role::Sink => sink::live(),
        Role::Foreign(foreign) => foreign.live(),
    }
}

fn say<T: Serialize>(what: &T) -> Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut out = stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

fn hear<T: DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    if stdin().lock().read_line(&mut line)? == 0 {
        return Err("the parent is gone".into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn on_runtime<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(job)
}
