//! Both halves against each other: state lives over payloads, bounds hold, and the bytes have the shape of QEMU's.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use mig_compress::{
    Compressor, Decompressor, Level, MAX_PACKET_BYTES, Method, PageInflater, payload_bound,
};
use proptest::prelude::*;

const BOTH: [Method; 2] = [Method::Zlib, Method::Zstd];

fn pair(method: Method, level: i32) -> (Compressor, Decompressor) {
    let level = Level::new(method, level).unwrap();
    (Compressor::new(method, level).unwrap(), Decompressor::new(method).unwrap())
}

/// A repeatable stream of bytes that nothing compresses.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Pages that compress about 4:1.
fn quarter_noise(seed: u64, pages: usize) -> Vec<u8> {
    let mut bytes = noise(seed, pages * 4096);
    for page in bytes.chunks_mut(4096) {
        page[1024..].fill(0);
    }
    bytes
}

fn through(source: &mut Compressor, destination: &mut Decompressor, pages: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    source.compress(pages, &mut payload).unwrap();
    let mut out = vec![0xee; pages.len()];
    destination.decompress(&payload, &mut out).unwrap();
    assert!(out == pages, "{} bytes came back different", pages.len());
    payload
}

#[test]
fn a_hundred_payloads_of_one_stream_come_back() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        let mut sizes = 0;
        for round in 0..100_usize {
            let pages = quarter_noise(round as u64, 1 + round * 7 % 128);
            sizes += through(&mut source, &mut destination, &pages).len() as u64;
        }
        assert_eq!(source.bytes_out(), sizes);
        assert_eq!(destination.bytes_in(), sizes);
        assert_eq!(destination.bytes_out(), source.bytes_in());
        assert!(source.bytes_in() > 3 * sizes, "{method}: {} of {}", sizes, source.bytes_in());
    }
}

#[test]
fn what_was_sent_before_makes_the_next_payload_small() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        let pages = noise(7, 16 * 1024);
        let first = through(&mut source, &mut destination, &pages).len();
        let again = through(&mut source, &mut destination, &pages).len();
        assert!(again * 4 < first, "{method}: {first}, then {again}: the state was lost");
    }
}

#[test]
fn levels_of_every_kind_come_back_within_the_bound() {
    let mut worst: Vec<u8> = noise(3, MAX_PACKET_BYTES);
    // Deflate's fixed codes spend 9 bits on each of these.
    worst.iter_mut().for_each(|byte| *byte |= 0x90);
    for method in BOTH {
        for level in
            [-50, -7, -1, 0, 1, 2, 3, 4, 6, 9].into_iter().filter(|n| method.levels().contains(n))
        {
            let (mut source, mut destination) = pair(method, level);
            for pages in [&noise(1, MAX_PACKET_BYTES), &worst, &quarter_noise(2, 128)] {
                for _ in 0..2 {
                    let payload = through(&mut source, &mut destination, pages);
                    assert!(payload.len() <= payload_bound(pages.len()), "{method} {level}");
                }
            }
        }
    }
}

#[test]
fn qemus_highest_zstd_level_and_its_window_are_taken() {
    let (mut source, mut destination) = pair(Method::Zstd, 20);
    let payload = through(&mut source, &mut destination, &quarter_noise(5, 128));
    assert_eq!(payload[5] >> 3, 25 - 10, "level 20 asks for a window of 32 MiB");
    through(&mut source, &mut destination, &quarter_noise(6, 3));
}

#[test]
fn fast_zstd_levels_remember_64_kib() {
    let (mut source, mut destination) = pair(Method::Zstd, -1);
    let payload = through(&mut source, &mut destination, &quarter_noise(5, 128));
    assert_eq!(payload[5] >> 3, 16 - 10);
}

#[test]
fn pages_fed_one_by_one_make_the_same_pages() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        for round in 0..8 {
            let pages = quarter_noise(round, 128);
            let mut payload = Vec::new();
            for page in pages.chunks(4096) {
                source.feed(page, &mut payload).unwrap();
            }
            source.flush(&mut payload).unwrap();
            let mut out = vec![0; pages.len()];
            destination.decompress(&payload, &mut out).unwrap();
            assert!(out == pages, "{method}");
        }
    }
}

#[test]
fn a_flush_of_nothing_puts_nothing_on_the_wire() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        let mut payload = Vec::new();
        source.flush(&mut payload).unwrap();
        source.feed(&[], &mut payload).unwrap();
        source.flush(&mut payload).unwrap();
        assert!(payload.is_empty());
        assert!(source.compress(&[], &mut payload).is_err());
        through(&mut source, &mut destination, &[9; 4096]);
        source.flush(&mut payload).unwrap();
        assert!(payload.is_empty());
        through(&mut source, &mut destination, &[8; 4096]);
    }
}

#[test]
fn a_payload_is_appended_to_what_is_there() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        let mut packet = vec![0xab; 1344];
        source.compress(&[1; 4096], &mut packet).unwrap();
        assert_eq!(packet[..1344], [0xab; 1344]);
        let mut out = vec![0; 4096];
        destination.decompress(&packet[1344..], &mut out).unwrap();
        assert_eq!(out, [1; 4096]);
    }
}

