//! The return path against bytes captured from QEMU 10.0.2 (docs/wire/stream.md §15), against every
//! rule of §7, against every split, and against anybody's bytes.

#![expect(clippy::unwrap_used, reason = "what only tests call may fail as a test")]

use mig_proto::Name;
use mig_proto::return_path::{
    BITMAP_END_MARK, Bitmap, BitmapLimit, BlockName, InvalidBlockTable, Message, MessageType,
    Received, ReturnPathDecoder, ReturnPathError, SourceBlock, SourceEvent, SourceReturnPath,
    Violation,
};
use proptest::prelude::*;

/// §15.3, the complete reverse direction of a postcopy migration.
const POSTCOPY: &str = "
    00 02 00 04 00 00 00 01
    00 02 00 04 00 00 00 02
    00 02 00 04 00 00 00 04
    00 02 00 04 00 00 00 03
    00 03 00 14 00 00 00 00 00 00 00 00 00 00 10 00 07 70 63 2e 62 69 6f 73
    00 03 00 13 00 00 00 00 00 04 c0 00 00 00 10 00 06 70 63 2e 72 61 6d
    00 04 00 0c 00 00 00 00 00 06 c0 00 00 00 10 00
    00 04 00 0c 00 00 00 00 00 06 d0 00 00 00 10 00
    00 01 00 04 00 00 00 00";

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn name(text: &str) -> BlockName {
    BlockName::new(text).unwrap()
}

fn decode_in_pieces(
    bytes: &[u8],
    piece: usize,
    limit: BitmapLimit,
) -> Result<Vec<Message>, ReturnPathError> {
    let mut decoder = ReturnPathDecoder::new();
    let mut messages = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        while let Some(received) = decoder.next(&mut input, &limit)? {
            messages.push(received.message);
        }
        assert!(input.is_empty());
    }
    assert_eq!(decoder.position(), bytes.len() as u64);
    decoder.finish()?;
    Ok(messages)
}

fn decode(bytes: &[u8]) -> Result<Vec<Message>, ReturnPathError> {
    decode_in_pieces(bytes, bytes.len(), BitmapLimit::AtMost(1 << 20))
}

fn encode(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(Message::to_bytes).collect()
}

fn violation(bytes: &str) -> (u64, Violation) {
    let bytes = hex(bytes);
    let error = decode(&bytes).unwrap_err();
    let in_pieces = decode_in_pieces(&bytes, 1, BitmapLimit::AtMost(1 << 20)).unwrap_err();
    assert_eq!(error, in_pieces);
    (error.at, error.violation)
}

#[test]
fn precopy_capture_both_ways() {
    let bytes = hex("00 02 00 04 00 00 00 01  00 01 00 04 00 00 00 00");
    let messages = [Message::Pong { value: 1 }, Message::Shut { status: 0 }];
    assert_eq!(decode(&bytes).unwrap(), messages);
    assert_eq!(encode(&messages), bytes);
}

#[test]
fn postcopy_capture_both_ways() {
    let bytes = hex(POSTCOPY);
    assert_eq!(bytes.len(), 119);
    let messages = [
        Message::Pong { value: 1 },
        Message::Pong { value: 2 },
        Message::Pong { value: 4 },
        Message::Pong { value: 3 },
        Message::ReqPagesId { block: name("pc.bios"), start: 0, length: 0x1000 },
        Message::ReqPagesId { block: name("pc.ram"), start: 0x4c000, length: 0x1000 },
        Message::ReqPages { start: 0x6c000, length: 0x1000 },
        Message::ReqPages { start: 0x6d000, length: 0x1000 },
        Message::Shut { status: 0 },
    ];
    assert_eq!(decode(&bytes).unwrap(), messages);
    assert_eq!(encode(&messages), bytes);
}

