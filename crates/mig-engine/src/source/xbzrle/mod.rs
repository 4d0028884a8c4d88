//! Capability `xbzrle` at the source: pages that the receiver has already go as the difference (docs/wire/ram.md §4).
//!
//! ```text
//!   page ──copied once──▶ in the cache? ──yes──▶ encode(cached copy, page) ──▶ XBZRLE record, or nothing if equal
//!                          │ no                      └─ too long ─▶ copy updated, PAGE record from the copy
//!                          ├─ room ──▶ copied into the cache, PAGE record from the copy
//!                          └─ none ──▶ PAGE record by reference, as without the capability
//! ```
//!
//! Everything rests on one rule: **a cached copy is what the receiver has.** The guest writes its memory while we send.
//! So a page that is in the cache, or enters it, is copied first and sent from the copy; a delta is made against the copy
//! that was sent last; and a ZERO record sets the copy to zeros.
//!
//! What is left is judged by what pages took in the last pass, not by their size: a guest that could never be sent page by
//! page in its downtime may well be sent delta by delta.
//!
//! The first pass goes without: it sends every page, and a cache smaller than the guest would only keep its end. What is
//! sent again in the second pass is what the guest writes, and enters the cache then.

mod cache;

use mig_proto::{Delta, RamWord, encode, xbzrle::Encoded};
use mig_ram::{GuestMemory, PAGE_SIZE};
use mig_stream::StreamWriter;

use self::cache::{Cache, Key};
use super::ram::{Page, Sent, put_page};
use crate::{
    error::{Error, Result},
    parameters::Capabilities,
    statistics::Statistics,
};

/// What of a record is not its delta, at most: word, the block's name with its length, encoding, the delta's length.
const HEAD_BYTES: usize = 8 + 256 + 3;

/// The longest delta that is sent as one: a page's length, as QEMU has it (docs/wire/ram.md §4).
const MAX_DELTA: usize = PAGE_SIZE;

const _: () = assert!(HEAD_BYTES + MAX_DELTA <= StreamWriter::HEAD_ROOM);

/// The shortest record of a page: a word, and a zero page's fill byte.
const LEAST_RECORD: u64 = 9;

/// Refuses the capability where it cannot be, before anything is sent.
pub(super) fn check(capabilities: Capabilities, has_ram_hooks: bool) -> Result<()> {
    let other = match capabilities {
        Capabilities { xbzrle: false, .. } => return Ok(()),
        Capabilities { multifd: true, .. } => "multifd, whose channels know no deltas",
        _ if has_ram_hooks => {
            "a transport that writes into the destination's memory itself, where no delta can be"
        }
        _ => return Ok(()),
    };
    Err(Error::misuse(format!(
        "xbzrle cannot be together with {other} (docs/wire/ram.md §4): turn one of them off"
    )))
}

/// The cache, and what is needed to use it.
pub(crate) struct Xbzrle {
    cache: Cache,
    /// The size that was asked for last, in bytes; the cache may be smaller.
    asked: u64,
    /// No more slots than that are of any use.
    most_slots: usize,
    /// Passes begun, not counting those that had no page; 0 is the first full one, which goes without.
    pass: u32,
    /// Pages of the last pass that had any, and the bytes that they took.
    last: Option<(u64, u64)>,
    /// The page as it is, as the receiver has it, and the record: here so that they are made once.
    new: Box<[u8; PAGE_SIZE]>,
    old: Box<[u8; PAGE_SIZE]>,
    delta: Box<[u8; MAX_DELTA]>,
    record: Vec<u8>,
    tally: Tally,
}

/// Counted here and told in one go: an atomic addition a page is not for free.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    pages: u64,
    bytes: u64,
    missed: u64,
    overflow: u64,
    /// Of this pass alone.
    pass: Totals,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Pages put, however, and the bytes that they took.
    put: u64,
    bytes: u64,
    looked_up: u64,
    missed: u64,
    /// Of pages that went as deltas: their bytes, and the deltas'.
    raw: u64,
    encoded: u64,
}

