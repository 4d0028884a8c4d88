//! Multifd messages against bytes captured from QEMU 10.0.2 and the ways of 7.2.22
//! (docs/wire/ram.md §9.3, §9.4, §9.8), against every rule of §9, and against anybody's bytes.

#![expect(clippy::unwrap_used, reason = "what only tests call may fail as a test")]

use std::num::NonZeroU32;

use mig_proto::multifd::{
    COMMON_LEN, DEVICE_STATE_HEADER_LEN, DeviceStatePacket, HEADER_LEN, HeadKind, Hello, Hellos,
    MAX_COMPRESSED_LEN, Method, MultifdError, MultifdErrorKind as Kind, MultifdMessage,
    PACKET_PAGES, PacketFull, PacketPages, RamPacket, encode, head_kind,
};
use mig_proto::{Fault, Name};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const MIB: u32 = 1 << 20;

/// Bytes to put at places of a header.
type Changes<'a> = &'a [(usize, &'a [u8])];

/// Bytes in hexadecimal, filled with zeros to their length.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().zip(text.split_whitespace()) {
        *place = u8::from_str_radix(byte, 16).unwrap();
    }
    bytes
}

/// A header of the beginning given, changed at the places given.
fn header(begin: &str, changes: Changes<'_>) -> [u8; HEADER_LEN] {
    let mut bytes = padded(begin);
    for (at, change) in changes {
        bytes[*at..*at + change.len()].copy_from_slice(change);
    }
    bytes
}

/// Capacity 128, two normal pages and one zero page of "pc.ram".
fn good() -> [u8; HEADER_LEN] {
    header(
        "11 22 33 44 00 00 00 01 00 00 00 00 00 00 00 80
         00 00 00 02 00 00 20 00 00 00 00 00 00 00 00 07 00 00 00 01",
        &[(64, b"pc.ram"), (326, &[0x10]), (334, &[0x20]), (342, &[0x30])],
    )
}

fn with(changes: Changes<'_>) -> [u8; HEADER_LEN] {
    let mut bytes = good();
    for (at, change) in changes {
        bytes[*at..*at + change.len()].copy_from_slice(change);
    }
    bytes
}

fn be(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn name(text: &str) -> Name<'_> {
    Name::try_from(text).unwrap()
}

fn refused(bytes: &[u8; HEADER_LEN], expected: Method) -> MultifdError {
    RamPacket::parse(bytes, expected).unwrap_err()
}

fn pages(normal: &[u64], zero: &[u64]) -> PacketPages {
    let mut pages = PacketPages::new();
    normal.iter().for_each(|&offset| pages.push_normal(offset).unwrap());
    zero.iter().rev().for_each(|&offset| pages.push_zero(offset).unwrap());
    pages
}

mod golden {
    use super::*;

    /// Offset 0 of the capture.
    #[test]
    fn the_hello_of_10_0_2() {
        let bytes = padded::<64>("11 22 33 44 00 00 00 01");
        let hello = Hello { uuid: [0; 16], id: 0 };
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        assert_eq!(hello.encode(), bytes);
    }

    /// Offset 0x40.
    #[test]
    fn the_first_sync_of_10_0_2() {
        let bytes = header("11 22 33 44 00 00 00 01 00 00 00 01", &[]);
        for method in Method::ALL {
            let sync = RamPacket::parse(&bytes, method).unwrap();
            assert!(sync.is_sync());
            assert_eq!((sync.flags(), sync.packet_num(), sync.payload_len()), (1, 0, 0));
            assert_eq!((sync.normal().len(), sync.zero().len(), sync.block()), (0, 0, None));
            assert_eq!(sync.check_offsets(0), Ok(()));
        }
        let mut out = vec![0xee];
        encode::sync_packet(&mut out, 0);
        assert_eq!(out[1..], bytes);
    }

