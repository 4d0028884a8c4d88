//! Compressed pages: single ones (COMPRESS_PAGE), and packets of a channel's one stream.

use std::cell::RefCell;

use mig_compress::{Compressor, Decompressor, Level, Method, PAGE_BYTES, PageInflater};

use crate::told::told;

/// The target for COMPRESS_PAGE: one zlib stream, one page. The inflater serves page after page, as it does in a
/// destination, and what it says of a page must not depend on those before.
pub fn inflate(data: &[u8]) {
    thread_local! {
        static SERVING: RefCell<PageInflater> = RefCell::new(PageInflater::new());
    }
    let mut page = [0; PAGE_BYTES];
    SERVING.with_borrow_mut(|inflater| {
        let first = inflater.inflate_page(data, &mut page);
        if let Err(error) = &first {
            told(error, data);
        }
        // The same again, rarely: then what came before is known.
        if first.is_err() && !data.len().is_multiple_of(4) {
            return;
        }
        let mut again = [1; PAGE_BYTES];
        let second = inflater.inflate_page(data, &mut again);
        assert_eq!(
            first.as_ref().map_err(ToString::to_string),
            second.as_ref().map_err(ToString::to_string),
            "an earlier page made a difference"
        );
        if first.is_ok() {
            assert_eq!(page, again);
            assert!(data.len() >= 8, "a page needs a header and a checksum");
        }
    });
}

/// What the good payload holds.
const PAGE: [u8; PAGE_BYTES] = [0x5a; PAGE_BYTES];

thread_local! {
    /// The good payloads, made once.
    static ZLIB: Vec<u8> = good_payload(Method::Zlib);
    static ZSTD: Vec<u8> = good_payload(Method::Zstd);
}

fn good_payload(method: Method) -> Vec<u8> {
    let level = Level::new(method, 1).expect("both have it");
    let mut compressor = Compressor::new(method, level).expect("there is memory");
    let mut payload = Vec::new();
    compressor.compress(&PAGE, &mut payload).expect("a page");
    payload
}

/// The target for multifd's zlib and zstd:
///
/// ```text
///   0 method, source of the payloads │ then payloads: be16 bytes that come out │ be16 length │ payload
/// ```
///
/// With the highest bit of byte 0 a good first payload goes before, made by our own compressor, so that what follows is
/// about a stream that runs.
pub fn decompress(data: &[u8]) {
    let Some((&what, mut rest)) = data.split_first() else { return };
    let method = if what & 1 == 0 { Method::Zlib } else { Method::Zstd };
    let mut decompressor = Decompressor::new(method).expect("there is memory");
    let mut out = [0; 4 * PAGE_BYTES];
    let mut made = 0;
    if what & 0x80 != 0 {
        let payload = match method {
            Method::Zlib => ZLIB.with(Vec::clone),
            Method::Zstd => ZSTD.with(Vec::clone),
        };
        decompressor.decompress(&payload, &mut out[..PAGE_BYTES]).expect("our own payload");
        assert_eq!(out[..PAGE_BYTES], PAGE);
        made = PAGE_BYTES as u64;
    }
    let mut failed = false;
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let room = usize::from(u16::from_be_bytes([head[0], head[1]])) % (out.len() + 1);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]])).min(behind.len());
        let payload;
        (payload, rest) = behind.split_at(len);
        match decompressor.decompress(payload, &mut out[..room]) {
            Ok(()) => {
                assert!(!failed, "a stream that failed goes on");
                made += room as u64;
            }
            Err(error) => {
                told(&error, data);
                // Asking for nothing is the caller's mistake and costs nothing.
                failed |= room != 0;
            }
        }
        assert_eq!(decompressor.bytes_out(), made);
    }
}
