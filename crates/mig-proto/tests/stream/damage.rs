//! Truncation at every byte and a flip of every bit end in an error or in success.

use mig_proto::{DecodeErrorKind, Decoder, Options, Step};

use crate::small;
use crate::support::run;

/// Decodes without keeping anything: many thousand times a test.
fn end_of(options: &Options, stream: &[u8]) -> Result<(), DecodeErrorKind> {
    let mut decoder = Decoder::new(options.clone());
    let mut at = 0;
    loop {
        match decoder.finish(&stream[at..]) {
            Ok(Step::Event { consumed, .. }) => at += consumed,
            Ok(Step::Finished) => {
                assert_eq!(decoder.position(), stream.len() as u64);
                return Ok(());
            }
            Ok(Step::NeedMore { .. }) => panic!("finish asked for more"),
            Err(error) => {
                assert!(error.position <= stream.len() as u64);
                assert_eq!(decoder.finish(&stream[at..]), Err(error.clone()), "errors are final");
                return Err(error.kind);
            }
        }
    }
}

#[test]
fn a_stream_cut_at_any_byte_is_truncated_or_past_its_end() {
    for stream in [small::precopy(), small::postcopy()] {
        // The last EOF completes the guest's state, whatever comes behind (stream.md §5).
        let eof =
            stream.len() - if stream.ends_with(small::JSON) { small::JSON.len() + 6 } else { 1 };
        assert_eq!(stream[eof], 0);
        for cut in 0..stream.len() {
            let run = run(small::options(), [&stream[..cut]]);
            match run.error {
                // Cut right behind what looks like the end of a device, EOF and nothing more: that
                // is how a stream without VMDESC ends, and no one can tell.
                None if stream[..cut].ends_with(b"\x7e\0\0\0\x05\0") => {}
                None => assert!(cut > eof, "cut at {cut} is taken for complete"),
                Some(error) => {
                    assert!(cut <= eof, "cut at {cut}: {error}");
                    assert!(error.is_truncation(), "cut at {cut}: {error}");
                    assert_eq!(error.position, cut as u64, "{error}");
                }
            }
        }
    }
}

#[test]
fn a_flip_of_any_bit_ends_in_an_error_or_in_success() {
    for mut stream in [small::precopy(), small::postcopy()] {
        let options = small::options();
        let mut harmless = 0;
        for bit in 0..stream.len() * 8 {
            stream[bit / 8] ^= 1 << (bit % 8);
            harmless += usize::from(end_of(&options, &stream).is_ok());
            stream[bit / 8] ^= 1 << (bit % 8);
        }
        // Pages and device payloads may be anything; the frame around them may not.
        assert!(harmless > 0 && harmless < stream.len() * 8);
    }
}

#[test]
fn a_flip_of_any_bit_comes_back_to_the_byte_if_it_decodes() {
    for mut stream in [small::precopy(), small::postcopy()] {
        for bit in (0..stream.len() * 8).step_by(5) {
            stream[bit / 8] ^= 1 << (bit % 8);
            let run = run(small::options(), [&stream[..]]);
            assert!(stream.starts_with(&run.bytes), "bit {bit}");
            assert!(run.error.is_some() || run.bytes.len() == stream.len(), "bit {bit}");
            stream[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
