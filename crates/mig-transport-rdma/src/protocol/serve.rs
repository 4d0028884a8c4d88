//! The destination inside a hook window: what a source asks for, checked, as actions (docs/wire/rdma.md §6, §7, §9).
//!
//! ```text
//!   READY ─▶ message ─▶ serve ─▶ Action ─▶ carried out ─▶ answer, if one is owed ─▶ READY …
//!                         └─▶ Error: ERROR, disconnect
//! ```
//!
//! QEMU trusts its source; we do not: every block index, address, range and count is checked before anything is touched
//! (docs/wire/rdma.md §14, 6). What a source may make us hold is bounded: one registration for each granule of a block, and
//! twice the blocks' bytes in all.

use std::collections::BTreeMap;

use super::{
    CHUNK_BYTES,
    blocks::{DestinationBlock, DestinationBlocks},
    error::{Error, Result},
    header::{Frame, Kind},
    message::{Compress, Elements, Message, Outgoing, Register, RegisterResult, RemoteBlock},
    span::Span,
};

/// Under which name a registration is remembered: the granule it starts with, as QEMU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The whole block, with pin-all.
    Whole {
        /// The block.
        block: u32,
    },
    /// From this granule of the block on.
    Granule {
        /// The block.
        block: u32,
        /// Which granule.
        granule: u64,
    },
}

/// A registration a source asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub slot: Slot,
    /// The memory.
    pub span: Span,
    /// It exists: answer with its key.
    pub exists: bool,
}

/// What to do for the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// With pin-all register each block whole ([`Slot::Whole`]); then answer with [`Server::blocks_result`].
    ReplyBlocks,
    /// Register what does not exist, for remote writing; then answer with [`Server::register_reply`] for the first.
    Register {
        /// 1 to 4096.
        registrations: Vec<Registration>,
        /// For the answer.
        repeat: u32,
    },
    /// Deregister; then answer with [`Outgoing::UnregisterFinished`].
    Unregister {
        /// 1 to 4096.
        slots: Vec<Slot>,
        /// For the answer.
        repeat: u32,
    },
    /// Make this memory zero, where it is not yet.
    Zero(Span),
    /// The window is closed; all its WRITEs are visible.
    Finished,
}

/// The destination's side of all hook windows of a migration.
#[derive(Clone, Debug)]
pub struct Server {
    blocks: DestinationBlocks,
    pin_all: bool,
    granule: u64,
    exchanged: bool,
    slots: BTreeMap<Slot, u64>,
    registered_bytes: u64,
    bytes_limit: u64,
}

impl Server {
    /// `granule_bytes` is the unit in which registrations start and end: 1 MiB unless the source is a QEMU 11.1 with a larger
    /// `x-rdma-chunk-size`, than which it may not be smaller (docs/wire/rdma.md §9.6).
    ///
    /// # Errors
    ///
    /// Not a power of two between 1 MiB and 1 GiB.
    pub fn new(blocks: DestinationBlocks, pin_all: bool, granule_bytes: u64) -> Result<Self> {
        if !granule_bytes.is_power_of_two() || !(CHUNK_BYTES..=1 << 30).contains(&granule_bytes) {
            return Err(Error::misuse(format!(
                "a registration granule of {granule_bytes} bytes: a power of two from 1 MiB to 1 GiB is possible"
            )));
        }
        let bytes_limit = blocks.total_bytes().saturating_mul(2);
        Ok(Self {
            blocks,
            pin_all,
            granule: granule_bytes,
            exchanged: false,
            slots: BTreeMap::new(),
            registered_bytes: 0,
            bytes_limit,
        })
    }

    /// The blocks.
    pub fn blocks(&self) -> &DestinationBlocks {
        &self.blocks
    }

    /// Bytes registered for the source, each registration counted in full.
    pub fn registered_bytes(&self) -> u64 {
        self.registered_bytes
    }

