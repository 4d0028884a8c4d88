//! RAM blocks: named stretches of guest memory, as the block list names them (docs/wire/ram.md §2).

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mig_transport::{Region, RegionSlice};

use crate::{
    error::{Error, Result},
    mapping::{self, Backing, HugePages, Mapping},
    memory::BlockInfo,
};

/// The target page size: 4096 for every machine this project knows (docs/wire/ram.md, head).
pub const PAGE_SIZE: usize = 4096;

/// A `str8` on the wire: one length byte.
pub const MAX_NAME_BYTES: usize = 255;

/// How a block's memory is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockOptions {
    /// What the memory is made of.
    pub backing: Backing,
    /// What the kernel is told about huge pages.
    pub huge_pages: HugePages,
    /// A resizable block, and how long it may grow; None: the length is fixed.
    pub max_length: Option<u64>,
}

/// One named block, with its memory.
pub struct RamBlock {
    idstr: Arc<[u8]>,
    used_length: AtomicU64,
    max_length: u64,
    resizable: bool,
    mapping: Arc<Mapping>,
}

impl RamBlock {
    /// A block of `used_length` zero bytes with fixed length, in anonymous memory.
    pub fn new(idstr: impl AsRef<[u8]>, used_length: u64) -> Result<Self> {
        Self::with_options(idstr, used_length, &BlockOptions::default())
    }

    /// A block made to order. Lengths must be positive multiples of [`PAGE_SIZE`], the name 1 to 255 bytes.
    pub fn with_options(
        idstr: impl AsRef<[u8]>,
        used_length: u64,
        options: &BlockOptions,
    ) -> Result<Self> {
        let idstr = idstr.as_ref();
        let name = String::from_utf8_lossy(idstr);
        check_name(idstr)?;
        let max_length = options.max_length.unwrap_or(used_length);
        for length in [used_length, max_length] {
            if length == 0 || !length.is_multiple_of(PAGE_SIZE as u64) {
                return Err(Error::misuse(format!(
                    "block '{name}': {length:#x} bytes; a length is a positive multiple of {PAGE_SIZE}"
                )));
            }
        }
        if used_length > max_length {
            return Err(Error::misuse(format!(
                "block '{name}': {used_length:#x} bytes, but at most {max_length:#x} allowed"
            )));
        }
        let bytes = usize::try_from(max_length).map_err(|_| {
            Error::misuse(format!("block '{name}': {max_length:#x} bytes do not fit here"))
        })?;
        Ok(Self {
            idstr: idstr.into(),
            used_length: AtomicU64::new(used_length),
            max_length,
            resizable: options.max_length.is_some(),
            mapping: Arc::new(Mapping::new(&name, bytes, options.backing, options.huge_pages)?),
        })
    }

    /// The name's bytes, as on the wire.
    pub fn idstr(&self) -> &[u8] {
        &self.idstr
    }

    /// The name for people.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.idstr).into_owned()
    }

    /// How many bytes the guest has now.
    pub fn used_length(&self) -> u64 {
        self.used_length.load(Ordering::Acquire)
    }

    /// How many it may ever have; equal to `used_length` unless resizable.
    pub fn max_length(&self) -> u64 {
        self.max_length
    }

    /// Whether the other end's length may differ (docs/wire/ram.md §2).
    pub fn resizable(&self) -> bool {
        self.resizable
    }

    /// The size of its pages.
    pub fn page_size(&self) -> usize {
        PAGE_SIZE
    }

    /// How many pages the guest has now.
    pub fn pages(&self) -> usize {
        // A used length never exceeds the mapping, whose length is a usize.
        self.used_length() as usize / PAGE_SIZE
    }

    /// The memory behind it.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The memory behind it, as transports take it. As long as [`max_length`](Self::max_length), or a little longer
    /// where host pages are larger than ours.
    pub fn region(&self) -> Arc<dyn Region> {
        Arc::clone(&self.mapping) as Arc<dyn Region>
    }

    /// What the engine needs to know of it.
    pub fn info(&self) -> BlockInfo {
        BlockInfo {
            idstr: self.idstr.clone(),
            used_length: self.used_length(),
            max_length: self.max_length,
            resizable: self.resizable,
            region: self.region(),
        }
    }

    /// Takes the other end's length: nothing to do if equal, a resize if possible, else refused.
    pub fn resize(&self, used_length: u64) -> Result<()> {
        let now = self.used_length();
        if used_length == now {
            return Ok(());
        }
        let whole_pages = used_length > 0 && used_length.is_multiple_of(PAGE_SIZE as u64);
        if !(self.resizable && whole_pages && used_length <= self.max_length) {
            let can = match self.resizable {
                true => {
                    format!("take any number of whole pages up to {:#x} bytes", self.max_length)
                }
                false => "not be resized".to_owned(),
            };
            let (block, asked) = (self.name(), used_length);
            return Err(Error::LengthMismatch { block, asked, used_length: now, can });
        }
        self.used_length.store(used_length, Ordering::Release);
        Ok(())
    }

    /// Touches every page the guest has, so that placing pages later pays no first fault ("warm").
    pub fn populate(&self) -> Result<()> {
        let all = self.slice(0, self.used_length() as usize)?;
        match mapping::populate_write(&all) {
            Ok(()) => Ok(()),
            // Before Linux 5.14: write each page by hand; populating must change no contents, so what is there is kept.
            Err(rustix::io::Errno::INVAL) => {
                for offset in (0..all.len()).step_by(PAGE_SIZE) {
                    let byte = all.sub(offset, 1).expect("the offset is below the length");
                    let mut kept = [0];
                    byte.copy_out(&mut kept);
                    byte.copy_in(&kept);
                }
                Ok(())
            }
            Err(errno) => Err(Error::io(format!("populating block '{}'", self.name()), errno)),
        }
    }

    /// `len` bytes from `offset`, refused unless the guest has them all.
    pub fn slice(&self, offset: u64, len: usize) -> Result<RegionSlice> {
        self.info().slice(offset, len)
    }
}

