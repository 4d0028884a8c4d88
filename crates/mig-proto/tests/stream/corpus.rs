//! Streams of a real QEMU, see tests/data/README.md: nothing lost, nothing invented.

use std::fs;

use mig_proto::{Decoder, Event, Options, PayloadLength, Step};
use serde_json::Value;

use crate::support::run_whole;

/// Name, unpacked length, FULL sections.
const STREAMS: [(&str, usize, usize); 2] =
    [("pc-10.0.2-precopy", 209_678, 30), ("q35-10.0.2-precopy", 252_055, 29)];

pub(crate) fn stream(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}.bin.zst", env!("CARGO_MANIFEST_DIR"));
    let packed = fs::read(&path).expect("the stream is in tests/data");
    zstd::decode_all(&packed[..]).expect("the stream unpacks")
}

/// Payload lengths of all FULL sections in stream order, as the decoder finds them by footers.
fn scanned(stream: &[u8]) -> Vec<PayloadLength> {
    let mut decoder = Decoder::new(Options::default());
    let mut lengths = Vec::new();
    let mut input = stream;
    loop {
        match decoder.finish(input).expect("the stream is right") {
            Step::Event { consumed, event } => {
                input = &input[consumed..];
                match event {
                    Event::Section(header) if !header.is_ram() => lengths.push(PayloadLength {
                        idstr: header.idstr.as_bytes().into(),
                        instance_id: header.instance_id,
                        len: 0,
                    }),
                    Event::SectionData(data) => {
                        lengths.last_mut().expect("header first").len = data.len() as u64;
                    }
                    _ => {}
                }
            }
            Step::NeedMore { .. } => panic!("finish asked for more"),
            Step::Finished => return lengths,
        }
    }
}

/// What the stream's own VMDESC says about its FULL sections (docs/wire/vmstate.md §8).
fn described(stream: &[u8]) -> Vec<PayloadLength> {
    let json = (0..stream.len())
        .find(|at| {
            let tail = &stream[*at..];
            tail.starts_with(&[0, 6])
                && tail.len() > 6
                && tail[6] == b'{'
                && tail[2..6] == u32::try_from(tail.len() - 6).expect("short").to_be_bytes()
        })
        .map(|at| &stream[at + 6..])
        .expect("the stream ends in VMDESC");
    let description: Value = serde_json::from_slice(json).expect("JSON");
    let devices = description["devices"].as_array().expect("devices");
    let identity = |device: &Value| PayloadLength {
        idstr: device["name"].as_str().expect("name").as_bytes().into(),
        instance_id: u32::try_from(device["instance_id"].as_u64().expect("instance")).expect("u32"),
        len: device["size"].as_u64().unwrap_or_else(|| described_len(device)),
    };
    devices.iter().map(identity).collect()
}

fn described_len(description: &Value) -> u64 {
    let list = |key: &str| description[key].as_array().cloned().unwrap_or_default();
    let fields = list("fields").iter().fold(0, |sum, field| {
        sum + field["size"].as_u64().expect("size") * field["array_len"].as_u64().unwrap_or(1)
    });
    list("subsections").iter().fold(fields, |sum, sub| {
        sum + 6 + sub["vmsd_name"].as_str().expect("name").len() as u64 + described_len(sub)
    })
}

#[test]
fn decoded_and_encoded_again_is_the_same_to_the_byte() {
    for (name, len, _) in STREAMS {
        let stream = stream(name);
        assert_eq!(stream.len(), len);
        let run = run_whole(Options::default(), &stream);
        assert!(run.bytes == stream, "{name} changed");
        assert_eq!(run.count("Eof"), 1);
        assert_eq!(run.events.last().map(String::as_str), Some("VmDescriptionData"));
    }
}

#[test]
fn every_full_section_is_found_without_a_schema() {
    for (name, _, sections) in STREAMS {
        let stream = stream(name);
        let lengths = scanned(&stream);
        assert_eq!(lengths.len(), sections);
        assert_eq!(lengths, described(&stream), "{name}: VMDESC disagrees");
        // With those lengths as the schema nothing is scanned, and the events are the same.
        let scanned = run_whole(Options::default(), &stream);
        let mut options = Options::default();
        options.lengths = lengths;
        assert_eq!(run_whole(options, &stream), scanned);
    }
}
