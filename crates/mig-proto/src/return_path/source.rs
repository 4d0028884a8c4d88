//! The rules of the source that need context. docs/wire/stream.md §7, "Further source-side rules".

use alloc::vec::Vec;

use thiserror::Error;

use super::{
    Bitmap, BitmapLimit, BitmapRules, BlockName, Message, RESUME_OK, Received, ReturnPathError,
    SHUT_OK, Violation,
};

/// A migrated RAM block, as the return path needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceBlock {
    /// Its name on the wire.
    pub name: BlockName,
    /// Bytes in use.
    pub used_length: u64,
    /// The size of the host pages it is backed with at the source.
    pub host_page_size: u64,
}

/// What a message means to the source. Blocks are indexes into the table given to
/// [`SourceReturnPath::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceEvent {
    /// The destination is alive; the value is not validated.
    Pong {
        /// Whatever it sent.
        value: u32,
    },
    /// Pages to send next. Tolerated outside postcopy, and for pages already sent.
    PagesRequested {
        /// The block.
        block: usize,
        /// Byte offset in it.
        start: u64,
        /// Bytes.
        length: u32,
    },
    /// What arrived of a block; its complement has to be sent again.
    Bitmap {
        /// The block.
        block: usize,
        /// 1 = arrived.
        bitmap: Bitmap,
    },
    /// Recovery may go on. Out of recovery it is tolerated and means nothing.
    ResumeAcknowledged,
    /// The devices agree to the switchover. To be remembered; may come unasked.
    SwitchoverAcknowledged,
    /// The destination has everything: the migration succeeded. May come before the last write.
    Succeeded,
    /// The destination gave up.
    DestinationFailed {
        /// Its status, not 0.
        status: u32,
    },
    /// Something after SHUT, which nobody reads any more.
    IgnoredAfterShut,
}

/// A block table that cannot be checked against.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidBlockTable {
    /// The target page size is zero or not a power of two.
    #[error("target page size {size} is not a power of two")]
    TargetPageSize {
        /// The size given.
        size: u64,
    },
    /// A host page size is zero or not a power of two.
    #[error("host page size {size} of block \"{block}\" is not a power of two")]
    HostPageSize {
        /// The block.
        block: BlockName,
        /// The size given.
        size: u64,
    },
    /// Two blocks of one name.
    #[error("block \"{block}\" is in the table twice")]
    Duplicate {
        /// The block.
        block: BlockName,
    },
}

/// The source's end of the return path: checks what a message may say.
///
/// ```text
///   bytes ─▶ ReturnPathDecoder ─▶ handle_message ─▶ SourceEvent
///   end of stream ─────────────▶ handle_closed
///   new connection in recovery ▶ handle_reconnected      recovery over ▶ handle_recovered
/// ```
#[derive(Debug, Clone)]
pub struct SourceReturnPath {
    blocks: Vec<SourceBlock>,
    target_page_size: u64,
    /// The block of the last REQ_PAGES_ID on this connection.
    last_block: Option<usize>,
    recovering: bool,
    shut: Option<u32>,
}

impl SourceReturnPath {
    /// A checker for these blocks. A guest has a few dozen of them, so names are looked up one by
    /// one.
    ///
    /// # Errors
    ///
    /// [`InvalidBlockTable`] if a page size is not a power of two or a name comes twice.
    pub fn new(blocks: Vec<SourceBlock>, target_page_size: u64) -> Result<Self, InvalidBlockTable> {
        if !target_page_size.is_power_of_two() {
            return Err(InvalidBlockTable::TargetPageSize { size: target_page_size });
        }
        for (index, block) in blocks.iter().enumerate() {
            let name = &block.name;
            if !block.host_page_size.is_power_of_two() {
                let size = block.host_page_size;
                return Err(InvalidBlockTable::HostPageSize { block: name.clone(), size });
            }
            if blocks[..index].iter().any(|earlier| earlier.name == *name) {
                return Err(InvalidBlockTable::Duplicate { block: name.clone() });
            }
        }
        Ok(Self { blocks, target_page_size, last_block: None, recovering: false, shut: None })
    }

    /// The table.
    pub fn blocks(&self) -> &[SourceBlock] {
        &self.blocks
    }

    /// The status of SHUT, once it came.
    pub const fn shut_status(&self) -> Option<u32> {
        self.shut
    }

