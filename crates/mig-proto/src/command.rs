//! COMMAND items (docs/wire/stream.md §6).
//!
//! ```text
//!   08 | be16 command | be16 payload_len | payload_len bytes
//! ```
//!
//! There is no skipping of unknown commands: an unknown number or a wrong length is fatal.

use crate::error::DecodeErrorKind as Kind;
use crate::name::Name;
use crate::reader::{Reader, Stop, fail};

/// A command, with its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command<'a> {
    /// 1: the destination may answer on the reverse direction.
    OpenReturnPath,
    /// 2: asks for a PONG with the same value.
    Ping(u32),
    /// 3: postcopy may follow. `None` is the empty form: only another postcopy user is on.
    PostcopyAdvise(Option<Advise>),
    /// 4: the destination must take pages from now on while devices load.
    PostcopyListen,
    /// 5: the guest runs on the destination.
    PostcopyRun,
    /// 6: drop these pages, they are stale or were never sent.
    RamDiscard(RamDiscard<'a>),
    /// 7: this many bytes of items follow, outside the command's payload length.
    Packaged {
        /// Length of the blob.
        len: u32,
    },
    /// 8: COLO; refused by the decoder, here so that the number has its name.
    EnableColo,
    /// 9: go on after a pause.
    PostcopyResume,
    /// 10: ask for the bitmap of received pages of a block.
    RecvBitmap {
        /// The block.
        block: Name<'a>,
    },
    /// 11: the source's vCPUs have stopped and final state follows (10.0 and newer).
    SwitchoverStart,
}

/// Payload of the long form of POSTCOPY_ADVISE (docs/wire/stream.md §6.1).
///
/// ```text
///   | be64 host page sizes, ORed | be64 target page size |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advise {
    /// OR of the host page sizes of all migrated blocks.
    pub page_sizes: u64,
    /// Guest page unit.
    pub target_page_size: u64,
}

/// Payload of RAM_DISCARD (docs/wire/stream.md §6.2), borrowed from the stream.
///
/// ```text
///   | u8 version = 0 | str8 block name | u8 0 | k times { be64 start, be64 length }, k >= 1 |
/// ```
///
/// To send one, see `encode::ram_discard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamDiscard<'a> {
    block: Name<'a>,
    /// A positive multiple of 16 bytes, few enough for the command's length field.
    ranges: &'a [u8],
}

/// Bytes of a block to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscardRange {
    /// Offset in the block.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

impl<'a> RamDiscard<'a> {
    /// The block.
    pub fn block(&self) -> Name<'a> {
        self.block
    }

    /// The ranges, in order; at least one.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = DiscardRange> + 'a {
        self.ranges.chunks_exact(16).map(|range| {
            let word = |at: usize| {
                u64::from_be_bytes(range[at..at + 8].try_into().expect("half of 16 bytes"))
            };
            DiscardRange { start: word(0), length: word(8) }
        })
    }

    pub(crate) fn raw_ranges(&self) -> &'a [u8] {
        self.ranges
    }
}

impl Command<'_> {
    /// The number on the wire.
    pub const fn number(&self) -> u16 {
        match self {
            Self::OpenReturnPath => 1,
            Self::Ping(_) => 2,
            Self::PostcopyAdvise(_) => 3,
            Self::PostcopyListen => 4,
            Self::PostcopyRun => 5,
            Self::RamDiscard(_) => 6,
            Self::Packaged { .. } => 7,
            Self::EnableColo => 8,
            Self::PostcopyResume => 9,
            Self::RecvBitmap { .. } => 10,
            Self::SwitchoverStart => 11,
        }
    }

    /// The name in docs/wire/stream.md §6.
    pub const fn name(&self) -> &'static str {
        rules(self.number()).0
    }
}

