//! A transport's RAM hooks, waited for under the rules of everything else: the deadline on silence holds, and whoever
//! waits may be dropped.
//!
//! ```text
//!   source:       open ── before_iterate ─▶ HOOK record ─▶ flush      save …      close ── flush ─▶ after_iterate
//!   destination:  the record is the last byte that came ─▶ serve ── load_hook            …   release
//! ```
//!
//! A hook that fails or that shows no life for the idle deadline ends the migration; the hooks are then dropped, which
//! takes guest memory out of the transport's reach.

use std::{future::Future, sync::Arc};

use mig_proto::RamWord;
use mig_stream::{IdleClock, Stream, StreamReader, StreamWriter};
use mig_transport::{RamBlockInfo, RamHooks, SavePages, WindowReason};

use crate::error::{Error, Result};

/// See the module.
pub(crate) struct Hooks {
    hooks: Box<dyn RamHooks>,
    idle: Option<Arc<IdleClock>>,
}

impl Hooks {
    /// Takes those of a channel.
    pub(crate) fn of(stream: &mut Stream) -> Self {
        let mut hooks = stream.take_ram_hooks();
        let idle = stream.idle();
        if let Some(idle) = idle.clone() {
            hooks.report_life(Arc::new(move || idle.touch()));
        }
        Self { hooks, idle }
    }

    /// Whether the transport carries pages itself.
    pub(crate) fn active(&self) -> bool {
        self.hooks.active()
    }

    /// Tells the transport of every block, in stream order.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn register(
        &mut self,
        blocks: impl IntoIterator<Item = RamBlockInfo>,
    ) -> Result<()> {
        for block in blocks {
            let registered = self.hooks.register_block(&block);
            attend(self.idle.as_ref(), "registering guest memory with the transport", registered)
                .await?;
        }
        Ok(())
    }

    /// Opens a window, where windows are.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn open(
        &mut self,
        out: &mut StreamWriter,
        reason: WindowReason,
    ) -> Result<()> {
        if !self.active() {
            return Ok(());
        }
        let opened = self.hooks.before_iterate(reason);
        attend(self.idle.as_ref(), "waiting for the transport to open a window", opened).await?;
        out.write_all(&RamWord::HOOK.to_be_bytes()).await?;
        // Nothing may follow the record in the same message (docs/wire/rdma.md §6).
        Ok(out.flush().await?)
    }

    /// Offers a run of pages.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn save(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        let saved = self.hooks.save_pages(block, offset, len);
        attend(self.idle.as_ref(), "waiting for the transport to take pages", saved).await
    }

    /// Closes the window; what was taken over is in place.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn close(
        &mut self,
        out: &mut StreamWriter,
        reason: WindowReason,
    ) -> Result<()> {
        if !self.active() {
            return Ok(());
        }
        out.flush().await?;
        let closed = self.hooks.after_iterate(reason);
        attend(self.idle.as_ref(), "waiting for the transport to put pages in place", closed).await
    }

    /// Serves the window of a HOOK record that ends at `end`, which must be the last byte that came, so that nothing is
    /// [`behind`](bytes_behind) it: what the transport does and what the stream says must not overtake each other.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn serve(&mut self, end: u64, behind: u64) -> Result<()> {
        if behind > 0 {
            return Err(Error::peer_misbehaved(format!(
                "{behind} bytes follow the HOOK record at once: it must be the last of its message"
            ))
            .at(end));
        }
        let served = self.hooks.load_hook();
        attend(self.idle.as_ref(), "waiting for the source to put pages in place", served).await
    }

    /// Takes the blocks out of the other end's reach.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the hooks.
    pub(crate) async fn release(&mut self) -> Result<()> {
        let released = self.hooks.release();
        attend(self.idle.as_ref(), "taking guest memory back from the transport", released).await
    }
}

/// How many bytes of the stream came after its position `end`.
pub(crate) fn bytes_behind(reader: &StreamReader, end: u64) -> u64 {
    reader.position().saturating_sub(end) + reader.buffer().len() as u64
}

/// # Cancel safety
///
/// As that of `hook`.
async fn attend<T>(
    idle: Option<&Arc<IdleClock>>,
    doing: &'static str,
    hook: impl Future<Output = mig_transport::Result<T>>,
) -> Result<T> {
    let hook = async { hook.await.map_err(Error::from) };
    match idle {
        Some(idle) => idle.attend(doing, hook).await,
        None => hook.await,
    }
}
