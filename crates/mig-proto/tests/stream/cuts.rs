//! However a stream is cut into pieces, its events are the same.

use proptest::prelude::*;

use crate::corpus;
use crate::small;
use crate::support::{Run, run, run_whole};
use mig_proto::Options;

fn small_streams() -> [Vec<u8>; 2] {
    [small::precopy(), small::postcopy()]
}

fn same(whole: &Run, cut: &Run) {
    if whole != cut {
        let differ = whole.events.iter().zip(&cut.events).find(|(whole, cut)| whole != cut);
        panic!("cut into pieces it ends in {:?}; first difference {differ:?}", cut.error);
    }
}

#[test]
fn the_small_streams_are_right_and_come_back_to_the_byte() {
    for stream in small_streams() {
        assert!(stream.len() <= 64 << 10);
        let run = run_whole(small::options(), &stream);
        assert!(run.bytes == stream);
    }
}

#[test]
fn pieces_of_any_fixed_length_give_the_same_events() {
    for stream in small_streams() {
        let whole = run_whole(small::options(), &stream);
        for len in (1..40).chain([255, 1024, 1033, 4096]) {
            same(&whole, &run(small::options(), stream.chunks(len)));
        }
    }
}

#[test]
fn real_streams_in_small_pieces_give_the_same_events() {
    for name in ["pc-10.0.2-precopy", "q35-10.0.2-precopy"] {
        let stream = corpus::stream(name);
        let whole = run_whole(Options::default(), &stream);
        for len in [1, 7, 4099] {
            same(&whole, &run(Options::default(), stream.chunks(len)));
        }
    }
}

#[test]
fn two_pieces_cut_at_every_byte_give_the_same_events() {
    for stream in small_streams() {
        let whole = run_whole(small::options(), &stream);
        for cut in 0..stream.len() {
            let (front, back) = stream.split_at(cut);
            same(&whole, &run(small::options(), [front, back]));
        }
    }
}

proptest! {
    #[test]
    fn random_pieces_give_the_same_events(lens in prop::collection::vec(1_usize..600, 1..64)) {
        for stream in small_streams() {
            let whole = run_whole(small::options(), &stream);
            let mut rest = &stream[..];
            let pieces = lens.iter().cycle().map_while(|len| {
                let piece;
                (piece, rest) = rest.split_at((*len).min(rest.len()));
                (!piece.is_empty()).then_some(piece)
            });
            same(&whole, &run(small::options(), pieces));
        }
    }
}
