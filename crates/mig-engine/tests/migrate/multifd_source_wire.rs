//! What a source with data channels puts on the wire (docs/wire/ram.md §9), and that it gives the guest's memory.

use std::{sync::Arc, time::Duration};

use mig_engine::{MigrationInfo, MultifdCompression, Parameters, ZeroPageDetection};
use mig_proto::{
    SectionKind,
    multifd::{Hello, Method, PACKET_PAGES},
};

use crate::{
    multifd_source_far::{
        Dialling, Heard, Line, SOON, Said, channels, echo, hear, multifd, mute, no_lane_stays,
        populate, same_memory, source,
    },
    scripted::Writes,
};

const PAGES: [usize; 2] = [1500, 20];
/// Passes after which the guest has written.
const LAST: u64 = 4;

/// A guest that writes between passes: here and there, pages that were zero, pages that become zero, and a last time
/// when it is about to be stopped.
fn busy_guest() -> Arc<Writes> {
    let memory = Writes::with_pages(
        PAGES,
        |guest, pass| {
            let seed = pass as usize;
            match pass {
                1..=LAST => {
                    for page in (seed..PAGES[0]).step_by(3) {
                        guest.write(0, page, 64 * seed, &[pass as u8; 99]);
                    }
                    for page in (seed..PAGES[0]).step_by(11) {
                        guest.write(0, page, 0, &[0; 4096]);
                    }
                    guest.write(1, seed, 4000, b"rom too");
                }
                6 => (700..1000).for_each(|page| guest.write(0, page, 8, b"last words")),
                _ => {}
            }
        },
        None,
    );
    populate(&memory, PAGES);
    memory
}

struct Case {
    machine: &'static str,
    parameters: Parameters,
    line: Line,
}

impl Case {
    fn new(machine: &'static str, parameters: Parameters) -> Self {
        Self { machine, parameters, line: Line::Unix }
    }

    /// Migrates, and compares memory.
    async fn run(self) -> (Heard, MigrationInfo) {
        let memory = busy_guest();
        let method = match self.parameters.multifd_compression {
            MultifdCompression::Zlib => Method::Zlib,
            MultifdCompression::Zstd => Method::Zstd,
            _ => Method::None,
        };
        let (connector, arrivals) = Dialling::new(self.line);
        let mark = self.mark();
        let mut source = source(&memory, self.machine, self.parameters);
        let both = async { tokio::join!(source.run(&connector), hear(arrivals, method, echo)) };
        let (sent, heard) = tokio::time::timeout(6 * SOON, both).await.expect("no end");
        let outcome = sent.unwrap();
        assert!(outcome.confirmed);
        same_memory(&memory.ram, &heard.memory(&mark, PAGES));
        (heard, outcome.info)
    }