#[test]
fn more_than_a_packet_is_refused_and_nothing_is_lost() {
    for method in BOTH {
        let (mut source, mut destination) = pair(method, 1);
        let mut payload = Vec::new();
        let too_many = vec![0; MAX_PACKET_BYTES + 1];
        assert!(source.compress(&too_many, &mut payload).is_err());
        source.feed(&too_many[..MAX_PACKET_BYTES], &mut payload).unwrap();
        assert!(source.feed(&[0], &mut payload).is_err());
        source.flush(&mut payload).unwrap();
        let mut out = vec![1; MAX_PACKET_BYTES];
        destination.decompress(&payload, &mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 0));
        assert!(destination.decompress(&payload, &mut []).is_err());
        assert!(destination.decompress(&payload, &mut vec![0; MAX_PACKET_BYTES + 1]).is_err());
        through(&mut source, &mut destination, &[5; 4096]);
    }
}

/// docs/wire/ram.md §9.8: `78 01 … 00 00 ff ff`, and no header in the second payload.
#[test]
fn zlib_payloads_have_the_shape_of_qemus() {
    let (mut source, mut destination) = pair(Method::Zlib, 1);
    let first = through(&mut source, &mut destination, &quarter_noise(1, 128));
    let second = through(&mut source, &mut destination, &quarter_noise(2, 128));
    assert_eq!(first[..2], [0x78, 0x01]);
    assert_ne!(second[..2], [0x78, 0x01]);
    for payload in [first, second] {
        assert_eq!(payload[payload.len() - 4..], [0, 0, 0xff, 0xff]);
    }
}

/// docs/wire/ram.md §9.8: `28 b5 2f fd 00 …`: a frame with neither size, nor checksum, nor dictionary.
#[test]
fn zstd_payloads_have_the_shape_of_qemus() {
    let (mut source, mut destination) = pair(Method::Zstd, 1);
    let first = through(&mut source, &mut destination, &quarter_noise(1, 128));
    let second = through(&mut source, &mut destination, &quarter_noise(2, 128));
    assert_eq!(first[..5], [0x28, 0xb5, 0x2f, 0xfd, 0]);
    assert_ne!(second[..4], [0x28, 0xb5, 0x2f, 0xfd]);
}

#[test]
fn zlib_changes_its_level_between_payloads_and_zstd_does_not() {
    let (mut source, mut destination) = pair(Method::Zlib, 1);
    for round in 0..200_u64 {
        let level = Level::new(Method::Zlib, (round * 7 % 10) as i32).unwrap();
        source.set_level(level).unwrap();
        assert_eq!(source.level(), level);
        let mut pages = quarter_noise(round / 3, 1 + round as usize % 40);
        pages[2048..4096].copy_from_slice(&noise(round / 2, 2048));
        through(&mut source, &mut destination, &pages);
    }
    let mut payload = Vec::new();
    source.feed(&[0; 4096], &mut payload).unwrap();
    assert!(source.set_level(Level::DEFAULT).is_err(), "inside a payload");

    let (mut source, _) = pair(Method::Zstd, 1);
    source.set_level(Level::DEFAULT).unwrap();
    assert!(source.set_level(Level::new(Method::Zstd, 2).unwrap()).is_err());
}

#[test]
fn compressed_pages_are_streams_of_their_own() {
    use std::io::Write;
    let mut inflater = PageInflater::new();
    for round in 0..50 {
        let page = quarter_noise(round, 1);
        let mut encoder = flate2::write::ZlibEncoder::new(
            Vec::new(),
            flate2::Compression::new(round as u32 % 10),
        );
        encoder.write_all(&page).unwrap();
        let stream = encoder.finish().unwrap();
        let mut out = [0xee; 4096];
        inflater.inflate_page(&stream, &mut out).unwrap();
        assert!(out[..] == page[..]);
    }
}

/// Pages as guests have them: runs, repeats of earlier bytes, noise.
fn any_pages() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1..5000_usize).prop_map(|(byte, len)| vec![byte; len]),
        (any::<u64>(), 1..3000_usize).prop_map(|(seed, len)| noise(seed, len)),
        (0..4_u64, 1..3000_usize).prop_map(|(seed, len)| noise(seed, len)),
        proptest::collection::vec(0..4_u8, 1..2000),
    ];
    proptest::collection::vec(piece, 1..12).prop_map(|pieces| {
        let mut bytes = pieces.concat();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pages_in_any_order_come_back(
        packets in proptest::collection::vec(any_pages(), 1..8),
        level in 0..=6_i32,
    ) {
        for method in BOTH {
            let (mut source, mut destination) = pair(method, level);
            for pages in &packets {
                let mut payload = Vec::new();
                source.compress(pages, &mut payload).unwrap();
                prop_assert!(payload.len() <= payload_bound(pages.len()));
                let mut out = vec![0; pages.len()];
                destination.decompress(&payload, &mut out).unwrap();
                prop_assert!(&out == pages);
            }
        }
    }
}