    /// Offset 0x580; the offsets that the document leaves out go on downwards.
    #[test]
    fn the_first_pages_of_10_0_2() {
        let normal: Vec<u64> = (16..128).rev().map(|page| page * PAGE).collect();
        let zero: Vec<u64> = (0..16).rev().map(|page| page * PAGE).collect();
        let mut bytes = header(
            "11 22 33 44 00 00 00 01 00 00 00 00 00 00 00 80
             00 00 00 70 00 07 00 00 00 00 00 00 00 00 00 02
             00 00 00 10",
            &[(64, b"pc.ram"), (320, &[0, 0, 0, 0, 0, 7, 0xf0, 0, 0, 0, 0, 0, 0, 7, 0xe0, 0])],
        );
        for (place, offset) in bytes[320..].chunks_mut(8).zip(normal.iter().chain(&zero)) {
            place.copy_from_slice(&offset.to_be_bytes());
        }

        let packet = RamPacket::parse(&bytes, Method::None).unwrap();
        assert!(!packet.is_sync());
        assert_eq!((packet.packet_num(), packet.payload_len()), (2, 458_752));
        assert_eq!(packet.block(), Some(name("pc.ram")));
        assert!(packet.normal().eq(normal.iter().copied()));
        assert!(packet.zero().eq(zero.iter().copied()));
        assert_eq!(packet.check_offsets(128 * PAGE), Ok(()));

        let mut out = Vec::new();
        let head = encode::RamHead {
            packet_num: 2,
            block: name("pc.ram"),
            method: Method::None,
            compressed_len: 77,
        };
        encode::ram_packet(&mut out, &head, &pages(&normal, &zero));
        assert_eq!(out, bytes);
    }
}

/// What older sources do and a receiver must take (docs/wire/ram.md §9.3, §9.4).
mod old_senders {
    use super::*;

    #[test]
    fn without_normal_pages_the_payload_length_and_all_else_is_stale() {
        for flags in [0, 1] {
            let bytes = header(
                "11 22 33 44 00 00 00 01 00 00 00 00 00 00 00 80
                 00 00 00 00 00 00 10 00 00 00 00 00 00 00 00 02",
                &[(11, &[flags]), (64, &[b'x'; 256]), (320, &[0xff; 1024])],
            );
            for method in Method::ALL {
                let packet = RamPacket::parse(&bytes, method).unwrap();
                assert_eq!(packet.is_sync(), flags == 1);
                assert_eq!((packet.payload_len(), packet.block()), (0, None));
            }
        }
    }

    #[test]
    fn a_sync_may_have_a_page() {
        let bytes = with(&[(8, &be(1)), (16, &be(1)), (32, &be(0))]);
        let packet = RamPacket::parse(&bytes, Method::None).unwrap();
        assert!(packet.is_sync());
        assert_eq!(packet.payload_len(), 4096);
        assert!(packet.normal().eq([0x1000]));
    }

    #[test]
    fn entries_beyond_the_counts_are_not_looked_at() {
        let bytes = with(&[(344, &[0xff; 1000]), (71, &[b'#'; 249])]);
        let packet = RamPacket::parse(&bytes, Method::None).unwrap();
        assert_eq!(packet.block(), Some(name("pc.ram")));
        assert!(packet.normal().eq([0x1000, 0x2000]) && packet.zero().eq([0x3000]));
    }

    #[test]
    fn the_length_field_of_raw_pages_is_not_looked_at() {
        let bytes = with(&[(20, &be(7))]);
        assert_eq!(RamPacket::parse(&bytes, Method::None).unwrap().payload_len(), 8192);
    }

    #[test]
    fn reserved_bytes_and_high_flags_are_not_looked_at() {
        let bytes = with(&[(8, &be(0xffff_ff80)), (36, &[0xff; 28])]);
        assert!(RamPacket::parse(&bytes, Method::None).is_ok());
        let mut hello = Hello { uuid: [7; 16], id: 3 }.encode();
        hello[25..].fill(0xff);
        assert_eq!(Hello::decode(&hello), Ok(Hello { uuid: [7; 16], id: 3 }));
    }

    #[test]
    fn a_smaller_capacity_is_fine() {
        assert!(RamPacket::parse(&with(&[(12, &be(3))]), Method::None).is_ok());
    }
}

mod refused {
    use super::*;

