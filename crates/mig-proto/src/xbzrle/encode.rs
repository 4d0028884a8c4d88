//! A page against the copy of it that was sent before.
//!
//! ```text
//!   64 bytes of each ── equal? ──▶ next
//!                  └── else one bit a byte that differs ──▶ 0011110…01  ──▶ its edges are the runs
//! ```
//!
//! Most of a page is as it was, so what counts is how fast equal bytes are passed over; the
//! comparison of two blocks of 64 bytes becomes vector instructions. Where they differ, eight bytes at a
//! time are turned into bits, and the runs are found by counting zeros.

use super::MAX_RUN;

/// What [`encode`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// The pages are equal: there is nothing to send.
    Unchanged,
    /// The delta has so many bytes.
    Delta(usize),
    /// The delta does not fit: the whole page is to be sent.
    Overflow,
}

/// Bytes that are compared at once, one bit of a word each.
const BLOCK: usize = 64;

/// Bytes that a short run is copied as; a copy of fixed length takes one instruction.
const SHORT: usize = 16;

/// Writes into `out` the delta that makes `old` into `new`, the very bytes that QEMU would send:
/// all runs as long as they can be, nothing for the equal bytes at the end.
///
/// It fits if it is no longer than `out` and than the page. What `out` has behind the delta, and all of
/// it where there is none, is unspecified afterwards.
///
/// ```
/// use mig_proto::xbzrle::{Encoded, encode};
/// let (old, mut new, mut out) = ([0; 4096], [0; 4096], [0; 4096]);
/// assert_eq!(encode(&old, &new, &mut out), Encoded::Unchanged);
/// new[16] = 0x5a;
/// assert_eq!(encode(&old, &new, &mut out), Encoded::Delta(3));
/// assert_eq!(out[..3], [16, 1, 0x5a]);
/// ```
///
/// # Panics
///
/// If `old` and `new` are not of one length.
pub fn encode(old: &[u8], new: &[u8], out: &mut [u8]) -> Encoded {
    let mut writer = Writer::new(old, new, out);
    let whole = runs(old, new, &mut writer);
    writer.encoded(whole)
}

/// [`encode()`] for who knows already where the pages differ: bit `n` of `changed` is set if block `n` of 64 bytes does. The
/// other blocks are not looked at; what `old` has there does not matter.
///
/// # Panics
///
/// If `old` and `new` are not of one length, in whole blocks, 64 at most.
pub fn encode_changed(old: &[u8], new: &[u8], changed: u64, out: &mut [u8]) -> Encoded {
    let blocks = new.as_chunks::<BLOCK>();
    assert!(blocks.1.is_empty() && blocks.0.len() <= u64::BITS as usize, "one bit a block");
    let mut writer = Writer::new(old, new, out);
    let whole = changed_runs(old, new, changed, &mut writer);
    writer.encoded(whole)
}

/// Hands all runs of changed bytes to the writer, until one does not fit.
fn runs(old: &[u8], new: &[u8], writer: &mut Writer<'_>) -> Option<()> {
    let (old_blocks, old_tail) = old.as_chunks::<BLOCK>();
    let (new_blocks, new_tail) = new.as_chunks::<BLOCK>();
    let mut open = Open { changed: false, from: 0 };
    for (index, (old, new)) in old_blocks.iter().zip(new_blocks).enumerate() {
        if open.changed || !equal(old, new) {
            open.block(index * BLOCK, changed_bits(old, new), writer)?;
        }
    }
    if !old_tail.is_empty() {
        // Filled up with equal bytes, which are never written.
        let (mut old_last, mut new_last) = ([0; BLOCK], [0; BLOCK]);
        old_last[..old_tail.len()].copy_from_slice(old_tail);
        new_last[..new_tail.len()].copy_from_slice(new_tail);
        open.block(new.len() - new_tail.len(), changed_bits(&old_last, &new_last), writer)?;
    }
    if open.changed { writer.run(open.from, new.len()) } else { Some(()) }
}

/// The same, of blocks that have a bit in `changed`.
fn changed_runs(old: &[u8], new: &[u8], mut changed: u64, writer: &mut Writer<'_>) -> Option<()> {
    let (old_blocks, _) = old.as_chunks::<BLOCK>();
    let (new_blocks, _) = new.as_chunks::<BLOCK>();
    let mut open = Open { changed: false, from: 0 };
    let mut next = 0;
    while changed != 0 {
        let index = changed.trailing_zeros() as usize;
        changed &= changed - 1;
        if open.changed && index > next {
            open.block(next * BLOCK, 0, writer)?;
        }
        open.block(index * BLOCK, changed_bits(&old_blocks[index], &new_blocks[index]), writer)?;
        next = index + 1;
    }
    if open.changed {
        writer.run(open.from, next * BLOCK)?;
    }
    Some(())
}

