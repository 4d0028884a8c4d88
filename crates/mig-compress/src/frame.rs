//! The outside of a zstd frame (RFC 8878 §3.1.1): what may be known of a payload before libzstd sees it.
//!
//! ```text
//!   28 b5 2f fd │ descriptor │ window │ block │ block │ …         first payload
//!   block │ block │ …                                              every other one
//!   block: le24 = last 1 bit, type 2 bits, size 21 bits │ size bytes (1 if the type is "repeat")
//! ```
//! libzstd would keep a cut block in its memory and wait for the rest, remember as large a window as the peer likes up
//! to its limit, and take the end of a frame for a good end. Each of these has its own error here.

use crate::{error::Problem, method::Method};

/// Base-2 logarithm of the largest window a peer may ask for: 32 MiB, which QEMU's highest level (20) wants.
pub const MAX_WINDOW_LOG: u32 = 25;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The problem, and how many bytes of the payload were good.
pub(crate) type Found = (usize, Problem);

/// Checks that `payload` starts as a frame must, and answers with the length of the frame's header.
pub(crate) fn check_header(payload: &[u8]) -> Result<usize, Found> {
    let magic = payload.first_chunk::<4>().ok_or((0, cut("inside the frame's header")))?;
    if *magic != MAGIC {
        return Err((0, Problem::WrongMethod { method: Method::Zstd, found: *magic }));
    }
    let descriptor = *payload.get(4).ok_or((4, cut("inside the frame's header")))?;
    if descriptor & 0x08 != 0 {
        return Err((
            4,
            Problem::Malformed { what: "a reserved bit of its frame's header is set" },
        ));
    }
    if descriptor & 0x20 != 0 || descriptor >> 6 != 0 {
        return Err((4, Problem::ContentSize));
    }
    let window = *payload.get(5).ok_or((5, cut("inside the frame's header")))?;
    check_window(window)?;
    let id_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let id = payload.get(6..6 + id_bytes).ok_or((6, cut("inside the frame's header")))?;
    let id = id.iter().rev().fold(0_u32, |id, &byte| id << 8 | u32::from(byte));
    if id != 0 {
        return Err((6, Problem::Dictionary { id }));
    }
    Ok(6 + id_bytes)
}

fn check_window(byte: u8) -> Result<(), Found> {
    let base = 1_u64 << (10 + u32::from(byte >> 3));
    let bytes = base + base / 8 * u64::from(byte & 7);
    let limit = 1 << MAX_WINDOW_LOG;
    if bytes > limit { Err((5, Problem::Window { bytes, limit })) } else { Ok(()) }
}

/// Checks that `payload` from `at` on is a row of whole blocks, none of them the last.
pub(crate) fn check_blocks(payload: &[u8], mut at: usize) -> Result<(), Found> {
    while at < payload.len() {
        let header = payload.get(at..at + 3).ok_or((at, cut("inside the header of a block")))?;
        let word = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let size = (word >> 3) as usize;
        let size = match word >> 1 & 3 {
            0 | 2 => size,
            1 => 1,
            _ => return Err((at, Problem::Malformed { what: "a block of the reserved type" })),
        };
        if word & 1 != 0 {
            return Err((at, Problem::Ended { what: "frame" }));
        }
        if payload.len() - at - 3 < size {
            return Err((at, cut("inside a block")));
        }
        at += 3 + size;
    }
    Ok(())
}

fn cut(what: &'static str) -> Problem {
    Problem::NotFlushed { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_up_to_32_mib_pass() {
        assert!(check_window(15 << 3).is_ok());
        assert_eq!(
            check_window(15 << 3 | 1),
            Err((5, Problem::Window { bytes: (1 << 25) + (1 << 22), limit: 1 << 25 }))
        );
        assert!(check_window(0xff).is_err());
    }

    #[test]
    fn a_header_is_as_long_as_its_dictionary_id() {
        assert_eq!(check_header(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x48]), Ok(6));
        // A dictionary number of zero is "none", in any width.
        assert_eq!(check_header(&[0x28, 0xb5, 0x2f, 0xfd, 2, 0x48, 0, 0]), Ok(8));
        assert_eq!(
            check_header(&[0x28, 0xb5, 0x2f, 0xfd, 2, 0x48, 0x34, 0x12]),
            Err((6, Problem::Dictionary { id: 0x1234 }))
        );
    }

    #[test]
    fn blocks_must_be_whole_and_not_the_last() {
        let raw = [2 << 3, 0, 0, 7, 7];
        assert_eq!(check_blocks(&raw, 0), Ok(()));
        let repeat = [0x42, 6, 0, 9];
        assert_eq!(check_blocks(&repeat, 0), Ok(()));
        assert!(matches!(check_blocks(&raw[..4], 0), Err((0, Problem::NotFlushed { .. }))));
        assert!(matches!(check_blocks(&raw[..2], 0), Err((0, Problem::NotFlushed { .. }))));
        assert!(matches!(check_blocks(&[1, 0, 0], 0), Err((0, Problem::Ended { .. }))));
        assert!(matches!(check_blocks(&[6, 0, 0], 0), Err((0, Problem::Malformed { .. }))));
    }
}
