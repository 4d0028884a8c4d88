//! The incremental decoder: bytes, cut anywhere, to [`Event`]s.
//!
//! ```text
//!  FileHeader ─▶ Preamble ─▶ Items ─▶ AfterEof ─▶ VmDescription ─▶ Trailing
//!                            │  ▲
//!     ram: Records ⇄ Payload │  │ Footer          package: Items … PackageTail ─▶ Items
//!     other: Opaque ─────────┴──┘
//! ```
//!
//! The public contract stands on [`Decoder`]. Each state is a method in the file of its part of
//! the grammar: it reads from the window of input, answers how much it took and what it found, or
//! [stops](Stop) for more bytes or for an error. An incomplete unit takes nothing and changes
//! nothing, so that it can be read again from its beginning.

mod items;
mod opaque;
mod preamble;
mod records;
mod tail;

use alloc::vec::Vec;

use crate::command::Command;
use crate::configuration::Configuration;
use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::event::{Event, Step};
use crate::options::{Options, Presence, TargetPageSize};
use crate::ram::{BlockEntry, BlockId, BlockTable, Deflated, Delta, PageRecord, RamBlock, RamWord};
use crate::reader::Stop;
use crate::section::{SectionHeader, SectionKind, SectionTable};

/// The most input a decoder ever asks to see at once, in bytes: a compressed page of two of the
/// largest target pages, with its word, block name and length.
pub const MAX_NEED: usize = 8 + 256 + 4 + 2 * (TargetPageSize::MAX.bytes() as usize);

/// Decodes one channel: bytes, cut anywhere, to [`Event`]s.
///
/// The happy path of a driver:
///
/// ```
/// use mig_proto::{Decoder, Event, Options, Step, encode};
/// # use mig_proto::{Configuration, DecodeError};
/// # fn main() -> Result<(), DecodeError> {
/// # let mut stream = encode::FILE_HEADER.to_vec();
/// # encode::configuration(&mut stream, &Configuration::new(b"pc").expect("short"));
/// # stream.push(encode::EOF);
/// let mut decoder = Decoder::new(Options::default());
/// let mut input = &stream[..];
/// loop {
///     match decoder.decode(input)? {
///         Step::Event { consumed, event } => {
///             if let Event::Eof { in_package: false } = event {
///                 // the guest's state is complete
///             }
///             input = &input[consumed..];
///         }
///         // Here a driver reads on; at the end of its input it says so.
///         Step::NeedMore { consumed, .. } => {
///             input = &input[consumed..];
///             break;
///         }
///         Step::Finished => unreachable!("only from finish"),
///     }
/// }
/// assert_eq!(decoder.finish(input)?, Step::Finished);
/// # Ok(())
/// # }
/// ```
///
/// # Pages
///
/// After [`Event::Page`] the payload of [`payload_left`](Self::payload_left) bytes is next. A
/// driver that has it at hand, or can read it straight to where it belongs, does so and says
/// [`payload_landed`](Self::payload_landed); one that goes on calling `decode` gets it as
/// [`Event::Payload`] slices.
///
/// # Device sections
///
/// They carry no length (docs/wire/stream.md §1). The decoder takes the length from
/// [`Options::lengths`] if it is there, and otherwise looks for the end: the first footer marker
/// with the section's own id that is followed by a legal item. Where the bytes end right behind an
/// EOF, only silence tells: [`settle`](Self::settle) says that nothing follows for now,
/// [`finish`](Self::finish) that nothing ever will. So a stream that was cut right behind six bytes
/// of payload which look like footer and EOF counts as complete: nobody could tell, and compared
/// with VMDESC, which is missing then, it shows.
///
/// # Memory
///
/// Whatever the input says, a decoder holds at most: [`section_bytes`] for the device section
/// being looked at (twice that while its buffer grows), [`blocks`] times about 1 KiB, [`sections`]
/// times about 400 bytes, and a CONFIGURATION of at most 8 times [`capabilities`] names. Lengths
/// from the wire are never allocated by. Between device sections the buffer shrinks to 1 MiB.
///
/// [`section_bytes`]: crate::Limits::section_bytes
/// [`blocks`]: crate::Limits::blocks
/// [`sections`]: crate::Limits::sections
/// [`capabilities`]: crate::Limits::capabilities
///
/// # Failure
///
/// The first error is final: the decoder repeats it, and consumes nothing more.
#[derive(Debug, Clone)]
pub struct Decoder {
    options: Options,
    state: State,
    position: u64,
    /// Where the package ends that the position is in.
    package_end: Option<u64>,
    /// Id of the section that is open.
    section: Option<u32>,
    sections: SectionTable,
    blocks: BlockTable,
    /// Block of the last record that had one.
    last_block: Option<BlockId>,
    page_size: TargetPageSize,
    configuration: Configuration,
    listing: Listing,
    opaque: Opaque,
    ignore_shared: bool,
    /// The host page sizes that the long form of POSTCOPY_ADVISE named, ORed; `None` before one came.
    advised: Option<u64>,
    /// POSTCOPY_LISTEN was seen.
    listening: bool,
    return_path: bool,
    failed: Option<DecodeError>,
}