impl fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamBlock('{}', {:#x} bytes)", self.name(), self.used_length())
    }
}

fn check_name(idstr: &[u8]) -> Result<()> {
    if idstr.is_empty() || idstr.len() > MAX_NAME_BYTES {
        return Err(Error::misuse(format!(
            "a block name of {} bytes; it has 1 to {MAX_NAME_BYTES}",
            idstr.len()
        )));
    }
    Ok(())
}

/// Blocks in order, each name once.
#[derive(Debug)]
pub struct BlockSet {
    blocks: Vec<Arc<RamBlock>>,
    by_name: HashMap<Arc<[u8]>, usize>,
}

impl BlockSet {
    /// The blocks in the order given, which is the order of the block list; two of one name are refused.
    pub fn new(blocks: impl IntoIterator<Item = RamBlock>) -> Result<Self> {
        let blocks: Vec<_> = blocks.into_iter().map(Arc::new).collect();
        let mut by_name = HashMap::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            if by_name.insert(Arc::clone(&block.idstr), index).is_some() {
                return Err(Error::misuse(format!(
                    "two blocks are called '{}'; names tell them apart on the wire",
                    block.name()
                )));
            }
        }
        Ok(Self { blocks, by_name })
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// The block at `index`.
    pub fn by_index(&self, index: usize) -> Option<&Arc<RamBlock>> {
        self.blocks.get(index)
    }

    /// Where the block called `idstr` is.
    pub fn find(&self, idstr: &[u8]) -> Option<usize> {
        self.by_name.get(idstr).copied()
    }

    /// The sum of the used lengths: the `total` of the block list (docs/wire/ram.md §2).
    pub fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length()).sum()
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::Blame;

    use super::*;

    #[test]
    fn lengths_that_are_not_whole_pages_are_refused() {
        for length in [0, 1, 4095, 4097, u64::MAX, u64::MAX - 4095] {
            assert!(RamBlock::new("pc.ram", length).is_err(), "{length:#x}");
        }
        let options = BlockOptions { max_length: Some(4096), ..BlockOptions::default() };
        assert!(RamBlock::with_options("x", 8192, &options).is_err());
    }

    #[test]
    fn names_are_one_to_255_bytes_and_unique() {
        assert!(RamBlock::new("", 4096).is_err());
        assert!(RamBlock::new([b'x'; 256], 4096).is_err());
        let longest = RamBlock::new([0xff; 255], 4096).unwrap();
        let set = BlockSet::new([longest, RamBlock::new("b", 8192).unwrap()]).unwrap();
        assert_eq!(set.find(&[0xff; 255]), Some(0));
        assert_eq!(set.find(b"b"), Some(1));
        assert_eq!(set.find(b"c"), None);
        assert_eq!(set.total_bytes(), 12288);
        let twice = ["b", "b"].map(|name| RamBlock::new(name, 4096).unwrap());
        assert_eq!(BlockSet::new(twice).unwrap_err().blame(), Blame::Misuse);
    }

    #[test]
    fn hostile_offsets_are_refused_and_blamed_on_the_peer() {
        let options = BlockOptions { max_length: Some(16384), ..BlockOptions::default() };
        let block = RamBlock::with_options("rom", 8192, &options).unwrap();
        assert!(block.slice(4096, 4096).is_ok());
        // Inside the mapping, but past what the guest has.
        for (offset, len) in [(8192, 4096), (4097, 4096), (u64::MAX - 4095, 4096), (1 << 63, 1)] {
            let error = block.slice(offset, len).unwrap_err();
            assert!(matches!(error, Error::OutOfBlock { .. }), "{error}");
            assert_eq!(error.blame(), Blame::PeerMisbehaved);
        }
    }

    #[test]
    fn only_resizable_blocks_take_another_length() {
        let fixed = RamBlock::new("pc.ram", 8192).unwrap();
        fixed.resize(8192).unwrap();
        assert_eq!(fixed.resize(4096).unwrap_err().blame(), Blame::PeerIncompatible);
        let options = BlockOptions { max_length: Some(16384), ..BlockOptions::default() };
        let rom = RamBlock::with_options("/rom@etc/acpi/tables", 8192, &options).unwrap();
        rom.resize(16384).unwrap();
        assert_eq!(rom.pages(), 4);
        for bad in [0, 5000, 20480] {
            assert!(rom.resize(bad).is_err());
        }
        assert_eq!(rom.used_length(), 16384);
    }
}
