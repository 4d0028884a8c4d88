//! Pages that come as something else than their bytes: as the difference to what is there (docs/wire/ram.md §4), or
//! compressed (§5).
//!
//! ```text
//!   XBZRLE:         what is there now ── delta ──▶ page ──▶ placed
//!   COMPRESS_PAGE:  zlib stream ───────────────▶ page ──▶ placed
//! ```

use mig_proto::{Delta, PageRecord};
use mig_ram::{PAGE_SIZE, Placer};

use crate::{
    error::{Error, Result},
    xbzrle,
};

/// Makes pages of such records. The page in the making is kept here so that it is allocated once.
#[derive(Debug)]
pub(super) struct EncodedPages {
    page: Box<[u8; PAGE_SIZE]>,
}

impl EncodedPages {
    pub(super) fn new() -> Self {
        Self { page: Box::new([0; PAGE_SIZE]) }
    }

    /// Changes the page of the local block `block` as the record says.
    pub(super) fn apply(
        &mut self,
        placer: &mut Placer,
        block: usize,
        record: &PageRecord<'_>,
        delta: Delta<'_>,
        position: u64,
    ) -> Result<()> {
        placer.read_page(block, record.offset, &mut self.page)?;
        xbzrle::apply(&mut self.page, delta.as_bytes())
            .map_err(|broken| unsound("XBZRLE delta", record, &broken, position))?;
        Ok(placer.place_page(block, record.offset, &self.page[..])?)
    }
}

fn unsound(
    what: &str,
    record: &PageRecord<'_>,
    broken: &dyn std::fmt::Display,
    position: u64,
) -> Error {
    Error::peer_misbehaved(format!(
        "byte {position} ({position:#x}): {what} for page {:#x} of block '{}': {broken}",
        record.offset, record.name
    ))
    .at(position)
}
