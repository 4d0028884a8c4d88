//! Contents that tell where they belong: each word depends on a seed and on its place.

use std::fmt;

use mig_transport::RegionSlice;

const WORD: usize = 8;
/// Bytes handled at a time.
const STEP: usize = 64 * 1024;

/// The first byte that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where, counted from the start of what was checked.
    pub offset: usize,
    /// What should be there.
    pub expected: u8,
    /// What is.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, expected, found } = self;
        write!(f, "byte {offset:#x} is {found:#04x} and should be {expected:#04x}")
    }
}

/// `len` bytes of the pattern from its byte `start` on.
pub fn bytes(seed: u64, start: usize, len: usize) -> Vec<u8> {
    // Whole words first: in a debug build the suite spends its time here.
    let skip = start % WORD;
    let mut all = vec![0; (skip + len).next_multiple_of(WORD)];
    for (index, chunk) in (start / WORD..).zip(all.chunks_exact_mut(WORD)) {
        chunk.copy_from_slice(&word(seed, index as u64).to_le_bytes());
    }
    all.truncate(skip + len);
    all.split_off(skip)
}

/// Fills a region.
pub fn fill(slice: &RegionSlice, seed: u64) {
    for_each_step(slice, |offset, part| {
        part.copy_in(&bytes(seed, offset, part.len()));
        Ok(())
    })
    .expect("filling compares nothing");
}

/// Compares a region with the pattern.
pub fn check(slice: &RegionSlice, seed: u64) -> Result<(), Mismatch> {
    for_each_step(slice, |offset, part| {
        let mut found = vec![0; part.len()];
        part.copy_out(&mut found);
        compare(seed, offset, &found)
    })
}

/// Compares bytes with the pattern from its byte `start` on.
pub fn compare(seed: u64, start: usize, found: &[u8]) -> Result<(), Mismatch> {
    let expected = bytes(seed, start, found.len());
    if expected == found {
        return Ok(());
    }
    match expected.iter().zip(found).position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(at) => Err(Mismatch { offset: start + at, expected: expected[at], found: found[at] }),
    }
}

fn for_each_step(
    slice: &RegionSlice,
    mut step: impl FnMut(usize, &RegionSlice) -> Result<(), Mismatch>,
) -> Result<(), Mismatch> {
    for offset in (0..slice.len()).step_by(STEP) {
        let len = STEP.min(slice.len() - offset);
        step(offset, &slice.sub(offset, len).expect("the step ends inside the slice"))?;
    }
    Ok(())
}

/// The splitmix64 finaliser: neighbours share nothing.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use mig_transport::VecRegion;

    use super::*;

    #[test]
    fn what_was_filled_passes_and_one_wrong_byte_is_named() {
        let whole = RegionSlice::whole(VecRegion::zeroed(3 * STEP + 5));
        assert_eq!(check(&whole, 7).unwrap_err().offset, 0);
        fill(&whole, 7);
        assert_eq!(check(&whole, 7), Ok(()));
        assert!(check(&whole, 8).is_err());
        let at = 2 * STEP + 11;
        let byte = whole.sub(at, 1).unwrap();
        let mut found = [0];
        byte.copy_out(&mut found);
        byte.copy_in(&[!found[0]]);
        let wrong = check(&whole, 7).unwrap_err();
        assert_eq!((wrong.offset, wrong.expected, wrong.found), (at, found[0], !found[0]));
    }

    #[test]
    fn any_part_is_the_same_as_that_part_of_the_whole() {
        let whole = bytes(3, 0, 100);
        for start in 0..20 {
            for len in 0..30 {
                assert_eq!(bytes(3, start, len), whole[start..start + len]);
            }
        }
    }
}
