//! What every stream seen must stand: decoded and encoded again it is the same, byte for byte.
//!
//! Also the scissors for the opposite: streams from which something was cut out on purpose, to see who notices.

use std::collections::BTreeMap;

use mig_proto::return_path::{BitmapLimit, ReturnPathDecoder};
use mig_proto::{Decoder, Event, Options, Presence, SectionKind, Step, encode};

/// Sizes of the pieces in which a stream reaches the decoder: a pipe's, a page's, and one that never falls on a
/// boundary.
const PIECES: [usize; 3] = [65536, 4096, 1021];

/// Demands that a complete stream of QEMU, decoded in pieces and encoded again, is the same.
#[track_caller]
pub fn assert_reencodes(what: &str, stream: &[u8]) {
    for piece in PIECES {
        let mut again = Vec::with_capacity(stream.len());
        walk(what, stream, piece, |event| encode::event(&mut again, event));
        if let Some(at) = first_difference(stream, &again) {
            panic!("{what}: decoded in pieces of {piece} and encoded, it differs at byte {at:#x}");
        }
    }
}

/// Demands the same of what a destination answered; gives the number of messages.
#[track_caller]
pub fn assert_answers_reencode(what: &str, answers: &[u8]) -> usize {
    let mut decoder = ReturnPathDecoder::new();
    let (mut left, mut again, mut messages) = (answers, Vec::new(), 0);
    // 1 MiB of bitmap is a block of 32 GiB.
    let rules = BitmapLimit::AtMost(1 << 20);
    loop {
        match decoder.next(&mut left, &rules) {
            Ok(Some(received)) => {
                received.message.encode(&mut again);
                messages += 1;
            }
            Ok(None) => break,
            Err(error) => panic!("{what}: {error}"),
        }
    }
    decoder.finish().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(again, answers, "{what}: decoded and encoded, the answers differ");
    messages
}

/// The stream without a single page in it: everything else is there and in order.
#[must_use]
#[track_caller]
pub fn without_pages(stream: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    walk("the stream to cut", stream, PIECES[0], |event| match event {
        Event::Page(_) | Event::Payload(_) | Event::Zero(_) | Event::Xbzrle { .. } => {}
        other => encode::event(&mut rest, other),
    });
    rest
}

/// The pages and commands of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records of pages in full, of zero pages, and of deltas.
    pub pages: [usize; 3],
    /// Bytes of the deltas alone.
    pub delta_bytes: usize,
    /// Records of compressed pages.
    pub compressed: usize,
    /// Commands.
    pub commands: usize,
}

/// Counts what is in a stream.
#[must_use]
#[track_caller]
pub fn tally(what: &str, stream: &[u8]) -> Tally {
    let mut tally = Tally::default();
    walk(what, stream, PIECES[0], |event| match event {
        Event::Page(_) => tally.pages[0] += 1,
        Event::Zero(_) => tally.pages[1] += 1,
        Event::Xbzrle { delta, .. } => {
            tally.pages[2] += 1;
            tally.delta_bytes += delta.as_bytes().len();
        }
        Event::CompressedPage { .. } => tally.compressed += 1,
        Event::Command(_) => tally.commands += 1,
        _ => {}
    });
    tally
}

/// What a stream brings to a guest, however it is put: the last content of each page, and the devices.
#[derive(PartialEq, Eq)]
pub struct Brought {
    /// By block and offset; a page of zeros is empty.
    pub pages: BTreeMap<(String, u64), Vec<u8>>,
    /// FULL sections, as they stand in the stream.
    pub devices: Vec<u8>,
}

/// Takes a stream without XBZRLE apart.
#[must_use]
#[track_caller]
pub fn brought(what: &str, stream: &[u8]) -> Brought {
    let mut brought = Brought { pages: BTreeMap::new(), devices: Vec::new() };
    let mut page = None;
    let mut device = false;
    walk(what, stream, PIECES[0], |event| {
        match event {
            Event::Page(record) => {
                let key = (record.name.to_string(), record.offset);
                brought.pages.insert(key.clone(), Vec::new());
                page = Some(key);
            }
            Event::Payload(bytes) => {
                let page = page.as_ref().expect("a payload comes behind its page");
                brought.pages.get_mut(page).expect("inserted above").extend_from_slice(bytes);
            }
            Event::Zero(record) => {
                brought.pages.insert((record.name.to_string(), record.offset), Vec::new());
            }
            Event::Section(section) => device = section.kind == SectionKind::Full,
            _ => {}
        }
        if device {
            encode::event(&mut brought.devices, event);
        }
        device &= !matches!(event, Event::Footer { .. });
    });
    // A page of zeros may come in full as well.
    for content in brought.pages.values_mut().filter(|page| page.iter().all(|byte| *byte == 0)) {
        content.clear();
    }
    brought
}

/// Demands that two streams bring the same.
#[track_caller]
pub fn assert_brings_the_same(what: &str, one: &Brought, other: &Brought) {
    for (page, content) in &one.pages {
        let there = other.pages.get(page);
        assert!(
            there == Some(content),
            "{what}: page {page:?} differs (there: {})",
            there.is_some()
        );
    }
    assert_eq!(one.pages.len(), other.pages.len(), "{what}: pages that are only there");
    assert!(one.devices == other.devices, "{what}: devices differ");
}

/// Feeds the stream in pieces and shows every event; panics with the decoder's error.
#[track_caller]
fn walk(what: &str, stream: &[u8], piece: usize, mut see: impl FnMut(&Event<'_>)) {
    let mut options = Options::default();
    options.configuration = Presence::IfPresent;
    let mut decoder = Decoder::new(options);
    let (mut begin, mut end) = (0, 0);
    loop {
        let input = &stream[begin..end];
        let step = if end == stream.len() { decoder.finish(input) } else { decoder.decode(input) };
        match step {
            Ok(Step::Event { consumed, event }) => {
                see(&event);
                begin += consumed;
            }
            Ok(Step::NeedMore { consumed, at_least }) => {
                begin += consumed;
                assert!(end < stream.len(), "{what}: the decoder wants more than there is");
                end = (begin + at_least).max(end + piece).min(stream.len());
            }
            Ok(Step::Finished) => break,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let differing = one.iter().zip(other).position(|(a, b)| a != b);
    differing.or_else(|| (one.len() != other.len()).then_some(one.len().min(other.len())))
}