    #[test]
    fn packets_about_pages() {
        let cases: [(Changes<'_>, u32, Kind, Fault); 13] = [
            (&[(12, &be(129))], 12, Kind::Capacity { found: 129 }, Fault::PeerIncompatible),
            (
                &[(16, &be(129))],
                16,
                Kind::NormalPages { found: 129, capacity: 128 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(12, &be(0))],
                16,
                Kind::NormalPages { found: 2, capacity: 0 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(32, &be(127))],
                32,
                Kind::ZeroPages { found: 127, left: 126 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(32, &be(u32::MAX))],
                32,
                Kind::ZeroPages { found: u32::MAX, left: 126 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(8, &be(2))],
                8,
                Kind::Method { found: 2, expected: Method::None },
                Fault::PeerIncompatible,
            ),
            (
                &[(8, &be(6))],
                8,
                Kind::Method { found: 6, expected: Method::None },
                Fault::PeerIncompatible,
            ),
            (&[(8, &be(0x40))], 8, Kind::DeviceStateUnexpected, Fault::PeerMisbehaved),
            (&[(64, &[0])], 64, Kind::BlockNameEmpty, Fault::PeerMisbehaved),
            (&[(64, &[b'x'; 256])], 64, Kind::BlockNameUnterminated, Fault::PeerMisbehaved),
            (
                &[(327, &[1])],
                320,
                Kind::OffsetUnaligned { index: 0, offset: 0x1001 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(342, &[0x38])],
                336,
                Kind::OffsetUnaligned { index: 2, offset: 0x3800 },
                Fault::PeerMisbehaved,
            ),
            (
                &[(16, &be(0)), (8, &be(4))],
                8,
                Kind::Method { found: 4, expected: Method::None },
                Fault::PeerIncompatible,
            ),
        ];
        for (changes, at, kind, blame) in cases {
            let error = refused(&with(changes), Method::None);
            assert_eq!((error.at, &error.kind, error.blame()), (at, &kind, blame));
            assert_eq!(error.message, MultifdMessage::Packet { packet_num: 7 }, "{error}");
        }
    }

    #[test]
    fn bytes_that_begin_no_message() {
        for (change, at, kind, blame) in [
            ((0, b"QEVM"), 0, Kind::Magic { found: 0x5145_564d }, Fault::PeerMisbehaved),
            ((4, &be(2)), 4, Kind::Version { found: 2 }, Fault::PeerIncompatible),
        ] {
            let (place, change): (usize, &[u8; 4]) = change;
            let bytes = with(&[(place, change)]);
            let expected = (at, kind.clone(), blame);
            let seen = |error: MultifdError| (error.at, error.kind.clone(), error.blame());
            assert_eq!(seen(refused(&bytes, Method::None)), expected);
            assert_eq!(seen(head_kind(bytes.first_chunk().unwrap()).unwrap_err()), expected);
            assert_eq!(seen(Hello::decode(bytes.first_chunk().unwrap()).unwrap_err()), expected);
            let device = DeviceStatePacket::parse(bytes.first_chunk().unwrap(), MIB);
            assert_eq!(seen(device.unwrap_err()), expected);
        }
    }

    #[test]
    fn pages_packed_otherwise_than_agreed() {
        let error = refused(&good(), Method::Zstd);
        assert_eq!(error.kind, Kind::Method { found: 0, expected: Method::Zstd });
        assert_eq!(
            error.to_string(),
            "multifd packet 7, byte 8: pages packed with method none, expected zstd: set \
             multifd-compression the same on both ends"
        );
        let error = refused(&with(&[(8, &be(0x3e))]), Method::Zstd);
        assert!(error.to_string().contains("unknown method 0x3e"), "{error}");
    }

    #[test]
    fn a_compressed_payload_has_a_bound() {
        let limit = MAX_COMPRESSED_LEN;
        for (found, good) in [(0, false), (1, true), (limit, true), (limit + 1, false)] {
            let bytes = with(&[(8, &be(4)), (20, &be(found))]);
            match RamPacket::parse(&bytes, Method::Zstd) {
                Ok(packet) => {
                    assert!(good);
                    assert_eq!(packet.payload_len(), found as usize);
                }
                Err(error) => {
                    assert!(!good, "{error}");
                    assert_eq!(error.at, 20);
                    assert_eq!(error.kind, Kind::PayloadLength { found, limit });
                }
            }
        }
        // Zeros only: no payload, whatever the field says.
        let bytes = with(&[(8, &be(4)), (16, &be(0)), (20, &be(9))]);
        assert_eq!(RamPacket::parse(&bytes, Method::Zstd).unwrap().payload_len(), 0);
    }

    #[test]
    fn pages_outside_their_block() {
        let bytes = good();
        let packet = RamPacket::parse(&bytes, Method::None).unwrap();
        assert_eq!(packet.check_offsets(0x4000), Ok(()));
        assert_eq!(packet.check_offsets(u64::MAX), Ok(()));
        let error = packet.check_offsets(0x3fff).unwrap_err();
        assert_eq!(
            error.to_string(),
            "multifd packet 7, byte 336: page 2: offset 0x3000 in RAM block \"pc.ram\", which has \
             0x3fff bytes"
        );
        for short in [0, 1, 4095] {
            assert!(packet.check_offsets(short).is_err());
        }
        let far = with(&[(320, &[0xff; 6])]);
        let far = RamPacket::parse(&far, Method::None).unwrap();
        assert_eq!(far.check_offsets(0x4000).unwrap_err().at, 320);
        let unknown = packet.unknown_block();
        assert_eq!((unknown.at, unknown.blame()), (64, Fault::PeerIncompatible));
        assert!(unknown.to_string().contains("unknown RAM block \"pc.ram\""));
    }
}

mod hellos {
    use super::*;

