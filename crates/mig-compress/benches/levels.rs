//! What each level costs and saves on pages: `cargo bench -p mig-compress --bench levels -- [KIND [MIB]]`.
//!
//! Rates are bytes of pages for a second of this thread's processor time, each way and both together, medians of seven
//! runs that alternate between all rows. The first row is what QEMU does with its defaults: libzstd's level 1, a call for each page of
//! 4 KiB, a flush at the last of 128. `×` compares with it.

#![expect(clippy::unwrap_used, reason = "a measurement has nobody to tell but its reader")]

use std::{fs, time::Duration};

use mig_compress::{
    Budget, Compressor, Decompressor, Level, MAX_PACKET_BYTES, Method, choose_level,
};
use rustix::time::{ClockId, clock_gettime};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

const RUNS: usize = 7;

#[derive(Clone, Copy, PartialEq)]
enum Row {
    /// QEMU's way.
    Plain,
    /// Ours, a packet in one call.
    Ours(Method, i32),
    /// Ours, page by page.
    Fed(Method, i32),
}

const ROWS: [Row; 13] = [
    Row::Plain,
    Row::Ours(Method::Zstd, 1),
    Row::Fed(Method::Zstd, 1),
    Row::Ours(Method::Zstd, -1),
    Row::Fed(Method::Zstd, -1),
    Row::Ours(Method::Zstd, -3),
    Row::Ours(Method::Zstd, -7),
    Row::Ours(Method::Zstd, 3),
    Row::Ours(Method::Zlib, 0),
    Row::Ours(Method::Zlib, 1),
    Row::Ours(Method::Zlib, 2),
    Row::Ours(Method::Zlib, 3),
    Row::Ours(Method::Zlib, 6),
];

impl Row {
    fn name(self) -> String {
        match self {
            Self::Plain => "libzstd 1, as QEMU".to_owned(),
            Self::Ours(method, level) => format!("{method} {level}"),
            Self::Fed(method, level) => format!("{method} {level}, fed"),
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Plain => Method::Zstd,
            Self::Ours(method, _) | Self::Fed(method, _) => method,
        }
    }

    /// Compresses packets into `out`, one vector each.
    fn compress(self, pages: &[u8], out: &mut [Vec<u8>]) {
        let packets = pages.chunks(MAX_PACKET_BYTES).zip(out);
        match self {
            Self::Plain => {
                let mut context = CCtx::create();
                context.set_parameter(CParameter::CompressionLevel(1)).unwrap();
                packets.for_each(|(packet, out)| as_qemu(&mut context, packet, out));
            }
            Self::Ours(method, level) => {
                let level = Level::new(method, level).unwrap();
                let mut stream = Compressor::new(method, level).unwrap();
                packets.for_each(|(packet, out)| stream.compress(packet, out).unwrap());
            }
            Self::Fed(method, level) => {
                let level = Level::new(method, level).unwrap();
                let mut stream = Compressor::new(method, level).unwrap();
                for (packet, out) in packets {
                    packet.chunks(4096).for_each(|page| stream.feed(page, out).unwrap());
                    stream.flush(out).unwrap();
                }
            }
        }
    }
}

fn as_qemu(context: &mut CCtx<'_>, packet: &[u8], out: &mut Vec<u8>) {
    let last = packet.len().div_ceil(4096) - 1;
    for (at, page) in packet.chunks(4096).enumerate() {
        let how = if at == last {
            ZSTD_EndDirective::ZSTD_e_flush
        } else {
            ZSTD_EndDirective::ZSTD_e_continue
        };
        let mut input = InBuffer::around(page);
        loop {
            let end = out.len();
            let mut output = OutBuffer::around_pos(out, end);
            let left = context.compress_stream2(&mut output, &mut input, how).unwrap();
            if input.pos() == page.len() && (at != last || left == 0) {
                break;
            }
        }
    }
}

fn processor_time() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

fn noise(state: &mut u64, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|_| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            (*state >> 32) as u8
        })
        .collect()
}

