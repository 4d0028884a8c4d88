//! Source and destination of a live migration over any transport.
//!
//! ```text
//!              Source ─────────── channel set ──────────▶ Destination
//!   GuestMemory ┘ └ Guest                     GuestMemory ┘ └ Guest
//!
//!              Replayer (a stored stream) ──────────────▶ Recorder (keeps the stream)
//! ```
//!
//! Each is made, hands out a [`MigrationHandle`] (status, statistics, events, cancel), and runs once. The engine sees
//! transports only through the traits of `mig-transport`. On failure the [`Error`] says who is to blame, where it was,
//! and who owns the guest.

mod accept;
mod answers;
mod blockers;
mod deadlines;
mod destination;
mod error;
mod guest;
mod handle;
mod hang_up;
mod held;
mod hooks;
mod multifd;
mod parameters;
mod record;
mod replay;
mod source;
mod statistics;
mod sync;
mod turn;
mod walk;
mod zero_copy;

pub use crate::{
    accept::MAX_CANDIDATES,
    blockers::{Blocker, Blockers},
    deadlines::{Deadlines, Wait},
    destination::Destination,
    error::{Error, Owner, Result},
    guest::{DeviceSection, Guest, GuestError},
    handle::{Event, MigrationHandle},
    multifd::{AutoChannels, CompressionInfo, MultifdInfo},
    parameters::{Capabilities, MultifdCompression, MultifdOptions, Parameters, ZeroPageDetection},
    record::*,
    replay::*,
    source::{Outcome, Source},
    statistics::{MigrationInfo, RamStatistics, XbzrleStatistics},
    walk::{InputEnd, Piece, StreamWalk, Walked},
    zero_copy::ZeroCopyInfo,
};
