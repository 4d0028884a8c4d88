//! The decoder alone: a stream of whole pages in memory, no transport, no guest.

use std::{hint::black_box, time::Instant};

use mig_proto::{
    BlockId, Configuration, Decoder, Event, Name, Options, RamWord, SectionHeader, SectionKind,
    Step, encode,
};

use super::Plan;
use crate::{
    contest::{Entry, Sample},
    failure::Result,
    report::{Figure, Goal, Section},
    statistics::Spread,
};

const PAGE: usize = 4096;

/// 256 MiB of pages: more than any cache holds.
const PAGES: usize = 64 << 10;

/// Pages in one PART, about as many as 50 ms bring.
const PART_PAGES: usize = 16 << 10;

/// As much as the stream reader holds at a time.
const WINDOW: usize = 1 << 20;

/// What happens to a page's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    /// The caller takes it from the input by itself.
    ByReference,
    /// It comes as events, and is looked at by nobody.
    AsEvents,
    /// It comes as events and is copied to where it belongs.
    Copied,
}

const BY_REFERENCE: &str = "decoded, payload landed by reference";
const AS_EVENTS: &str = "decoded, payload as events";

const LANDINGS: [(Landing, &str); 3] = [
    (Landing::ByReference, BY_REFERENCE),
    (Landing::AsEvents, AS_EVENTS),
    (Landing::Copied, "decoded and copied page by page"),
];

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let stream = stream();
    let mut memory = vec![1; PAGES * PAGE];
    let mut entries: Vec<Entry> = LANDINGS
        .iter()
        .map(|(_, name)| (*name).to_owned())
        .chain(["plain copy of the same bytes".to_owned()])
        .map(|name| Entry { name, samples: Vec::new(), remark: None })
        .collect();
    for run in 1..=plan.runs {
        for (number, entry) in entries.iter_mut().enumerate() {
            let begun = Instant::now();
            match LANDINGS.get(number) {
                Some((landing, _)) => decode(&stream, *landing, &mut memory)?,
                None => memory.copy_from_slice(black_box(&stream[..PAGES * PAGE])),
            }
            black_box(&mut memory);
            let seconds = begun.elapsed().as_secs_f64();
            eprintln!("decoder {run}/{} {}: {seconds:.4} s", plan.runs, entry.name);
            let bytes = stream.len() as u64;
            entry.samples.push(Sample { seconds, bytes, ..Sample::default() });
        }
    }
    for entry in &entries {
        let rate = Spread::of(entry.rates().map(|rate| rate / (1u64 << 30) as f64));
        section.figures.push(match entry.name.as_str() {
            BY_REFERENCE | AS_EVENTS => {
                Figure::judged(&*entry.name, "GiB/s", rate, Goal::AtLeast(5.0))
            }
            name => Figure::told(name, "GiB/s", rate),
        });
    }
    section.notes.push(
        "256 MiB of whole pages in PART sections, given to the decoder 1 MiB at a time. With the copy it is memory that \
         is measured: the plain copy says what there is to have."
            .into(),
    );
    Ok(())
}

fn decode(stream: &[u8], landing: Landing, memory: &mut [u8]) -> Result<()> {
    let mut decoder = Decoder::new(Options::default());
    let (mut done, mut given, mut pages, mut payload) = (0, WINDOW.min(stream.len()), 0, 0);
    let (mut at, mut block) = (0, None::<BlockId>);
    loop {
        match decoder.decode(&stream[done..given])? {
            Step::Event { consumed, event } => {
                done += consumed;
                match event {
                    Event::Page(page) => {
                        pages += 1;
                        at = usize::try_from(page.offset)?;
                        block = Some(page.block);
                        if landing == Landing::ByReference {
                            let left = decoder.payload_left() as usize;
                            let here = left.min(given - done);
                            black_box(&stream[done..done + here]);
                            decoder.payload_landed(here as u32)?;
                            done += here;
                            payload += here;
                        }
                    }
                    Event::Payload(bytes) => {
                        if landing == Landing::Copied {
                            memory[at..at + bytes.len()].copy_from_slice(bytes);
                            at += bytes.len();
                        } else {
                            black_box(bytes.as_ptr());
                        }
                        payload += bytes.len();
                    }
                    Event::Eof { in_package: false } => break,
                    _ => {}
                }
            }
            Step::NeedMore { consumed, .. } => {
                done += consumed;
                if given == stream.len() {
                    return Err("the stream of our own is not complete".into());
                }
                given = (done + WINDOW).min(stream.len());
            }
            Step::Finished => return Err("finished without being asked".into()),
        }
    }
    black_box(block);
    if (pages, payload) == (PAGES, PAGES * PAGE) {
        return Ok(());
    }
    Err(format!("{pages} pages and {payload} bytes of payload were decoded").into())
}

fn stream() -> Vec<u8> {
    let name = |bytes| Name::new(bytes).expect("shorter than 256 bytes, and not empty");
    let header = |kind| SectionHeader {
        kind,
        section_id: 1,
        idstr: name(b"ram"),
        instance_id: 0,
        version_id: 4,
    };
    let mut stream = encode::FILE_HEADER.to_vec();
    stream.reserve(PAGES * (PAGE + 16));
    let configuration = Configuration::new(b"mig-bench-1").expect("a short name");
    encode::configuration(&mut stream, &configuration);
    encode::section(&mut stream, &header(SectionKind::Start));
    let block = encode::Block::new(name(b"bench.ram"), (PAGES * PAGE) as u64);
    encode::block_list(&mut stream, [block].into_iter());
    let end = |stream: &mut Vec<u8>| {
        encode::ram_word(stream, RamWord::EOS);
        stream.extend_from_slice(&encode::footer(1));
    };
    end(&mut stream);
    let mut continued = encode::ContinueMemory::new();
    for page in 0..PAGES {
        if page % PART_PAGES == 0 {
            encode::section(&mut stream, &header(SectionKind::Part));
        }
        let word = continued.word(0, RamWord::page((page * PAGE) as u64));
        encode::page_head(&mut stream, word, name(b"bench.ram"));
        let filled = stream.len() + PAGE;
        stream.resize(filled, page as u8 | 1);
        if page % PART_PAGES == PART_PAGES - 1 {
            end(&mut stream);
        }
    }
    encode::section(&mut stream, &header(SectionKind::End));
    end(&mut stream);
    stream.push(encode::EOF);
    stream
}
