//! Legacy COMPRESS_PAGE: each page its own zlib stream (docs/wire/ram.md §5).

use flate2::{Decompress, FlushDecompress, Status};

use crate::error::{Error, Problem, Result};

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// Inflates pages that are a whole zlib stream each; its memory serves all of them.
#[derive(Debug)]
pub struct PageInflater {
    stream: Decompress,
}

impl PageInflater {
    /// An inflater, about 50 KiB.
    pub fn new() -> Self {
        Self { stream: Decompress::new(true) }
    }

    /// Fills `page` from one whole stream, trailer included. Nothing is allocated.
    ///
    /// # Errors
    /// [`Error::Page`] if the stream is damaged, cut, followed by something, or not exactly a page; `page` then has
    /// anything in it. The next page can be tried all the same: they do not refer to each other.
    pub fn inflate_page(&mut self, stream: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<()> {
        self.inflate(stream, page).map_err(|problem| Error::Page { problem })
    }

    fn inflate(&mut self, bytes: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<(), Problem> {
        self.stream.reset(true);
        let (mut used, mut filled) = (0, 0);
        let mut beyond = [0; 1];
        loop {
            let room = if filled < PAGE_BYTES { &mut page[filled..] } else { &mut beyond[..] };
            let status = self
                .stream
                .decompress(&bytes[used..], room, FlushDecompress::None)
                .map_err(|cause| Problem::Damaged { message: cause.to_string() })?;
            let (in_now, out_now) =
                (self.stream.total_in() as usize, self.stream.total_out() as usize);
            if out_now > PAGE_BYTES {
                return Err(Problem::TooLong { expected: PAGE_BYTES });
            }
            let moved = in_now > used || out_now > filled;
            (used, filled) = (in_now, out_now);
            match status {
                Status::StreamEnd if filled < PAGE_BYTES => {
                    return Err(Problem::TooShort { expected: PAGE_BYTES, actual: filled });
                }
                Status::StreamEnd if used < bytes.len() => {
                    return Err(Problem::Trailing { bytes: bytes.len() - used });
                }
                Status::StreamEnd => return Ok(()),
                Status::Ok | Status::BufError if moved => {}
                Status::Ok | Status::BufError => {
                    return Err(Problem::NotFlushed { what: "the page's stream has no end" });
                }
            }
        }
    }
}

impl Default for PageInflater {
    fn default() -> Self {
        Self::new()
    }
}