/// More bytes were claimed landed than the page had left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{claimed} payload bytes claimed to have landed, {left} were left")]
pub struct PayloadOverrun {
    /// Bytes claimed.
    pub claimed: u32,
    /// Bytes that were left; they still are.
    pub left: u32,
}

/// Where in the grammar the position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    FileHeader,
    MachineName,
    Subsections,
    Capabilities {
        left: u32,
    },
    Items,
    Records,
    BlockList,
    Payload {
        left: u32,
    },
    Opaque,
    Footer,
    PackageTail,
    AfterEof,
    VmDescription {
        left: u32,
    },
    Trailing,
    /// Records of a preempt channel: no section around them.
    Preempt,
    PreemptPayload {
        left: u32,
    },
}

/// A block list being read.
#[derive(Debug, Clone)]
struct Listing {
    word: RamWord,
    /// What is left of the total.
    left: u64,
    entries: Vec<BlockEntry>,
}

/// A device section being collected.
#[derive(Debug, Clone, Default)]
struct Opaque {
    buffer: Vec<u8>,
    /// Its length, if known.
    len: Option<usize>,
    /// Place in `Options::lengths` behind the entry used last.
    next_length: usize,
}

/// What is known about the bytes behind the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More will come.
    Open,
    /// More may come, but has not for a while.
    Quiet,
    /// No more will come.
    Closed,
}

