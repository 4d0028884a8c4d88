//! What a stream says, piece by piece, in stream order.
//!
//! ```text
//!   FileHeader Configuration
//!   Section(START ram) BlockList EndOfRecords Footer
//!   Section(PART ram)  Zero Page Payload Page Payload … EndOfRecords Footer
//!   Command(PING)
//!   Section(FULL timer) SectionData Footer
//!   Command(PACKAGED)  …items… Eof{in_package} or Command(POSTCOPY_RUN), [PackageTail]
//!   Eof  VmDescription VmDescriptionData…  [Trailing]
//! ```

use crate::command::Command;
use crate::configuration::Configuration;
use crate::ram::{BlockEntry, Deflated, Delta, PageRecord, RamWord};
use crate::section::SectionHeader;

/// One piece of a stream, borrowed from the input or from the decoder.
///
/// Every byte of the stream belongs to exactly one event, and `encode::event` of all of them in
/// order gives the stream back.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// `QEVM`, version 3 (docs/wire/stream.md §2).
    FileHeader,
    /// CONFIGURATION with its subsections (docs/wire/stream.md §3).
    Configuration(&'a Configuration),
    /// A section begins (docs/wire/stream.md §4.1). A `ram` section goes on with records, another
    /// with one `SectionData`.
    Section(SectionHeader<'a>),
    /// The section's footer, checked.
    Footer {
        /// The section.
        section_id: u32,
    },
    /// The whole payload of a section that is not `ram`; may be empty.
    SectionData(&'a [u8]),
    /// A command (docs/wire/stream.md §6). After `Packaged` the package's items follow as events
    /// of their own.
    Command(Command<'a>),
    /// A whole block list (docs/wire/ram.md §2).
    BlockList {
        /// Total and flags.
        word: RamWord,
        /// The blocks in wire order.
        entries: &'a [BlockEntry],
    },
    /// A page in full; its payload of [`Decoder::payload_left`](crate::Decoder::payload_left)
    /// bytes comes next, as [`Payload`](Event::Payload) events or landed by the caller.
    Page(PageRecord<'a>),
    /// The next bytes of the page. Their cut depends on how the input was cut.
    Payload(&'a [u8]),
    /// A page of zeros.
    Zero(PageRecord<'a>),
    /// A delta against the page's present content (docs/wire/ram.md §4), not yet verified.
    Xbzrle {
        /// The page.
        page: PageRecord<'a>,
        /// The delta, at most a target page long.
        delta: Delta<'a>,
    },
    /// A page as one zlib stream (docs/wire/ram.md §5), not yet inflated.
    CompressedPage {
        /// The page.
        page: PageRecord<'a>,
        /// The zlib stream.
        data: Deflated<'a>,
    },
    /// RDMA control record; means nothing elsewhere.
    Hook(RamWord),
    /// A multifd round ends; means nothing without multifd.
    MultifdFlush(RamWord),
    /// The section's records end.
    EndOfRecords(RamWord),
    /// EOF: the items end, of the stream or of a package.
    Eof {
        /// Of a package: the stream goes on.
        in_package: bool,
    },
    /// Bytes of a package behind its EOF or POSTCOPY_RUN; nobody reads them.
    PackageTail(&'a [u8]),
    /// VMDESCRIPTION begins (docs/wire/stream.md §5).
    VmDescription {
        /// Announced length; the stream may legally end before.
        len: u32,
    },
    /// The next bytes of the JSON. Their cut depends on how the input was cut.
    VmDescriptionData(&'a [u8]),
    /// Bytes behind the end; nobody reads them.
    Trailing(&'a [u8]),
}

/// What one call of the decoder did.
///
/// In both of the first two cases the caller drops `consumed` bytes from the front of its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step<'a> {
    /// A piece of the stream.
    Event {
        /// Bytes of the input that are done with.
        consumed: usize,
        /// The piece.
        event: Event<'a>,
    },
    /// What is left of the input is not enough.
    NeedMore {
        /// Bytes of the input that are done with; the decoder took what it needs of them.
        consumed: usize,
        /// Come again with at least this many bytes behind those; never more than
        /// [`MAX_NEED`](crate::MAX_NEED). More may turn out to be needed then.
        at_least: usize,
    },
    /// Only from [`Decoder::finish`](crate::Decoder::finish): the stream is complete.
    Finished,
}
