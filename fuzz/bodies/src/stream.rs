//! The decoder of the main channel: the same events however the stream is cut, and the stream again out of them.
//!
//! ```text
//!   0 options │ 1 seed of the cuts │ the stream
//! ```

use mig_proto::{
    DecodeError, Decoder, Event, LocalPostcopy, MAX_NEED, Options, PayloadLength, Presence, Step,
    TargetPageSize, UnknownIterables, encode,
};

use crate::{cuts::Cuts, told::told};

/// Bit of the options' byte: pages are landed by the driver and are not in the input, so that an input of a hundred bytes
/// holds as many records.
const PAGES_LANDED: u8 = 0x80;

/// What a run came to; two runs over one stream must be equal.
#[derive(Debug, Default, PartialEq)]
struct Run {
    /// Kind of each event and where its encoding ends. What is cut at will counts once.
    events: Vec<(u8, usize)>,
    /// The events, encoded again.
    bytes: Vec<u8>,
    /// At the end of a good stream; how far a decoder came before it knew better is its own.
    position: u64,
    error: Option<DecodeError>,
}

/// The target.
pub fn stream(data: &[u8]) {
    let Some((&[flags, seed], bytes)) = data.split_first_chunk() else { return };
    let whole = run(flags, bytes, Cuts::new(0));
    let cut = run(flags, bytes, Cuts::new(seed | 1));
    assert_eq!(whole, cut, "the cuts made a difference");
    if flags & PAGES_LANDED == 0 {
        if whole.error.is_none() {
            assert_eq!(whole.bytes, bytes, "accepted, and not the same again");
        } else {
            assert!(bytes.starts_with(&whole.bytes), "not what was consumed");
        }
    }
    if let Some(error) = &whole.error {
        told(error, bytes);
        let _ = (error.blame(), error.is_truncation());
    }
}

fn options(flags: u8) -> Options {
    let mut options = Options::default();
    options.target_page_size = TargetPageSize::from_bits(10).expect("the smallest there is");
    options.limits.section_bytes = 256;
    options.limits.blocks = 16;
    options.limits.sections = 16;
    options.limits.capabilities = 8;
    options.configuration =
        [Presence::Required, Presence::IfPresent, Presence::Absent, Presence::IfPresent]
            [usize::from(flags & 3)];
    if flags & 4 != 0 {
        options.unknown_iterables = UnknownIterables::KeepRaw;
    }
    if flags & 8 != 0 {
        options.footers = false;
        options.lengths =
            vec![PayloadLength { idstr: (*b"timer").into(), instance_id: 0, len: 24 }];
    }
    if flags & 16 != 0 {
        options.postcopy = Some(LocalPostcopy {
            postcopy_ram: true,
            page_sizes: 4096,
            unusual_blocks: vec![((*b"pc.ram").into(), 4096)],
        });
    }
    options.ignore_shared = flags & 32 != 0;
    options.vmdescription = flags & 64 == 0;
    options
}

fn run(flags: u8, stream: &[u8], mut cuts: Cuts) -> Run {
    let lands = flags & PAGES_LANDED != 0;
    let mut decoder = Decoder::new(options(flags));
    let mut run = Run::default();
    let (mut at, mut given) = (0, 0_usize);
    loop {
        let closed = given == stream.len();
        let input = &stream[at..given];
        let step = if closed { decoder.finish(input) } else { decoder.decode(input) };
        match step {
            Ok(Step::Event { consumed, event }) => {
                let is_page = matches!(event, Event::Page(_));
                run.note(&event);
                at += consumed;
                assert!(at <= given, "more consumed than given");
                if lands && is_page {
                    let left = decoder.payload_left();
                    decoder.payload_landed(left).expect("no more than is left");
                }
            }
            Ok(Step::NeedMore { consumed, at_least }) => {
                assert!(!closed, "finish asked for more");
                at += consumed;
                assert!((given - at + 1..=MAX_NEED).contains(&at_least), "asked for {at_least}");
                given = given.saturating_add(cuts.next()).min(stream.len());
            }
            Ok(Step::Finished) => {
                assert!(closed, "finished before the end");
                break;
            }
            Err(error) => {
                run.error = Some(error);
                break;
            }
        }
    }
    if run.error.is_none() {
        run.position = decoder.position();
    }
    run
}

impl Run {
    fn note(&mut self, event: &Event<'_>) {
        encode::event(&mut self.bytes, event);
        let (kind, is_slice) = kind(event);
        let end = self.bytes.len();
        match self.events.last_mut() {
            Some((before, its_end)) if is_slice && *before == kind => *its_end = end,
            _ => self.events.push((kind, end)),
        }
    }
}

/// A number for each kind, and whether its cut depends on the input's.
fn kind(event: &Event<'_>) -> (u8, bool) {
    match event {
        Event::FileHeader => (0, false),
        Event::Configuration(_) => (1, false),
        Event::Section(_) => (2, false),
        Event::Footer { .. } => (3, false),
        Event::SectionData(_) => (4, false),
        Event::Command(_) => (5, false),
        Event::BlockList { .. } => (6, false),
        Event::Page(_) => (7, false),
        Event::Payload(_) => (8, true),
        Event::Zero(_) => (9, false),
        Event::Xbzrle { .. } => (10, false),
        Event::CompressedPage { .. } => (11, false),
        Event::Hook(_) => (12, false),
        Event::MultifdFlush(_) => (13, false),
        Event::EndOfRecords(_) => (14, false),
        Event::Eof { .. } => (15, false),
        Event::PackageTail(_) => (16, true),
        Event::VmDescription { .. } => (17, false),
        Event::VmDescriptionData(_) => (18, true),
        Event::Trailing(_) => (19, true),
        other => unreachable!("an event this target does not know: {other:?}"),
    }
}
