//! Memory that a transport or data channels bring beside the stream, and what becomes of it in a stored one.
//!
//! ```text
//!   START  block list          kept; the blocks are made and registered
//!   PART   HOOK, FLUSH, pages  windows are served; records about pages go into memory, none is kept
//!   END    HOOK, pages, EOS    the same; then every page is written once, before EOS
//!   devices                    kept
//! ```
//!
//! So the stored stream has each page once, after it last changed, and no trace of the transport. Zero pages are written
//! too: whoever loads it may have something else there, a ROM for example.

use std::sync::Arc;

use mig_proto::{Event, Name, RamWord, SectionKind, encode};
use mig_ram::{
    BlockInfo, GuestMemory, MAX_ZERO_PAGES, PAGE_SIZE, PlaceMechanism, PlacePolicy, Placement,
    PlacementOptions, Warmth, zero_pages,
};

use crate::{
    error::{Error, Result},
    held::HeldMemory,
    multifd::receive::{Layout, LayoutBlock},
    record::{counts::PageCounts, writer::SinkWriter},
    walk::Piece,
};

/// The memory of a recording whose transport has hooks.
#[derive(Debug)]
pub(super) struct RecordedMemory {
    held: HeldMemory,
    layout: Option<Arc<Layout>>,
    /// The `ram` section that is being read.
    kind: Option<SectionKind>,
    /// Where the first HOOK record ends that came since this was taken.
    pub(super) hook: Option<u64>,
    pub(super) registered: bool,
    stage: Stage,
    /// What was kept behind the place where the pages go; as much as one look into the reader's buffer brings.
    pub(super) behind: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Filling,
    /// END has come to its end: the pages go here.
    Due,
    Written,
}

impl RecordedMemory {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            held: HeldMemory::new(limit),
            layout: None,
            kind: None,
            hook: None,
            registered: false,
            stage: Stage::Filling,
            behind: Vec::new(),
        }
    }

    pub(super) fn held(&self) -> &HeldMemory {
        &self.held
    }

    /// The block list, as data channels need it, once it came.
    pub(super) fn layout(&mut self) -> Result<Option<&Arc<Layout>>> {
        let Some(memory) = self.held.memory().filter(|_| self.layout.is_none()) else {
            return Ok(self.layout.as_ref());
        };
        // The main channel writes there too, behind the placement's back.
        let placing = PlacementOptions {
            policy: PlacePolicy::Only(PlaceMechanism::Plain),
            warmth: Warmth::Warm,
            ..PlacementOptions::default()
        };
        let placement = Placement::new(&**memory, placing)?;
        let blocks = (0..memory.block_count()).filter_map(|local| {
            let block = memory.block(local)?;
            Some(LayoutBlock { name: (*block.idstr).into(), local, length: block.used_length })
        });
        let blocks = blocks.collect();
        Ok(Some(self.layout.insert(Arc::new(Layout { placement, blocks }))))
    }

    /// Whether the pages are to be written now.
    pub(super) fn is_due(&self) -> bool {
        self.stage == Stage::Due
    }

    /// Takes what a piece says about memory; answers whether the piece is still to be looked at by the keeper.
    pub(super) fn take(&mut self, piece: &Piece<'_>) -> Result<bool> {
        let Some(event) = &piece.event else { return Ok(true) };
        match event {
            Event::Section(header) => self.kind = header.is_ram().then_some(header.kind),
            Event::Hook(word) => {
                self.still_filling(piece.position)?;
                self.hook.get_or_insert(piece.position + word.to_be_bytes().len() as u64);
            }
            Event::BlockList { .. } => {
                self.held.visit(event, piece.position)?;
            }
            Event::EndOfRecords(_) if self.kind == Some(SectionKind::End) => {
                self.still_filling(piece.position)?;
                self.stage = Stage::Due;
            }
            event => {
                if self.held.visit(event, piece.position)? {
                    self.still_filling(piece.position)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn still_filling(&self, position: u64) -> Result<()> {
        match self.stage {
            Stage::Filling => Ok(()),
            Stage::Due | Stage::Written => Err(Error::peer_misbehaved(format!(
                "byte {position} ({position:#x}): more memory after the last section of ram"
            ))
            .at(position)),
        }
    }

    /// Writes every page, and then what was kept behind their place. `tell` hears of the pages as they are written.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the recording must be abandoned.
    pub(super) async fn write(
        &mut self,
        sink: &mut SinkWriter,
        pages: &mut PageCounts,
        tell: impl Fn(&PageCounts),
    ) -> Result<()> {
        self.stage = Stage::Written;
        let memory = self.held.memory().cloned();
        let mut continued = encode::ContinueMemory::new();
        let blocks = memory
            .iter()
            .flat_map(|memory| (0..memory.block_count()).filter_map(|index| memory.block(index)));
        for (number, block) in (0..).zip(blocks) {
            for first in (0..block.pages()).step_by(MAX_ZERO_PAGES) {
                let count = MAX_ZERO_PAGES.min(block.pages() - first);
                put_pages(sink.chunk(), &mut continued, number, &block, first, count, pages)?;
                tell(pages);
                sink.pass_on().await?;
                // A disk that never makes us wait must not keep a cancel waiting.
                tokio::task::yield_now().await;
            }
        }
        sink.chunk().append(&mut self.behind);
        Ok(())
    }
}

/// Appends records of `count` pages from page `first`.
fn put_pages(
    chunk: &mut Vec<u8>,
    continued: &mut encode::ContinueMemory,
    number: u32,
    block: &BlockInfo,
    first: usize,
    count: usize,
    pages: &mut PageCounts,
) -> Result<()> {
    let name = Name::new(&block.idstr).map_err(|error| Error::misuse(error.to_string()))?;
    let wrong = |error: mig_transport::OutOfRegion| Error::misuse(error.to_string());
    let zeros = zero_pages(&*block.region, first * PAGE_SIZE, count).map_err(wrong)?;
    for page in 0..count {
        let at = (first + page) * PAGE_SIZE;
        if zeros >> page & 1 != 0 {
            let word = continued.word(number, RamWord::zero(at as u64));
            encode::zero_page(chunk, word, name);
            pages.zero += 1;
        } else {
            let word = continued.word(number, RamWord::page(at as u64));
            encode::page_head(chunk, word, name);
            let start = chunk.len();
            chunk.resize(start + PAGE_SIZE, 0);
            block.region.copy_out_at(at, &mut chunk[start..]).map_err(wrong)?;
            pages.normal += 1;
        }
    }
    Ok(())
}