    const OURS: [u8; 16] = [1; 16];

    #[test]
    fn any_order_each_once() {
        let mut hellos = Hellos::new(3, Some(OURS));
        for id in [2, 0, 1] {
            assert!(!hellos.is_complete());
            hellos.admit(&Hello { uuid: OURS, id }).unwrap();
            let error = hellos.admit(&Hello { uuid: OURS, id }).unwrap_err();
            assert_eq!((error.at, &error.kind), (24, &Kind::ChannelTaken { id }));
            assert_eq!(error.blame(), Fault::PeerMisbehaved);
            assert_eq!(error.message, MultifdMessage::Hello);
        }
        assert!(hellos.is_complete());
        let error = hellos.admit(&Hello { uuid: OURS, id: 3 }).unwrap_err();
        assert_eq!(error.kind, Kind::ChannelId { id: 3, channels: 3 });
    }

    #[test]
    fn the_missing_ones_are_known() {
        let mut hellos = Hellos::new(4, None);
        hellos.admit(&Hello { uuid: OURS, id: 2 }).unwrap();
        assert!(hellos.missing().eq([0, 1, 3]));
        assert_eq!(hellos.uuid(), Some(OURS));
    }

    #[test]
    fn the_largest_number_of_channels() {
        let mut hellos = Hellos::new(255, None);
        for id in 0..255 {
            hellos.admit(&Hello { uuid: OURS, id }).unwrap();
        }
        assert!(hellos.is_complete() && hellos.missing().next().is_none());
        assert!(hellos.admit(&Hello { uuid: OURS, id: 255 }).is_err());
    }

    #[test]
    fn all_of_one_machine() {
        let theirs = Hello { uuid: [2; 16], id: 0 };
        for mut hellos in [Hellos::new(2, Some(OURS)), {
            let mut first = Hellos::new(2, None);
            first.admit(&Hello { uuid: OURS, id: 1 }).unwrap();
            first
        }] {
            let error = hellos.admit(&theirs).unwrap_err();
            assert_eq!(error.kind, Kind::Uuid { found: [2; 16], expected: OURS });
            assert_eq!((error.at, error.blame()), (8, Fault::PeerIncompatible));
        }
    }
}

mod device_state {
    use super::*;

    fn packet() -> [u8; DEVICE_STATE_HEADER_LEN] {
        let mut out = Vec::new();
        let n = NonZeroU32::new(0x1234).unwrap();
        encode::device_state_packet(&mut out, name("0000:00:03.0/vfio"), 5, n);
        out.try_into().unwrap()
    }

    #[test]
    fn its_bytes() {
        let bytes = packet();
        assert_eq!(bytes[..12], [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, 0, 0, 0, 0x40]);
        assert_eq!(bytes[12..30], *b"0000:00:03.0/vfio\0");
        assert_eq!(bytes[268..], [0, 0, 0, 5, 0, 0, 0x12, 0x34]);
        assert_eq!(head_kind(bytes.first_chunk().unwrap()), Ok(HeadKind::DeviceState));
        assert_eq!(HeadKind::DeviceState.header_len(), 276);
        assert_eq!(HeadKind::Ram.header_len(), 1344);
        let read = DeviceStatePacket::parse(&bytes, MIB).unwrap();
        assert_eq!((read.idstr, read.instance_id), (name("0000:00:03.0/vfio"), 5));
        assert_eq!(read.payload_len, 0x1234);
    }