impl Xbzrle {
    /// A cache of `bytes`, rounded down to a power of two of pages, and never more than the guest has pages.
    pub(super) fn new(
        memory: &dyn GuestMemory,
        bytes: u64,
        statistics: &Statistics,
    ) -> Result<Self> {
        let pages = memory.total_bytes() / PAGE_SIZE as u64;
        let most_slots =
            usize::try_from(pages).unwrap_or(usize::MAX / 2).max(1).next_power_of_two();
        let this = Self {
            cache: Cache::new(slots(bytes, most_slots)?)?,
            asked: bytes,
            most_slots,
            pass: 0,
            last: None,
            new: Box::new([0; PAGE_SIZE]),
            old: Box::new([0; PAGE_SIZE]),
            delta: Box::new([0; MAX_DELTA]),
            record: Vec::with_capacity(HEAD_BYTES + MAX_DELTA),
            tally: Tally::default(),
        };
        this.tell_size(statistics);
        Ok(this)
    }

    /// Takes over another size while the migration runs. Where that is not possible, the cache stays as it is.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the cache stays as it is.
    pub(super) async fn resize(&mut self, bytes: u64, statistics: &Statistics) {
        if bytes == self.asked {
            return;
        }
        self.asked = bytes;
        let resized = match slots(bytes, self.most_slots) {
            Ok(slots) if slots == self.cache.slots() => Ok(None),
            Ok(slots) => self.cache.resized(slots).await.map(Some),
            Err(error) => Err(error),
        };
        match resized {
            Ok(None) => {}
            Ok(Some(cache)) => {
                let old = std::mem::replace(&mut self.cache, cache);
                // Giving a GiB back to the system takes as long as a cancel may.
                let _elsewhere = tokio::task::spawn_blocking(move || drop(old));
            }
            Err(error) => tracing::warn!(%error, bytes, "xbzrle-cache-size was not changed"),
        }
        self.tell_size(statistics);
    }

    fn tell_size(&self, statistics: &Statistics) {
        statistics.xbzrle.cache_size.set((self.cache.slots() * PAGE_SIZE) as u64);
    }

    /// The dirty log was read: what was put until now is on its way, and a new pass begins.
    pub(super) fn next_pass(&mut self) {
        let Totals { put, bytes, .. } = std::mem::take(&mut self.tally.pass);
        if put > 0 {
            self.last = Some((put, bytes));
        }
        // Two readings in a row, with nothing sent between them, make nothing older.
        if self.pass == 0 || put > 0 {
            self.pass = self.pass.saturating_add(1);
        }
    }

