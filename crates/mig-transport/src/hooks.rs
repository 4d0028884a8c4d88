//! RAM hooks: how a transport may carry pages itself, beside the stream.
//!
//! ```text
//!   source                                  destination
//!   register_block (each)                   register_block (each, in the source's order)
//!   before_iterate(SETUP)  ── HOOK record ─▶ load_hook
//!   after_iterate(SETUP)
//!   before_iterate(ROUND)  ── HOOK record ─▶ load_hook
//!     save_pages … Delayed
//!   after_iterate(ROUND)      all delayed pages of the window are in place
//!                                           release
//! ```
//!
//! The engine writes the HOOK record and flushes the stream between `before_iterate` and the first `save_pages`, because
//! nothing may follow the record in the same message (docs/wire/rdma.md §6); the stream is flushed again before
//! `after_iterate`. tcp and its like have no hooks: [`NoRamHooks`].

use std::sync::Arc;

use async_trait::async_trait;

use crate::{error::Result, region::Region};

/// Why a window is open (docs/wire/rdma.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowReason {
    /// Once, after the block list of the setup section.
    Setup,
    /// An iteration section.
    Round,
    /// The final section; the guest is stopped.
    Finish,
}

/// What a transport says to pages it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavePages {
    /// Send them in the stream.
    NotSupported,
    /// All taken over; they will be in place before the window closes.
    Delayed {
        /// How many of them are zero and cost no bytes.
        zero_pages: u64,
    },
}

/// One block as a transport needs to know it.
#[derive(Clone)]
pub struct RamBlockInfo {
    /// QEMU's name of the block.
    pub idstr: String,
    /// Bytes that migrate.
    pub used_length: u64,
    /// The block's memory; at least `used_length` long.
    pub region: Arc<dyn Region>,
}

impl std::fmt::Debug for RamBlockInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamBlockInfo")
            .field("idstr", &self.idstr)
            .field("used_length", &self.used_length)
            .finish_non_exhaustive()
    }
}

/// What a transport that carries pages itself implements.
#[async_trait]
pub trait RamHooks: Send {
    /// Whether HOOK records are written and windows opened at all.
    fn active(&self) -> bool {
        true
    }

    /// Takes something to call whenever the other end shows life within a window (a control message, a completion), or
    /// work here that it waits for gets on (a part of guest memory registered). A window may last longer than silence
    /// may; without these calls the two look alike.
    fn report_life(&mut self, _alive: Arc<dyn Fn() + Send + Sync>) {}

    /// A block takes part. Called in the order of the stream's block list, before the first window.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a block may be half registered; drop the hooks.
    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()>;

    /// Source: a window opens. The HOOK record follows.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()>;

    /// Source: offers `len` bytes at `offset` of block `block` (its index in registration order): a run of whole pages
    /// that lies in the block. Whether a page is zero is the transport's to find out.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the pages may or may not have been taken; drop the hooks.
    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages>;

    /// Source: the window closes; on return every delayed page is in the destination's memory.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()>;

    /// Destination: a HOOK record was read; serve the window until the source closes it.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    async fn load_hook(&mut self) -> Result<()>;

    /// Destination: everything has come. On return the other end can no longer touch a block that was registered; the
    /// guest is started only then (docs/wire/rdma.md §12).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks, which has the same effect.
    async fn release(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The hooks of a transport that carries pages in the stream like everything else.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRamHooks;

#[async_trait]
impl RamHooks for NoRamHooks {
    fn active(&self) -> bool {
        false
    }

    async fn register_block(&mut self, _block: &RamBlockInfo) -> Result<()> {
        Ok(())
    }

    async fn before_iterate(&mut self, _reason: WindowReason) -> Result<()> {
        Ok(())
    }

    async fn save_pages(&mut self, _block: usize, _offset: u64, _len: u64) -> Result<SavePages> {
        Ok(SavePages::NotSupported)
    }

    async fn after_iterate(&mut self, _reason: WindowReason) -> Result<()> {
        Ok(())
    }

    // A receiver without RDMA ignores the record (docs/wire/ram.md §1).
    async fn load_hook(&mut self) -> Result<()> {
        Ok(())
    }
}
