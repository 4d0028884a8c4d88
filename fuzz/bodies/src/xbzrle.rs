//! Deltas of pages: against a decoder and an encoder written from docs/wire/ram.md §4 in the plainest way.
//!
//! ```text
//!   0 mode and length of the page │ a delta, or for the encoder: bytes that make two pages
//! ```

use mig_proto::xbzrle::{Encoded, apply, changed, encode, encode_changed};

/// Longest page the plain inputs are about; whole target pages come now and then.
const SMALL: usize = 320;

/// The target.
pub fn xbzrle(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    match mode % 4 {
        0 if mode & 0x60 == 0x60 => decode(&mut [0xc3; 4096], bytes),
        0 => decode(&mut [0xc3; SMALL], bytes),
        1 => decode(&mut [0xc3; SMALL][..usize::from(mode) % SMALL], bytes),
        2 => {
            // Two halves of the input are the two pages.
            let (old, new) = bytes.split_at(bytes.len() / 2);
            roundtrip(old, &new[..old.len()], mode);
        }
        _ => {
            // A list of places that change in a page of zeros: be16 place │ byte.
            let len = if mode & 0x60 == 0x60 { 4096 } else { 384 };
            let (old, mut new) = (&[0; 4096][..len], [0; 4096]);
            let new = &mut new[..len];
            for change in bytes.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % len;
                let run = 1 + usize::from(change[1] >> 4);
                let end = (at + run).min(len);
                new[at..end].fill(change[2]);
            }
            roundtrip(old, new, mode);
        }
    }
}

fn decode(page: &mut [u8], delta: &[u8]) {
    let before = page.to_vec();
    let expected = reference_apply(&before, delta);
    let range = changed(page.len(), delta);
    let applied = apply(page, delta);
    assert_eq!(applied.is_ok(), expected.is_some(), "the reference disagrees: {applied:?}");
    assert_eq!(range.is_ok(), applied.is_ok());
    let (Some(expected), Ok(range)) = (expected, range) else { return };
    assert_eq!(page, expected);
    assert!(range.end <= page.len());
    assert_eq!(page[..range.start], before[..range.start]);
    assert_eq!(page[range.end..], before[range.end..]);
}

/// The page after the delta, `None` for one that breaks a rule.
fn reference_apply(page: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let (mut page, mut at, mut read) = (page.to_vec(), 0, 0);
    while read < delta.len() {
        for is_change in [false, true] {
            // A length needs a byte behind its first.
            let low = *delta.get(read)?;
            let high = *delta.get(read + 1)?;
            let len = if low & 0x80 == 0 {
                read += 1;
                usize::from(low)
            } else if high & 0x80 == 0 {
                read += 2;
                usize::from(low & 0x7f) + 128 * usize::from(high)
            } else {
                return None;
            };
            if is_change {
                if len == 0 {
                    return None;
                }
                let bytes = delta.get(read..read + len)?;
                page.get_mut(at..at + len)?.copy_from_slice(bytes);
                read += len;
            } else if len == 0 && at > 0 {
                return None;
            }
            at += len;
        }
    }
    Some(page)
}

fn roundtrip(old: &[u8], new: &[u8], mode: u8) {
    let mut room = [0; 4096];
    // Sometimes too little room.
    let room = if mode & 0x80 == 0 { &mut room[..] } else { &mut room[..usize::from(mode & 0x7f)] };
    let limit = room.len().min(new.len());
    let expected = reference_encode(old, new);
    let encoded = encode(old, new, room);
    if let Some(blocks) = blocks_that_differ(old, new) {
        told_where(old, new, blocks, room, encoded);
    }
    match encoded {
        Encoded::Unchanged => assert!(old == new),
        Encoded::Overflow => assert!(expected.is_none_or(|delta| delta.len() > limit)),
        Encoded::Delta(len) => {
            assert!(len <= limit);
            assert_eq!(Some(&room[..len]), expected.as_deref());
            let mut page = old.to_vec();
            apply(&mut page, &room[..len]).expect("our own delta");
            assert_eq!(page, new);
        }
    }
}

/// A bit for each block of 64 bytes, of pages of whole blocks.
fn blocks_that_differ(old: &[u8], new: &[u8]) -> Option<u64> {
    let (old, new) = (old.as_chunks::<64>(), new.as_chunks::<64>());
    if !old.1.is_empty() || old.0.len() > 64 {
        return None;
    }
    let pairs = old.0.iter().zip(new.0).enumerate();
    Some(pairs.fold(0, |bits, (block, (old, new))| bits | u64::from(old != new) << block))
}

/// Who says where the pages differ gets the same, whatever the old page holds elsewhere.
fn told_where(old: &[u8], new: &[u8], blocks: u64, room: &[u8], expected: Encoded) {
    let mut old = old.to_vec();
    for (block, bytes) in old.chunks_exact_mut(64).enumerate() {
        if blocks >> block & 1 == 0 {
            bytes.fill(0xee);
        }
    }
    let mut out = [0; 4096];
    let out = &mut out[..room.len()];
    assert_eq!(encode_changed(&old, new, blocks, out), expected);
    if let Encoded::Delta(len) = expected {
        assert_eq!(out[..len], room[..len]);
    }
}

/// Runs as long as they can be, one byte at a time.
fn reference_encode(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let (mut delta, mut at) = (Vec::new(), 0);
    let run = |from: usize, equal: bool| {
        (from..old.len()).take_while(|&place| (old[place] == new[place]) == equal).count()
    };
    let length = |delta: &mut Vec<u8>, len: usize| {
        if len < 0x80 {
            delta.push(len as u8);
        } else {
            delta.extend([0x80 | (len & 0x7f) as u8, (len >> 7) as u8]);
        }
    };
    loop {
        let same = run(at, true);
        at += same;
        if at == old.len() {
            return Some(delta);
        }
        let change = run(at, false);
        if same > 0x3fff || change > 0x3fff {
            return None;
        }
        length(&mut delta, same);
        length(&mut delta, change);
        delta.extend_from_slice(&new[at..at + change]);
        at += change;
    }
}