    #[test]
    fn the_longest_name_fits() {
        let long = "x".repeat(255);
        let mut out = Vec::new();
        encode::device_state_packet(&mut out, name(&long), 0, NonZeroU32::MIN);
        let bytes = out.try_into().unwrap();
        assert_eq!(DeviceStatePacket::parse(&bytes, 1).unwrap().idstr, name(&long));
    }

    #[test]
    fn what_is_refused() {
        let idstr = || "0000:00:03.0/vfio".into();
        let cases: [(usize, &[u8], u32, Kind); 7] = [
            (8, &be(0x41), 8, Kind::DeviceStateSync { flags: 0x41 }),
            (8, &be(0), 8, Kind::DeviceStateExpected { flags: 0 }),
            (12, &[0], 12, Kind::IdstrEmpty),
            (12, &[b'x'; 256], 12, Kind::IdstrUnterminated),
            (272, &be(0), 272, Kind::DeviceStateLength { found: 0, limit: MIB, idstr: idstr() }),
            (
                272,
                &be(MIB + 1),
                272,
                Kind::DeviceStateLength { found: MIB + 1, limit: MIB, idstr: idstr() },
            ),
            (
                272,
                &be(u32::MAX),
                272,
                Kind::DeviceStateLength { found: u32::MAX, limit: MIB, idstr: idstr() },
            ),
        ];
        for (place, change, at, kind) in cases {
            let mut bytes = packet();
            bytes[place..place + change.len()].copy_from_slice(change);
            let error = DeviceStatePacket::parse(&bytes, MIB).unwrap_err();
            assert_eq!((error.at, &error.kind), (at, &kind), "{error}");
            assert_eq!(error.message, MultifdMessage::DeviceState);
            // Longer than the caller takes is no broken rule.
            let too_long = matches!(kind, Kind::DeviceStateLength { found, .. } if found > MIB);
            let blame = if too_long { Fault::PeerIncompatible } else { Fault::PeerMisbehaved };
            assert_eq!(error.blame(), blame, "{error}");
        }
        let sync = padded::<COMMON_LEN>("11 22 33 44 00 00 00 01 00 00 00 41");
        assert_eq!(head_kind(&sync).unwrap_err().kind, Kind::DeviceStateSync { flags: 0x41 });
    }
}

#[test]
fn a_packet_has_128_pages_and_no_more() {
    let mut pages = PacketPages::new();
    for page in 0..PACKET_PAGES as u64 {
        assert!(!pages.is_full());
        if page % 3 == 0 {
            pages.push_zero(page * PAGE).unwrap();
        } else {
            pages.push_normal(page * PAGE).unwrap();
        }
    }
    assert!(pages.is_full());
    assert_eq!(pages.push_normal(0), Err(PacketFull));
    assert_eq!(pages.push_zero(0), Err(PacketFull));
    assert_eq!((pages.len(), pages.normal().len(), pages.zero().len()), (128, 85, 43));
    assert_eq!((pages.normal()[..2].to_vec(), pages.zero()[0]), (vec![PAGE, 2 * PAGE], 126 * PAGE));
    pages.clear();
    assert!(pages.is_empty() && pages.normal().is_empty() && pages.zero().is_empty());
}

#[test]
fn a_buffer_used_again_is_not_allocated_again() {
    let mut out = Vec::with_capacity(HEADER_LEN);
    let begin = out.as_ptr();
    let full = pages(&(0..128).map(|page| page * PAGE).collect::<Vec<_>>(), &[]);
    let block = name("pc.ram");
    for packet_num in 0..3 {
        out.clear();
        let head = encode::RamHead { packet_num, block, method: Method::None, compressed_len: 0 };
        encode::ram_packet(&mut out, &head, &full);
        assert_eq!((out.len(), out.as_ptr()), (HEADER_LEN, begin));
        out.clear();
        encode::sync_packet(&mut out, packet_num);
        assert_eq!((out.len(), out.as_ptr()), (HEADER_LEN, begin));
    }
}

fn offsets(max: usize) -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec((0..1_u64 << 52).prop_map(|page| page * PAGE), 0..=max)
}