/// §15.4: bitmap of a 64 MiB block of which pages 0–43 arrived, then the recovery goes on.
fn recovery() -> (Vec<u8>, Vec<Message>) {
    let mut bitmap = vec![0; 2048];
    bitmap[..6].copy_from_slice(&hex("ff ff ff ff ff 0f"));
    let mut bytes = hex("00 05 00 07 06 70 63 2e 72 61 6d  00 00 00 00 00 00 08 00");
    bytes.extend_from_slice(&bitmap);
    assert_eq!(bytes.len(), 0x813);
    bytes.extend_from_slice(&hex("01 23 45 67 89 ab cd ef"));
    bytes.extend_from_slice(&hex("00 06 00 04 00 00 00 01"));
    bytes.extend_from_slice(&hex(
        "00 03 00 13 00 00 00 00 00 02 c0 00 00 00 10 00 06 70 63 2e 72 61 6d",
    ));
    let messages = vec![
        Message::RecvBitmap { block: name("pc.ram"), bitmap: Bitmap::from_bytes(bitmap).unwrap() },
        Message::ResumeAck { value: 1 },
        Message::ReqPagesId { block: name("pc.ram"), start: 0x2c000, length: 0x1000 },
    ];
    (bytes, messages)
}

#[test]
fn recovery_capture_both_ways() {
    let (bytes, messages) = recovery();
    assert_eq!(decode(&bytes).unwrap(), messages);
    assert_eq!(encode(&messages), bytes);
    for piece in [1, 7, 2047] {
        let limit = BitmapLimit::Exactly(2048);
        assert_eq!(decode_in_pieces(&bytes, piece, limit).unwrap(), messages);
    }
    let Message::RecvBitmap { bitmap, .. } = &messages[0] else { panic!("first is the bitmap") };
    assert_eq!(bitmap.missing(46).collect::<Vec<_>>(), [44, 45]);
}

#[test]
fn switchover_ack_is_four_bytes() {
    assert_eq!(Message::SwitchoverAck.to_bytes(), hex("00 07 00 00"));
    assert_eq!(decode(&hex("00 07 00 00")).unwrap(), [Message::SwitchoverAck]);
}

#[test]
fn unknown_types_are_refused_at_their_own_byte() {
    for number in [0, 8, 9, 0x0100, 0xffff] {
        let mut bytes = hex("00 02 00 04 00 00 00 01");
        bytes.extend_from_slice(&u16::to_be_bytes(number));
        bytes.extend_from_slice(&[0, 0]);
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.violation, Violation::UnknownType { number });
        assert_eq!((error.at, error.message_at), (8, 8));
        assert!(error.peer_is_to_blame());
    }
}

#[test]
fn wrong_fixed_lengths_are_refused() {
    for (number, expected) in [(1, 4), (2, 4), (4, 12), (6, 4), (7, 0)] {
        for len in [0u16, 3, 4, 5, 11, 12, 13, 512] {
            let bytes = [[0, number], len.to_be_bytes()].concat();
            if len == expected {
                continue;
            }
            let error = decode(&bytes).unwrap_err();
            let message = MessageType::from_number(number.into()).unwrap();
            assert_eq!(error.violation, Violation::WrongLength { message, len, expected });
            assert_eq!((error.at, error.message_at), (2, 0));
        }
    }
}

#[test]
fn bodies_above_512_are_refused_before_they_are_read() {
    assert_eq!(violation("00 05 02 01"), (2, Violation::BodyTooLong { len: 513 }));
    // 512 is allowed by the limit, and then wrong by the name rule.
    let mut bytes = hex("00 05 02 00 06");
    bytes.resize(4 + 512, b'x');
    let error = decode(&bytes).unwrap_err();
    let message = MessageType::RecvBitmap;
    assert_eq!(error.violation, Violation::WrongLength { message, len: 512, expected: 7 });
}

#[test]
fn the_name_must_end_with_the_body() {
    let message = MessageType::ReqPagesId;
    let request = "00 00 00 00 00 00 00 00 00 00 10 00";
    for (len, name, expected) in [("00 0e", "02 61", 15), ("00 0f", "01 61 62", 14)] {
        let (at, violation) = violation(&format!("00 03 {len} {request} {name}"));
        let len = hex(len)[1].into();
        assert_eq!((at, violation), (2, Violation::WrongLength { message, len, expected }));
    }
    assert_eq!(
        violation("00 03 00 0c"),
        (2, Violation::WrongLength { message, len: 12, expected: 13 })
    );
    assert_eq!(
        violation(&format!("00 03 00 0d {request} 00")),
        (16, Violation::EmptyBlockName { message })
    );
    let message = MessageType::RecvBitmap;
    assert_eq!(
        violation("00 05 00 00"),
        (2, Violation::WrongLength { message, len: 0, expected: 1 })
    );
    assert_eq!(violation("00 05 00 01 00"), (4, Violation::EmptyBlockName { message }));
}

