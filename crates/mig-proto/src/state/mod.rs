//! What may happen next: the closed state tables of a migration.
//!
//! ```text
//!   MigrationStatus ── the `status` both ends report    docs/wire/transports.md §7
//!      ├─ SourceEvent        §7.1
//!      └─ DestinationEvent   §7.2
//!   PostcopyIncoming ── how far the destination is into postcopy   docs/wire/stream.md §8.4
//!      └─ PostcopyEvent
//! ```
//!
//! A driver reports what happened, the table answers with the new state. A pair that is not in the
//! table is a [`BadMove`] naming both, and the state stays what it was: tables are `Copy` values
//! without side effects.

mod bad_move;
mod migration;
mod postcopy;

pub use bad_move::{BadMove, Machine};
pub use migration::{DestinationEvent, MigrationStatus, SourceEvent};
pub use postcopy::{OnLinkError, PostcopyEvent, PostcopyIncoming};
