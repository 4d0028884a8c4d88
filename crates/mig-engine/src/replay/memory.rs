//! A stored stream's memory, for a transport that carries memory itself.
//!
//! ```text
//!   first reading:   records about pages ──▶ memory         (all of it is checked before anything is sent)
//!   second reading:  START ─ HOOK, window ─ EOS             PART: left out
//!                    END ─── HOOK, window with every page ─ EOS           everything else as it is stored
//! ```
//!
//! It costs as much memory as the guest has. Each page is sent once, as it was last stored.

use std::{io::Read, sync::Arc};

use mig_proto::{Event, Options};
use mig_ram::PAGE_SIZE;
use mig_stream::StreamWriter;
use mig_transport::WindowReason;

use crate::{
    error::{Error, Result},
    handle::Shared,
    held::HeldMemory,
    hooks::Hooks,
    replay::{input::InputReader, replayer::unsound},
    source::ram::RamSource,
    walk::{InputEnd, StreamWalk},
};

/// The memory to be sent, and the hooks that take it.
pub(super) struct StoredMemory {
    /// `None` if the stored stream has none; the connection may need its hooks all the same.
    ram: Option<RamSource>,
    hooks: Hooks,
}

/// Reads all of `input`, the memory into memory.
///
/// # Cancel safety
///
/// Cancel safe: nothing was sent.
pub(super) async fn load(
    input: Box<dyn Read + Send>,
    name: &str,
    options: &Options,
    limit: Option<u64>,
) -> Result<HeldMemory> {
    let bytes = options.target_page_size.bytes();
    if bytes as usize != PAGE_SIZE {
        return Err(Error::misuse(format!(
            "pages of {bytes} bytes over a transport that carries memory itself: only pages of {PAGE_SIZE} bytes can \
             be held"
        )));
    }
    let mut input = InputReader::start(input, name.into())?;
    let mut walk = StreamWalk::new(options.clone());
    let mut held = HeldMemory::new(limit);
    loop {
        let (buffer, ended) = input.next().await?;
        let end = if ended { InputEnd::Closed } else { InputEnd::Open };
        let walked = walk
            .walk::<Error>(buffer.bytes(), end, |piece| {
                let Some(event) = &piece.event else { return Ok(()) };
                refuse_host_pages(event, piece.position)?;
                held.visit(event, piece.position).map(drop)
            })
            .map_err(|error| unsound(name, error))?;
        input.used(buffer, walked.consumed);
        if ended {
            return Ok(held);
        }
    }
}

/// Words that only a destination in the same postcopy would expect.
fn refuse_host_pages(event: &Event<'_>, position: u64) -> Result<()> {
    let Event::BlockList { entries, .. } = event else { return Ok(()) };
    let Some(entry) = entries.iter().find(|entry| entry.host_page_size.is_some()) else {
        return Ok(());
    };
    Err(Error::peer_incompatible(format!(
        "byte {position} ({position:#x}): the block list gives a host page size for '{}': it was stored with postcopy-ram \
         on, which destinations refuse over a transport that carries memory itself. Store it with postcopy-ram off, or \
         send it over a transport that carries the stream alone",
        entry.name()
    ))
    .at(position))
}

impl StoredMemory {
    /// `held` is to be sent through `hooks`.
    pub(super) fn new(held: &HeldMemory, hooks: Hooks) -> Result<Self> {
        let ram = match held.memory() {
            None => None,
            Some(memory) => {
                let mut ram = RamSource::new(Arc::clone(memory) as _)?;
                ram.all_unsent();
                Some(ram)
            }
        };
        Ok(Self { ram, hooks })
    }

    /// Opens and closes the window of a section that ends; the last one has every page in it.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channel must be cut.
    pub(super) async fn window(
        &mut self,
        out: &mut StreamWriter,
        reason: WindowReason,
        listed: u64,
        shared: &Shared,
    ) -> Result<()> {
        let Self { ram: Some(ram), hooks } = self else { return Ok(()) };
        let statistics = &shared.statistics;
        if reason == WindowReason::Setup {
            if listed != ram.total_bytes() {
                return Err(Error::misuse("the stored stream changed while it was read"));
            }
            out.flush().await?;
            hooks.register(ram.hook_blocks()).await?;
        }
        hooks.open(out, reason).await?;
        if reason == WindowReason::Finish {
            while ram.offer_pages(out, hooks, statistics).await? {
                statistics.transferred.set(out.position() + out.counters().bytes_beside());
                statistics.remaining.set(ram.unsent_bytes());
            }
        }
        hooks.close(out, reason).await?;
        ram.put_refused(out, statistics).await
    }
}
