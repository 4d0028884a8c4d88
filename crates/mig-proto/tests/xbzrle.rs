//! XBZRLE against the worked examples that QEMU read back (docs/wire/ram.md §4), against an encoder that
//! goes byte by byte, and against anybody's bytes.

#![expect(clippy::unwrap_used, reason = "what only tests call may fail as a test")]

use mig_proto::xbzrle::{BadDelta, Encoded, apply, changed, encode, encode_changed};
use proptest::prelude::*;

const PAGE: usize = 4096;

/// Bytes to put at places of a page.
type Changes<'a> = &'a [(usize, &'a [u8])];

fn old() -> Vec<u8> {
    (0..PAGE).map(|at| (at * 7) as u8).collect()
}

fn encoded(old: &[u8], new: &[u8]) -> (Encoded, Vec<u8>) {
    let mut out = vec![0xee; new.len()];
    let answer = encode(old, new, &mut out);
    blocks_alone_are_enough(old, new, answer, &out);
    if let Encoded::Delta(len) = answer {
        out.truncate(len);
    } else {
        out.clear();
    }
    (answer, out)
}

/// Of pages in whole blocks, who says where they differ gets the same.
fn blocks_alone_are_enough(old: &[u8], new: &[u8], answer: Encoded, expected: &[u8]) {
    const BLOCK: usize = 64;
    if !new.len().is_multiple_of(BLOCK) || new.len() > 64 * BLOCK {
        return;
    }
    // Where a block is equal, the old page may be anything.
    let (mut known, mut bits) = (vec![0x77; old.len()], 0);
    for (index, (old, new)) in old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate() {
        if old != new {
            known[index * BLOCK..][..BLOCK].copy_from_slice(old);
            bits |= 1 << index;
        }
    }
    let mut out = vec![0xee; new.len()];
    assert_eq!(encode_changed(&known, new, bits, &mut out), answer);
    if let Encoded::Delta(len) = answer {
        assert_eq!(out[..len], expected[..len]);
    }
}

/// The rules of the document, one byte after the other. `limit` is the longest delta.
fn reference(old: &[u8], new: &[u8], limit: usize) -> Option<Vec<u8>> {
    fn length(out: &mut Vec<u8>, len: usize) {
        if len < 0x80 {
            out.push(len as u8);
        } else {
            out.extend([len as u8 & 0x7f | 0x80, (len >> 7) as u8]);
        }
    }
    let (mut out, mut at) = (Vec::new(), 0);
    while at < new.len() {
        let from = at;
        while at < new.len() && old[at] == new[at] {
            at += 1;
        }
        let changed = at;
        while at < new.len() && old[at] != new[at] {
            at += 1;
        }
        if at > changed {
            if changed - from >= 1 << 14 || at - changed >= 1 << 14 {
                return None;
            }
            length(&mut out, changed - from);
            length(&mut out, at - changed);
            out.extend(&new[changed..at]);
        }
    }
    (out.len() <= limit).then_some(out)
}

fn agrees(old: &[u8], new: &[u8]) {
    let (answer, delta) = encoded(old, new);
    match reference(old, new, new.len()) {
        None => assert_eq!(answer, Encoded::Overflow),
        Some(expected) if expected.is_empty() => assert_eq!(answer, Encoded::Unchanged),
        Some(expected) => {
            assert_eq!((answer, &delta), (Encoded::Delta(expected.len()), &expected));
            let mut page = old.to_vec();
            apply(&mut page, &delta).unwrap();
            assert_eq!(page, new);
        }
    }
}

#[test]
fn the_worked_examples() {
    let inverted: Vec<u8> = old()[256..456].iter().map(|byte| !byte).collect();
    let cases: [(Changes<'_>, Vec<u8>); 5] = [
        (&[(0, &[0xaa, 0xbb, 0xcc])], vec![0, 3, 0xaa, 0xbb, 0xcc]),
        (&[(16, &[0x5a]), (2048, &[0xa5])], vec![0x10, 1, 0x5a, 0xef, 0x0f, 1, 0xa5]),
        (&[(4094, &[1, 2])], vec![0xfe, 0x1f, 2, 1, 2]),
        (&[(256, &inverted)], [&[0x80, 2, 0xc8, 1], &inverted[..]].concat()),
        (&[(100, &[0x11, 0x22]), (103, &[0x33])], vec![0x64, 2, 0x11, 0x22, 1, 1, 0x33]),
    ];
    for (changes, delta) in cases {
        let mut new = old();
        for (at, bytes) in changes {
            new[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        assert_eq!(encoded(&old(), &new), (Encoded::Delta(delta.len()), delta.clone()));
        let mut page = old();
        apply(&mut page, &delta).unwrap();
        assert_eq!(page, new);
    }
}

#[test]
fn what_other_senders_may_write_is_taken() {
    let mut page = old();
    apply(&mut page, &[]).unwrap();
    assert_eq!(page, old());
    // Longer than need be: 16 as two bytes, then 1 as two bytes.
    apply(&mut page, &[0x90, 0, 0x81, 0, 9]).unwrap();
    assert_eq!(page[16], 9);
}

#[test]
fn what_qemu_refuses_is_refused() {
    let bad: [(&[u8], BadDelta); 10] = [
        (&[5], BadDelta::Truncated),
        (&[0xfe, 0x1f], BadDelta::Truncated),
        (&[5, 1], BadDelta::Truncated),
        (&[5, 0, 1], BadDelta::EmptyChangedRun),
        (&[1, 1, 7, 0, 1, 7], BadDelta::EmptyEqualRun),
        (&[0, 3, 1, 2], BadDelta::RunLongerThanDelta),
        (&[0xff, 0x1f, 2, 1, 2], BadDelta::RunBeyondPage),
        (&[0xff, 0x7f, 2, 1, 2], BadDelta::RunBeyondPage),
        (&[0x80, 0x80, 1, 1], BadDelta::LongLength),
        (&[0, 1, 7, 9], BadDelta::Truncated),
    ];
    for (delta, error) in bad {
        assert_eq!(apply(&mut old(), delta), Err(error), "{delta:x?}");
    }
}

#[test]
fn equal_pages_have_no_delta() {
    assert_eq!(encoded(&old(), &old()).0, Encoded::Unchanged);
    assert_eq!(encode(&[], &[], &mut []), Encoded::Unchanged);
    assert_eq!(encode(&old(), &old(), &mut []), Encoded::Unchanged);
}

#[test]
fn a_delta_may_be_as_long_as_the_page_and_no_longer() {
    let zeros = vec![0; PAGE];
    // One run of 4093 after three equal bytes: 1 + 2 + 4093 = 4096.
    let mut new = vec![1; PAGE];
    new[..3].fill(0);
    assert_eq!(encoded(&zeros, &new).0, Encoded::Delta(PAGE));
    agrees(&zeros, &new);
    new[2] = 1;
    assert_eq!(encoded(&zeros, &new).0, Encoded::Overflow);
    assert_eq!(encoded(&zeros, &[1; PAGE]).0, Encoded::Overflow);
    agrees(&zeros, &[1; PAGE]);
}

#[test]
fn the_buffer_is_a_bound_too() {
    let mut new = old();
    new[16] ^= 1;
    new[2048] ^= 1;
    let mut out = [0; 8];
    assert_eq!(encode(&old(), &new, &mut out), Encoded::Delta(7));
    let delta = out;
    for len in 0..7 {
        assert_eq!(encode(&old(), &new, &mut out[..len]), Encoded::Overflow, "{len}");
    }
    out.fill(0);
    assert_eq!(encode(&old(), &new, &mut out[..7]), Encoded::Delta(7));
    assert_eq!(out[..7], delta[..7]);
}

/// Each of both ends of a run at every place of a block, and across blocks.
#[test]
fn every_pair_of_ends() {
    let old = vec![0; 256];
    for from in 0..256 {
        for to in from + 1..=256 {
            let mut new = old.clone();
            new[from..to].fill(0x80);
            agrees(&old, &new);
        }
    }
}

#[test]
fn every_difference_of_a_byte() {
    for difference in 1..=255_u8 {
        for at in 0..64 {
            let old: Vec<u8> = (0..128).collect();
            let mut new = old.clone();
            new[at] ^= difference;
            new[at + 64] ^= 1;
            agrees(&old, &new);
        }
    }
}

#[test]
fn a_run_that_no_length_can_tell_does_not_fit() {
    let old = vec![0; 1 << 16];
    let mut new = old.clone();
    new[(1 << 14) - 1] = 1;
    agrees(&old, &new);
    assert_eq!(encoded(&old, &new).0, Encoded::Delta(4));
    new[(1 << 14) - 1] = 0;
    new[1 << 14] = 1;
    agrees(&old, &new);
    assert_eq!(encoded(&old, &new).0, Encoded::Overflow);
}

/// A page and what became of it, from hardly touched to all different.
fn two_pages() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let change = (0..PAGE, 1..200_usize, any::<bool>());
    (
        prop::sample::select(vec![PAGE, PAGE, PAGE, 1024, 100, 64, 63, 1]),
        prop::collection::vec(change, 0..40),
        prop::sample::select(vec![0_u8, 1, 1, 1, 2, 128]),
        any::<u64>(),
    )
        .prop_map(|(len, changes, noise, seed)| {
            let mut state = seed | 1;
            let mut random = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            };
            let old: Vec<u8> = (0..len).map(|_| random()).collect();
            let mut new = old.clone();
            for (at, count, dense) in changes {
                for byte in new.iter_mut().skip(at).take(count) {
                    if dense || random() % 2 == 0 {
                        *byte = random();
                    }
                }
            }
            for byte in &mut new {
                if random() < noise {
                    *byte = random();
                }
            }
            (old, new)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_delta_is_the_canonical_one_and_makes_the_new_page((old, new) in two_pages()) {
        agrees(&old, &new);
    }

    #[test]
    fn a_shorter_buffer_only_makes_more_of_them_not_fit(
        (old, new) in two_pages(),
        len in 0..PAGE,
    ) {
        let mut out = vec![0; len];
        let answer = encode(&old, &new, &mut out);
        match reference(&old, &new, len.min(new.len())) {
            None => prop_assert_eq!(answer, Encoded::Overflow),
            Some(delta) if delta.is_empty() => prop_assert_eq!(answer, Encoded::Unchanged),
            Some(delta) => {
                prop_assert_eq!(answer, Encoded::Delta(delta.len()));
                prop_assert_eq!(&out[..delta.len()], &delta);
            }
        }
    }

    #[test]
    fn any_bytes_have_an_answer(delta in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut page = old();
        let _ = apply(&mut page, &delta);
        prop_assert_eq!(page.len(), PAGE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_cut_delta_has_an_answer((old, new) in two_pages()) {
        let (_, delta) = encoded(&old, &new);
        for len in 0..delta.len() {
            let _ = apply(&mut old.clone(), &delta[..len]);
        }
    }
}

#[test]
fn what_a_delta_changes_is_known() {
    let old = vec![7; 4096];
    let mut delta = [0; 4096];
    for changes in [vec![0], vec![4095], vec![16, 2048], vec![3, 4, 5, 900], vec![0, 4095]] {
        let mut new = old.clone();
        changes.iter().for_each(|at| new[*at] ^= 1);
        let Encoded::Delta(len) = encode(&old, &new, &mut delta) else { panic!("a delta") };
        let range = changed(4096, &delta[..len]).unwrap();
        assert_eq!(range, changes[0]..changes[changes.len() - 1] + 1);
    }
    assert_eq!(changed(4096, &[]), Ok(0..0));
    assert_eq!(changed(16, &[0x10, 1, 0x5a]), Err(BadDelta::RunBeyondPage));
}
