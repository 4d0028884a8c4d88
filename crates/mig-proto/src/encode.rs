//! Values to bytes: functions that append to a buffer and cannot fail.
//!
//! ```text
//!   file_header  configuration
//!   section(START) block_list eos footer
//!   section(PART)  page_head ‹page› … eos footer
//!   section(FULL)  ‹payload› footer
//!   eof vmdescription_header ‹json›
//! ```
//!
//! What could not be encoded cannot be built: names are [`Name`]s, lengths have the width of
//! their field. For the bulk of a stream there is nothing to append: the word of a page in the
//! block of the record before is [`RamWord::to_be_bytes`] of a [continued](RamWord::continued)
//! word, and the page itself goes out from where it lies.

use alloc::vec::Vec;

use crate::command::{Advise, Command, DiscardRange};
use crate::configuration::{
    CAPABILITIES, Configuration, ConfigurationSubsection, TARGET_PAGE_BITS, UUID,
};
use crate::event::Event;
use crate::name::Name;
use crate::ram::{BlockEntry, Deflated, Delta, RamWord};
use crate::section::{FOOTER, SectionHeader};

/// Ranges that QEMU puts into one RAM_DISCARD at most (docs/wire/stream.md §6.2).
pub const DISCARD_RANGES_PER_COMMAND: usize = 12;

/// `QEVM`, version 3 (docs/wire/stream.md §2).
pub const FILE_HEADER: [u8; 8] = *b"QEVM\0\0\0\x03";

/// CONFIGURATION with its subsections (docs/wire/stream.md §3).
pub fn configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    out.push(7);
    u32_be(out, count(configuration.machine.len()));
    out.extend_from_slice(&configuration.machine);
    for subsection in &configuration.subsections {
        let name = match subsection {
            ConfigurationSubsection::TargetPageBits(_) => TARGET_PAGE_BITS,
            ConfigurationSubsection::Capabilities(_) => CAPABILITIES,
            ConfigurationSubsection::Uuid(_) => UUID,
        };
        out.push(5);
        str8(out, name);
        u32_be(out, 1);
        match subsection {
            ConfigurationSubsection::TargetPageBits(bits) => u32_be(out, *bits),
            ConfigurationSubsection::Capabilities(list) => {
                u32_be(out, count(list.0.len()));
                list.iter().for_each(|name| str8(out, name));
            }
            ConfigurationSubsection::Uuid(uuid) => out.extend_from_slice(uuid),
        }
    }
}

/// A section header (docs/wire/stream.md §4.1); PART and END without the identity.
pub fn section(out: &mut Vec<u8>, header: &SectionHeader<'_>) {
    out.push(header.kind.type_byte());
    u32_be(out, header.section_id);
    if header.kind.has_identity() {
        name(out, header.idstr);
        u32_be(out, header.instance_id);
        u32_be(out, header.version_id);
    }
}

/// A section footer (docs/wire/stream.md §4.1).
pub fn footer(section_id: u32) -> [u8; 5] {
    let [a, b, c, d] = section_id.to_be_bytes();
    [FOOTER, a, b, c, d]
}

/// A command (docs/wire/stream.md §6). The bytes of a package are the caller's to append.
pub fn command(out: &mut Vec<u8>, command: &Command<'_>) {
    out.push(8);
    out.extend_from_slice(&command.number().to_be_bytes());
    let len_at = out.len();
    out.extend_from_slice(&[0, 0]);
    match command {
        Command::OpenReturnPath
        | Command::PostcopyListen
        | Command::PostcopyRun
        | Command::EnableColo
        | Command::PostcopyResume
        | Command::SwitchoverStart
        | Command::PostcopyAdvise(None) => {}
        Command::Ping(value) => u32_be(out, *value),
        Command::PostcopyAdvise(Some(Advise { page_sizes, target_page_size })) => {
            u64_be(out, *page_sizes);
            u64_be(out, *target_page_size);
        }
        Command::RamDiscard(discard) => {
            out.push(0);
            name(out, discard.block());
            out.push(0);
            out.extend_from_slice(discard.raw_ranges());
        }
        Command::Packaged { len } => u32_be(out, *len),
        Command::RecvBitmap { block } => name(out, *block),
    }
    let len = u16::try_from(out.len() - len_at - 2)
        .expect("the longest payload is RAM_DISCARD's, which came out of a field of this width");
    out[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
}

/// RAM_DISCARD of all these ranges of one block (docs/wire/stream.md §6.2): as many commands as
/// that takes, none for no ranges.
pub fn ram_discard(out: &mut Vec<u8>, block: Name<'_>, ranges: &[DiscardRange]) {
    for ranges in ranges.chunks(DISCARD_RANGES_PER_COMMAND) {
        out.push(8);
        out.extend_from_slice(&6_u16.to_be_bytes());
        let len = 3 + usize::from(block.len_byte()) + 16 * ranges.len();
        let len = u16::try_from(len).expect("at most 3 + 255 + 12 * 16");
        out.extend_from_slice(&len.to_be_bytes());
        out.push(0);
        name(out, block);
        out.push(0);
        for range in ranges {
            u64_be(out, range.start);
            u64_be(out, range.length);
        }
    }
}

/// A whole block list (docs/wire/ram.md §2): the total is the sum of the blocks' lengths.
pub fn block_list<'n>(out: &mut Vec<u8>, blocks: impl Iterator<Item = Block<'n>> + Clone) {
    let total = blocks.clone().fold(0_u64, |sum, block| sum.wrapping_add(block.used_length));
    ram_word(out, RamWord::mem_size(total));
    blocks.for_each(|entry| block(out, &entry));
}

