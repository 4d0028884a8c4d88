//! What a stream can do wrong, where, and whose fault that is.
//!
//! Each row of the reject tables in docs/wire has its own [`DecodeErrorKind`]; the message says
//! what was found and what was expected.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

/// Who is to blame for a [`DecodeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes break the protocol: whoever wrote them is wrong, or they were damaged.
    PeerMisbehaved,
    /// The bytes are right but do not fit this end: another version, machine or block layout.
    PeerIncompatible,
    /// The bytes are right and this decoder does not know that part of the protocol.
    Unsupported,
}

/// A stream that could not be decoded any further.
///
/// After the first error the decoder answers with the same one for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecodeError {
    /// Byte position from the start of the stream of the value that was wrong; for a truncated
    /// stream, of its end.
    pub position: u64,
    /// What was wrong.
    pub kind: DecodeErrorKind,
    /// The section the position lies in, if any.
    pub section: Option<Box<SectionName>>,
}

/// A section as error messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionName {
    /// Number in the stream.
    pub section_id: u32,
    /// Name, what is not UTF-8 replaced.
    pub idstr: Box<str>,
    /// Instance.
    pub instance_id: u32,
}

impl DecodeError {
    /// Who is to blame.
    pub fn blame(&self) -> Fault {
        self.kind.blame()
    }