/// What was found in the input: an event, before what it borrows from the decoder is filled in.
enum Found<'i> {
    /// Nothing to report yet; the state moved on.
    Progress,
    /// Borrows from the input only.
    Event(Event<'i>),
    Configuration,
    Section(SectionKind, u32),
    BlockList,
    Page(Page),
    Zero(Page),
    Xbzrle(Page, Delta<'i>),
    Compressed(Page, Deflated<'i>),
    /// The device section in the decoder's buffer.
    Collected,
}

#[derive(Clone, Copy)]
struct Page {
    word: RamWord,
    block: BlockId,
    offset: u64,
}

type Advance<'i> = Result<(usize, Found<'i>), Stop>;

impl Decoder {
    /// A decoder at the beginning of a main channel.
    pub fn new(options: Options) -> Self {
        Self {
            page_size: options.target_page_size,
            ignore_shared: options.ignore_shared,
            options,
            state: State::FileHeader,
            position: 0,
            package_end: None,
            section: None,
            sections: SectionTable::default(),
            blocks: BlockTable::default(),
            last_block: None,
            configuration: Configuration::default(),
            listing: Listing { word: RamWord::from_raw(0), left: 0, entries: Vec::new() },
            opaque: Opaque::default(),
            advised: None,
            listening: false,
            return_path: false,
            failed: None,
        }
    }

    /// A decoder for the new main channel of a resumed postcopy (docs/wire/stream.md §9): it
    /// begins in the items, at position 0, with the sections and blocks known so far. The section
    /// that was cut is abandoned, no block is continued, and the return path counts as open.
    #[must_use]
    pub fn resumed(&self) -> Self {
        Self {
            state: State::Items,
            position: 0,
            package_end: None,
            section: None,
            last_block: None,
            return_path: true,
            failed: None,
            opaque: Opaque::default(),
            ..self.clone()
        }
    }

    /// A decoder for the preempt channel of this migration (docs/wire/ram.md §8): records of pages
    /// without sections around them, with a block memory of its own. It may end anywhere between
    /// two records.
    #[must_use]
    pub fn preempt_channel(&self) -> Self {
        Self { state: State::Preempt, listening: true, ..self.resumed() }
    }

    /// Decodes the front of `input`: the bytes that follow those consumed so far.
    ///
    /// However the stream is cut into inputs, the events are the same, but for the cuts of
    /// `Payload`, `VmDescriptionData`, `PackageTail` and `Trailing`.
    pub fn decode<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, DecodeError> {
        self.step(input, End::Open)
    }

    /// As [`decode`](Self::decode), when nothing has come behind `input` for as long as the caller
    /// cares to wait. It decides the one case where only silence can: a device section that would
    /// end in an EOF with nothing behind it, because no VMDESCRIPTION is sent.
    pub fn settle<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, DecodeError> {
        self.step(input, End::Quiet)
    }

    /// As [`decode`](Self::decode), when nothing will ever come behind `input`: call it until it
    /// answers [`Step::Finished`]. A stream that is not complete is an error; one cut within
    /// VMDESCRIPTION is complete (docs/wire/stream.md §5).
    pub fn finish<'a>(&'a mut self, input: &'a [u8]) -> Result<Step<'a>, DecodeError> {
        self.step(input, End::Closed)
    }

    /// Bytes consumed since the start of the stream, landed payload included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Payload bytes of the page reported last that neither came as events nor were landed.
    pub fn payload_left(&self) -> u32 {
        match self.state {
            State::Payload { left } | State::PreemptPayload { left } => {
                // A page that a package cuts short has no more than the package has.
                self.package_left()
                    .map_or(left, |package| u32::try_from(package).unwrap_or(u32::MAX).min(left))
            }
            _ => 0,
        }
    }

    /// Says that the caller took the next `bytes` of the page's payload itself: the next input
    /// begins behind them.
    pub fn payload_landed(&mut self, bytes: u32) -> Result<(), PayloadOverrun> {
        let left = self.payload_left();
        if bytes > left {
            return Err(PayloadOverrun { claimed: bytes, left });
        }
        if left > 0 {
            self.take_payload(bytes);
            self.position += u64::from(bytes);
        }
        Ok(())
    }

    /// The target page size in force: the option's, or CONFIGURATION's.
    pub fn target_page_size(&self) -> TargetPageSize {
        self.page_size
    }

    /// The blocks listed so far, indexed by [`BlockId::index`].
    pub fn blocks(&self) -> &[RamBlock] {
        self.blocks.all()
    }

    /// CONFIGURATION, once its event came.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// True once the stream's final EOF was reported: what follows is for information only.
    pub fn is_past_eof(&self) -> bool {
        matches!(self.state, State::AfterEof | State::VmDescription { .. } | State::Trailing)
    }

    /// True inside a PACKAGED blob.
    pub fn in_package(&self) -> bool {
        self.package_end.is_some()
    }

    fn step<'a>(&'a mut self, input: &'a [u8], end: End) -> Result<Step<'a>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut consumed = 0;
        loop {
            let (window, end) = self.window(&input[consumed..], end);
            match self.advance(window, end) {
                Ok((taken, found)) => {
                    consumed += taken;
                    self.position += taken as u64;
                    if !matches!(found, Found::Progress) {
                        return Ok(Step::Event { consumed, event: self.show(found) });
                    }
                }
                Err(Stop::Need(at_least)) if end != End::Closed => {
                    // Never ask for what lies behind the package: it may not come before an answer.
                    let at_least = self.package_left().map_or(at_least, |left| {
                        usize::try_from(left).unwrap_or(usize::MAX).min(at_least)
                    });
                    return Ok(Step::NeedMore { consumed, at_least });
                }
                Err(Stop::Need(_)) if self.may_end(window) => return Ok(Step::Finished),
                Err(Stop::Need(_)) => {
                    let inside = self.state.name();
                    let kind = match self.package_end {
                        Some(_) if self.package_left() == Some(window.len() as u64) => {
                            Kind::PackageTruncated { inside }
                        }
                        _ => Kind::Truncated { inside },
                    };
                    return Err(self.fail(window.len(), kind));
                }
                Err(Stop::Fail { at, kind }) => return Err(self.fail(at, kind)),
            }
        }
    }

    /// The input as far as the package goes, and what is known about what follows.
    fn window<'i>(&self, input: &'i [u8], end: End) -> (&'i [u8], End) {
        match self.package_left().map(usize::try_from) {
            Some(Ok(left)) if left <= input.len() => (&input[..left], End::Closed),
            _ => (input, end),
        }
    }

    fn package_left(&self) -> Option<u64> {
        self.package_end.map(|end| end - self.position)
    }

    fn advance<'i>(&mut self, window: &'i [u8], end: End) -> Advance<'i> {
        match self.state {
            // The two that carry the bulk of a stream come first.
            State::Records | State::Preempt => self.record(window),
            State::Payload { left } | State::PreemptPayload { left } => self.payload(window, left),
            State::Items => self.item(window),
            State::Opaque => self.opaque(window, end),
            State::Footer => self.footer(window),
            State::BlockList => self.block_list(window),
            State::FileHeader => self.file_header(window),
            State::MachineName => self.machine_name(window),
            State::Subsections => self.subsection(window),
            State::Capabilities { left } => self.capability(window, left),
            State::PackageTail => self.package_tail(window),
            State::AfterEof => self.after_eof(window, end),
            State::VmDescription { left } => self.vm_description(window, left),
            State::Trailing => Self::trailing(window),
        }
    }

    /// Whether the stream may end here, with `window` unread.
    fn may_end(&self, window: &[u8]) -> bool {
        self.package_end.is_none()
            && (self.is_past_eof() || (self.state == State::Preempt && window.is_empty()))
    }

    fn fail(&mut self, at: usize, kind: Kind) -> DecodeError {
        let section = self.section.and_then(|id| self.sections.name(id));
        let error = DecodeError { position: self.position + at as u64, kind, section };
        self.failed.insert(error).clone()
    }

    fn show<'a>(&'a self, found: Found<'a>) -> Event<'a> {
        match found {
            Found::Page(page) => Event::Page(self.page(page)),
            Found::Event(event) => event,
            Found::Zero(page) => Event::Zero(self.page(page)),
            Found::Xbzrle(page, delta) => Event::Xbzrle { page: self.page(page), delta },
            Found::Compressed(page, data) => Event::CompressedPage { page: self.page(page), data },
            Found::Configuration => Event::Configuration(&self.configuration),
            Found::BlockList => {
                Event::BlockList { word: self.listing.word, entries: &self.listing.entries }
            }
            Found::Section(kind, id) => Event::Section(self.header(kind, id)),
            Found::Collected => Event::SectionData(&self.opaque.buffer),
            Found::Progress => unreachable!("the caller goes on instead"),
        }
    }

    fn page(&self, page: Page) -> PageRecord<'_> {
        PageRecord {
            word: page.word,
            block: page.block,
            name: self.blocks.block(page.block).name(),
            offset: page.offset,
        }
    }

    fn header(&self, kind: SectionKind, id: u32) -> SectionHeader<'_> {
        self.sections.header(kind, id).expect("a header is reported once its id is in the table")
    }
}

impl State {
    /// As a message calls it.
    fn name(self) -> &'static str {
        match self {
            Self::FileHeader => "the file header",
            Self::MachineName | Self::Subsections | Self::Capabilities { .. } => "CONFIGURATION",
            Self::Items => "the items, before EOF",
            Self::Records | Self::Preempt => "a ram record",
            Self::BlockList => "the block list",
            Self::Payload { .. } | Self::PreemptPayload { .. } => "a page",
            Self::Opaque => "a device section",
            Self::Footer => "a section footer",
            Self::PackageTail => "the package",
            Self::AfterEof | Self::VmDescription { .. } => "VMDESCRIPTION",
            Self::Trailing => "trailing bytes",
        }
    }
}
