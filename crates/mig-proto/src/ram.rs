//! RAM records: words, flags, the block list (docs/wire/ram.md §1 to §5).
//!
//! ```text
//!   record := be64 word | body(word)          word = page offset in the block | flags
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::name::Name;

/// Flag bits of a RAM word (docs/wire/ram.md §1).
pub mod flag {
    /// Never sent since long ago; rejected.
    pub const OBSOLETE: u64 = 0x001;
    /// The page is all zeros.
    pub const ZERO: u64 = 0x002;
    /// The block list.
    pub const MEM_SIZE: u64 = 0x004;
    /// The page follows.
    pub const PAGE: u64 = 0x008;
    /// End of the section's records.
    pub const EOS: u64 = 0x010;
    /// Modifier: the block is that of the record before, no name follows.
    pub const CONTINUE: u64 = 0x020;
    /// A delta against the destination's page follows.
    pub const XBZRLE: u64 = 0x040;
    /// RDMA control.
    pub const HOOK: u64 = 0x080;
    /// The page follows as a zlib stream; peers up to 9.0.
    pub const COMPRESS_PAGE: u64 = 0x100;
    /// A round of multifd ends here.
    pub const MULTIFD_FLUSH: u64 = 0x200;
}

/// The first eight bytes of a RAM record, as they are on the wire.
///
/// ```text
///   63                                     12 11                 0
///  +-----------------------------------------+--------------------+
///  | byte offset in the block (or the total) | flags              |     for 4 KiB pages
///  +-----------------------------------------+--------------------+
/// ```
///
/// Events keep the word as it came, so that encoding them gives back oddities too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RamWord(u64);

impl RamWord {
    /// The record that ends a section's records.
    pub const EOS: Self = Self(flag::EOS);
    /// The RDMA control record.
    pub const HOOK: Self = Self(flag::HOOK);
    /// The mark of a multifd round.
    pub const MULTIFD_FLUSH: Self = Self(flag::MULTIFD_FLUSH);

    /// A word from the wire.
    pub const fn from_raw(word: u64) -> Self {
        Self(word)
    }

    /// The word of a page sent in full. `offset` is a multiple of the target page size.
    pub const fn page(offset: u64) -> Self {
        Self(offset | flag::PAGE)
    }

    /// The word of a page of zeros. `offset` is a multiple of the target page size.
    pub const fn zero(offset: u64) -> Self {
        Self(offset | flag::ZERO)
    }

    /// The word of a delta. `offset` is a multiple of the target page size.
    pub const fn xbzrle(offset: u64) -> Self {
        Self(offset | flag::XBZRLE)
    }

    /// The word of a zlib page. `offset` is a multiple of the target page size.
    pub const fn compressed(offset: u64) -> Self {
        Self(offset | flag::COMPRESS_PAGE)
    }

    /// The word that opens a block list of `total` bytes, a multiple of the target page size.
    pub const fn mem_size(total: u64) -> Self {
        Self(total | flag::MEM_SIZE)
    }

    /// The same record, of the block of the record before it.
    pub const fn continued(self) -> Self {
        Self(self.0 | flag::CONTINUE)
    }

    /// The word itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// True if no block name follows.
    pub const fn is_continue(self) -> bool {
        self.0 & flag::CONTINUE != 0
    }

    /// As it goes on the wire: all there is before a page of the block of the record before.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// Number of a RAM block: its place in the order in which block lists first named it.
///
/// Stable for the life of a decoder, and dense from 0: fit for indexing the caller's own table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub(crate) u32);

impl BlockId {
    /// As an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One entry of a block list (docs/wire/ram.md §2).
///
/// ```text
///   | str8 name | be64 used_length | [be64 host page size] | [be64 address] |
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    pub(crate) id: BlockId,
    pub(crate) name: Box<[u8]>,
    /// Bytes of the block in use, a multiple of the target page size.
    pub used_length: u64,
    /// Only with postcopy and unusual host pages.
    pub host_page_size: Option<u64>,
    /// Only with `x-ignore-shared`.
    pub address: Option<u64>,
}

impl BlockEntry {
    /// Its number.
    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> Name<'_> {
        Name::new(&self.name).expect("the decoder admits names of 1 to 255 bytes")
    }
}

/// A record about one page: which page, and how the stream said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRecord<'a> {
    /// The word as it came.
    pub word: RamWord,
    /// The block.
    pub block: BlockId,
    /// The block's name, whether the record carried it or continued the block before.
    pub name: Name<'a>,
    /// Byte offset in the block: a multiple of the target page size, and less than the block's
    /// length.
    pub offset: u64,
}

/// The bytes of an XBZRLE delta, of at most 65535 bytes: its length field has 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a>(&'a [u8]);

impl<'a> Delta<'a> {
    /// Takes `bytes` as a delta, unless there are too many. Whether they are a well-formed one is
    /// not looked at; one longer than a target page is refused by destinations.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        u16::try_from(bytes.len()).is_ok().then_some(Self(bytes))
    }

    /// The bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn len_field(self) -> [u8; 2] {
        u16::try_from(self.0.len()).expect("Delta::new admits no more").to_be_bytes()
    }
}

/// A page as one zlib stream, of at most 2^32 - 1 bytes: its length field has 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deflated<'a>(&'a [u8]);

impl<'a> Deflated<'a> {
    /// Takes `bytes` as a compressed page, unless there are too many. They are not looked at.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        u32::try_from(bytes.len()).is_ok().then_some(Self(bytes))
    }

    /// The bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn len_field(self) -> [u8; 4] {
        u32::try_from(self.0.len()).expect("Deflated::new admits no more").to_be_bytes()
    }
}

/// A block as records refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    name: Box<[u8]>,
    /// The length the last block list gave it.
    pub used_length: u64,
}

impl RamBlock {
    /// Its name.
    pub fn name(&self) -> Name<'_> {
        Name::new(&self.name).expect("the decoder admits names of 1 to 255 bytes")
    }
}

/// The blocks that records may refer to.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<RamBlock>,
    /// Ids in the order of their names, for lookups.
    by_name: Vec<u32>,
}

impl BlockTable {
    pub(crate) fn all(&self) -> &[RamBlock] {
        &self.blocks
    }

    pub(crate) fn block(&self, id: BlockId) -> &RamBlock {
        &self.blocks[id.index()]
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<BlockId> {
        self.search(name).ok().map(|place| BlockId(self.by_name[place]))
    }

    /// Adds the block or changes its length. `None`, and nothing kept, if that would make more
    /// than `limit`.
    pub(crate) fn list(&mut self, name: Name<'_>, used_length: u64, limit: u32) -> Option<BlockId> {
        match self.search(&name) {
            Ok(place) => {
                let id = BlockId(self.by_name[place]);
                self.blocks[id.index()].used_length = used_length;
                Some(id)
            }
            Err(place) => {
                let id = u32::try_from(self.blocks.len()).ok().filter(|id| *id < limit)?;
                self.blocks.push(RamBlock { name: name.as_bytes().into(), used_length });
                self.by_name.insert(place, id);
                Some(BlockId(id))
            }
        }
    }

    fn search(&self, name: &[u8]) -> Result<usize, usize> {
        self.by_name.binary_search_by(|id| self.blocks[*id as usize].name[..].cmp(name))
    }
}
