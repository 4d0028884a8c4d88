//! Pages that come as something else than their bytes: as the difference to what is there (docs/wire/ram.md §4), or
//! compressed (§5).
//!
//! ```text
//!   XBZRLE:         what is there now ── delta ──▶ page ──▶ placed
//!   COMPRESS_PAGE:  zlib stream ───────────────▶ page ──▶ placed
//! ```

use mig_compress::PageInflater;
use mig_proto::{Deflated, Delta, PageRecord, xbzrle};
use mig_ram::{PAGE_SIZE, Placer};

use crate::error::{Error, Result};

/// Makes pages of such records. The page in the making is kept here so that it is allocated once.
#[derive(Debug)]
pub(super) struct EncodedPages {
    page: Box<[u8; PAGE_SIZE]>,
    /// Only sources up to QEMU 9.0 need it.
    inflater: Option<PageInflater>,
}

impl EncodedPages {
    pub(super) fn new() -> Self {
        Self { page: Box::new([0; PAGE_SIZE]), inflater: None }
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
        xbzrle::apply(&mut self.page[..], delta.as_bytes())
            .map_err(|broken| not_a_delta(&broken, record, position))?;
        Ok(placer.place_page(block, record.offset, &self.page[..])?)
    }

    /// Brings the compressed page of the local block `block`.
    pub(super) fn inflate(
        &mut self,
        placer: &mut Placer,
        block: usize,
        record: &PageRecord<'_>,
        data: Deflated<'_>,
        position: u64,
    ) -> Result<()> {
        let inflater = self.inflater.get_or_insert_default();
        inflater
            .inflate_page(data.as_bytes(), &mut self.page)
            .map_err(|error| not_a_page(&error, record, position))?;
        Ok(placer.place_page(block, record.offset, &self.page[..])?)
    }
}

/// A delta that cannot be applied.
pub(crate) fn not_a_delta(
    broken: &xbzrle::BadDelta,
    record: &PageRecord<'_>,
    position: u64,
) -> Error {
    unsound("XBZRLE delta", &broken.to_string(), record, position)
}

/// Compressed bytes that are no page.
pub(crate) fn not_a_page(
    error: &mig_compress::Error,
    record: &PageRecord<'_>,
    position: u64,
) -> Error {
    let problem = match error {
        mig_compress::Error::Page { problem } => problem.to_string(),
        other => other.to_string(),
    };
    unsound("compressed data", &problem, record, position)
}

fn unsound(what: &str, broken: &str, record: &PageRecord<'_>, position: u64) -> Error {
    Error::peer_misbehaved(format!(
        "byte {position} ({position:#x}): {what} for page {:#x} of block '{}': {broken}",
        record.offset, record.name
    ))
    .at(position)
}