    fn mark(&self) -> Said {
        match self.machine {
            "pc-q35-7.2" | "pc-q35-8.0" => Said::Eos,
            _ => Said::Flush,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_arrives_in_every_dialect_over_every_line() {
    for machine in ["pc-q35-7.2", "pc-q35-8.2", "pc-q35-10.0", "microvm"] {
        for line in [Line::Unix, Line::Tcp, Line::Memory(16 * 1024)] {
            for count in [1, 3] {
                let (heard, info) =
                    Case { line, ..Case::new(machine, channels(count)) }.run().await;
                assert_eq!(heard.data.len(), usize::from(count), "{machine} {line:?}");
                let (normal, zero) = heard.in_packets();
                let zeros = heard.zeros_on_main();
                assert_eq!(
                    (info.ram.normal, info.ram.duplicate),
                    (normal as u64, (zero + zeros) as u64)
                );
                assert_eq!(info.ram.remaining, 0);
                assert_eq!(info.multifd.unwrap().channels, usize::from(count));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bytes_are_the_hello() {
    for uuid in [None, Some([7; 16])] {
        let memory = busy_guest();
        let (connector, arrivals) = Dialling::new(Line::Unix);
        let mut source = source(&memory, "pc-q35-10.0", channels(4));
        if let Some(uuid) = uuid {
            source = source.with_uuid(uuid);
        }
        let (sent, heard) =
            tokio::join!(source.run(&connector), hear(arrivals, Method::None, echo));
        sent.unwrap();
        let hellos: Vec<_> = heard.data.iter().map(|data| data.hello).collect();
        let uuid = uuid.unwrap_or_default();
        assert_eq!(hellos, [0, 1, 2, 3].map(|id| Hello { uuid, id }.encode()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_nothing_that_is_not_used() {
    let (heard, _) = Case::new("pc-q35-10.0", channels(3)).run().await;
    let mut numbers = Vec::new();
    for packet in heard.data.iter().flat_map(|data| &data.packets) {
        numbers.push(packet.number);
        let header = &packet.header;
        let used = packet.normal.len() + packet.zero.len();
        assert!(header[36..64].iter().all(|byte| *byte == 0));
        assert!(header[320 + 8 * used..].iter().all(|byte| *byte == 0));
        if packet.sync {
            assert_eq!(header[8..24], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert!(header[32..].iter().all(|byte| *byte == 0));
        } else {
            assert!((1..=PACKET_PAGES).contains(&used));
            assert_eq!(header[8..16], [0, 0, 0, 0, 0, 0, 0, 128]);
            let payload = (packet.normal.len() * 4096) as u32;
            assert_eq!(header[20..24], payload.to_be_bytes());
            assert_eq!(header[64..73], *[&b"test.ram\0"[..], b"test.rom\0"][packet.block]);
        }
    }
    // One counter for all channels.
    numbers.sort_unstable();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_comes_once_in_a_pass_whatever_the_channel() {
    let (heard, _) = Case::new("microvm", channels(3)).run().await;
    let rounds = heard.rounds(&Said::Flush);
    // START, the first pass, four in which something was written, what is left at the end.
    assert_eq!(rounds.len(), 1 + 1 + LAST as usize + 1);
    assert!(rounds[0].packets.is_empty());
    let pages = |round: usize| -> usize {
        rounds[round].packets.iter().map(|p| p.normal.len() + p.zero.len()).sum()
    };
    assert_eq!(pages(1), PAGES.iter().sum::<usize>());
    for pass in 1..=LAST as usize {
        let third = (pass..PAGES[0]).filter(|page| (page - pass) % 3 == 0);
        let eleventh = (pass..PAGES[0]).filter(|p| (p - pass) % 11 == 0 && (p - pass) % 3 != 0);
        assert_eq!(pages(1 + pass), third.count() + eleventh.count() + 1, "pass {pass}");
    }
    assert_eq!(pages(rounds.len() - 1), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_where_qemu_has_them() {
    for machine in ["pc-q35-8.2", "pc-q35-10.0", "microvm"] {
        let (heard, _) = Case::new(machine, channels(2)).run().await;
        let ram: Vec<_> = sections(&heard);
        assert_eq!(ram[0], (SectionKind::Start, vec![Said::List, Said::Flush, Said::Eos]));
        let (kind, last) = ram.last().unwrap();
        assert_eq!(*kind, SectionKind::End);
        assert!(last.ends_with(&[Said::Flush, Said::Eos]), "{last:?}");
        let mut passes = 0;
        for (kind, said) in &ram[1..ram.len() - 1] {
            assert_eq!(*kind, SectionKind::Part);
            let marks = said.iter().filter(|said| **said == Said::Flush).count();
            // A section that a pass does not end with has none; and it is the last word but one.
            assert!(said.ends_with(&[Said::Eos]) && marks <= 1, "{said:?}");
            assert_eq!(said.ends_with(&[Said::Flush, Said::Eos]), marks == 1, "{said:?}");
            passes += marks;
        }
        assert_eq!(passes, 1 + LAST as usize);
    }
    // Per section, EOS is the mark: `rounds` has counted a SYNC of every channel for each.
    let (heard, _) = Case::new("pc-q35-8.0", channels(2)).run().await;
    assert!(!heard.main.contains(&Said::Flush));
    let ram = sections(&heard);
    assert_eq!(ram[0], (SectionKind::Start, vec![Said::List, Said::Eos]));
    assert_eq!(heard.rounds(&Said::Eos).len(), ram.len());
}

/// The sections of `ram`, and what is in them.
fn sections(heard: &Heard) -> Vec<(SectionKind, Vec<Said>)> {
    let mut ram: Vec<(SectionKind, Vec<Said>)> = Vec::new();
    let mut inside = false;
    for said in &heard.main {
        match said {
            Said::Section(kind, idstr) => {
                inside = idstr == "ram";
                if inside {
                    ram.push((*kind, Vec::new()));
                }
            }
            said if inside => ram.last_mut().unwrap().1.push(said.clone()),
            _ => {}
        }
        inside &= *said != Said::Eos;
    }
    ram
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_pages_go_where_the_destination_looks_for_them() {
    use ZeroPageDetection::{Legacy, Multifd, None};
    for (machine, asked, in_packets, on_main) in [
        ("pc-q35-10.0", Multifd, true, false),
        ("pc-q35-10.0", Legacy, false, true),
        ("pc-q35-10.0", None, false, false),
        ("pc-q35-8.2", Multifd, false, true),
        ("pc-q35-7.2", Multifd, false, true),
        ("pc-q35-7.2", None, false, false),
        ("microvm", Multifd, true, false),
    ] {
        let mut parameters = channels(2);
        parameters.zero_page_detection = asked;
        let (heard, _) = Case::new(machine, parameters).run().await;
        let (_, zero) = heard.in_packets();
        assert_eq!(zero > 0, in_packets, "{machine} {asked:?}");
        assert_eq!(heard.zeros_on_main() > 0, on_main, "{machine} {asked:?}");
        let packets = heard.data.iter().flat_map(|data| &data.packets);
        let hidden = packets.flat_map(|packet| &packet.normal);
        let hidden = hidden.filter(|(_, bytes)| bytes.iter().all(|byte| *byte == 0)).count();
        assert_eq!(hidden > 0, asked == None, "{machine} {asked:?}");
        assert!(!heard.main.contains(&Said::Page), "{machine}: a page on main");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_can_be_read() {
    use MultifdCompression::{Zlib, Zstd};
    for (compression, level) in [
        (Zlib, None),
        (Zlib, Some(0)),
        (Zlib, Some(1)),
        (Zlib, Some(9)),
        (Zstd, None),
        (Zstd, Some(-7)),
        (Zstd, Some(1)),
        (Zstd, Some(12)),
    ] {
        for machine in ["pc-q35-7.2", "pc-q35-10.0"] {
            let mut parameters = channels(2);
            parameters.multifd_compression = compression;
            parameters.multifd_zlib_level = level.and_then(|level: i8| u8::try_from(level).ok());
            parameters.multifd_zstd_level = level;
            let (heard, info) = Case::new(machine, parameters).run().await;
            let report = info.multifd.unwrap().compression.unwrap();
            let (normal, _) = heard.in_packets();
            assert_eq!(report.bytes_in, normal as u64 * 4096);
            if let Some(level) = level {
                assert_eq!(report.level, i32::from(level));
                assert_eq!(report.bytes_out < report.bytes_in * 3 / 4, level != 0, "{report:?}");
            }
            for packet in heard.data.iter().flat_map(|data| &data.packets) {
                let flags = match (packet.sync, compression) {
                    (true, _) => 1,
                    (false, Zlib) => 2,
                    _ => 4,
                };
                assert_eq!(packet.header[8..12], [0, 0, 0, flags]);
                let none = packet.normal.is_empty();
                assert_eq!(packet.header[20..24] == [0; 4], none, "next_packet_size");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_back_everything_is_sent_all_the_same() {
    let memory = busy_guest();
    let mut capabilities = multifd();
    capabilities.return_path = false;
    let (connector, arrivals) = Dialling::new(Line::Unix);
    let mut source = source(&memory, "pc-q35-10.0", channels(2)).with_capabilities(capabilities);
    let (sent, heard) = tokio::join!(source.run(&connector), hear(arrivals, Method::None, mute));
    assert!(!sent.unwrap().confirmed);
    same_memory(&memory.ram, &heard.memory(&Said::Flush, PAGES));
    no_lane_stays();
}

/// Some of it goes in a second PART, as long as the first still lasts: sections are short, passes are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_pass_is_cut_into_sections() {
    for (machine, mark) in [("pc-q35-7.2", Said::Eos), ("pc-q35-10.0", Said::Flush)] {
        let memory = Writes::with_pages(PAGES, |_, _| {}, None);
        populate(&memory, PAGES);
        let mut parameters = channels(2);
        // The 5 MB take about two and a half seconds.
        parameters.max_bandwidth = 2_000_000;
        let (connector, arrivals) = Dialling::new(Line::Unix);
        let mut source = source(&memory, machine, parameters);
        let both =
            async { tokio::join!(source.run(&connector), hear(arrivals, Method::None, echo)) };
        let (sent, heard) = tokio::time::timeout(6 * SOON, both).await.expect("no end");
        assert!(sent.unwrap().total > Duration::from_secs(1));
        let parts = sections(&heard).len() - 2;
        assert!(parts > 1, "{machine}: {parts}");
        same_memory(&memory.ram, &heard.memory(&mark, PAGES));
        assert_eq!(heard.rounds(&mark).len(), if mark == Said::Eos { parts + 2 } else { 3 });
    }
}