#[test]
fn a_bitmap_without_its_end_mark_is_refused() {
    let (at, violation) = violation(
        "00 05 00 02 01 61 00 00 00 00 00 00 00 08 ff ff ff ff ff ff ff ff
         01 23 45 67 89 ab cd ee",
    );
    let found = BITMAP_END_MARK - 1;
    assert_eq!((at, violation), (22, Violation::MissingEndMark { block: name("a"), found }));
}

#[test]
fn an_unacceptable_bitmap_size_is_refused_before_its_bytes() {
    let block = name("a");
    for (size, limit) in [(u64::MAX, 1 << 20), (12, 1 << 20), ((1 << 20) + 8, 1 << 20)] {
        let mut bytes = hex("00 05 00 02 01 61");
        bytes.extend_from_slice(&size.to_be_bytes());
        let error = decode(&bytes).unwrap_err();
        let block = block.clone();
        assert_eq!(error.violation, Violation::BitmapNotAcceptable { block, size, limit });
        assert_eq!(error.at, 6);
    }
    let bytes = hex("00 05 00 02 01 61 00 00 00 00 00 00 00 08");
    let error = decode_in_pieces(&bytes, 3, BitmapLimit::Exactly(16)).unwrap_err();
    assert_eq!(error.violation, Violation::WrongBitmapSize { block, size: 8, expected: 16 });
}