proptest! {
    #[test]
    fn what_was_encoded_is_parsed(
        normal in offsets(64),
        zero in offsets(64),
        block in prop::collection::vec(1_u8.., 1..=255),
        method in prop::sample::select(Method::ALL.to_vec()),
        compressed_len in 1..=MAX_COMPRESSED_LEN,
        packet_num in any::<u64>(),
    ) {
        let block = Name::new(&block).unwrap();
        let mut out = Vec::new();
        let head = encode::RamHead { packet_num, block, method, compressed_len };
        encode::ram_packet(&mut out, &head, &pages(&normal, &zero));
        prop_assert_eq!(head_kind(out.first_chunk().unwrap()), Ok(HeadKind::Ram));
        let bytes = out.try_into().unwrap();
        let packet = RamPacket::parse(&bytes, method).unwrap();
        prop_assert_eq!(packet.packet_num(), packet_num);
        prop_assert!(packet.normal().eq(normal.iter().copied()));
        prop_assert!(packet.zero().eq(zero.iter().copied()));
        let some = !normal.is_empty() || !zero.is_empty();
        prop_assert_eq!(packet.block(), some.then_some(block));
        let expected = match method {
            _ if normal.is_empty() => 0,
            Method::None => normal.len() * PAGE as usize,
            _ => compressed_len as usize,
        };
        prop_assert_eq!(packet.payload_len(), expected);
    }

    #[test]
    fn any_hello_comes_back(uuid in any::<[u8; 16]>(), id in any::<u8>()) {
        let hello = Hello { uuid, id };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }

    #[test]
    fn any_bytes_after_the_version_have_an_answer(
        mut bytes in prop::collection::vec(any::<u8>(), HEADER_LEN),
        small in any::<[u8; 3]>(),
    ) {
        bytes[..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1]);
        // Else the counts alone would have nearly all of them refused.
        for (at, count) in [12, 16, 32].into_iter().zip(small) {
            bytes[at..at + 4].copy_from_slice(&be(u32::from(count)));
        }
        check(bytes.first_chunk().unwrap());
    }
}

/// Every answer keeps its promises.
fn check(bytes: &[u8; HEADER_LEN]) {
    for method in Method::ALL {
        match RamPacket::parse(bytes, method) {
            Ok(packet) => {
                assert!(packet.normal().len() + packet.zero().len() <= PACKET_PAGES);
                assert!(packet.payload_len() <= MAX_COMPRESSED_LEN as usize);
                assert!(packet.normal().chain(packet.zero()).all(|offset| offset % PAGE == 0));
                assert_eq!(
                    packet.block().is_none(),
                    packet.normal().len() + packet.zero().len() == 0
                );
                let _ = packet.check_offsets(1 << 30).map_err(|error| error.to_string());
            }
            Err(error) => assert!((error.at as usize) < HEADER_LEN, "{error}"),
        }
    }
    if let Ok(packet) = DeviceStatePacket::parse(bytes.first_chunk().unwrap(), MIB) {
        assert!((1..=MIB).contains(&packet.payload_len));
    }
    let _ = Hello::decode(bytes.first_chunk().unwrap());
}

#[test]
fn every_flipped_bit_has_an_answer() {
    for original in
        [good(), header("11 22 33 44 00 00 00 01 00 00 00 40", &[(12, b"x"), (275, &[1])])]
    {
        for bit in 0..8 * HEADER_LEN {
            let mut bytes = original;
            bytes[bit / 8] ^= 1 << (bit % 8);
            check(&bytes);
        }
    }
}

/// Lengths are in the types, so a header that was cut cannot be offered; one whose rest is zeros
/// or another header's can.
#[test]
fn every_cut_header_has_an_answer() {
    let original = good();
    for len in 0..HEADER_LEN {
        for fill in [0, 0xff] {
            let mut bytes = [fill; HEADER_LEN];
            bytes[..len].copy_from_slice(&original[..len]);
            check(&bytes);
        }
    }
}