    /// A new connection was made to recover: bitmaps are welcome, and no block is named yet
    /// (docs/wire/stream.md §9). Use a new [`ReturnPathDecoder`](super::ReturnPathDecoder) too.
    pub fn handle_reconnected(&mut self) {
        self.recovering = true;
        self.last_block = None;
        self.shut = None;
    }

    /// The recovery is over: the resume was acknowledged.
    pub fn handle_recovered(&mut self) {
        self.recovering = false;
    }

    /// Checks one message.
    ///
    /// # Errors
    ///
    /// [`ReturnPathError`] if it breaks a rule. The return path cannot be used any further.
    pub fn handle_message(&mut self, received: Received) -> Result<SourceEvent, ReturnPathError> {
        let Received { at, message } = received;
        if self.shut.is_some() {
            return Ok(SourceEvent::IgnoredAfterShut);
        }
        self.check(message).map_err(|violation| ReturnPathError { at, message_at: at, violation })
    }

    /// The stream ended at this position, between two messages.
    ///
    /// # Errors
    ///
    /// [`Violation::ClosedWithoutShut`]: nobody said that the destination has everything.
    pub fn handle_closed(&self, at: u64) -> Result<(), ReturnPathError> {
        match self.shut {
            Some(_) => Ok(()),
            None => {
                Err(ReturnPathError { at, message_at: at, violation: Violation::ClosedWithoutShut })
            }
        }
    }

    fn check(&mut self, message: Message) -> Result<SourceEvent, Violation> {
        Ok(match message {
            Message::Shut { status } => {
                self.shut = Some(status);
                if status == SHUT_OK {
                    SourceEvent::Succeeded
                } else {
                    SourceEvent::DestinationFailed { status }
                }
            }
            Message::Pong { value } => SourceEvent::Pong { value },
            Message::ReqPagesId { block, start, length } => {
                let block = self.find(&block)?;
                self.last_block = Some(block);
                self.request(block, start, length)?
            }
            Message::ReqPages { start, length } => {
                let block = self.last_block.ok_or(Violation::NoBlockNamed)?;
                self.request(block, start, length)?
            }
            Message::RecvBitmap { block, bitmap } => {
                let index = self.bitmap_block(&block)?;
                let expected = self.bitmap_len(index);
                // usize is at most 64 bits wide on every target of Rust.
                let size = bitmap.as_bytes().len() as u64;
                if size != expected {
                    return Err(Violation::WrongBitmapSize { block, size, expected });
                }
                SourceEvent::Bitmap { block: index, bitmap }
            }
            Message::ResumeAck { value: RESUME_OK } => SourceEvent::ResumeAcknowledged,
            Message::ResumeAck { value } => return Err(Violation::ResumeRefused { value }),
            Message::SwitchoverAck => SourceEvent::SwitchoverAcknowledged,
        })
    }

    fn find(&self, name: &BlockName) -> Result<usize, Violation> {
        self.blocks
            .iter()
            .position(|block| block.name == *name)
            .ok_or_else(|| Violation::UnknownBlock { block: name.clone() })
    }

    fn request(&self, block: usize, start: u64, length: u32) -> Result<SourceEvent, Violation> {
        let SourceBlock { name, used_length, host_page_size } = &self.blocks[block];
        let unaligned = |value: u64| !value.is_multiple_of(*host_page_size);
        if unaligned(start) || unaligned(length.into()) {
            return Err(Violation::Unaligned {
                block: name.clone(),
                start,
                length,
                host_page_size: *host_page_size,
            });
        }
        match start.checked_add(length.into()) {
            Some(end) if end <= *used_length => {
                Ok(SourceEvent::PagesRequested { block, start, length })
            }
            _ => Err(Violation::PastEnd {
                block: name.clone(),
                start,
                length,
                used_length: *used_length,
            }),
        }
    }

    /// The block of a bitmap, if one may come at all.
    fn bitmap_block(&self, name: &BlockName) -> Result<usize, Violation> {
        if !self.recovering {
            return Err(Violation::UnexpectedBitmap { block: name.clone() });
        }
        self.find(name)
    }

    fn bitmap_len(&self, block: usize) -> u64 {
        // Whole target pages: RAM blocks are aligned to them.
        Bitmap::len_for_pages(self.blocks[block].used_length / self.target_page_size)
    }
}

impl BitmapRules for SourceReturnPath {
    fn bitmap_limit(&self, block: &BlockName) -> Result<BitmapLimit, Violation> {
        let index = self.bitmap_block(block)?;
        Ok(BitmapLimit::Exactly(self.bitmap_len(index)))
    }
}
