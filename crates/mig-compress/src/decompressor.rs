//! The receiving half of a compressed channel: payloads in, exactly the promised pages out.
//!
//! ```text
//!   payload ─▶ whole? begins right? ─▶ library ─▶ pages full, payload used up, nothing held back
//! ```
//! On any failure the stream is lost, for what follows refers to what came before: every later call says so.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::{
    error::{Error, Problem, Result},
    frame::{self, MAX_WINDOW_LOG},
    method::{MAX_PACKET_BYTES, Method},
};

/// The most bytes that the payload of one packet may have: QEMU's own limit, docs/wire/ram.md §9.6.
pub const MAX_PAYLOAD_BYTES: usize = 2 * MAX_PACKET_BYTES;

/// What a sync flush leaves at the end of every zlib payload (RFC 1951 §3.2.4: an empty stored block).
const SYNC_FLUSH: [u8; 4] = [0, 0, 0xff, 0xff];

/// One stream being decompressed, for the whole life of its channel (docs/wire/ram.md §9.6).
///
/// Memory: zlib about 50 KiB; zstd the peer's window (at most 32 MiB, 512 KiB from QEMU's default level) plus 300 KiB.
pub struct Decompressor {
    method: Method,
    decoder: Decoder,
    payloads: u64,
    bytes_in: u64,
    bytes_out: u64,
    failed: bool,
}