/// An entry of a block list to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// Bytes in use, a multiple of the target page size.
    pub used_length: u64,
    /// Only with postcopy, for a block with unusual host pages.
    pub host_page_size: Option<u64>,
    /// Only with `x-ignore-shared`, then for every block.
    pub address: Option<u64>,
}

impl<'a> Block<'a> {
    /// A block without the optional words.
    pub const fn new(name: Name<'a>, used_length: u64) -> Self {
        Self { name, used_length, host_page_size: None, address: None }
    }
}

impl<'a> From<&'a BlockEntry> for Block<'a> {
    fn from(entry: &'a BlockEntry) -> Self {
        Self {
            name: entry.name(),
            used_length: entry.used_length,
            host_page_size: entry.host_page_size,
            address: entry.address,
        }
    }
}

fn block(out: &mut Vec<u8>, block: &Block<'_>) {
    name(out, block.name);
    u64_be(out, block.used_length);
    for word in [block.host_page_size, block.address].into_iter().flatten() {
        u64_be(out, word);
    }
}

/// A record without a body: EOS, HOOK, MULTIFD_FLUSH; also a page's word that continues a block.
pub fn ram_word(out: &mut Vec<u8>, word: RamWord) {
    u64_be(out, word.raw());
}

/// The beginning of a record about a page: its word, and the block's name unless the word
/// continues the block of the record before. The page, if any, follows.
pub fn page_head(out: &mut Vec<u8>, word: RamWord, block: Name<'_>) {
    ram_word(out, word);
    if !word.is_continue() {
        name(out, block);
    }
}

/// A page of zeros.
pub fn zero_page(out: &mut Vec<u8>, word: RamWord, block: Name<'_>) {
    page_head(out, word, block);
    out.push(0);
}

/// A delta (docs/wire/ram.md §4).
pub fn xbzrle_page(out: &mut Vec<u8>, word: RamWord, block: Name<'_>, delta: Delta<'_>) {
    page_head(out, word, block);
    out.push(1);
    out.extend_from_slice(&delta.len_field());
    out.extend_from_slice(delta.as_bytes());
}

/// A page as one zlib stream (docs/wire/ram.md §5), for destinations up to 9.0.
pub fn compressed_page(out: &mut Vec<u8>, word: RamWord, block: Name<'_>, data: Deflated<'_>) {
    page_head(out, word, block);
    out.extend_from_slice(&data.len_field());
    out.extend_from_slice(data.as_bytes());
}

/// EOF: ends the items (docs/wire/stream.md §5).
pub const EOF: u8 = 0;

/// The beginning of VMDESCRIPTION (docs/wire/stream.md §5); `len` bytes of JSON follow.
pub fn vmdescription_header(len: u32) -> [u8; 5] {
    let [a, b, c, d] = len.to_be_bytes();
    [6, a, b, c, d]
}

/// The bytes an event stands for. Events of a whole stream in order give the stream back.
pub fn event(out: &mut Vec<u8>, event: &Event<'_>) {
    match event {
        Event::FileHeader => out.extend_from_slice(&FILE_HEADER),
        Event::Configuration(value) => configuration(out, value),
        Event::Section(header) => section(out, header),
        Event::Footer { section_id } => out.extend_from_slice(&footer(*section_id)),
        Event::SectionData(bytes)
        | Event::Payload(bytes)
        | Event::PackageTail(bytes)
        | Event::VmDescriptionData(bytes)
        | Event::Trailing(bytes) => out.extend_from_slice(bytes),
        Event::Command(value) => command(out, value),
        Event::BlockList { word, entries } => {
            ram_word(out, *word);
            entries.iter().for_each(|entry| block(out, &entry.into()));
        }
        Event::Page(page) => page_head(out, page.word, page.name),
        Event::Zero(page) => zero_page(out, page.word, page.name),
        Event::Xbzrle { page, delta } => xbzrle_page(out, page.word, page.name, *delta),
        Event::CompressedPage { page, data } => {
            compressed_page(out, page.word, page.name, *data);
        }
        Event::Hook(word) | Event::MultifdFlush(word) | Event::EndOfRecords(word) => {
            ram_word(out, *word);
        }
        Event::Eof { .. } => out.push(EOF),
        Event::VmDescription { len } => out.extend_from_slice(&vmdescription_header(*len)),
    }
}

/// Which block the record before was of: decides between naming the block and CONTINUE.
///
/// One for each channel, for its whole life: sections do not reset it (docs/wire/ram.md §1). It
/// is reset at entry into postcopy, on resume, and when the source's RAM layout changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContinueMemory {
    last: Option<u32>,
}

impl ContinueMemory {
    /// Nothing named yet.
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// Forgets: the next record names its block.
    pub fn reset(&mut self) {
        self.last = None;
    }

    /// The word to send for a record of the block that the caller numbers `block`: continued iff
    /// the record before was of the same block.
    pub fn word(&mut self, block: u32, word: RamWord) -> RamWord {
        if self.last.replace(block) == Some(block) { word.continued() } else { word }
    }
}

fn name(out: &mut Vec<u8>, name: Name<'_>) {
    out.push(name.len_byte());
    out.extend_from_slice(&name);
}

fn str8(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).expect("constants and wire names have at most 255 bytes"));
    out.extend_from_slice(bytes);
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a list in memory whose entries cost more than a byte each")
}

fn u32_be(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn u64_be(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}
