//! The difference of two pages (docs/wire/ram.md §4): maximal runs, a single equal byte ends a run of changed ones, an
//! unchanged tail is left out.

use mig_ram::PAGE_SIZE;

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoded {
    /// Nothing changed.
    Same,
    /// The delta is in the buffer.
    Delta,
    /// It would be longer than allowed.
    TooLong,
}

/// Puts into `out` what makes `new` of `old`, in at most `most` bytes.
pub(super) fn encode(
    old: &[u8; PAGE_SIZE],
    new: &[u8; PAGE_SIZE],
    out: &mut Vec<u8>,
    most: usize,
) -> Encoded {
    out.clear();
    let mut at = 0;
    loop {
        let same = run(old, new, at, |a, b| a == b);
        let from = at + same;
        if from == PAGE_SIZE {
            break;
        }
        let changed = run(old, new, from, |a, b| a != b);
        push_len(out, same);
        push_len(out, changed);
        if out.len() + changed > most {
            return Encoded::TooLong;
        }
        out.extend_from_slice(&new[from..from + changed]);
        at = from + changed;
    }
    if out.is_empty() { Encoded::Same } else { Encoded::Delta }
}

/// How many pairs of bytes from `at` on are as asked.
fn run(old: &[u8], new: &[u8], at: usize, like: impl Fn(u8, u8) -> bool) -> usize {
    old[at..].iter().zip(&new[at..]).take_while(|(a, b)| like(**a, **b)).count()
}

/// ULEB128 of at most 14 bits.
fn push_len(out: &mut Vec<u8>, len: usize) {
    let (low, high) = ((len & 0x7f) as u8, (len >> 7) as u8);
    match high {
        0 => out.push(low),
        _ => out.extend_from_slice(&[low | 0x80, high]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_examples_of_the_specification() {
        let old: [u8; PAGE_SIZE] = std::array::from_fn(|i| (i * 7) as u8);
        let mut out = Vec::new();
        assert_eq!(encode(&old, &old, &mut out, PAGE_SIZE), Encoded::Same);
        let mut new = old;
        new[..3].copy_from_slice(&[0xaa, 0xbb, 0xcc]);
        assert_eq!(encode(&old, &new, &mut out, 5), Encoded::Delta);
        assert_eq!(out, [0, 3, 0xaa, 0xbb, 0xcc]);
        assert_eq!(encode(&old, &new, &mut out, 4), Encoded::TooLong);
        let mut new = old;
        (new[16], new[2048]) = (0x5a, 0xa5);
        assert_eq!(encode(&old, &new, &mut out, PAGE_SIZE), Encoded::Delta);
        assert_eq!(out, [0x10, 1, 0x5a, 0xef, 0x0f, 1, 0xa5]);
        let mut new = old;
        new[4094..].copy_from_slice(&[1, 2]);
        assert_eq!(encode(&old, &new, &mut out, PAGE_SIZE), Encoded::Delta);
        assert_eq!(out, [0xfe, 0x1f, 2, 1, 2]);
    }
}