#[test]
fn errors_stick() {
    let mut decoder = ReturnPathDecoder::new();
    let limit = BitmapLimit::AtMost(0);
    let error = decoder.next(&mut &hex("00 00 00 00")[..], &limit).unwrap_err();
    let good = hex("00 07 00 00");
    assert_eq!(decoder.next(&mut &good[..], &limit), Err(error.clone()));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn an_end_inside_a_message_is_told_apart() {
    let (bytes, messages) = recovery();
    let mut boundaries = vec![0];
    for message in &messages {
        boundaries.push(boundaries[boundaries.len() - 1] + message.encoded_len());
    }
    for cut in 0..=bytes.len() {
        let mut decoder = ReturnPathDecoder::new();
        let mut input = &bytes[..cut];
        while decoder.next(&mut input, &BitmapLimit::Exactly(2048)).unwrap().is_some() {}
        match decoder.finish() {
            Ok(()) => assert!(boundaries.contains(&cut)),
            Err(error) => {
                assert!(!boundaries.contains(&cut));
                assert_eq!(error.at, cut as u64);
                assert_eq!(error.violation, Violation::ClosedInsideMessage);
                assert!(!error.peer_is_to_blame());
            }
        }
    }
}

// ---- the source's rules ----

fn source() -> SourceReturnPath {
    let block = |text, used_length, host_page_size| SourceBlock {
        name: name(text),
        used_length,
        host_page_size,
    };
    SourceReturnPath::new(
        vec![block("pc.ram", 64 << 20, 4096), block("huge", 4 << 20, 2 << 20)],
        4096,
    )
    .unwrap()
}

fn handle(source: &mut SourceReturnPath, message: Message) -> Result<SourceEvent, Violation> {
    source.handle_message(Received { at: 100, message }).map_err(|error| {
        assert_eq!((error.at, error.message_at), (100, 100));
        error.violation
    })
}

fn named(block: &str, start: u64, length: u32) -> Message {
    Message::ReqPagesId { block: name(block), start, length }
}

#[test]
fn requests_go_to_the_block_named_last() {
    let mut source = source();
    assert_eq!(
        handle(&mut source, Message::ReqPages { start: 0, length: 4096 }),
        Err(Violation::NoBlockNamed)
    );
    for (text, block) in [("huge", 1), ("pc.ram", 0)] {
        let event = handle(&mut source, named(text, 0, 2 << 20));
        assert_eq!(event, Ok(SourceEvent::PagesRequested { block, start: 0, length: 2 << 20 }));
        let event = handle(&mut source, Message::ReqPages { start: 2 << 20, length: 2 << 20 });
        let (start, length) = (2 << 20, 2 << 20);
        assert_eq!(event, Ok(SourceEvent::PagesRequested { block, start, length }));
    }
    source.handle_reconnected();
    assert_eq!(
        handle(&mut source, Message::ReqPages { start: 0, length: 4096 }),
        Err(Violation::NoBlockNamed)
    );
}

#[test]
fn requests_outside_a_block_or_off_its_pages_are_refused() {
    let mut source = source();
    let unknown = handle(&mut source, named("vga.vram", 0, 4096));
    assert_eq!(unknown, Err(Violation::UnknownBlock { block: name("vga.vram") }));
    for (block, start, length) in
        [("pc.ram", 1, 4096), ("pc.ram", 0, 4095), ("huge", 4096, 2 << 20), ("huge", 0, 4096)]
    {
        let refused = handle(&mut source, named(block, start, length));
        assert!(matches!(refused, Err(Violation::Unaligned { .. })), "{refused:?}");
    }
    for (start, length) in [(64 << 20, 4096), ((64 << 20) - 4096, 8192), (u64::MAX - 4095, 4096)] {
        let refused = handle(&mut source, named("pc.ram", start, length));
        assert!(matches!(refused, Err(Violation::PastEnd { .. })), "{refused:?}");
    }
    let last = handle(&mut source, named("pc.ram", (64 << 20) - 4096, 4096));
    assert!(last.is_ok());
}

#[test]
fn bitmaps_are_for_recovery_only_and_of_the_blocks_size() {
    let (bytes, messages) = recovery();
    let mut source = source();
    let refused = ReturnPathDecoder::new().next(&mut &bytes[..], &source).unwrap_err();
    assert_eq!(refused.violation, Violation::UnexpectedBitmap { block: name("pc.ram") });
    let refused = handle(&mut source, messages[0].clone());
    assert_eq!(refused, Err(Violation::UnexpectedBitmap { block: name("pc.ram") }));

    source.handle_reconnected();
    let mut decoder = ReturnPathDecoder::new();
    let mut input = &bytes[..];
    let received = decoder.next(&mut input, &source).unwrap().unwrap();
    let event = source.handle_message(received).unwrap();
    assert!(matches!(event, SourceEvent::Bitmap { block: 0, .. }));
    let received = decoder.next(&mut input, &source).unwrap().unwrap();
    assert_eq!(source.handle_message(received), Ok(SourceEvent::ResumeAcknowledged));
    source.handle_recovered();

    // 1024 pages of 4 KiB are 128 bytes.
    source.handle_reconnected();
    let message = Message::RecvBitmap { block: name("huge"), bitmap: Bitmap::new(1025) };
    let refused = handle(&mut source, message);
    let block = name("huge");
    assert_eq!(refused, Err(Violation::WrongBitmapSize { block, size: 136, expected: 128 }));
}

#[test]
fn resume_ack_must_be_1_and_is_tolerated_any_time() {
    let mut source = source();
    assert_eq!(
        handle(&mut source, Message::ResumeAck { value: 1 }),
        Ok(SourceEvent::ResumeAcknowledged)
    );
    for value in [0, 2, u32::MAX] {
        assert_eq!(
            handle(&mut source, Message::ResumeAck { value }),
            Err(Violation::ResumeRefused { value })
        );
    }
}

#[test]
fn only_shut_0_is_success() {
    let mut done = source();
    assert_eq!(handle(&mut done, Message::Pong { value: 7 }), Ok(SourceEvent::Pong { value: 7 }));
    assert_eq!(handle(&mut done, Message::SwitchoverAck), Ok(SourceEvent::SwitchoverAcknowledged));
    let error = done.handle_closed(24).unwrap_err();
    assert_eq!((error.at, &error.violation), (24, &Violation::ClosedWithoutShut));
    assert!(!error.peer_is_to_blame());

    assert_eq!(handle(&mut done, Message::Shut { status: 0 }), Ok(SourceEvent::Succeeded));
    assert_eq!(done.handle_closed(32), Ok(()));
    let late = handle(&mut done, named("nobody", 1, 1));
    assert_eq!(late, Ok(SourceEvent::IgnoredAfterShut));

    let mut failed = source();
    assert_eq!(
        handle(&mut failed, Message::Shut { status: 5 }),
        Ok(SourceEvent::DestinationFailed { status: 5 })
    );
    assert_eq!(failed.shut_status(), Some(5));
    assert_eq!(failed.handle_closed(8), Ok(()));
}

#[test]
fn a_table_that_cannot_be_checked_against_is_refused() {
    let block =
        |text, host_page_size| SourceBlock { name: name(text), used_length: 4096, host_page_size };
    let size = 0;
    let refused = SourceReturnPath::new(vec![], 0).unwrap_err();
    assert_eq!(refused, InvalidBlockTable::TargetPageSize { size });
    let refused = SourceReturnPath::new(vec![block("a", 0)], 4096).unwrap_err();
    assert_eq!(refused, InvalidBlockTable::HostPageSize { block: name("a"), size });
    let twice = vec![block("a", 4096), block("b", 4096), block("a", 4096)];
    let refused = SourceReturnPath::new(twice, 4096).unwrap_err();
    assert_eq!(refused, InvalidBlockTable::Duplicate { block: name("a") });
}

#[test]
fn names_and_bitmaps_are_checked_when_made() {
    assert!(BlockName::new("").is_err());
    assert!(BlockName::new([b'x'; 256]).is_err());
    assert!(BlockName::new([b'x'; 255]).is_ok());
    assert_eq!(BlockName::from(Name::new(b"pc.ram").unwrap()), name("pc.ram"));
    assert!(Bitmap::from_bytes(vec![0; 7]).is_err());
    for (pages, len) in [(0, 0), (1, 8), (64, 8), (65, 16), (16384, 2048), (u64::MAX, 1 << 61)] {
        assert_eq!(Bitmap::len_for_pages(pages), len);
    }
    let mut bitmap = Bitmap::new(65);
    assert!(bitmap.mark_received(9) && bitmap.is_received(9));
    assert_eq!(bitmap.as_bytes()[1], 2);
    assert!(!bitmap.mark_received(128) && !bitmap.is_received(u64::MAX));
}

// ---- properties ----

fn any_name() -> impl Strategy<Value = BlockName> {
    proptest::collection::vec(any::<u8>(), 1..=255).prop_map(|bytes| BlockName::new(bytes).unwrap())
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any::<u32>().prop_map(|status| Message::Shut { status }),
        any::<u32>().prop_map(|value| Message::Pong { value }),
        any::<u32>().prop_map(|value| Message::ResumeAck { value }),
        Just(Message::SwitchoverAck),
        (any::<u64>(), any::<u32>())
            .prop_map(|(start, length)| Message::ReqPages { start, length }),
        (any_name(), any::<u64>(), any::<u32>())
            .prop_map(|(block, start, length)| Message::ReqPagesId { block, start, length }),
        (any_name(), proptest::collection::vec(any::<[u8; 8]>(), 0..9)).prop_map(
            |(block, words)| {
                let bitmap = Bitmap::from_bytes(words.concat()).unwrap();
                Message::RecvBitmap { block, bitmap }
            }
        ),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_messages(
        messages in proptest::collection::vec(any_message(), 0..8),
        piece in 1usize..64,
    ) {
        let bytes = encode(&messages);
        prop_assert_eq!(bytes.len(), messages.iter().map(Message::encoded_len).sum::<usize>());
        prop_assert_eq!(decode_in_pieces(&bytes, piece, BitmapLimit::AtMost(64)), Ok(messages));
    }

    #[test]
    fn any_bytes_are_answered_the_same_whatever_the_split(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..9, any::<u8>()], 0..80),
        piece in 1usize..16,
    ) {
        let limit = BitmapLimit::AtMost(64);
        let whole = decode_in_pieces(&bytes, bytes.len(), limit);
        prop_assert_eq!(decode_in_pieces(&bytes, piece, limit), whole);
    }

    #[test]
    fn the_source_answers_any_message(
        messages in proptest::collection::vec(any_message(), 0..20),
        recovering: bool,
    ) {
        let mut source = source();
        if recovering {
            source.handle_reconnected();
        }
        for message in messages {
            let _ = source.handle_message(Received { at: 0, message });
        }
    }
}
