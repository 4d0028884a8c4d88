//! The one error of every state table.

use thiserror::Error;

/// Which table refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Machine {
    /// [`MigrationStatus`](super::MigrationStatus) at the source: moved by its own driver.
    Source,
    /// [`MigrationStatus`](super::MigrationStatus) at the destination: moved by its own driver.
    Destination,
    /// [`PostcopyIncoming`](super::PostcopyIncoming): moved by what the source sends.
    PostcopyIncoming,
}

impl Machine {
    /// The name used in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "migration status at the source",
            Self::Destination => "migration status at the destination",
            Self::PostcopyIncoming => "postcopy state at the destination",
        }
    }
}

/// An event that the table does not list for the state it met. The state did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("{}: {event} is not possible in state {from}", machine.as_str())]
#[non_exhaustive]
pub struct BadMove {
    /// The table that refused.
    pub machine: Machine,
    /// The state, by its wire or QMP name.
    pub from: &'static str,
    /// The event, by name.
    pub event: &'static str,
}

impl BadMove {
    /// Whether the other end caused this.
    ///
    /// True for postcopy, whose events are commands read off the wire. The migration status is
    /// moved by local decisions only: a refused move there is a misuse of the API (cancelling a
    /// migration that is over, say).
    pub const fn peer_is_to_blame(&self) -> bool {
        matches!(self.machine, Machine::PostcopyIncoming)
    }
}
