//! Streams that are wrong in several places at once, under every option, driven in every way that a driver may choose:
//! whatever they are, the decoder answers, stays inside its input, and gives back what it took to the byte.

use mig_proto::{
    Decoder, LocalPostcopy, MAX_NEED, Options, PayloadLength, Presence, Step, UnknownIterables,
    encode,
};

use crate::small;

/// Enough to meet every reject many times; a longer run of the same (20 million) found nothing more.
const STREAMS: usize = 30_000;

/// xorshift: reproducible and quick.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

fn mutate(stream: &mut Vec<u8>, bases: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.roll(stream.len());
    match dice.roll(6) {
        0 => stream[at] = dice.roll(256) as u8,
        1 => stream[at] ^= 1 << dice.roll(8),
        2 => drop(stream.drain(at..at + dice.roll(40).min(stream.len() - at))),
        3 => {
            let from = &bases[dice.roll(bases.len())];
            let start = dice.roll(from.len());
            let end = start + dice.roll(200).min(from.len() - start);
            stream.splice(at..at, from[start..end].iter().copied());
        }
        4 => {
            let end = at + (1 + dice.roll(8)).min(stream.len() - at);
            stream[at..end].fill([0, 0xff, 0x7f, 0x80][dice.roll(4)]);
        }
        _ => stream.truncate(at + 1),
    }
    if stream.is_empty() {
        stream.push(0);
    }
}

fn options(dice: &mut Dice) -> Options {
    let mut options = small::options();
    if dice.one_in(3) {
        options.footers = false;
        let timer = PayloadLength { idstr: (*b"timer").into(), instance_id: 0, len: 24 };
        options.lengths = vec![timer];
    }
    if dice.one_in(3) {
        options.unknown_iterables = UnknownIterables::KeepRaw;
    }
    if dice.one_in(3) {
        options.configuration = Presence::IfPresent;
    }
    if dice.one_in(3) {
        options.postcopy = Some(LocalPostcopy {
            postcopy_ram: dice.one_in(2),
            page_sizes: 4096,
            unusual_blocks: vec![((*b"pc.ram").into(), 4096)],
        });
    }
    if dice.one_in(4) {
        options.limits.section_bytes = 200;
    }
    options
}

/// Whether the stream was accepted.
fn drive(options: Options, stream: &[u8], dice: &mut Dice) -> bool {
    let mut decoder = Decoder::new(options);
    let (mut at, mut given, mut again) = (0, 0, Vec::new());
    // Each turn takes a byte or asks for one; a few only move from state to state.
    for _ in 0..20 * stream.len() + 100 {
        let (input, closed) = (&stream[at..given], given == stream.len());
        let step = match (closed, dice.one_in(20)) {
            (true, _) => decoder.finish(input),
            (false, true) => decoder.settle(input),
            (false, false) => decoder.decode(input),
        };
        match step {
            Ok(Step::Event { consumed, event }) => {
                encode::event(&mut again, &event);
                at += consumed;
                assert!(at <= given, "more consumed than given");
                let left = decoder.payload_left();
                if left > 0 && dice.one_in(3) {
                    let landed = (given - at).min(left as usize);
                    decoder.payload_landed(landed as u32).expect("no more than is left");
                    again.extend_from_slice(&stream[at..at + landed]);
                    at += landed;
                }
                assert_eq!(decoder.position(), at as u64);
                if dice.one_in(50) {
                    drop((decoder.resumed(), decoder.preempt_channel()));
                }
            }
            Ok(Step::NeedMore { consumed, at_least }) => {
                assert!(!closed, "finish asked for more");
                at += consumed;
                assert!((given - at + 1..=MAX_NEED).contains(&at_least), "asked for {at_least}");
                given = (given + 1 + dice.roll(64)).min(stream.len());
            }
            Ok(Step::Finished) => {
                assert_eq!(again, stream, "accepted, and not the same again");
                return true;
            }
            Err(error) => {
                assert!(error.position <= stream.len() as u64, "{error}");
                assert!(stream.starts_with(&again));
                return false;
            }
        }
    }
    panic!("no end");
}

#[test]
fn whatever_a_stream_is_the_decoder_answers_and_gives_it_back() {
    let bases = [small::precopy(), small::postcopy()];
    let mut accepted = 0;
    for seed in 1..=STREAMS as u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut stream = bases[dice.roll(2)].clone();
        for _ in 0..=dice.roll(6) {
            mutate(&mut stream, &bases, &mut dice);
        }
        let options = options(&mut dice);
        let run = std::panic::AssertUnwindSafe(|| drive(options, &stream, &mut dice));
        match std::panic::catch_unwind(run) {
            Ok(was_accepted) => accepted += usize::from(was_accepted),
            Err(_) => panic!("seed {seed}"),
        }
    }
    // Damage to pages and to what nobody reads is none.
    assert!((STREAMS / 50..STREAMS / 2).contains(&accepted), "{accepted} accepted");
}