/// The run that the end of the last block cut.
struct Open {
    /// Of changed bytes, or of equal ones?
    changed: bool,
    /// Where the last run of changed bytes began.
    from: usize,
}

impl Open {
    /// Goes on with the block at `base`, which has a bit for each changed byte.
    fn block(&mut self, base: usize, bits: u64, writer: &mut Writer<'_>) -> Option<()> {
        let mut edges = bits ^ (bits << 1 | u64::from(self.changed));
        while edges != 0 {
            let at = base + edges.trailing_zeros() as usize;
            edges &= edges - 1;
            if self.changed {
                writer.run(self.from, at)?;
            } else {
                self.from = at;
            }
            self.changed = !self.changed;
        }
        Some(())
    }
}

/// Whether two blocks are equal, without looking where they differ.
fn equal(old: &[u8; BLOCK], new: &[u8; BLOCK]) -> bool {
    words(old).zip(words(new)).fold(0, |difference, (old, new)| difference | old ^ new) == 0
}

/// A bit for each byte that differs, the first byte's lowest.
fn changed_bits(old: &[u8; BLOCK], new: &[u8; BLOCK]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let mut columns = 0;
    for (index, (old, new)) in words(old).zip(words(new)).enumerate() {
        let differs = old ^ new;
        // The highest bit of each byte that is not zero; no byte's sum carries into the next.
        let marks = (((differs & LOW) + LOW) | differs) & !LOW;
        columns |= marks >> (7 - index);
    }
    transposed(columns)
}

/// Eight bytes as rows of a square of bits: rows become columns.
fn transposed(mut square: u64) -> u64 {
    for (distance, mask) in
        [(7, 0x00aa_00aa_00aa_00aa), (14, 0x0000_cccc_0000_cccc), (28, 0x0000_0000_f0f0_f0f0)]
    {
        let swapped = (square ^ square >> distance) & mask;
        square ^= swapped ^ swapped << distance;
    }
    square
}

fn words(block: &[u8; BLOCK]) -> impl Iterator<Item = u64> + '_ {
    block.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word))
}

/// The delta as far as it goes.
struct Writer<'a> {
    new: &'a [u8],
    out: &'a mut [u8],
    len: usize,
    /// Where the run of equal bytes before the next run of changed ones began.
    same_from: usize,
}

impl<'a> Writer<'a> {
    fn new(old: &[u8], new: &'a [u8], out: &'a mut [u8]) -> Self {
        assert_eq!(old.len(), new.len(), "two copies of one page");
        let limit = out.len().min(new.len());
        Self { new, out: &mut out[..limit], len: 0, same_from: 0 }
    }

    /// What became of it: `whole` unless a run did not fit.
    fn encoded(&self, whole: Option<()>) -> Encoded {
        match whole {
            None => Encoded::Overflow,
            Some(()) if self.len == 0 => Encoded::Unchanged,
            Some(()) => Encoded::Delta(self.len),
        }
    }

    /// Appends the equal bytes since the run before and the changed ones of `from..to`; nothing is
    /// returned if they do not fit.
    fn run(&mut self, from: usize, to: usize) -> Option<()> {
        self.length(from - self.same_from)?;
        self.length(to - from)?;
        let len = to - from;
        let short = self.out.get_mut(self.len..).and_then(<[u8]>::first_chunk_mut::<SHORT>);
        match (short, self.new[from..].first_chunk::<SHORT>()) {
            (Some(place), Some(bytes)) if len <= SHORT => *place = *bytes,
            _ => self.out.get_mut(self.len..self.len + len)?.copy_from_slice(&self.new[from..to]),
        }
        self.len += len;
        self.same_from = to;
        Some(())
    }

    fn length(&mut self, len: usize) -> Option<()> {
        if len < 0x80 {
            *self.out.get_mut(self.len)? = len as u8;
            self.len += 1;
        } else if len <= MAX_RUN {
            let place = self.out.get_mut(self.len..self.len + 2)?;
            place.copy_from_slice(&[len as u8 | 0x80, (len >> 7) as u8]);
            self.len += 2;
        } else {
            return None;
        }
        Some(())
    }
}
