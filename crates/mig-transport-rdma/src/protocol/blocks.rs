//! The block tables of both ends (docs/wire/rdma.md §7).
//!
//! ```text
//!   source                         destination
//!   blocks in registration order   the same blocks, named by the stream in the same order
//!   RAM_BLOCKS_REQUEST ──────────▶
//!                      ◀────────── RAM_BLOCKS_RESULT, element k = block k
//!   offset ─▶ destination virtual address (WRITE) or destination ram address (COMPRESS, REGISTER)
//! ```

use super::{
    CHUNK_BYTES, MAX_BLOCKS,
    error::{Error, Result},
    header::Kind,
    message::{Compress, Elements, Register, RegisterResult, RemoteBlock},
    span::Span,
};

/// A block's name and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalBlock {
    /// QEMU's name of the block.
    pub idstr: String,
    /// Bytes that migrate.
    pub len: u64,
}

/// The source's blocks, and where the destination has them.
#[derive(Clone, Debug, Default)]
pub struct SourceBlocks {
    local: Vec<LocalBlock>,
    remote: Option<Vec<RemoteBlock>>,
}

fn check_new(count: usize, idstr: &str, len: u64) -> Result<u32> {
    if count >= MAX_BLOCKS {
        return Err(Error::misuse(format!(
            "block {idstr}: rdma carries at most {MAX_BLOCKS} blocks"
        )));
    }
    if len == 0 {
        return Err(Error::misuse(format!("block {idstr} is empty and cannot be registered")));
    }
    Ok(u32::try_from(count).expect("at most 16 383 blocks"))
}

impl SourceBlocks {
    /// No blocks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a block; its index is the order of calls.
    ///
    /// # Errors
    ///
    /// Too many, empty, or after the exchange.
    pub fn register(&mut self, idstr: &str, len: u64) -> Result<u32> {
        if self.remote.is_some() {
            return Err(Error::misuse(format!("block {idstr} comes after the block exchange")));
        }
        let index = check_new(self.local.len(), idstr, len)?;
        self.local.push(LocalBlock { idstr: idstr.into(), len });
        Ok(index)
    }

    /// The blocks in order.
    pub fn local(&self) -> &[LocalBlock] {
        &self.local
    }

    /// The destination's answer. Nothing is stored on error.
    ///
    /// # Errors
    ///
    /// Another number of blocks or another length: the guests were configured differently. An address range that wraps around:
    /// the destination is broken. A second answer.
    pub fn accept_result(&mut self, result: &Elements<'_, RemoteBlock>) -> Result<()> {
        if self.remote.is_some() {
            return Err(Error::unexpected(Kind::RamBlocksResult, "a second time"));
        }
        if result.len() != self.local.len() {
            return Err(Error::Incompatible {
                what: format!(
                    "the source has {} RAM blocks and the destination {}: start the destination with the same machine, memory \
                     and devices, and without x-ignore-shared",
                    self.local.len(),
                    result.len(),
                ),
            });
        }
        let mut remote = Vec::with_capacity(self.local.len());
        for (local, block) in self.local.iter().zip(result.iter()) {
            if block.length != local.len {
                return Err(Error::Incompatible {
                    what: format!(
                        "block {} has {} bytes at the source and {} at the destination: rdma cannot resize a block; give both \
                         the same memory size and the same firmware and machine version",
                        local.idstr, local.len, block.length,
                    ),
                });
            }
            for (field, base) in [("host_addr", block.host_addr), ("ram_offset", block.ram_offset)]
            {
                if base.checked_add(block.length).is_none() {
                    return Err(Error::field(
                        Kind::RamBlocksResult,
                        field,
                        base,
                        format!("block {} of {} bytes would wrap around", local.idstr, local.len),
                    ));
                }
            }
            remote.push(block);
        }
        self.remote = Some(remote);
        Ok(())
    }

    /// Whether the exchange is done.
    pub fn exchanged(&self) -> bool {
        self.remote.is_some()
    }

