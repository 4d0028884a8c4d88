//! Which bytes of a stored stream go out, and what goes in between (docs/wire/stream.md §8.1).

use std::ops::Range;

use mig_proto::{Command, Event, SectionKind, encode};

use crate::{
    error::{Error, Result},
    record::PageCounts,
    walk::Piece,
};

/// Collects what to send of one buffer.
#[derive(Debug)]
pub(super) struct Cutter {
    /// Ask for the verdict behind CONFIGURATION.
    return_path: bool,
    /// Parts of the buffer to be sent, in order.
    pub(super) parts: Vec<Part>,
    pub(super) pages: PageCounts,
    /// Bytes of guest memory, once the block list came.
    pub(super) total: u64,
    /// The section sent last, for messages.
    pub(super) section: Option<String>,
    /// The source's machine type, for messages.
    pub(super) machine: Option<String>,
    /// Commands that follow the question for the verdict.
    question: Vec<u8>,
    /// Leave memory out of the stream, and say where its windows are.
    windows: bool,
    place: Place,
}

/// Where the stored stream is, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Elsewhere,
    /// Among the records of a section of `ram`.
    Records(SectionKind),
    /// Behind them.
    Footer(SectionKind),
}

/// Something to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Bytes of the buffer.
    Stored(Range<usize>),
    /// Bytes of our own.
    Ours(Vec<u8>),
    /// Here memory may go.
    Window(Window),
    /// The final EOF comes next: from there on the destination may own the guest.
    Verge,
}

/// A place for memory that does not go in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Before the START of `ram`.
    BeforeStart,
    /// At the end of START.
    Setup,
    /// Before END; the id is that of `ram`.
    BeforeEnd { section_id: u32 },
    /// At the end of END.
    Finish,
}

impl Cutter {
    pub(super) fn new(return_path: bool) -> Self {
        Self {
            return_path,
            parts: Vec::new(),
            pages: PageCounts::default(),
            total: 0,
            section: None,
            machine: None,
            question: Vec::new(),
            windows: false,
            place: Place::Elsewhere,
        }
    }

    /// The same where memory does not go in the stream. `question` follows the one for the verdict.
    pub(super) fn with_windows(return_path: bool, question: Vec<u8>) -> Self {
        Self { windows: true, question, ..Self::new(return_path) }
    }

    /// Takes the next piece, which is at `at` in the buffer.
    pub(super) fn handle(&mut self, piece: &Piece<'_>, at: usize) -> Result<()> {
        if self.windows && !self.is_stream(piece.event.as_ref()) {
            return Ok(());
        }
        let place = at..at + piece.bytes.len();
        let Some(event) = &piece.event else {
            self.stored(place);
            return Ok(());
        };
        if !self.windows {
            self.pages.count(event);
        }
        match event {
            Event::Command(command) if !is_replayed(command, piece.position)? => return Ok(()),
            Event::Configuration(configuration) => {
                self.machine = Some(String::from_utf8_lossy(configuration.machine()).into_owned());
                self.stored(place);
                self.ask();
                return Ok(());
            }
            // Old machine types have no CONFIGURATION: the first section is the latest place to ask.
            Event::Section(header) => {
                self.ask();
                self.section = Some(header.idstr.to_string());
            }
            Event::BlockList { entries, .. } => {
                self.total = entries.iter().map(|entry| entry.used_length).sum();
            }
            Event::Eof { in_package: false } => self.parts.push(Part::Verge),
            Event::Trailing(_) => return Ok(()),
            _ => {}
        }
        self.stored(place);
        Ok(())
    }

    /// Whether a piece goes in the stream where memory does not; asks for the windows.
    fn is_stream(&mut self, event: Option<&Event<'_>>) -> bool {
        let Some(event) = event else {
            return self.place != Place::Records(SectionKind::Part);
        };
        match event {
            Event::Section(header) if header.is_ram() => {
                self.place = Place::Records(header.kind);
                match header.kind {
                    SectionKind::Start => {
                        // Old machine types have no CONFIGURATION: here is the latest place to ask.
                        self.ask();
                        self.parts.push(Part::Window(Window::BeforeStart));
                    }
                    SectionKind::End => self
                        .parts
                        .push(Part::Window(Window::BeforeEnd { section_id: header.section_id })),
                    SectionKind::Part | SectionKind::Full => {}
                }
                header.kind != SectionKind::Part
            }
            Event::Page(_)
            | Event::Payload(_)
            | Event::Zero(_)
            | Event::Xbzrle { .. }
            | Event::CompressedPage { .. }
            | Event::Hook(_)
            | Event::MultifdFlush(_) => false,
            Event::BlockList { .. } => true,
            Event::EndOfRecords(_) => {
                let Place::Records(kind) = self.place else { return true };
                self.place = Place::Footer(kind);
                match kind {
                    SectionKind::Start => self.parts.push(Part::Window(Window::Setup)),
                    SectionKind::End => self.parts.push(Part::Window(Window::Finish)),
                    SectionKind::Part | SectionKind::Full => {}
                }
                kind != SectionKind::Part
            }
            Event::Footer { .. } => {
                std::mem::replace(&mut self.place, Place::Elsewhere)
                    != Place::Footer(SectionKind::Part)
            }
            _ => {
                self.place = Place::Elsewhere;
                true
            }
        }
    }

    fn stored(&mut self, place: Range<usize>) {
        match self.parts.last_mut() {
            Some(Part::Stored(before)) if before.end == place.start => before.end = place.end,
            _ if place.is_empty() => {}
            _ => self.parts.push(Part::Stored(place)),
        }
    }

    fn ask(&mut self) {
        if std::mem::take(&mut self.return_path) {
            let mut bytes = Vec::new();
            encode::command(&mut bytes, &Command::OpenReturnPath);
            encode::command(&mut bytes, &Command::Ping(1));
            bytes.append(&mut self.question);
            self.parts.push(Part::Ours(bytes));
        }
    }
}

fn is_replayed(command: &Command<'_>, position: u64) -> Result<bool> {
    match command {
        // Said to another destination; this one hears our own.
        Command::OpenReturnPath | Command::Ping(_) => Ok(false),
        Command::PostcopyListen
        | Command::PostcopyRun
        | Command::PostcopyResume
        | Command::RamDiscard(_)
        | Command::RecvBitmap { .. }
        | Command::Packaged { .. } => Err(Error::peer_incompatible(format!(
            "byte {position} ({position:#x}): the stored stream is a postcopy migration ({}): its destination would ask \
             for pages, and there is no source to ask. Store a precopy migration instead",
            command.name()
        ))
        .at(position)),
        _ => Ok(true),
    }
}
