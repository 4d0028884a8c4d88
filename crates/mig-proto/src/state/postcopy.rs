//! How far the destination is into postcopy. docs/wire/stream.md §8.4.
//!
//! ```text
//!   none ─ADVISE─▶ advise ─RAM_DISCARD─▶ discard ┐ RAM_DISCARD
//!    │               │ │                  │ └────┘
//!    │               │ └─────LISTEN───────┴──LISTEN──▶ listening ─RUN─▶ running ─EOF─▶ end
//!    └──────EOF──────┴──EOF (plain precopy after all)──────────────────────────────────▶ end
//! ```
//!
//! Failure before RUN is fatal here and harmless to the guest, which goes on at the source; after
//! RUN the guest is split and only pause and recovery are allowed: see
//! [`PostcopyIncoming::on_link_error`].

use super::{BadMove, Machine};

/// Postcopy progress of an incoming migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PostcopyIncoming {
    /// No ADVISE: plain precopy so far.
    #[default]
    None,
    /// Postcopy may come; it may also end as precopy.
    Advise,
    /// At least one RAM_DISCARD came.
    Discard,
    /// Devices load from the package while pages are read from the channel.
    Listening,
    /// The guest runs here.
    Running,
    /// The final EOF came.
    End,
}

/// What the source sent. Each is one command or the final EOF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostcopyEvent {
    /// POSTCOPY_ADVISE, either length.
    Advise,
    /// RAM_DISCARD.
    RamDiscard,
    /// POSTCOPY_LISTEN.
    Listen,
    /// POSTCOPY_RUN.
    Run,
    /// The EOF that ends the whole stream, not one inside a package.
    ///
    /// From LISTEN on, the channel and the package are read side by side, and the channel may
    /// reach its EOF first: hold this event back until RUN was handled.
    Eof,
}

/// What a broken link means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnLinkError {
    /// Give up: the source still has the guest.
    Abort,
    /// Keep everything and wait for a new connection: the guest is split.
    Pause,
    /// Nothing was outstanding.
    Ignore,
}

impl PostcopyIncoming {
    /// Every state, in order.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Advise, Self::Discard, Self::Listening, Self::Running, Self::End];

    /// The name used in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Advise => "advise",
            Self::Discard => "discard",
            Self::Listening => "listening",
            Self::Running => "running",
            Self::End => "end",
        }
    }

    /// The next state.
    ///
    /// # Errors
    ///
    /// [`BadMove`] for every pair the table does not list: the source broke the order.
    pub fn next(self, event: PostcopyEvent) -> Result<Self, BadMove> {
        use PostcopyEvent as E;
        Ok(match (self, event) {
            (Self::None, E::Advise) => Self::Advise,
            (Self::Advise | Self::Discard, E::RamDiscard) => Self::Discard,
            (Self::Advise | Self::Discard, E::Listen) => Self::Listening,
            (Self::Listening, E::Run) => Self::Running,
            (Self::None | Self::Advise | Self::Running, E::Eof) => Self::End,
            (from, event) => {
                return Err(BadMove {
                    machine: Machine::PostcopyIncoming,
                    from: from.as_str(),
                    event: event.as_str(),
                });
            }
        })
    }

    /// What a transport error means in this state.
    pub const fn on_link_error(self) -> OnLinkError {
        match self {
            Self::None | Self::Advise | Self::Discard | Self::Listening => OnLinkError::Abort,
            Self::Running => OnLinkError::Pause,
            Self::End => OnLinkError::Ignore,
        }
    }

    /// Whether `ram` payloads are restricted to page, zero page and end-of-section records
    /// (docs/wire/ram.md §7).
    pub const fn restricts_ram(self) -> bool {
        matches!(self, Self::Listening | Self::Running)
    }

    /// Whether a VMDESCRIPTION may follow the final EOF: only when the stream ended as precopy
    /// (docs/wire/stream.md §5). Ask before handling [`PostcopyEvent::Eof`].
    pub const fn expects_vmdescription(self) -> bool {
        matches!(self, Self::None | Self::Advise)
    }
}

impl core::fmt::Display for PostcopyIncoming {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

impl PostcopyEvent {
    /// Every event.
    pub const ALL: [Self; 5] = [Self::Advise, Self::RamDiscard, Self::Listen, Self::Run, Self::Eof];

    /// The name used in messages: the command's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Advise => "POSTCOPY_ADVISE",
            Self::RamDiscard => "RAM_DISCARD",
            Self::Listen => "POSTCOPY_LISTEN",
            Self::Run => "POSTCOPY_RUN",
            Self::Eof => "EOF",
        }
    }
}
