//! The sending half of a compressed channel: pages in, one flushed payload out.
//!
//! ```text
//!   packet 0 ─▶ header, blocks …, flush │ packet 1 ─▶ blocks …, flush │ …      never an end
//! ```
//! What it learned from a packet serves the packets that follow. A compressor that failed stays failed: the receiver
//! would no longer follow it.

use std::fmt;

use flate2::{Compress, Compression, FlushCompress, Status};
use zstd_safe::{
    CCtx, CParameter, InBuffer, OutBuffer, get_error_name, zstd_sys::ZSTD_EndDirective,
};

use crate::{
    error::{Error, Result},
    method::{Level, MAX_PACKET_BYTES, Method},
};

/// Window of zstd's negative levels: 64 KiB instead of 512. At level -1, pages that compress 4:1 go through a third faster
/// (the window stays in the nearest caches), programs lose 2 % of their ratio (`benches/levels.rs`). Level 1 and above
/// keep libzstd's window, as QEMU does: their ratio is what everything is compared with.
const FAST_WINDOW_LOG: u32 = 16;

/// The most that `page_bytes` of pages can become: deflate's fixed codes spend 9 bits on a byte, zstd stores what it
/// cannot compress. For a full packet 577 KiB, of the 1 MiB that a receiver takes (docs/wire/ram.md §9.6).
pub const fn payload_bound(page_bytes: usize) -> usize {
    page_bytes + page_bytes / 8 + 1024
}

/// One compressed stream, for the whole life of its channel (docs/wire/ram.md §9.6).
///
/// ```
/// # fn main() -> mig_compress::Result<()> {
/// use mig_compress::{Compressor, Decompressor, Level, Method};
///
/// let mut source = Compressor::new(Method::Zstd, Level::DEFAULT)?;
/// let mut destination = Decompressor::new(Method::Zstd)?;
/// let (mut payload, mut pages) = (Vec::new(), vec![0; 8192]);
/// for round in 0..3 {
///     payload.clear();
///     source.compress(&[round; 8192], &mut payload)?;
///     destination.decompress(&payload, &mut pages)?;
///     assert_eq!(pages, [round; 8192]);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Compressor {
    method: Method,
    level: Level,
    encoder: Encoder,
    /// Of the payload that is being made.
    fed: usize,
    made: usize,
    bytes_in: u64,
    bytes_out: u64,
    failed: bool,
}

enum Encoder {
    Zlib(Box<Compress>),
    Zstd(CCtx<'static>),
}

impl Compressor {
    /// Starts a stream. Nothing is on the wire before the first pages.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the method has no such level, [`Error::Library`] if there is no memory.
    pub fn new(method: Method, level: Level) -> Result<Self> {
        let level = Level::new(method, level.number())?;
        let encoder = match method {
            Method::Zlib => Encoder::Zlib(Box::new(Compress::new(zlib_level(level), true))),
            Method::Zstd => Encoder::Zstd(zstd_context(level)?),
        };
        Ok(Self {
            method,
            level,
            encoder,
            fed: 0,
            made: 0,
            bytes_in: 0,
            bytes_out: 0,
            failed: false,
        })
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The level now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes of pages taken since the start.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes of payload made since the start.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Appends one payload to `out`: all of `pages`, flushed. At most [`payload_bound`] of them is appended.
    ///
    /// The pages must hold still meanwhile: give a copy, never guest memory that runs. Pages lying end to end in one
    /// call are the fastest way; [`feed`](Self::feed) spares the caller the joining.
    ///
    /// # Errors
    /// [`Error::Misuse`] for no pages, or more than [`MAX_PACKET_BYTES`] together with what was fed before; then nothing
    /// has changed. Any other error ends the stream, and `out` has a part of a payload at its end.
    pub fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if self.fed == 0 && pages.is_empty() {
            return Err(misuse("a payload of no pages (a packet without pages has no payload)"));
        }
        self.take(pages, out, true)?;
        self.close_payload();
        Ok(())
    }

    /// Takes some pages of the payload that the next [`flush`](Self::flush) ends, and may append a part of it.
    ///
    /// # Errors
    /// As [`compress`](Self::compress).
    pub fn feed(&mut self, pages: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.take(pages, out, false)
    }

    /// As [`feed`](Self::feed), and keeps nothing back: all that these pages cost is spent when it returns. For levels at
    /// which a whole payload takes longer than the caller may be deaf. It costs some of the ratio.
    ///
    /// # Errors
    /// As [`compress`](Self::compress).
    pub fn feed_through(&mut self, pages: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.take(pages, out, true)
    }

    /// Appends the rest of the payload to `out`, so that the receiver can make all pages of it. With nothing fed it does
    /// nothing: a packet without pages has no payload.
    ///
    /// # Errors
    /// As [`compress`](Self::compress).
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.fed == 0 {
            return if self.failed { Err(Error::Failed { method: self.method }) } else { Ok(()) };
        }
        self.take(&[], out, true)?;
        self.close_payload();
        Ok(())
    }

