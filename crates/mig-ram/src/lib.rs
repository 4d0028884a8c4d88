//! Guest memory: named blocks, who wrote what, which pages are zero, and how pages land fast.
//!
//! ```text
//!   source                                                destination
//!   GuestMemory ── blocks, dirty log                      GuestMemory ── blocks, resize
//!     │  DirtyTracker: uffd write-protect async │ thread │ mprotect
//!     ▼                                                     ▲
//!   DirtyBitmap ── runs ──▶ is_zero ──▶ (engine, wire) ──▶ Placement / Placer: UFFDIO_COPY │ populate │ plain
//! ```
//!
//! Nobody holds a Rust reference into guest memory: it is reached as a [`mig_transport::Region`]. Four rooms use
//! `unsafe`, each with its rules in its head: `mapping`, `zero`, `uffd` and `tracker::mprotect`.
//! Failures are an [`Error`], sorted by [`mig_transport::Blame`].

mod bitmap;
mod block;
mod error;
mod mapping;
mod memory;
mod placer;
mod residency;
mod sync;
mod tracker;
mod uffd;
mod zero;

pub use crate::{
    bitmap::{DirtyBitmap, Run},
    block::{BlockOptions, BlockSet, MAX_NAME_BYTES, PAGE_SIZE, RamBlock},
    error::{Error, Result},
    mapping::{Backing, HugePages, Mapping},
    memory::{BlockInfo, DirtyLogInfo, GuestMemory, PassedOver, RamBlocks},
    placer::{
        Copying, PlaceMechanism, PlacePolicy, Placement, PlacementInfo, PlacementOptions,
        PlacementStatistics, Placer, Warmth,
    },
    tracker::{DirtyTracker, Mechanism, TrackerPolicy},
    zero::{MAX_ZERO_PAGES, is_zero, zero_pages},
};
