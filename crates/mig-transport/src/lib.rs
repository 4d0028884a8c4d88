//! The socket every migration transport fits.
//!
//! ```text
//!   address ──▶ Connector / Listener ──▶ Channel ──┬── Receiver  (owned half)
//!   (URI, JSON)   (one pair a backend)             ├── Sender    (owned half)
//!                                                  ├── RamHooks  (transports that move pages themselves)
//!                                                  └── ShutdownHandle (any task, both halves)
//! ```
//!
//! A backend implements the small traits ([`SendHalf`], [`ReceiveHalf`], [`Connector`], [`Listener`]); everything above
//! uses the concrete holders ([`Channel`], [`Sender`], [`Receiver`]), which check for shutdown once, for all backends.
//! Guest memory is a [`Region`]: pinned and shared with a running guest, so nobody ever holds a Rust reference into it.
//! On failure every operation answers an [`Error`] sorted by [`Blame`], or an `io::Error` on the byte paths.

mod accept;
pub mod address;
mod allow;
mod capabilities;
mod channel;
mod connect;
mod crowd;
mod error;
mod fd_io;
mod gather;
mod hooks;
mod log_limit;
mod peer;
mod region;
mod shutdown;
mod sigpipe;
mod sync;
mod zero_copy;

pub use crate::{
    accept::AcceptFailure,
    address::{Address, AddressError, MigrationAddress},
    allow::{AllowList, AllowRule, AllowingListener},
    capabilities::Capabilities,
    channel::{Channel, ChannelParts, Endpoint, ReceiveHalf, Receiver, SendHalf, Sender},
    connect::{Connector, Listener},
    crowd::{AtTheDoor, MakesRoom, NEWCOMER_GRACE, who_makes_room},
    error::{Blame, Error, Result},
    fd_io::{FdIo, FdKind, FdReceiveHalf, FdSendHalf},
    gather::{Gather, GatherFull},
    hooks::{NoRamHooks, RamBlockInfo, RamHooks, SavePages, WindowReason},
    log_limit::LogLimit,
    peer::{Identity, Peer},
    region::{COMPARED, OutOfRegion, Region, RegionSlice, VecRegion, publish_streamed},
    shutdown::{ForceShutdown, ShutdownHandle},
    zero_copy::{ZeroCopy, ZeroCopyLimits, ZeroCopyReport},
};