    /// Judges a message that came while a hook window is open. What it asks for counts as done: carry it out before the next
    /// call, or fail the migration.
    ///
    /// # Errors
    ///
    /// ERROR, and every message or field that breaks a rule.
    pub fn serve(&mut self, received: &[u8]) -> Result<Action> {
        let frame = Frame::decode(received)?;
        frame.check_repeat()?;
        let message = Message::from_frame(&frame)?;
        let kind = message.kind();
        match message {
            Message::Error => Err(Error::PeerFailed),
            Message::RamBlocksRequest if self.exchanged => {
                Err(Error::unexpected(kind, "a second time"))
            }
            Message::RamBlocksRequest => {
                self.exchanged = true;
                if self.pin_all {
                    for (block, whole) in (0u32..).zip(self.blocks.blocks()) {
                        self.slots.insert(Slot::Whole { block }, whole.len);
                        self.registered_bytes += whole.len;
                    }
                }
                Ok(Action::ReplyBlocks)
            }
            Message::RegisterFinished => Ok(Action::Finished),
            Message::Compress(compress) => {
                self.need_exchange(kind)?;
                self.zero(&compress).map(Action::Zero)
            }
            Message::RegisterRequest(requests) => {
                self.need_exchange(kind)?;
                let registrations = self.register(&requests)?;
                Ok(Action::Register { registrations, repeat: frame.header.repeat })
            }
            Message::UnregisterRequest(requests) => {
                self.need_exchange(kind)?;
                let slots = self.unregister(&requests)?;
                Ok(Action::Unregister { slots, repeat: frame.header.repeat })
            }
            Message::QemuFile(_) => {
                Err(Error::unexpected(kind, "inside a hook window, where only commands may come"))
            }
            Message::Ready
            | Message::RamBlocksResult(_)
            | Message::RegisterResult(_)
            | Message::UnregisterFinished => {
                Err(Error::unexpected(kind, "to the receiving side, which never gets one"))
            }
        }
    }

    /// The elements of RAM_BLOCKS_RESULT; `keys` as [`DestinationBlocks::result`] wants them.
    ///
    /// # Errors
    ///
    /// Keys without pin-all, pin-all without keys, or a wrong number of them.
    pub fn blocks_result(&self, keys: &[u32]) -> Result<Vec<RemoteBlock>> {
        if self.pin_all == keys.is_empty() && !self.blocks.blocks().is_empty() {
            return Err(Error::misuse("keys belong to pin-all, and pin-all needs keys"));
        }
        self.blocks.result(keys)
    }