    /// The key of a whole block, as the exchange brought it; means something with pin-all only.
    ///
    /// # Errors
    ///
    /// No exchange yet, or no such block.
    pub fn whole_key(&self, block: u32) -> Result<u32> {
        Ok(self.remote(block)?.rkey)
    }

    /// Whether a span is a block's.
    ///
    /// # Errors
    ///
    /// No such block, an empty span, or one that leaves its block.
    pub fn check(&self, span: &Span) -> Result<()> {
        let block = self
            .local
            .get(span.block as usize)
            .ok_or_else(|| Error::misuse(format!("there is no block {}", span.block)))?;
        let end = span.offset.checked_add(span.len);
        if span.len == 0 || end.is_none_or(|end| end > block.len) {
            return Err(Error::misuse(format!(
                "{} bytes at {:#x} are not a run of block {}, which has {} bytes",
                span.len, span.offset, block.idstr, block.len,
            )));
        }
        Ok(())
    }

    /// Where a WRITE of this span goes: an address of the destination process.
    ///
    /// # Errors
    ///
    /// No exchange yet, or not a span of a block.
    pub fn remote_address(&self, span: &Span) -> Result<u64> {
        self.check(span)?;
        // Cannot wrap: the exchange checked the block's end.
        Ok(self.remote(span.block)?.host_addr + span.offset)
    }

    /// The COMPRESS of a span.
    ///
    /// # Errors
    ///
    /// As [`Self::remote_address`].
    pub fn compress(&self, span: &Span) -> Result<Compress> {
        Ok(Compress {
            value: 0,
            block: span.block,
            ram_addr: self.ram_address(span)?,
            length: span.len,
        })
    }

    /// The REGISTER_REQUEST of a span that starts at a chunk: `chunks` in units of 1 MiB (docs/wire/rdma.md §9.6).
    ///
    /// # Errors
    ///
    /// As [`Self::remote_address`].
    pub fn register_request(&self, span: &Span) -> Result<Register> {
        Ok(Register {
            key: self.ram_address(span)?,
            block: span.block,
            chunks: span.len.div_ceil(CHUNK_BYTES) - 1,
        })
    }

    /// Checks the block base that comes with a key.
    ///
    /// # Errors
    ///
    /// Another base than the exchange gave: what QEMU 8.2's pointer corruption looks like from here.
    pub fn check_register_result(&self, block: u32, result: &RegisterResult) -> Result<()> {
        let known = self.remote(block)?.host_addr;
        if result.host_addr != known {
            return Err(Error::field(
                Kind::RegisterResult,
                "host_addr",
                result.host_addr,
                format!(
                    "block {} is at {known:#x} (QEMU 8.2.x has a defect here: use 9.0 or newer)",
                    self.local[block as usize].idstr
                ),
            ));
        }
        Ok(())
    }

    fn ram_address(&self, span: &Span) -> Result<u64> {
        self.check(span)?;
        Ok(self.remote(span.block)?.ram_offset + span.offset)
    }

    fn remote(&self, block: u32) -> Result<&RemoteBlock> {
        let remote = self
            .remote
            .as_ref()
            .ok_or_else(|| Error::misuse("the blocks have not been exchanged yet"))?;
        remote
            .get(block as usize)
            .ok_or_else(|| Error::misuse(format!("there is no block {block}")))
    }
}

/// A block as the destination has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationBlock {
    /// QEMU's name of the block.
    pub idstr: String,
    /// Bytes that migrate.
    pub len: u64,
    /// Virtual address of the first byte, as a WRITE names it.
    pub host_addr: u64,
    /// Base in our ram address space, as COMPRESS and REGISTER name it.
    pub ram_offset: u64,
}

/// The destination's blocks, in the source's order.
#[derive(Clone, Debug, Default)]
pub struct DestinationBlocks {
    blocks: Vec<DestinationBlock>,
}