/// The kinds of memory: 4:1 in three ways, words, noise, programs.
fn pages(kind: &str, bytes: usize) -> Vec<u8> {
    let state = &mut 0x9e37_79b9_7f4a_7c15;
    let mut pages = Vec::with_capacity(bytes + 8192);
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|at| {
            let letters = noise(state, 2 + at % 9);
            letters.iter().map(|&byte| b'a' + (byte % 26) * (byte % 7) / 7).collect()
        })
        .collect();
    while pages.len() < bytes {
        match kind {
            "zeros" => {
                pages.extend(noise(state, 1024));
                pages.resize(pages.len() + 3072, 0);
            }
            "repeats" => pages.extend(noise(state, 1024).repeat(4)),
            "records" => {
                pages.extend(noise(state, 16));
                pages.resize(pages.len() + 48, 0);
            }
            "words" => {
                let pick = noise(state, 2);
                let word = (usize::from(pick[0]) * usize::from(pick[1]) * words.len()) >> 16;
                pages.extend(&words[word]);
                pages.push(b' ');
            }
            "noise" => pages.extend(noise(state, 4096)),
            "programs" => {
                let mut files: Vec<_> = fs::read_dir("/usr/bin")
                    .unwrap()
                    .flatten()
                    .filter(|file| file.metadata().is_ok_and(|facts| facts.len() > 500_000))
                    .map(|file| file.path())
                    .collect();
                files.sort();
                for file in files {
                    let content = fs::read(file).unwrap_or_default();
                    pages.extend(&content[..content.len().min(4 << 20)]);
                    if pages.len() >= bytes {
                        break;
                    }
                }
            }
            other => panic!("no kind of pages is called {other}"),
        }
    }
    pages.truncate(bytes);
    pages
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(kind: &str, bytes: usize) {
    let pages = pages(kind, bytes);
    let mut seconds = vec![(Vec::new(), Vec::new(), 0); ROWS.len()];
    let mut payloads = vec![vec![0; 700_000]; bytes.div_ceil(MAX_PACKET_BYTES)];
    let mut out = vec![1; MAX_PACKET_BYTES];
    for _ in 0..RUNS {
        for (row, (packing, unpacking, packed)) in ROWS.iter().zip(&mut seconds) {
            payloads.iter_mut().for_each(Vec::clear);
            let start = processor_time();
            row.compress(&pages, &mut payloads);
            let between = processor_time();
            let mut destination = Decompressor::new(row.method()).unwrap();
            for (payload, packet) in payloads.iter().zip(pages.chunks(MAX_PACKET_BYTES)) {
                destination.decompress(payload, &mut out[..packet.len()]).unwrap();
            }
            packing.push(between - start);
            unpacking.push(processor_time() - between);
            *packed = payloads.iter().map(Vec::len).sum::<usize>();
        }
    }
    println!(
        "\n{kind}\n{:20} {:>7} {:>9} {:>9} {:>9} {:>6}",
        "", "ratio", "pack", "unpack", "both", "×"
    );
    let mut baseline = None;
    for (row, (packing, unpacking, packed)) in ROWS.iter().zip(&mut seconds) {
        let (pack, unpack) = (median(packing), median(unpacking));
        let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
        let baseline = *baseline.get_or_insert(pack + unpack);
        println!(
            "{:20} {:7.3} {:9.0} {:9.0} {:9.0} {:6.2}",
            row.name(),
            bytes as f64 / *packed as f64,
            rate(pack),
            rate(unpack),
            rate(pack + unpack),
            baseline / (pack + unpack),
        );
    }
    for method in [Method::Zstd, Method::Zlib] {
        for link in [None, Some(12_500_000), Some(125_000_000), Some(1_250_000_000)] {
            let budget =
                Budget { link_bytes_per_sec: link, workers: 1, time: Duration::from_millis(50) };
            let choice = choose_level(method, &pages, budget).unwrap();
            let link = link.map_or("an unknown link".to_owned(), |rate| {
                format!("a link of {} MB/s", rate as f64 / 1e6)
            });
            println!(
                "for {link}: {method} {} ({:.2}:1 at {:.0} MB/s, {} tried), pays below {:.0} MB/s",
                choice.level,
                choice.ratio,
                choice.compress_bytes_per_sec / 1e6,
                choice.tried.len(),
                choice.pays_below_bytes_per_sec / 1e6
            );
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let kind = arguments.next();
    let mib = arguments.next().map_or(16, |mib| mib.parse::<usize>().unwrap());
    for known in ["zeros", "repeats", "records", "words", "noise", "programs"] {
        if kind.as_deref().is_none_or(|kind| kind == known) {
            measure(known, mib << 20);
        }
    }
}
