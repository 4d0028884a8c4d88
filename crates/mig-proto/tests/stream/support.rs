//! Driving a decoder the way a channel does, and keeping what it said.

use mig_proto::{DecodeError, Decoder, Event, MAX_NEED, Options, Step, encode};

/// What became of a stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// The events; neighbouring slices of one page, JSON or tail count as one.
    pub(crate) events: Vec<String>,
    /// The events, encoded again.
    pub(crate) bytes: Vec<u8>,
    /// How it ended, if not well.
    pub(crate) error: Option<DecodeError>,
}

/// Feeds `pieces` one after the other, then says that was all.
pub(crate) fn run<'p>(options: Options, pieces: impl IntoIterator<Item = &'p [u8]>) -> Run {
    let mut decoder = Decoder::new(options);
    let mut run = Run::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if !drain(&mut decoder, &mut buffer, &mut run, false) {
            return run;
        }
    }
    drain(&mut decoder, &mut buffer, &mut run, true);
    run
}

/// The whole stream as one piece; it must be right.
pub(crate) fn run_whole(options: Options, stream: &[u8]) -> Run {
    let run = run(options, [stream]);
    assert_eq!(run.error, None, "after {:?}", run.events.last());
    run
}

fn drain(decoder: &mut Decoder, buffer: &mut Vec<u8>, run: &mut Run, closed: bool) -> bool {
    let mut at = 0;
    loop {
        let input = &buffer[at..];
        let step = if closed { decoder.finish(input) } else { decoder.decode(input) };
        match step {
            Ok(Step::Event { consumed, event }) => {
                run.note(&event);
                at += consumed;
            }
            Ok(Step::NeedMore { consumed, at_least }) => {
                assert!(!closed, "finish asked for more");
                at += consumed;
                assert!(at_least > buffer.len() - at, "asked for what is there");
                assert!(at_least <= MAX_NEED, "asked for {at_least} bytes");
                buffer.drain(..at);
                return true;
            }
            Ok(Step::Finished) => {
                assert!(closed);
                return true;
            }
            Err(error) => {
                run.error = Some(error);
                return false;
            }
        }
    }
}

impl Run {
    fn note(&mut self, event: &Event<'_>) {
        encode::event(&mut self.bytes, event);
        let (kind, bytes) = match event {
            Event::Payload(bytes) => ("Payload", bytes),
            Event::VmDescriptionData(bytes) => ("VmDescriptionData", bytes),
            Event::PackageTail(bytes) => ("PackageTail", bytes),
            Event::Trailing(bytes) => ("Trailing", bytes),
            other => return self.events.push(format!("{other:?}")),
        };
        // Their content is compared as bytes; a page's payload always follows its own event.
        assert!(!bytes.is_empty(), "empty {kind}");
        if self.events.last().is_none_or(|last| last != kind) {
            self.events.push(kind.to_owned());
        }
    }

    /// How many events begin with this.
    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.events.iter().filter(|event| event.starts_with(prefix)).count()
    }
}