    /// The answer to a REGISTER_REQUEST: the first key only, whatever `repeat` (docs/wire/rdma.md §9.2).
    pub fn register_reply(
        &self,
        first: &Registration,
        rkey: u32,
        repeat: u32,
    ) -> Outgoing<'static> {
        let host_addr = self.blocks.get(first.span.block).map_or(0, |block| block.host_addr);
        Outgoing::RegisterResult { result: RegisterResult { rkey, host_addr }, repeat }
    }

    fn need_exchange(&self, kind: Kind) -> Result<()> {
        if self.exchanged {
            return Ok(());
        }
        Err(Error::unexpected(kind, "before RAM_BLOCKS_REQUEST"))
    }

    fn block(&self, kind: Kind, index: u32) -> Result<&DestinationBlock> {
        self.blocks.get(index).ok_or_else(|| {
            let count = self.blocks.blocks().len();
            Error::field(kind, "block", index, format!("there are {count} blocks"))
        })
    }

    /// The offset of a ram address in its block.
    fn offset(
        block: &DestinationBlock,
        kind: Kind,
        field: &'static str,
        ram_addr: u64,
    ) -> Result<u64> {
        let offset = ram_addr.checked_sub(block.ram_offset);
        offset.filter(|offset| *offset < block.len).ok_or_else(|| {
            Error::field(
                kind,
                field,
                ram_addr,
                format!(
                    "block {} lies from {:#x} to {:#x}",
                    block.idstr,
                    block.ram_offset,
                    block.ram_offset + block.len
                ),
            )
        })
    }

    fn zero(&self, compress: &Compress) -> Result<Span> {
        let kind = Kind::Compress;
        if compress.value != 0 {
            return Err(Error::field(kind, "value", compress.value, "only 0 is allowed"));
        }
        let block = self.block(kind, compress.block)?;
        let offset = Self::offset(block, kind, "ram_addr", compress.ram_addr)?;
        if compress.length == 0 || compress.length > block.len - offset {
            return Err(Error::field(
                kind,
                "length",
                compress.length,
                format!("1 to {:#x} bytes are left in block {}", block.len - offset, block.idstr),
            ));
        }
        Ok(Span { block: compress.block, offset, len: compress.length })
    }

    fn register(&mut self, requests: &Elements<'_, Register>) -> Result<Vec<Registration>> {
        let mut registrations = Vec::with_capacity(requests.len());
        for request in requests.iter() {
            let registration = self.registration(&request)?;
            if !registration.exists {
                let bytes = self.registered_bytes.saturating_add(registration.span.len);
                if bytes > self.bytes_limit {
                    return Err(Error::field(
                        Kind::RegisterRequest,
                        "chunks",
                        request.chunks,
                        format!(
                            "{bytes} bytes would be registered in overlapping pieces, the limit is {}",
                            self.bytes_limit
                        ),
                    ));
                }
                self.registered_bytes = bytes;
                self.slots.insert(registration.slot, registration.span.len);
            }
            registrations.push(registration);
        }
        Ok(registrations)
    }

    fn registration(&self, request: &Register) -> Result<Registration> {
        let kind = Kind::RegisterRequest;
        let index = request.block;
        let block = self.block(kind, index)?;
        let offset = Self::offset(block, kind, "key", request.key)?;
        if self.pin_all {
            let span = Span { block: index, offset: 0, len: block.len };
            return Ok(Registration { slot: Slot::Whole { block: index }, span, exists: true });
        }
        let chunk = offset / CHUNK_BYTES;
        // Clamped to the block, as QEMU does, so that more chunks than an address can count are merely "all".
        let end = request
            .chunks
            .checked_add(chunk + 1)
            .and_then(|chunks| chunks.checked_mul(CHUNK_BYTES))
            .and_then(|end| end.checked_next_multiple_of(self.granule))
            .map_or(block.len, |end| end.min(block.len));
        let granule = offset / self.granule;
        let start = granule * self.granule;
        let slot = Slot::Granule { block: index, granule };
        let (len, exists) = match self.slots.get(&slot) {
            Some(len) => (*len, true),
            None => (end - start, false),
        };
        Ok(Registration { slot, span: Span { block: index, offset: start, len }, exists })
    }

    fn unregister(&mut self, requests: &Elements<'_, Register>) -> Result<Vec<Slot>> {
        let kind = Kind::UnregisterRequest;
        let mut slots = Vec::with_capacity(requests.len());
        for request in requests.iter() {
            let block = self.block(kind, request.block)?;
            let chunks = block.len.div_ceil(CHUNK_BYTES);
            if request.key >= chunks {
                return Err(Error::field(
                    kind,
                    "key",
                    request.key,
                    format!("block {} has {chunks} chunks", block.idstr),
                ));
            }
            let granule = request.key / (self.granule / CHUNK_BYTES);
            let slot = Slot::Granule { block: request.block, granule };
            if !self.slots.contains_key(&slot) {
                return Err(Error::field(
                    kind,
                    "key",
                    request.key,
                    format!("no registration of block {} starts at this chunk", block.idstr),
                ));
            }
            self.registered_bytes -= self.slots.remove(&slot).unwrap_or(0);
            slots.push(slot);
        }
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn blocks() -> DestinationBlocks {
        let mut blocks = DestinationBlocks::new();
        blocks.register("pc.ram", 10 * MIB + 4096, 1 << 40).unwrap();
        blocks.register("vga.vram", 4096, 2 << 40).unwrap();
        blocks
    }

    fn server(pin_all: bool, granule: u64) -> Server {
        let mut server = Server::new(blocks(), pin_all, granule).unwrap();
        assert_eq!(send(&mut server, Outgoing::RamBlocksRequest), Ok(Action::ReplyBlocks));
        server
    }

    fn send(server: &mut Server, message: Outgoing<'_>) -> Result<Action> {
        server.serve(&message.to_vec().unwrap())
    }

    fn register(server: &mut Server, key: u64, block: u32, chunks: u64) -> Result<Registration> {
        match send(server, Outgoing::Register(Register { key, block, chunks }))? {
            Action::Register { registrations, repeat: 1 } => Ok(registrations[0]),
            other => panic!("{other:?}"),
        }
    }

    fn unregister(server: &mut Server, key: u64, block: u32) -> Result<Action> {
        send(server, Outgoing::Unregister(Register { key, block, chunks: 0 }))
    }

    #[test]
    fn a_request_becomes_whole_chunks_clamped_to_the_block() {
        let mut server = server(false, MIB);
        let slot = |granule| Slot::Granule { block: 0, granule };
        let first = register(&mut server, MIB + 5, 0, 1).unwrap();
        let span = Span { block: 0, offset: MIB, len: 2 * MIB };
        assert_eq!(first, Registration { slot: slot(1), span, exists: false });
        // The same chunk: the same registration, however much is asked for.
        assert_eq!(register(&mut server, MIB, 0, 8), Ok(Registration { exists: true, ..first }));
        // From the middle: one of its own.
        let middle = register(&mut server, 2 * MIB, 0, u64::MAX).unwrap();
        assert_eq!(middle.span, Span { block: 0, offset: 2 * MIB, len: 8 * MIB + 4096 });
        let last = register(&mut server, 10 * MIB + 4095, 0, 0).unwrap();
        assert_eq!(last.span, Span { block: 0, offset: 10 * MIB, len: 4096 });
        let reply = server.register_reply(&last, 9, 1);
        let result = RegisterResult { rkey: 9, host_addr: 1 << 40 };
        assert_eq!(reply, Outgoing::RegisterResult { result, repeat: 1 });
    }

    #[test]
    fn unregister_forgets() {
        let mut server = server(false, MIB);
        register(&mut server, 3 * MIB, 0, 0).unwrap();
        assert_eq!(server.registered_bytes(), MIB);
        assert!(unregister(&mut server, 2, 0).is_err());
        assert!(unregister(&mut server, 3, 1).is_err());
        assert!(unregister(&mut server, 3, 2).is_err());
        assert!(unregister(&mut server, 11, 0).is_err());
        let slots = vec![Slot::Granule { block: 0, granule: 3 }];
        assert_eq!(unregister(&mut server, 3, 0), Ok(Action::Unregister { slots, repeat: 1 }));
        assert_eq!(server.registered_bytes(), 0);
        assert!(unregister(&mut server, 3, 0).is_err());
        assert!(!register(&mut server, 3 * MIB, 0, 0).unwrap().exists);
    }

    #[test]
    fn overlapping_registrations_end() {
        let mut server = server(false, MIB);
        let most =
            (0..11).take_while(|chunk| register(&mut server, chunk * MIB, 0, 99).is_ok()).count();
        assert_eq!(most, 2, "10 + 9 MiB fit into twice the blocks, 8 more do not");
        assert!(server.registered_bytes() <= 2 * server.blocks().total_bytes());
    }

    #[test]
    fn a_larger_granule_covers_what_a_smaller_source_asks() {
        let mut server = server(false, 4 * MIB);
        let first = register(&mut server, 5 * MIB, 0, 0).unwrap();
        assert_eq!(first.span, Span { block: 0, offset: 4 * MIB, len: 4 * MIB });
        assert!(register(&mut server, 7 * MIB, 0, 0).unwrap().exists);
        assert!(unregister(&mut server, 6, 0).is_ok());
        for granule in [0, MIB / 2, 3 * MIB, 2 << 30] {
            assert!(Server::new(blocks(), false, granule).is_err());
        }
    }

    #[test]
    fn pin_all_has_one_key_for_each_block() {
        let mut server = server(true, MIB);
        assert_eq!(server.registered_bytes(), server.blocks().total_bytes());
        let whole = register(&mut server, 3 * MIB, 0, 0).unwrap();
        assert_eq!((whole.slot, whole.exists), (Slot::Whole { block: 0 }, true));
        assert!(server.blocks_result(&[]).is_err());
        assert_eq!(server.blocks_result(&[1, 2]).unwrap()[1].rkey, 2);
        assert!(super::tests::server(false, MIB).blocks_result(&[1, 2]).is_err());
    }

    #[test]
    fn many_elements_are_served_and_the_first_is_answered() {
        let mut server = server(false, MIB);
        let mut bytes =
            Outgoing::Register(Register { key: 0, block: 0, chunks: 0 }).to_vec().unwrap();
        let element: Vec<u8> = bytes[16..].to_vec();
        for _ in 1..4096 {
            bytes.extend(&element);
        }
        bytes[0..4].copy_from_slice(&(4096u32 * 24).to_be_bytes());
        bytes[8..12].copy_from_slice(&4096u32.to_be_bytes());
        let Ok(Action::Register { registrations, repeat: 4096 }) = server.serve(&bytes) else {
            panic!()
        };
        assert_eq!(registrations.len(), 4096);
        assert!(!registrations[0].exists && registrations[1..].iter().all(|again| again.exists));
    }

    #[test]
    fn windows_open_and_close_empty() {
        let mut server = server(false, MIB);
        for _ in 0..3 {
            assert_eq!(send(&mut server, Outgoing::RegisterFinished), Ok(Action::Finished));
        }
    }

    proptest! {
        /// Whatever a source asks, what we would touch lies in a block.
        #[test]
        fn nothing_outside_a_block_is_ever_touched(
            messages in proptest::collection::vec((0u32..3, 0u32..4, prop_oneof![0u64..24 * MIB, any::<u64>()], prop_oneof![0u64..16, 0u64..12 * MIB, any::<u64>()]), 0..60),
            granule in 0u32..11,
        ) {
            let mut server = server(false, MIB << granule);
            for (kind, block, a, b) in messages {
                let message = match kind {
                    0 => Outgoing::Compress(Compress { value: 0, block, ram_addr: a, length: b }),
                    1 => Outgoing::Register(Register { key: a, block, chunks: b }),
                    _ => Outgoing::Unregister(Register { key: b, block, chunks: 0 }),
                };
                let span = match send(&mut server, message) {
                    Ok(Action::Zero(span)) => {
                        prop_assert_eq!(span.len, b);
                        prop_assert_eq!(server.blocks().get(block).unwrap().ram_offset + span.offset, a);
                        span
                    }
                    Ok(Action::Register { registrations, .. }) => registrations[0].span,
                    _ => continue,
                };
                let block = server.blocks().get(span.block).unwrap();
                prop_assert!(span.len > 0 && span.offset < block.len && span.len <= block.len - span.offset);
                prop_assert!(server.registered_bytes() <= 2 * server.blocks().total_bytes());
            }
        }
    }
}
