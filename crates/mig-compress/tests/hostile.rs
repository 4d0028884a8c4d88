//! What a peer can send that no sender makes: each has its own error, names the place, and ends the stream.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use flate2::{Compress, Compression, FlushCompress};
use mig_compress::{
    Compressor, Decompressor, Error, Level, MAX_PAYLOAD_BYTES, Method, PageInflater, Problem,
};
use proptest::prelude::*;

const BOTH: [Method; 2] = [Method::Zlib, Method::Zstd];
const PAGES: usize = 8 * 4096;

fn pages(seed: u8) -> Vec<u8> {
    let mut word = u32::from(seed) + 1;
    let next = |_| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if word >> 30 == 0 { (word >> 16) as u8 } else { seed }
    };
    (0..PAGES).map(next).collect()
}

/// Two payloads of one stream, eight pages each.
fn payloads(method: Method) -> [Vec<u8>; 2] {
    let mut source = Compressor::new(method, Level::DEFAULT).unwrap();
    [1, 2].map(|seed| {
        let mut payload = Vec::new();
        source.compress(&pages(seed), &mut payload).unwrap();
        payload
    })
}

/// The problem with `payload`, for so many bytes of pages; and that the stream is over.
fn problem(destination: &mut Decompressor, payload: &[u8], out: usize) -> (u64, u64, Problem) {
    let error = destination.decompress(payload, &mut vec![0; out]).unwrap_err();
    assert!(error.is_peers_fault(), "{error}");
    let again = destination.decompress(payload, &mut vec![0; out]).unwrap_err();
    assert_eq!(again, Error::Failed { method: destination.method() });
    match error {
        Error::Payload { payload, position, problem, .. } => (payload, position, problem),
        other => panic!("{other}"),
    }
}

fn fresh(method: Method, payload: &[u8], out: usize) -> Problem {
    problem(&mut Decompressor::new(method).unwrap(), payload, out).2
}

#[test]
fn a_cut_payload_is_told_wherever_it_is_cut() {
    for method in BOTH {
        let [first, second] = payloads(method);
        for cut in 0..first.len() {
            fresh(method, &first[..cut], PAGES);
        }
        let mut destination = Decompressor::new(method).unwrap();
        destination.decompress(&first, &mut vec![0; PAGES]).unwrap();
        let (number, position, what) =
            problem(&mut destination, &second[..second.len() - 1], PAGES);
        assert_eq!(number, 1);
        assert!(position >= first.len() as u64);
        assert!(matches!(what, Problem::NotFlushed { .. }), "{what}");
    }
}

#[test]
fn bytes_behind_a_payload_are_told() {
    for method in BOTH {
        let [first, second] = payloads(method);
        for tail in [&[0][..], &[0, 0], &[1, 2, 3], &[0xff; 40], &second] {
            let what = fresh(method, &[&first, tail].concat(), PAGES);
            assert!(!matches!(what, Problem::TooShort { .. }), "{method} {tail:?}: {what}");
        }
    }
}

#[test]
fn more_and_fewer_pages_than_promised_are_told() {
    for method in BOTH {
        let [first, _] = payloads(method);
        for expected in [1, 4096, PAGES - 4096, PAGES - 1] {
            assert_eq!(fresh(method, &first, expected), Problem::TooLong { expected }, "{method}");
        }
        for expected in [PAGES + 1, PAGES + 4096, 512 * 1024] {
            let what = fresh(method, &first, expected);
            assert_eq!(what, Problem::TooShort { expected, actual: PAGES }, "{method}");
        }
    }
}

#[test]
fn a_bomb_fills_the_pages_and_goes_no_further() {
    // 64 MiB of zeros in a payload that promises one page.
    let zeros = vec![0; 64 << 20];
    let mut stream = Compress::new(Compression::new(9), true);
    let mut bomb = Vec::with_capacity(1 << 20);
    stream.compress_vec(&zeros, &mut bomb, FlushCompress::Sync).unwrap();
    assert_eq!(stream.total_in(), zeros.len() as u64);
    assert_eq!(fresh(Method::Zlib, &bomb, 4096), Problem::TooLong { expected: 4096 });

    // A block of 128 KiB of one byte, a thousand times.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x48];
    for _ in 0..1000 {
        bomb.extend([0x02, 0x00, 0x10, 0x00]);
    }
    assert_eq!(fresh(Method::Zstd, &bomb, 4096), Problem::TooLong { expected: 4096 });
}

#[test]
fn the_other_method_is_called_by_its_name() {
    let [zlib, zstd] = BOTH.map(|method| payloads(method)[0].clone());
    for (method, other) in [(Method::Zlib, &zstd), (Method::Zstd, &zlib)] {
        let what = fresh(method, other, PAGES);
        assert!(matches!(what, Problem::WrongMethod { .. }), "{what}");
        assert!(what.to_string().contains("multifd-compression"));
    }
    // A payload that is not the first of its stream.
    for method in BOTH {
        let [_, second] = payloads(method);
        assert!(matches!(fresh(method, &second, PAGES), Problem::WrongMethod { .. }));
    }
}

