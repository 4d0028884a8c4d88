//! Packets as sources of all versions write them are taken, and packets that break a rule end the migration, naming the
//! channel, the byte and the rule (docs/wire/ram.md §9.3, §9.4).

use mig_engine::MultifdCompression;
use mig_transport::Blame;
use tokio::io::AsyncWriteExt;

use crate::multifd_wire::{Kind, Mode, PAGES, Receiving, Script, connection, listen};

const NONE: MultifdCompression = MultifdCompression::None;

fn put32(header: &mut [u8], at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(header: &mut [u8], at: usize, value: u64) {
    header[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

async fn take(script: &Script) {
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) = receiving.run(script, &[None, Some(0), Some(1)], Kind::Unix).await;
    received.unwrap();
    assert_eq!(said, Some(0));
    receiving.check(script);
}

async fn refuse(script: &Script, blame: Blame, words: &str) {
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) = receiving.run(script, &[None, Some(0), Some(1)], Kind::Unix).await;
    let error = received.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(words), "{text}");
    assert!(text.contains("data channel 1"), "{text}");
    assert_eq!(error.blame(), blame, "{text}");
    assert!(error.position().is_some(), "{text}");
    assert_eq!(said, Some(1), "{text}");
    assert!(!receiving.diary.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_older_sources_leave_behind_is_ignored() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    // 7.2 leaves the last length and name in a packet of zero pages, and in one of none.
    script.packet_with(0, 0, &[], &[1, 2], |header| put32(header, 20, 4096));
    script.packet_with(0, 0, &[], &[], |header| {
        put32(header, 20, 4096);
        header[64..70].copy_from_slice(b"nobody");
        put64(header, 320, u64::MAX);
    });
    // And repeats numbers; offsets behind the counts are anything.
    script.packet_with(1, 0, &[(3, 1)], &[4], |header| {
        put64(header, 24, 0);
        put64(header, 320 + 16, 0xdead);
        header[36..64].fill(0xff);
        put32(header, 12, 2);
    });
    // Bits that nobody knows, and a length that nobody reads.
    script.packet_with(0, 1, &[(5, 1), (2, 1)], &[], |header| {
        put32(header, 8, 0x8000_0000);
        put32(header, 20, 7);
    });
    script.end_round();
    script.end();
    take(&script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_may_ride_on_a_packet_with_pages() {
    let mut script = Script::new(2, Mode::PerSection, NONE);
    script.section(mig_proto::SectionKind::Part, "ram");
    script.packet_with(0, 0, &[(1, 1), (2, 1)], &[], |header| put32(header, 8, 1));
    script.packet(0, 0, &[], &[]);
    script.packet_with(1, 0, &[(4, 1)], &[3], |header| put32(header, 8, 1));
    script.end_ram();
    // Of the next round: it must not overtake.
    script.packet(1, 0, &[(1, 8), (2, 8)], &[]);
    script.end();
    take(&script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_without_a_mark_at_the_end_is_tolerated() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    script.sync_packet(0);
    script.sync_packet(1);
    take(&script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_pages_on_main_are_taken_too() {
    use mig_proto::{RamWord, encode};
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1), (2, 1)], &[]);
    script.end_round();
    script.section(mig_proto::SectionKind::Part, "ram");
    let name = crate::multifd_wire::name("test.ram");
    encode::zero_page(&mut script.main, RamWord::zero(4096), name);
    script.memory[0][4096..8192].fill(0);
    script.packet(1, 0, &[(3, 1)], &[]);
    script.synchronise();
    script.end_ram();
    script.end();
    take(&script).await;
}

/// No honest source does; the result is one of them, and nothing breaks.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_sent_twice_in_a_round_does_no_harm() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1), (1, 2), (2, 2), (1, 3)], &[2, 2]);
    script.packet(0, 0, &[(1, 4), (5, 4)], &[]);
    // The same content, so that the order of channels does not matter.
    script.packet(0, 0, &[(9, 4), (10, 4)], &[]);
    script.packet(1, 0, &[(9, 4), (10, 4), (11, 4)], &[]);
    script.end_round();
    script.end();
    take(&script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_is_refused() {
    type Change = fn(&mut [u8]);
    let cases: [(Change, Blame, &str); 11] = [
        (|header| header[0] = 0, Blame::PeerMisbehaved, "magic"),
        (|header| put32(header, 4, 2), Blame::PeerIncompatible, "version 2"),
        (|header| put32(header, 12, 129), Blame::PeerIncompatible, "129"),
        (|header| put32(header, 12, 1), Blame::PeerMisbehaved, "2 normal pages"),
        (|header| put32(header, 32, 127), Blame::PeerMisbehaved, "127 zero pages"),
        (|header| header[64] = b'x', Blame::PeerIncompatible, "unknown RAM block \"xest.ram\""),
        (|header| header[64..320].fill(b'x'), Blame::PeerMisbehaved, "256 bytes"),
        (|header| header[64..320].fill(0), Blame::PeerMisbehaved, "empty name"),
        (
            |header| put64(header, 328, (PAGES[0] * 4096) as u64),
            Blame::PeerMisbehaved,
            "offset 0x258000 in RAM block \"test.ram\"",
        ),
        (|header| put64(header, 320, 4097), Blame::PeerMisbehaved, "not a multiple"),
        (|header| put32(header, 8, 2), Blame::PeerIncompatible, "multifd-compression"),
    ];
    for (change, blame, words) in cases {
        let mut script = Script::new(2, Mode::PerRound, NONE);
        script.packet(0, 0, &[(1, 1)], &[]);
        script.packet_with(1, 0, &[(2, 1), (3, 1)], &[4], change);
        script.end_round();
        script.end();
        refuse(&script, blame, words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_behind_the_end_are_refused() {
    let mut script = Script::new(1, Mode::PerRound, NONE);
    script.rounds();
    let before = script.data[0].len();
    script.packet(0, 0, &[(2, 1)], &[]);
    let mut receiving = Receiving::new(1, NONE);
    let (door, diary) = (receiving.door.clone(), receiving.diary.clone());
    let source = async {
        let (main, mut main_far) = connection(Kind::Unix).await;
        let (data, mut data_far) = connection(Kind::Unix).await;
        door.send(main).unwrap();
        door.send(data).unwrap();
        data_far.write_all(&script.hellos[0]).await.unwrap();
        // All but EOF and what follows it: devices load, and the stream does not end.
        let devices = script.main.len() - 8;
        main_far.write_all(&script.main[..devices]).await.unwrap();
        data_far.write_all(&script.data[0][..before]).await.unwrap();
        // Devices that do not load fail the test below.
        for _ in 0..5000 {
            if diary.has("load clock") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        data_far.write_all(&script.data[0][before..]).await.unwrap();
        let said = listen(&mut main_far).await;
        drop((main_far, data_far));
        said
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    let error = received.unwrap_err();
    assert!(error.to_string().contains("had ended"), "{error}");
    assert_eq!(said, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_compressed_payload_is_refused() {
    for compression in [MultifdCompression::Zlib, MultifdCompression::Zstd] {
        let mut script = Script::new(1, Mode::PerRound, compression);
        script.packet(0, 0, &[(1, 1), (2, 1)], &[]);
        // The first bytes behind SYNC and header.
        script.data[0][2 * 1344..2 * 1344 + 8].fill(0x55);
        script.end_round();
        script.end();
        let mut receiving = Receiving::new(1, compression);
        let (received, said) = receiving.run(&script, &[None, Some(0)], Kind::Unix).await;
        let error = received.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
        assert!(error.to_string().contains("data channel 0: packet "), "{error}");
        assert_eq!(said, Some(1));
    }
}