    /// Changes the level between two payloads; the receiver need not know. Only zlib can: a zstd frame keeps the
    /// parameters it began with. Allocates a new deflater (about 300 KiB) and drops the old one, also for the level
    /// there is.
    ///
    /// # Errors
    /// [`Error::Misuse`] for zstd, a level there is not, or inside a payload; nothing has changed then.
    pub fn set_level(&mut self, level: Level) -> Result<()> {
        if self.failed {
            return Err(Error::Failed { method: self.method });
        }
        let level = Level::new(self.method, level.number())?;
        if self.fed != 0 {
            return Err(misuse("a new level inside a payload: flush first"));
        }
        match &mut self.encoder {
            Encoder::Zstd(_) if level == self.level => Ok(()),
            Encoder::Zstd(_) => Err(misuse(
                "a new level for a zstd stream: its frame keeps the level it began with",
            )),
            // A new deflater goes on where the last flush left the stream at a whole byte: without the header if that
            // was sent, and without the 32 KiB that the old one remembered. (zlib-rs 0.6 cannot do it in place: its
            // `set_level` fails where the flush that it wants to make has no room.)
            Encoder::Zlib(stream) => {
                **stream = Compress::new(zlib_level(level), self.bytes_out == 0);
                self.level = level;
                Ok(())
            }
        }
    }

    fn take(&mut self, pages: &[u8], out: &mut Vec<u8>, flush: bool) -> Result<()> {
        if self.failed {
            return Err(Error::Failed { method: self.method });
        }
        let fed = self.fed.saturating_add(pages.len());
        if fed > MAX_PACKET_BYTES {
            return Err(misuse("more than 512 KiB of pages in one payload"));
        }
        // Room for the worst case, so that no call stops for want of it; what was made of this payload counts.
        out.reserve(payload_bound(fed) - self.made);
        let before = out.len();
        let taken = match &mut self.encoder {
            Encoder::Zlib(stream) => deflate(stream, pages, out, flush),
            Encoder::Zstd(context) => compress_stream(context, pages, out, flush),
        };
        let made = out.len() - before;
        self.failed = taken.is_err();
        self.fed = fed;
        self.made += made;
        self.bytes_in += pages.len() as u64;
        self.bytes_out += made as u64;
        taken
    }

    fn close_payload(&mut self) {
        (self.fed, self.made) = (0, 0);
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor")
            .field("method", &self.method)
            .field("level", &self.level)
            .field("bytes_in", &self.bytes_in)
            .field("bytes_out", &self.bytes_out)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

fn misuse(what: &str) -> Error {
    Error::Misuse { what: what.to_owned() }
}

fn zlib_level(level: Level) -> Compression {
    Compression::new(level.number().unsigned_abs())
}

/// A context that makes one frame for ever: neither checksum nor size, which only an end could keep.
fn zstd_context(level: Level) -> Result<CCtx<'static>> {
    let failed = |message: String| Error::Library { method: Method::Zstd, doing: "start", message };
    let mut context = CCtx::try_create().ok_or_else(|| failed("no memory".to_owned()))?;
    for parameter in [
        CParameter::CompressionLevel(level.number()),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        context.set_parameter(parameter).map_err(|code| failed(get_error_name(code).to_owned()))?;
    }
    if level.number() < 0 {
        let window = CParameter::WindowLog(FAST_WINDOW_LOG);
        context.set_parameter(window).map_err(|code| failed(get_error_name(code).to_owned()))?;
    }
    Ok(context)
}

fn deflate(stream: &mut Compress, pages: &[u8], out: &mut Vec<u8>, flush: bool) -> Result<()> {
    let failed =
        |message: String| Error::Library { method: Method::Zlib, doing: "deflate", message };
    let how = if flush { FlushCompress::Sync } else { FlushCompress::None };
    let mut rest = pages;
    loop {
        let (consumed, made) = (stream.total_in(), stream.total_out());
        let status =
            stream.compress_vec(rest, out, how).map_err(|cause| failed(cause.to_string()))?;
        let consumed = (stream.total_in() - consumed) as usize;
        rest = &rest[consumed..];
        let moved = consumed > 0 || stream.total_out() > made;
        // Room left over means that everything asked for was done.
        if rest.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
        if status == Status::StreamEnd || !moved || out.len() == out.capacity() {
            return Err(failed(format!("{} bytes left and no room in the bound", rest.len())));
        }
    }
}

fn compress_stream(
    context: &mut CCtx<'static>,
    pages: &[u8],
    out: &mut Vec<u8>,
    flush: bool,
) -> Result<()> {
    let failed =
        |message: String| Error::Library { method: Method::Zstd, doing: "compress", message };
    let how =
        if flush { ZSTD_EndDirective::ZSTD_e_flush } else { ZSTD_EndDirective::ZSTD_e_continue };
    let mut input = InBuffer::around(pages);
    loop {
        let at = out.len();
        let consumed = input.pos();
        let mut output = OutBuffer::around_pos(out, at);
        let left = context
            .compress_stream2(&mut output, &mut input, how)
            .map_err(|code| failed(get_error_name(code).to_owned()))?;
        let all_taken = input.pos() == pages.len();
        // `continue` may keep what does not fill a block; `flush` is done when nothing is kept.
        if all_taken && (!flush || left == 0) {
            return Ok(());
        }
        if input.pos() == consumed && out.len() == at {
            return Err(failed(format!("{left} bytes left and no room in the bound")));
        }
    }
}