    /// True if the stream merely ended too early: with more bytes it might have been right.
    pub fn is_truncation(&self) -> bool {
        matches!(
            self.kind,
            DecodeErrorKind::Truncated { .. } | DecodeErrorKind::PackageTruncated { .. }
        )
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} ({:#x})", self.position, self.position)?;
        if let Some(section) = &self.section {
            write!(
                f,
                ", section {} \"{}\" instance {}",
                section.section_id, section.idstr, section.instance_id
            )?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl core::error::Error for DecodeError {}

/// Bytes from the wire as text for a message.
pub(crate) fn lossy(bytes: &[u8]) -> Box<str> {
    String::from_utf8_lossy(bytes).into_owned().into_boxed_str()
}

/// What was wrong with the bytes at a [`DecodeError`]'s position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    // File header and CONFIGURATION: docs/wire/stream.md §2, §3.
    /// The magic is not `QEVM`.
    #[error("not a migration stream: found \"{}\", expected \"QEVM\"", found.escape_ascii())]
    NotAMigrationStream {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// File version other than 3.
    #[error("migration stream version {found}, expected version 3")]
    UnsupportedVersion {
        /// The version.
        found: u32,
    },
    /// Something else where CONFIGURATION was expected.
    #[error(
        "found byte {found:#04x}, expected CONFIGURATION (0x07): machine types up to 2.3 and Xen \
         send none, both ends must agree on that"
    )]
    ConfigurationMissing {
        /// The byte in its place.
        found: u8,
    },
    /// The machine name is longer than allowed.
    #[error("machine name of {len} bytes, expected at most {limit}")]
    MachineNameTooLong {
        /// Announced length.
        len: u32,
        /// The bound.
        limit: u32,
    },
    /// The machine name is not that of the local machine, nor a prefix of it.
    #[error("machine type \"{found}\", expected \"{local}\": start both ends with the same -M")]
    MachineMismatch {
        /// The source's machine type.
        found: Box<str>,
        /// The local machine type.
        local: Box<str>,
    },
    /// A subsection of CONFIGURATION that is none of the three known.
    #[error(
        "unknown subsection \"{name}\", expected configuration/target-page-bits, \
         configuration/capabilities or configuration/uuid"
    )]
    UnknownConfigurationSubsection {
        /// Its name.
        name: Box<str>,
    },
    /// A known subsection of CONFIGURATION in another version than 1.
    #[error("subsection \"{name}\" has version {found}, expected version 1")]
    ConfigurationSubsectionVersion {
        /// Its name.
        name: Box<str>,
        /// Its version.
        found: u32,
    },
    /// More subsections than there can be.
    #[error("more than {limit} subsections in CONFIGURATION")]
    TooManyConfigurationSubsections {
        /// The bound.
        limit: u32,
    },
    /// More capabilities listed than allowed.
    #[error("{count} capabilities listed, expected at most {limit}")]
    TooManyCapabilities {
        /// Announced number.
        count: u32,
        /// The bound.
        limit: u32,
    },
    /// A listed name is no capability at all.
    #[error("unknown capability \"{name}\" listed")]
    UnknownCapability {
        /// The name.
        name: Box<str>,
    },
    /// A validated capability is on at one end only.
    #[error(
        "capability {name} is {} on the source, expected {}: set it the same on both ends",
        on_off(*source_on), on_off(!*source_on)
    )]
    CapabilityMismatch {
        /// The capability.
        name: &'static str,
        /// Whether the source has it on.
        source_on: bool,
    },
    /// The stream is a mapped-ram file.
    #[error("capability mapped-ram is on: this file has fixed page positions, expected a stream")]
    MappedRam,
    /// The target page size is not one this decoder can read.
    #[error("target page of 2^{found} bytes, expected 2^10 to 2^16")]
    TargetPageBitsOutOfRange {
        /// log2 of the size.
        found: u32,
    },
    /// The target page size differs from the local one.
    #[error("target page of 2^{found} bytes on the source, expected 2^{local}")]
    TargetPageBitsMismatch {
        /// log2 of the source's.
        found: u32,
        /// log2 of the local one.
        local: u32,
    },
    /// The VM's UUID differs from the local one.
    #[error("VM UUID {:032x}, expected {:032x}", u128::from_be_bytes(*found), u128::from_be_bytes(*local))]
    UuidMismatch {
        /// The source's.
        found: [u8; 16],
        /// The local one.
        local: [u8; 16],
    },

    // Items, sections, footers: docs/wire/stream.md §1.1, §4.
    /// A byte that begins no item.
    #[error(
        "found byte {found:#04x}, expected an item: EOF 0, START 1, PART 2, END 3, FULL 4, COMMAND 8"
    )]
    BadItem {
        /// The byte.
        found: u8,
    },
    /// A section without a name.
    #[error("section name of length 0, expected 1 to 255 bytes")]
    EmptySectionName,
    /// The `ram` section in another version than 4.
    #[error("ram section version {found}, expected exactly 4")]
    RamVersion {
        /// The version.
        found: u32,
    },
    /// The `ram` section with an instance other than 0.
    #[error("ram section instance {found}, expected 0")]
    RamInstance {
        /// The instance.
        found: u32,
    },
    /// PART or END of a section that no START or FULL introduced.
    #[error("section id {section_id} was not introduced by a START or FULL section")]
    UnknownSectionId {
        /// The id.
        section_id: u32,
    },
    /// More sections than allowed.
    #[error("more than {limit} different section ids")]
    TooManySections {
        /// The bound.
        limit: u32,
    },
    /// Another byte where a footer was expected.
    #[error("found byte {found:#04x}, expected a section footer (0x7e)")]
    FooterMissing {
        /// The byte.
        found: u8,
    },
    /// A footer of another section.
    #[error("footer of section {found}, expected of section {expected}")]
    FooterMismatch {
        /// The id in the footer.
        found: u32,
        /// The id in the header.
        expected: u32,
    },
    /// An iterable section whose payload this decoder cannot read.
    #[error("iterable section \"{idstr}\" is not supported, expected only \"ram\"")]
    UnknownIterable {
        /// Its name.
        idstr: Box<str>,
    },
    /// A device section's end cannot be found: no footers, no known length.
    #[error(
        "the payload of \"{idstr}\" has no footer and no known length, so its end cannot be found"
    )]
    PayloadLengthUnknown {
        /// The section's name.
        idstr: Box<str>,
    },
    /// A device section longer than allowed.
    #[error("device section without an end within {limit} bytes")]
    SectionTooLong {
        /// The bound.
        limit: usize,
    },

    // Commands: docs/wire/stream.md §6.
    /// Command number 0 or from 12 on.
    #[error("command number {number}, expected 1 to 11")]
    UnknownCommand {
        /// The number.
        number: u16,
    },
    /// A command with an impossible payload length.
    #[error("command {command} with {found} payload bytes, expected {expected}")]
    CommandLength {
        /// The command's name.
        command: &'static str,
        /// Announced length.
        found: u16,
        /// What it may be.
        expected: &'static str,
    },
    /// PING before OPEN_RETURN_PATH.
    #[error("PING without a return path, expected OPEN_RETURN_PATH before it")]
    PingWithoutReturnPath,
    /// ENABLE_COLO.
    #[error("ENABLE_COLO: COLO is not supported")]
    ColoUnsupported,
    /// ADVISE in the form for `postcopy-ram`, which is off here.
    #[error("POSTCOPY_ADVISE with page sizes, expected none: postcopy-ram is off at this end")]
    AdviseWithoutPostcopyRam,
    /// ADVISE without page sizes though `postcopy-ram` is on here.
    #[error("POSTCOPY_ADVISE without page sizes, expected them: postcopy-ram is on at this end")]
    AdviseWithoutPageSizes,
    /// ADVISE names other host page sizes.
    #[error("POSTCOPY_ADVISE with host page sizes {found:#x}, expected {local:#x}")]
    AdvisePageSizes {
        /// The source's.
        found: u64,
        /// The local ones.
        local: u64,
    },
    /// ADVISE names another target page size.
    #[error("POSTCOPY_ADVISE with target page size {found:#x}, expected {local:#x}")]
    AdviseTargetPageSize {
        /// The source's.
        found: u64,
        /// The local one.
        local: u64,
    },
    /// RAM_DISCARD in another version than 0.
    #[error("RAM_DISCARD version {found}, expected 0")]
    DiscardVersion {
        /// The version.
        found: u8,
    },
    /// RAM_DISCARD without the zero byte after the name.
    #[error("found byte {found:#04x} after the block name of RAM_DISCARD, expected 0")]
    DiscardNotTerminated {
        /// The byte.
        found: u8,
    },
    /// RAM_DISCARD whose ranges are none or cut.
    #[error("{found} bytes of ranges in RAM_DISCARD, expected a positive multiple of 16")]
    DiscardRanges {
        /// Bytes left for ranges.
        found: usize,
    },
    /// A command's block name does not fit its payload.
    #[error("block name of {found} bytes in {command}, expected {expected}")]
    CommandBlockName {
        /// The command's name.
        command: &'static str,
        /// Its length byte.
        found: u8,
        /// What it may be.
        expected: &'static str,
    },
    /// PACKAGED of length 0.
    #[error("PACKAGED of length 0, expected items")]
    PackageEmpty,
    /// PACKAGED longer than allowed.
    #[error("PACKAGED of {len} bytes, expected at most {limit}")]
    PackageTooLong {
        /// Announced length.
        len: u32,
        /// The bound.
        limit: u32,
    },
    /// PACKAGED inside PACKAGED.
    #[error("PACKAGED inside PACKAGED, expected no nesting")]
    PackageNested,
    /// The package ended without EOF or POSTCOPY_RUN.
    #[error("the package ends inside {inside}, expected EOF or POSTCOPY_RUN")]
    PackageTruncated {
        /// What was being read.
        inside: &'static str,
    },

    // RAM records: docs/wire/ram.md §1, §2, §4, §5, §7.
    /// Flag 0x001.
    #[error("ram record {word:#x} has the obsolete flag 0x001")]
    ObsoleteFlag {
        /// The record's word.
        word: u64,
    },
    /// No flag, several, or an unknown one.
    #[error(
        "ram record {word:#x} has flags {flags:#x}, expected exactly one known flag, with or without CONTINUE (0x020)"
    )]
    FlagCombination {
        /// The record's word.
        word: u64,
        /// Its flag bits.
        flags: u64,
    },
    /// A record that postcopy does not allow.
    #[error(
        "ram record with flags {flags:#x} after POSTCOPY_LISTEN, expected only ZERO, PAGE and EOS"
    )]
    NotInPostcopy {
        /// Its flag bits.
        flags: u64,
    },
    /// CONTINUE, but no record named a block yet.
    #[error("ram record {word:#x} continues a block, expected a block name: none was named before")]
    ContinueWithoutBlock {
        /// The record's word.
        word: u64,
    },
    /// A record names a block that the block list does not have.
    #[error("unknown RAM block \"{name}\", expected one of the block list")]
    UnknownBlock {
        /// The name.
        name: Box<str>,
    },
    /// A record points behind its block.
    #[error(
        "offset {offset:#x} in RAM block \"{block}\", expected less than its length {length:#x}"
    )]
    OffsetOutOfRange {
        /// The block.
        block: Box<str>,
        /// The offset.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// A ZERO record with a fill byte other than 0.
    #[error("ZERO record with fill byte {fill:#04x}, expected 0")]
    ZeroFill {
        /// The byte.
        fill: u8,
    },
    /// An XBZRLE record with an encoding other than 1.
    #[error("XBZRLE encoding {found}, expected 1")]
    XbzrleEncoding {
        /// The byte.
        found: u8,
    },
    /// An XBZRLE delta longer than a page.
    #[error("XBZRLE delta of {found} bytes, expected at most {limit}")]
    XbzrleLength {
        /// Announced length.
        found: u16,
        /// The target page size.
        limit: u32,
    },
    /// A compressed page longer than any compressed page can be.
    #[error("compressed page of {found} bytes, expected 1 to {limit}")]
    CompressedLength {
        /// Announced length.
        found: u32,
        /// Twice the target page size.
        limit: u32,
    },
    /// More RAM blocks than allowed.
    #[error("more than {limit} RAM blocks")]
    TooManyBlocks {
        /// The bound.
        limit: u32,
    },
    /// A block without a name in the block list.
    #[error("RAM block name of length 0 in the block list, expected 1 to 255 bytes")]
    EmptyBlockName,
    /// A block's length is not a multiple of the target page size.
    #[error("RAM block \"{block}\" of {length:#x} bytes, expected a multiple of {page_size:#x}")]
    BlockLengthUnaligned {
        /// The block.
        block: Box<str>,
        /// Its length.
        length: u64,
        /// The target page size.
        page_size: u32,
    },
    /// The blocks add up to more than the announced total.
    #[error(
        "RAM block \"{block}\" of {length:#x} bytes, expected at most the {left:#x} bytes left of the total"
    )]
    BlockListOvershoot {
        /// The block.
        block: Box<str>,
        /// Its length.
        length: u64,
        /// What was left of the total.
        left: u64,
    },
    /// A block's host page size differs from the local one.
    #[error("RAM block \"{block}\" with host pages of {found:#x} bytes, expected {local:#x}")]
    HostPageSize {
        /// The block.
        block: Box<str>,
        /// The source's.
        found: u64,
        /// The local one.
        local: u64,
    },

    // The end: docs/wire/stream.md §5.
    /// VMDESCRIPTION longer than allowed.
    #[error("VMDESCRIPTION of {len} bytes, expected at most {limit}")]
    VmdescriptionTooLong {
        /// Announced length.
        len: u32,
        /// The bound.
        limit: u32,
    },
    /// The stream ended too early.
    #[error("the stream ends inside {inside}")]
    Truncated {
        /// What was being read.
        inside: &'static str,
    },
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl DecodeErrorKind {
    /// Who is to blame.
    pub fn blame(&self) -> Fault {
        match self {
            Self::UnsupportedVersion { .. }
            | Self::ConfigurationMissing { .. }
            | Self::MachineMismatch { .. }
            | Self::UnknownConfigurationSubsection { .. }
            | Self::ConfigurationSubsectionVersion { .. }
            | Self::UnknownCapability { .. }
            | Self::CapabilityMismatch { .. }
            | Self::TargetPageBitsMismatch { .. }
            | Self::UuidMismatch { .. }
            | Self::RamVersion { .. }
            | Self::RamInstance { .. }
            | Self::AdviseWithoutPostcopyRam
            | Self::AdviseWithoutPageSizes
            | Self::AdvisePageSizes { .. }
            | Self::AdviseTargetPageSize { .. }
            | Self::UnknownBlock { .. }
            | Self::HostPageSize { .. } => Fault::PeerIncompatible,
            Self::MappedRam
            | Self::TargetPageBitsOutOfRange { .. }
            | Self::UnknownIterable { .. }
            | Self::PayloadLengthUnknown { .. }
            | Self::ColoUnsupported => Fault::Unsupported,
            _ => Fault::PeerMisbehaved,
        }
    }
}
