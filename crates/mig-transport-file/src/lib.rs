//! Migration into a file and out of one (docs/wire/transports.md §2.7).
//!
//! ```text
//!   source ──▶ FileConnector ──▶ buffers, pages ──▶ one writing thread ──▶ file from offset   (durable when ended)
//!   file from offset ──▶ one reading thread ──▶ buffers ──▶ FileListener's channel ──▶ destination
//!
//!   `mig recv --save` ──▶ CommitFile: temporary beside FILE ── fsync, rename, fsync folder ──▶ FILE, whole or not at all
//! ```
//!
//! The kernel cannot poll a file, so a thread of its own does the blocking calls, with a bounded queue between; a
//! cancelled channel leaves a call in progress behind and never waits for it. A file has nobody in it who could
//! answer: there is no return path, and ending the writer makes the bytes durable, which is all that can be promised. A
//! failed or cancelled source leaves its file incomplete, as QEMU does; [`CommitFile`] never does.

mod channel;
mod commit;
mod open;
mod reader;
mod sets;
mod write_behind;
mod writer;

pub use crate::{
    channel::{FileConnector, FileListener},
    commit::CommitFile,
    open::FileTarget,
    sets::DescriptorSets,
};