#[test]
fn an_empty_and_an_oversized_payload_are_refused_unread() {
    for method in BOTH {
        assert_eq!(fresh(method, &[], 4096), Problem::Empty);
        let bytes = MAX_PAYLOAD_BYTES + 1;
        let what = fresh(method, &vec![0; bytes], 4096);
        assert_eq!(what, Problem::TooLarge { bytes, limit: MAX_PAYLOAD_BYTES });
    }
}

#[test]
fn a_dictionary_is_refused_by_its_number() {
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x03, 0x48, 0x78, 0x56, 0x34, 0x12, 0x02, 0x80, 0, 0];
    assert_eq!(fresh(Method::Zstd, &zstd, 4096), Problem::Dictionary { id: 0x1234_5678 });
    let zlib = [0x78, 0x20, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0xff, 0xff];
    assert_eq!(fresh(Method::Zlib, &zlib, 4096), Problem::Dictionary { id: 0x1234_5678 });
}

#[test]
fn a_window_larger_than_qemus_largest_is_refused() {
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 0x02, 0x80, 0, 0];
    let what = fresh(Method::Zstd, &frame, 4096);
    assert!(matches!(what, Problem::Window { limit: 0x0200_0000, .. }), "{what}");
    // The same as the only segment of a frame of 2^62 bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x02, 0x80, 0, 0];
    assert_eq!(fresh(Method::Zstd, &frame, 4096), Problem::ContentSize);
}

#[test]
fn a_frame_that_can_be_skipped_is_not_a_frame() {
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    assert!(matches!(fresh(Method::Zstd, &skippable, 4096), Problem::WrongMethod { .. }));
}

#[test]
fn a_stream_that_ends_is_told() {
    // One block of a page of 7s, the last of its frame.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x48, 0x03, 0x80, 0, 7];
    assert_eq!(fresh(Method::Zstd, &frame, 4096), Problem::Ended { what: "frame" });

    let mut stream = Compress::new(Compression::new(1), true);
    let mut ended = Vec::with_capacity(65536);
    stream.compress_vec(&[7; 4096], &mut ended, FlushCompress::Finish).unwrap();
    assert!(matches!(fresh(Method::Zlib, &ended, 4096), Problem::NotFlushed { .. }));
    // With what looks like a flush behind it.
    ended.extend([0, 0, 0, 0xff, 0xff]);
    assert_eq!(fresh(Method::Zlib, &ended, 4096), Problem::Ended { what: "stream" });
}

#[test]
fn blocks_of_nothing_are_harmless_in_any_number() {
    let mut payload = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x48, 0x02, 0x80, 0, 7];
    payload.extend([0; 3 * 1000]);
    let mut destination = Decompressor::new(Method::Zstd).unwrap();
    let mut out = vec![0; 4096];
    destination.decompress(&payload, &mut out).unwrap();
    assert_eq!(out, [7; 4096]);
    // A stream that makes no progress for long is still one that goes on.
    for _ in 0..100 {
        destination.decompress(&[0x02, 0x80, 0, 9, 0, 0, 0], &mut out).unwrap();
        assert_eq!(out, [9; 4096]);
    }
}

#[test]
fn a_page_that_is_not_one_is_told_and_the_next_is_read() {
    let whole = |bytes: &[u8]| {
        let mut out = Vec::with_capacity(65536);
        Compress::new(Compression::new(1), true)
            .compress_vec(bytes, &mut out, FlushCompress::Finish)
            .unwrap();
        out
    };
    let good = whole(&[5; 4096]);
    let bad = [
        vec![],
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        whole(&[5; 4095]),
        whole(&[5; 4097]),
        whole(&vec![5; 1 << 20]),
        [&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat(),
        vec![0x78, 0x20, 1, 2, 3, 4],
        vec![0xff; 100],
    ];
    let mut inflater = PageInflater::new();
    for stream in bad {
        let mut page = [0; 4096];
        let error = inflater.inflate_page(&stream, &mut page).unwrap_err();
        assert!(error.is_peers_fault(), "{error}");
        inflater.inflate_page(&good, &mut page).unwrap();
        assert_eq!(page, [5; 4096]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn anything_at_all_is_an_error_or_pages(
        noise in proptest::collection::vec(any::<u8>(), 1..300),
        begin in 0..3_usize,
    ) {
        let begin: &[u8] = [&[][..], &[0x78, 0x01], &[0x28, 0xb5, 0x2f, 0xfd, 0, 0x48]][begin];
        let mut payload = [begin, &noise].concat();
        for end in [&[][..], &[0, 0, 0xff, 0xff]] {
            payload.extend(end);
            for method in BOTH {
                let mut destination = Decompressor::new(method).unwrap();
                let first = destination.decompress(&payload, &mut [0; 4096]);
                let second = destination.decompress(&payload, &mut [0; 4096]);
                prop_assert!(first.is_ok() || second.is_err());
            }
        }
        let _ = PageInflater::new().inflate_page(&payload, &mut [0; 4096]);
    }

    #[test]
    fn one_damaged_byte_never_panics_nor_hangs(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        for method in BOTH {
            let [mut first, second] = payloads(method);
            let at = at.index(first.len());
            first[at] ^= flip;
            let mut destination = Decompressor::new(method).unwrap();
            if destination.decompress(&first, &mut vec![0; PAGES]).is_ok() {
                let _ = destination.decompress(&second, &mut vec![0; PAGES]);
            }
        }
    }
}