impl DestinationBlocks {
    /// No blocks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the block that the source names next. Its ram address is ours to choose: each block begins at the next MiB, so
    /// that chunks of blocks never share one.
    ///
    /// # Errors
    ///
    /// Too many, empty, or more than an address can count.
    pub fn register(&mut self, idstr: &str, len: u64, host_addr: u64) -> Result<u32> {
        let index = check_new(self.blocks.len(), idstr, len)?;
        let ram_offset = match self.blocks.last() {
            Some(last) => (last.ram_offset + last.len).checked_next_multiple_of(CHUNK_BYTES),
            None => Some(0),
        };
        let fits = |base: u64| base.checked_add(len).is_some();
        let (Some(ram_offset), true) = (ram_offset.filter(|base| fits(*base)), fits(host_addr))
        else {
            return Err(Error::misuse(format!(
                "block {idstr} of {len} bytes has no address range"
            )));
        };
        self.blocks.push(DestinationBlock { idstr: idstr.into(), len, host_addr, ram_offset });
        Ok(index)
    }

    /// The blocks in order.
    pub fn blocks(&self) -> &[DestinationBlock] {
        &self.blocks
    }

    /// The block with this index.
    pub fn get(&self, block: u32) -> Option<&DestinationBlock> {
        self.blocks.get(block as usize)
    }