    /// Whether pages are to be put here.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.pass > 0
    }

    /// How many bytes `pages` pages will take, by what those of the last pass took.
    pub(super) fn expected_bytes(&self, pages: u64) -> u64 {
        let raw = pages.saturating_mul(PAGE_SIZE as u64);
        match self.last {
            // A pass may have had nothing new at all; the next one will.
            Some((put, bytes)) => (u128::from(pages) * u128::from(bytes) / u128::from(put.max(1)))
                .try_into()
                .map_or(raw, |bytes: u64| bytes.clamp(pages.saturating_mul(LEAST_RECORD), raw)),
            None => raw,
        }
    }

    /// Lists a page in the shortest way; there must be room for a head and a page.
    pub(super) fn put(
        &mut self,
        out: &mut StreamWriter,
        continued: &mut encode::ContinueMemory,
        page: Page<'_>,
        is_zero: bool,
    ) -> Result<Sent> {
        let before = out.position();
        let sent = self.put_shortest(out, continued, page, is_zero)?;
        self.tally.pass.put += 1;
        self.tally.pass.bytes += out.position() - before;
        Ok(sent)
    }

    fn put_shortest(
        &mut self,
        out: &mut StreamWriter,
        continued: &mut encode::ContinueMemory,
        page: Page<'_>,
        is_zero: bool,
    ) -> Result<Sent> {
        let key = Key::new(page.block, page.number);
        let found = key.and_then(|key| self.cache.find(key, self.pass));
        if is_zero {
            if let Some(slot) = found {
                self.cache.write_zeros(slot);
            }
            return put_page(out, continued, page, true);
        }
        self.tally.pass.looked_up += 1;
        if found.is_none() {
            self.tally.missed += 1;
            self.tally.pass.missed += 1;
        }
        let Some(slot) = found.or_else(|| self.cache.claim(key?, self.pass)) else {
            return put_page(out, continued, page, false);
        };
        let outside = |error| {
            Error::misuse(format!("RAM block '{}': {error}", page.name.as_bytes().escape_ascii()))
        };
        if found.is_some() {
            let changed =
                self.cache.compare(slot, page, &mut self.new, &mut self.old).map_err(outside)?;
            let (old, new) = (&self.old[..], &self.new[..]);
            match mig_proto::xbzrle::encode_changed(old, new, changed, &mut self.delta[..]) {
                Encoded::Unchanged => {
                    self.tally.pages += 1;
                    return Ok(Sent::Nothing);
                }
                Encoded::Delta(len) => {
                    // The cache lies in memory that is far away: no more of it is written than has to be.
                    let changed = mig_proto::xbzrle::changed(PAGE_SIZE, &self.delta[..len])
                        .expect("the delta was just made of two pages");
                    self.cache.patch(slot, changed.start, &self.new[changed]);
                    self.put_delta(out, continued, page, len)?;
                    return Ok(Sent::Delta);
                }
                Encoded::Overflow => self.tally.overflow += 1,
            }
        } else {
            page.region.copy_out_at(page.at, &mut self.new[..]).map_err(outside)?;
        }
        self.cache.write(slot, &self.new);
        // By reference all the same, but to the copy: that changes only when the page's turn comes again, in another pass.
        let copy = Page { region: self.cache.slab(), at: slot.offset(), ..page };
        put_page(out, continued, copy, false)
    }

    fn put_delta(
        &mut self,
        out: &mut StreamWriter,
        continued: &mut encode::ContinueMemory,
        page: Page<'_>,
        len: usize,
    ) -> Result<()> {
        let block = u32::try_from(page.block).unwrap_or(u32::MAX);
        let word = continued.word(block, RamWord::xbzrle((page.number * PAGE_SIZE) as u64));
        let delta = Delta::new(&self.delta[..len]).expect("MAX_DELTA is less than 65536");
        self.record.clear();
        encode::xbzrle_page(&mut self.record, word, page.name, delta);
        out.put(&self.record)?;
        self.tally.pages += 1;
        // As QEMU counts: encoding, length and delta.
        self.tally.bytes += 3 + len as u64;
        self.tally.pass.raw += PAGE_SIZE as u64;
        self.tally.pass.encoded += len as u64;
        Ok(())
    }

    /// Brings the statistics up to date. Rates are those of this pass, and stay when the next begins until it has any.
    pub(super) fn tell(&self, statistics: &Statistics) {
        let (counted, told) = (&self.tally, &statistics.xbzrle);
        told.pages.set(counted.pages);
        told.bytes.set(counted.bytes);
        told.cache_miss.set(counted.missed);
        told.overflow.set(counted.overflow);
        if counted.pass.looked_up > 0 {
            told.pass_looked_up.set(counted.pass.looked_up);
            told.pass_missed.set(counted.pass.missed);
        }
        if counted.pass.encoded > 0 {
            told.pass_raw.set(counted.pass.raw);
            told.pass_encoded.set(counted.pass.encoded);
        }
    }
}

/// How many slots `bytes` make.
fn slots(bytes: u64, most: usize) -> Result<usize> {
    let pages = usize::try_from(bytes / PAGE_SIZE as u64).unwrap_or(usize::MAX);
    match pages.checked_ilog2() {
        Some(log) => Ok((1 << log).min(most)),
        None => Err(Error::misuse(format!(
            "xbzrle-cache-size is {bytes} bytes: at least one page of {PAGE_SIZE} is needed"
        ))),
    }
}