/// Name, shortest and longest payload, and how a message puts that; "" for unknown numbers.
const fn rules(number: u16) -> (&'static str, u16, u16, &'static str) {
    match number {
        1 => ("OPEN_RETURN_PATH", 0, 0, "0"),
        2 => ("PING", 4, 4, "4"),
        3 => ("POSTCOPY_ADVISE", 0, 16, "16 or 0"),
        4 => ("POSTCOPY_LISTEN", 0, 0, "0"),
        5 => ("POSTCOPY_RUN", 0, 0, "0"),
        6 => ("RAM_DISCARD", 20, u16::MAX, "at least 20"),
        7 => ("PACKAGED", 4, 4, "4"),
        8 => ("ENABLE_COLO", 0, 0, "0"),
        9 => ("POSTCOPY_RESUME", 0, 0, "0"),
        10 => ("RECV_BITMAP", 2, 256, "2 to 256"),
        11 => ("SWITCHOVER_START", 0, 0, "0"),
        _ => ("", 1, 0, ""),
    }
}

/// True if a command with this number may have this payload length.
pub(crate) fn is_plausible(number: u16, len: u16) -> bool {
    let (_, shortest, longest, _) = rules(number);
    (shortest..=longest).contains(&len) && (number != 3 || len == 0 || len == 16)
}

/// Reads number, length and payload; the type byte has been read.
pub(crate) fn read<'a>(reader: &mut Reader<'a>) -> Result<Command<'a>, Stop> {
    let number_at = reader.at();
    let number = reader.u16()?;
    let (command, _, _, expected) = rules(number);
    if command.is_empty() {
        return fail(number_at, Kind::UnknownCommand { number });
    }
    let len_at = reader.at();
    let len = reader.u16()?;
    if !is_plausible(number, len) {
        return fail(len_at, Kind::CommandLength { command, found: len, expected });
    }
    Ok(match number {
        1 => Command::OpenReturnPath,
        2 => Command::Ping(reader.u32()?),
        3 if len == 0 => Command::PostcopyAdvise(None),
        3 => Command::PostcopyAdvise(Some(Advise {
            page_sizes: reader.u64()?,
            target_page_size: reader.u64()?,
        })),
        4 => Command::PostcopyListen,
        5 => Command::PostcopyRun,
        6 => Command::RamDiscard(read_discard(reader, usize::from(len))?),
        7 => Command::Packaged { len: reader.u32()? },
        8 => Command::EnableColo,
        9 => Command::PostcopyResume,
        10 => Command::RecvBitmap { block: read_bitmap_block(reader, len)? },
        _ => Command::SwitchoverStart,
    })
}

fn read_discard<'a>(reader: &mut Reader<'a>, len: usize) -> Result<RamDiscard<'a>, Stop> {
    let start = reader.at();
    let version = reader.u8()?;
    if version != 0 {
        return fail(start, Kind::DiscardVersion { found: version });
    }
    let found = reader.u8()?;
    let name_error = |expected| Kind::CommandBlockName { command: "RAM_DISCARD", found, expected };
    if found == 0 {
        return fail(start + 1, name_error("1 to 255"));
    }
    // Version, length byte and the zero after the name are the 3.
    let Some(ranges_len) = len.checked_sub(3 + usize::from(found)) else {
        return fail(start + 1, name_error("a name that fits the payload"));
    };
    let block = Name::new(reader.take(usize::from(found))?).expect("length checked above");
    let terminator_at = reader.at();
    let terminator = reader.u8()?;
    if terminator != 0 {
        return fail(terminator_at, Kind::DiscardNotTerminated { found: terminator });
    }
    if ranges_len == 0 || ranges_len % 16 != 0 {
        return fail(reader.at(), Kind::DiscardRanges { found: ranges_len });
    }
    Ok(RamDiscard { block, ranges: reader.take(ranges_len)? })
}

fn read_bitmap_block<'a>(reader: &mut Reader<'a>, len: u16) -> Result<Name<'a>, Stop> {
    let at = reader.at();
    let found = reader.u8()?;
    if u16::from(found) + 1 != len {
        let expected = "the payload length minus 1";
        return fail(at, Kind::CommandBlockName { command: "RECV_BITMAP", found, expected });
    }
    Ok(Name::new(reader.take(usize::from(found))?).expect("payload length is at least 2"))
}