    /// All bytes of all blocks.
    pub fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.len).sum()
    }

    /// What RAM_BLOCKS_RESULT says. `keys` has one key for each block with pin-all and is empty without.
    ///
    /// # Errors
    ///
    /// Another number of keys.
    pub fn result(&self, keys: &[u32]) -> Result<Vec<RemoteBlock>> {
        if !keys.is_empty() && keys.len() != self.blocks.len() {
            return Err(Error::misuse(format!(
                "{} keys for {} blocks",
                keys.len(),
                self.blocks.len()
            )));
        }
        let keys = keys.iter().copied().chain(std::iter::repeat(0));
        Ok(self
            .blocks
            .iter()
            .zip(keys)
            .map(|(block, rkey)| RemoteBlock {
                host_addr: block.host_addr,
                ram_offset: block.ram_offset,
                length: block.len,
                rkey,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::message::{Message, Outgoing},
        *,
    };

    fn accept(source: &mut SourceBlocks, result: &[RemoteBlock]) -> Result<()> {
        let bytes = Outgoing::RamBlocksResult(result).to_vec().unwrap();
        let Message::RamBlocksResult(elements) = Message::decode(&bytes).unwrap() else { panic!() };
        source.accept_result(&elements)
    }

    fn two() -> SourceBlocks {
        let mut source = SourceBlocks::new();
        assert_eq!(source.register("pc.ram", 8 << 20), Ok(0));
        assert_eq!(source.register("vga.vram", 5000), Ok(1));
        source
    }

    fn remote(host_addr: u64, ram_offset: u64, length: u64) -> RemoteBlock {
        RemoteBlock { host_addr, ram_offset, length, rkey: 9 }
    }

    #[test]
    fn a_mismatch_names_block_lengths_and_remedy() {
        let mut source = two();
        let text = accept(&mut source, &[remote(0, 0, 8 << 20)]).unwrap_err().to_string();
        assert!(text.contains("2 RAM blocks") && text.contains("destination 1"), "{text}");
        let result = [remote(0, 0, 8 << 20), remote(0, 0, 6000)];
        let error = accept(&mut source, &result).unwrap_err();
        assert_eq!(error.blame(), mig_transport::Blame::PeerIncompatible);
        let text = error.to_string();
        for part in ["vga.vram", "5000", "6000", "same memory size"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!source.exchanged());
    }

    #[test]
    fn addresses_that_wrap_are_refused() {
        for (host, ram) in [(u64::MAX - 10, 0), (0, u64::MAX - 10)] {
            let error =
                accept(&mut two(), &[remote(host, ram, 8 << 20), remote(0, 0, 5000)]).unwrap_err();
            assert_eq!(error.blame(), mig_transport::Blame::PeerMisbehaved);
        }
    }

    #[test]
    fn the_exchange_happens_once_and_closes_the_list() {
        let mut source = two();
        let result = [remote(0, 0, 8 << 20), remote(0, 0, 5000)];
        assert!(source.whole_key(0).is_err());
        accept(&mut source, &result).unwrap();
        assert_eq!(source.whole_key(1), Ok(9));
        assert!(accept(&mut source, &result).is_err());
        assert!(source.register("late", 1).is_err());
    }

    #[test]
    fn a_moved_base_is_refused() {
        let mut source = two();
        accept(&mut source, &[remote(4096, 0, 8 << 20), remote(0, 0, 5000)]).unwrap();
        let result = |host_addr| RegisterResult { rkey: 1, host_addr };
        assert!(source.check_register_result(0, &result(4096)).is_ok());
        assert!(source.check_register_result(0, &result(8192)).is_err());
    }

    #[test]
    fn tables_are_bounded() {
        let (mut source, mut destination) = (SourceBlocks::new(), DestinationBlocks::new());
        assert!(source.register("empty", 0).is_err());
        for _ in 0..MAX_BLOCKS {
            source.register("x", 1).unwrap();
            destination.register("x", 1, 0).unwrap();
        }
        assert!(source.register("x", 1).is_err());
        assert!(destination.register("x", 1, 0).is_err());
        let mut destination = DestinationBlocks::new();
        assert!(destination.register("x", u64::MAX, 1).is_err());
        destination.register("x", u64::MAX, 0).unwrap();
        assert!(destination.register("y", 1, 0).is_err());
    }

    #[test]
    fn keys_are_all_or_none() {
        let mut destination = DestinationBlocks::new();
        destination.register("a", 5, 100).unwrap();
        destination.register("b", 6, 200).unwrap();
        assert!(destination.result(&[1]).is_err());
        assert_eq!(destination.result(&[]).unwrap()[1].rkey, 0);
        assert_eq!(destination.result(&[1, 2]).unwrap()[1].rkey, 2);
    }

    proptest! {
        #[test]
        fn what_the_source_translates_the_destination_means(
            lens in proptest::collection::vec(1u64..1 << 40, 1..6),
            hosts in proptest::collection::vec(0u64..1 << 47, 6),
            pick: prop::sample::Index,
            at: u64,
            len: u64,
        ) {
            let (mut source, mut destination) = (SourceBlocks::new(), DestinationBlocks::new());
            for (index, bytes) in lens.iter().enumerate() {
                source.register("b", *bytes).unwrap();
                destination.register("b", *bytes, hosts[index]).unwrap();
            }
            accept(&mut source, &destination.result(&[]).unwrap()).unwrap();
            let block = pick.index(lens.len());
            let offset = at % lens[block];
            let span = Span { block: block as u32, offset, len: 1 + len % (lens[block] - offset) };
            let there = destination.get(span.block).unwrap();
            prop_assert_eq!(source.remote_address(&span).unwrap(), there.host_addr + offset);
            let compress = source.compress(&span).unwrap();
            prop_assert_eq!(compress.ram_addr - there.ram_offset, offset);
            let register = source.register_request(&span).unwrap();
            prop_assert!((register.chunks + 1) * CHUNK_BYTES >= span.len);
            prop_assert!(register.chunks * CHUNK_BYTES < span.len);
            let over = Span { len: lens[block] - offset + 1, ..span };
            prop_assert!(source.remote_address(&over).is_err());
            let ends: Vec<_> = destination.blocks().windows(2).map(|two| (two[0].ram_offset + two[0].len, two[1].ram_offset)).collect();
            prop_assert!(ends.iter().all(|(end, next)| end <= next && next % CHUNK_BYTES == 0));
        }
    }
}