enum Decoder {
    Zlib(Box<Decompress>),
    Zstd(DCtx<'static>),
}

impl Decompressor {
    /// Waits for a stream's first payload.
    ///
    /// # Errors
    /// [`Error::Library`] if there is no memory.
    pub fn new(method: Method) -> Result<Self> {
        let decoder = match method {
            Method::Zlib => Decoder::Zlib(Box::new(Decompress::new(true))),
            Method::Zstd => Decoder::Zstd(zstd_context()?),
        };
        Ok(Self { method, decoder, payloads: 0, bytes_in: 0, bytes_out: 0, failed: false })
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Bytes of payload taken since the start.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes of pages made since the start.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Fills `out` from one whole payload; `out` is as long as its packet's pages together.
    ///
    /// # Errors
    /// [`Error::Payload`] if the payload is cut, damaged, ends the stream, or gives other than `out.len()` bytes; `out`
    /// then has anything in it, and the stream has failed for ever. [`Error::Misuse`] if `out` is empty or longer than
    /// [`MAX_PACKET_BYTES`]; nothing has changed then.
    pub fn decompress(&mut self, payload: &[u8], out: &mut [u8]) -> Result<()> {
        if self.failed {
            return Err(Error::Failed { method: self.method });
        }
        if out.is_empty() || out.len() > MAX_PACKET_BYTES {
            return Err(Error::Misuse {
                what: format!("{} bytes of pages from one payload: 1 to 524288 can be", out.len()),
            });
        }
        let first = self.payloads == 0;
        let done = check_size(payload).and_then(|()| match &mut self.decoder {
            Decoder::Zlib(stream) => inflate_payload(stream, payload, out, first),
            Decoder::Zstd(context) => decompress_payload(context, payload, out, first),
        });
        match done {
            Ok(()) => {
                self.payloads += 1;
                self.bytes_in += payload.len() as u64;
                self.bytes_out += out.len() as u64;
                Ok(())
            }
            Err((at, problem)) => {
                self.failed = true;
                Err(Error::Payload {
                    method: self.method,
                    payload: self.payloads,
                    position: self.bytes_in + at as u64,
                    problem,
                })
            }
        }
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("method", &self.method)
            .field("payloads", &self.payloads)
            .field("bytes_in", &self.bytes_in)
            .field("bytes_out", &self.bytes_out)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

fn check_size(payload: &[u8]) -> Result<(), frame::Found> {
    if payload.is_empty() {
        return Err((0, Problem::Empty));
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err((0, Problem::TooLarge { bytes: payload.len(), limit: MAX_PAYLOAD_BYTES }));
    }
    Ok(())
}

fn inflate_payload(
    stream: &mut Decompress,
    payload: &[u8],
    out: &mut [u8],
    first: bool,
) -> Result<(), frame::Found> {
    if first {
        check_zlib_header(payload)?;
    }
    if !payload.ends_with(&SYNC_FLUSH) {
        let what = "a zlib payload ends with 00 00 ff ff";
        return Err((payload.len(), Problem::NotFlushed { what }));
    }
    inflate_exactly(stream, payload, out)
}

fn check_zlib_header(payload: &[u8]) -> Result<(), frame::Found> {
    // RFC 1950 §2.2: method 8 in a window of at most 32 KiB, and the two bytes are a multiple of 31.
    let header = *payload
        .first_chunk::<2>()
        .ok_or((0, Problem::NotFlushed { what: "inside the header" }))?;
    if header[0] & 0x0f != 8 || header[0] >> 4 > 7 || u16::from_be_bytes(header) % 31 != 0 {
        let mut found = [0; 4];
        let seen = payload.len().min(4);
        found[..seen].copy_from_slice(&payload[..seen]);
        return Err((0, Problem::WrongMethod { method: Method::Zlib, found }));
    }
    if header[1] & 0x20 != 0 {
        let id = payload.get(2..6).and_then(|id| id.first_chunk::<4>().copied());
        return Err((1, Problem::Dictionary { id: id.map_or(0, u32::from_be_bytes) }));
    }
    Ok(())
}

/// Inflates all of `payload` to all of `out`, and proves that nothing is held back.
fn inflate_exactly(
    stream: &mut Decompress,
    payload: &[u8],
    out: &mut [u8],
) -> Result<(), frame::Found> {
    let (mut used, mut filled) = (0, 0);
    // One byte more than was promised: what comes out there is too much, and the inflater cannot keep it to itself.
    let mut beyond = [0; 1];
    loop {
        let room = if filled < out.len() { &mut out[filled..] } else { &mut beyond[..] };
        let (before_in, before_out) = (stream.total_in(), stream.total_out());
        let status = stream
            .decompress(&payload[used..], room, FlushDecompress::Sync)
            .map_err(|cause| (used, Problem::Damaged { message: cause.to_string() }))?;
        let consumed = (stream.total_in() - before_in) as usize;
        let made = (stream.total_out() - before_out) as usize;
        used += consumed;
        if filled == out.len() && made > 0 {
            return Err((used, Problem::TooLong { expected: out.len() }));
        }
        filled += made;
        if status == Status::StreamEnd {
            return Err((used, Problem::Ended { what: "stream" }));
        }
        if consumed == 0 && made == 0 {
            break;
        }
    }
    if filled < out.len() {
        return Err((used, Problem::TooShort { expected: out.len(), actual: filled }));
    }
    if used < payload.len() {
        return Err((used, Problem::Trailing { bytes: payload.len() - used }));
    }
    Ok(())
}

fn zstd_context() -> Result<DCtx<'static>> {
    let failed = |message: String| Error::Library { method: Method::Zstd, doing: "start", message };
    let mut context = DCtx::try_create().ok_or_else(|| failed("no memory".to_owned()))?;
    context
        .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
        .map_err(|code| failed(get_error_name(code).to_owned()))?;
    Ok(context)
}

fn decompress_payload(
    context: &mut DCtx<'static>,
    payload: &[u8],
    out: &mut [u8],
    first: bool,
) -> Result<(), frame::Found> {
    let blocks = if first { frame::check_header(payload)? } else { 0 };
    frame::check_blocks(payload, blocks)?;
    let expected = out.len();
    let mut input = InBuffer::around(payload);
    let filled = {
        let mut output = OutBuffer::around(out);
        while input.pos() < payload.len() && output.pos() < expected {
            step(context, &mut input, &mut output)?;
        }
        output.pos()
    };
    // Blocks may be used up and not yet written out; one byte more than was promised tells. What is left of the payload
    // can only be blocks of nothing.
    loop {
        let (used, mut beyond) = (input.pos(), [0; 1]);
        let mut output = OutBuffer::around(&mut beyond[..]);
        step(context, &mut input, &mut output)?;
        if output.pos() > 0 && filled == expected {
            return Err((input.pos(), Problem::TooLong { expected }));
        }
        if input.pos() == used {
            break;
        }
    }
    if filled < expected {
        return Err((input.pos(), Problem::TooShort { expected, actual: filled }));
    }
    if input.pos() < payload.len() {
        return Err((input.pos(), Problem::Trailing { bytes: payload.len() - input.pos() }));
    }
    Ok(())
}

fn step<'o>(
    context: &mut DCtx<'static>,
    input: &mut InBuffer<'_>,
    output: &mut OutBuffer<'o, [u8]>,
) -> Result<(), frame::Found> {
    let at = input.pos();
    context
        .decompress_stream(output, input)
        .map(|_| ())
        .map_err(|code| (at, Problem::Damaged { message: get_error_name(code).to_owned() }))
}
