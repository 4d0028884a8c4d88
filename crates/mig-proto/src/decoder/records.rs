//! RAM records and the block list (docs/wire/ram.md §1 to §5, §7, §8).

use alloc::vec::Vec;

use super::{Advance, Decoder, Event, Found, Kind, Listing, Page, State};
use crate::error::lossy;
use crate::name::Name;
use crate::ram::{BlockEntry, BlockId, Deflated, Delta, RamWord, flag};
use crate::reader::{Reader, Stop, fail};

impl Decoder {
    pub(super) fn record<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        let word = reader.u64()?;
        let flags = word & self.flag_mask();
        let word = RamWord::from_raw(word);
        let kind = flags & !flag::CONTINUE;
        if self.listening && !matches!(kind, flag::ZERO | flag::PAGE | flag::EOS) {
            return fail(0, Kind::NotInPostcopy { flags });
        }
        let found = match kind {
            flag::PAGE => {
                let page = self.page_head(&mut reader, word)?;
                let left = self.page_size.bytes();
                self.state = match self.state {
                    State::Preempt => State::PreemptPayload { left },
                    _ => State::Payload { left },
                };
                Found::Page(page)
            }
            flag::ZERO => {
                let page = self.page_head(&mut reader, word)?;
                let fill_at = reader.at();
                let fill = reader.u8()?;
                if fill != 0 {
                    return fail(fill_at, Kind::ZeroFill { fill });
                }
                Found::Zero(page)
            }
            flag::EOS => {
                match self.state {
                    State::Preempt => self.state = State::Trailing,
                    _ => self.end_of_payload(),
                }
                Found::Event(Event::EndOfRecords(word))
            }
            flag::XBZRLE => self.xbzrle(&mut reader, word)?,
            flag::COMPRESS_PAGE => self.compressed(&mut reader, word)?,
            flag::MEM_SIZE => {
                let left = word.raw() & !self.flag_mask();
                self.listing = Listing { word, left, entries: Vec::new() };
                self.state = State::BlockList;
                Found::Progress
            }
            flag::HOOK => Found::Event(Event::Hook(word)),
            flag::MULTIFD_FLUSH => Found::Event(Event::MultifdFlush(word)),
            _ if flags & flag::OBSOLETE != 0 => {
                return fail(0, Kind::ObsoleteFlag { word: word.raw() });
            }
            _ => return fail(0, Kind::FlagCombination { word: word.raw(), flags }),
        };
        // Only a complete record changes what the next one continues: an incomplete one is read
        // again from its beginning.
        if let Found::Page(page)
        | Found::Zero(page)
        | Found::Xbzrle(page, _)
        | Found::Compressed(page, _) = &found
        {
            self.last_block = Some(page.block);
        }
        Ok((reader.at(), found))
    }

    pub(super) fn payload<'i>(&mut self, window: &'i [u8], left: u32) -> Advance<'i> {
        if window.is_empty() {
            return Err(Stop::Need(1));
        }
        let len = window.len().min(left as usize);
        self.take_payload(u32::try_from(len).expect("at most what is left"));
        Ok((len, Found::Event(Event::Payload(&window[..len]))))
    }

    /// Moves on by `bytes` of the `left` ones of the page.
    pub(super) fn take_payload(&mut self, bytes: u32) {
        self.state = match self.state {
            State::Payload { left } if left == bytes => State::Records,
            State::Payload { left } => State::Payload { left: left - bytes },
            State::PreemptPayload { left } if left == bytes => State::Preempt,
            State::PreemptPayload { left } => State::PreemptPayload { left: left - bytes },
            other => other,
        };
    }

    /// The next entry of the block list, or its end.
    pub(super) fn block_list<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        if self.listing.left == 0 {
            self.state = State::Records;
            return Ok((0, Found::BlockList));
        }
        let limit = self.options.limits.blocks;
        if self.listing.entries.len() as u64 >= u64::from(limit) {
            return fail(0, Kind::TooManyBlocks { limit });
        }
        let mut reader = Reader::new(window);
        let Ok(name) = Name::new(reader.str8()?) else {
            return fail(0, Kind::EmptyBlockName);
        };
        let length_at = reader.at();
        let used_length = reader.u64()?;
        let block = || lossy(&name);
        if used_length & self.flag_mask() != 0 {
            let page_size = self.page_size.bytes();
            let kind =
                Kind::BlockLengthUnaligned { block: block(), length: used_length, page_size };
            return fail(length_at, kind);
        }
        let Some(left) = self.listing.left.checked_sub(used_length) else {
            let left = self.listing.left;
            let kind = Kind::BlockListOvershoot { block: block(), length: used_length, left };
            return fail(length_at, kind);
        };
        let host_page_size = self.host_page_size(&mut reader, name)?;
        let address = if self.ignore_shared { Some(reader.u64()?) } else { None };
        let Some(id) = self.blocks.list(name, used_length, limit) else {
            return fail(0, Kind::TooManyBlocks { limit });
        };
        let name = name.as_bytes().into();
        let entry = BlockEntry { id, name, used_length, host_page_size, address };
        self.listing.entries.push(entry);
        self.listing.left = left;
        Ok((reader.at(), Found::Progress))
    }

    fn xbzrle<'i>(&mut self, reader: &mut Reader<'i>, word: RamWord) -> Result<Found<'i>, Stop> {
        let page = self.page_head(reader, word)?;
        let at = reader.at();
        let found = reader.u8()?;
        if found != 1 {
            return fail(at, Kind::XbzrleEncoding { found });
        }
        let found = reader.u16()?;
        let limit = self.page_size.bytes();
        if u32::from(found) > limit {
            return fail(at + 1, Kind::XbzrleLength { found, limit });
        }
        let delta = Delta::new(reader.take(usize::from(found))?).expect("a 16-bit length");
        Ok(Found::Xbzrle(page, delta))
    }

    fn compressed<'i>(
        &mut self,
        reader: &mut Reader<'i>,
        word: RamWord,
    ) -> Result<Found<'i>, Stop> {
        let page = self.page_head(reader, word)?;
        let at = reader.at();
        let found = reader.u32()?;
        // zlib's own bound for a page that does not compress is far below twice its length.
        let limit = 2 * self.page_size.bytes();
        if found == 0 || found > limit {
            return fail(at, Kind::CompressedLength { found, limit });
        }
        let data = Deflated::new(reader.take(found as usize)?).expect("a 32-bit length");
        Ok(Found::Compressed(page, data))
    }

    /// Which page a record is about; its word has been read.
    fn page_head(&self, reader: &mut Reader<'_>, word: RamWord) -> Result<Page, Stop> {
        let block = self.block_of(reader, word)?;
        let offset = word.raw() & !self.flag_mask();
        let length = self.blocks.block(block).used_length;
        if offset >= length {
            let block = lossy(&self.blocks.block(block).name());
            return fail(0, Kind::OffsetOutOfRange { block, offset, length });
        }
        Ok(Page { word, block, offset })
    }

    fn block_of(&self, reader: &mut Reader<'_>, word: RamWord) -> Result<BlockId, Stop> {
        if word.is_continue() {
            return self.last_block.ok_or_else(|| Stop::Fail {
                at: 0,
                kind: Kind::ContinueWithoutBlock { word: word.raw() },
            });
        }
        let at = reader.at();
        let name = reader.str8()?;
        self.blocks
            .find(name)
            .ok_or_else(|| Stop::Fail { at, kind: Kind::UnknownBlock { name: lossy(name) } })
    }

    fn flag_mask(&self) -> u64 {
        u64::from(self.page_size.bytes()) - 1
    }

    /// The host page size behind a block's length, if it is there (docs/wire/ram.md §2).
    fn host_page_size(&self, reader: &mut Reader<'_>, name: Name<'_>) -> Result<Option<u64>, Stop> {
        let Some(advised) = self.advised else { return Ok(None) };
        let Some(local) = &self.options.postcopy else {
            // Only behind an address there is nothing to tell it by: an address may be any number.
            return if self.ignore_shared {
                Ok(None)
            } else {
                self.told_page_size(reader, advised)
            };
        };
        let mut unusual = local.unusual_blocks.iter();
        let Some(&(_, local)) = unusual.find(|(block, _)| **block == *name) else {
            return Ok(None);
        };
        let at = reader.at();
        let found = reader.u64()?;
        if found != local {
            return fail(at, Kind::HostPageSize { block: lossy(&name), found, local });
        }
        Ok(Some(found))
    }

    /// The same where nobody said which blocks have one: what else may stand there is the next
    /// entry, whose name is never empty, or a record, whose word has a flag.
    fn told_page_size(&self, reader: &mut Reader<'_>, advised: u64) -> Result<Option<u64>, Stop> {
        /// Twice the smallest host page there is: below it no size is unusual.
        const SMALLEST: u64 = 8192;
        if reader.peek_u8()? != 0 {
            return Ok(None);
        }
        let found = reader.peek_u64()?;
        let told = found.is_power_of_two()
            && found >= SMALLEST
            && found & self.flag_mask() == 0
            && found & advised != 0;
        if !told {
            return Ok(None);
        }
        reader.u64().map(Some)
    }
}
