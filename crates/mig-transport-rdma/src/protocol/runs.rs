//! From offered pages to ordered pieces: what is written, what is said to be zero, and in which order (docs/wire/rdma.md §8).
//!
//! ```text
//!   offered   |data|data|0|data|0|0|0 … 0|0|0|data|      pages, run after run
//!   data      [write            ]                [write    waits for more that continues it
//!   zero                        [COMPRESS     ]            waits for more that continues it
//! ```
//!
//! Data and zero ranges queue apart, so that WRITEs go on while a COMPRESS waits for its READY. Ranges that share bytes keep
//! the order in which they were offered; [`Runs::blocked`] knows. Nothing is merged across such a conflict.

use std::collections::VecDeque;

use super::{
    error::{Error, Result},
    span::Span,
    windows::Windows,
};

/// When zero pages are worth a message, and how large pieces get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest WRITE: the device's largest message, or less. Larger than a few MiB brings no more throughput, and the first
    /// WRITE of a run waits until it is full.
    pub max_write: u64,
    /// A zero run shorter than this is written like data, if its window is registered anyway. A COMPRESS costs a message, for
    /// which the last one must have been handled (a round trip and two threads woken); 64 KiB at 10 GB/s cost 7 µs. A zero
    /// run in a window without a key is never written: it would be pinned and populated for nothing.
    pub short_zero: u64,
    /// Longest COMPRESS. The destination reads all of it before it says READY: 64 MiB are milliseconds, which hides the round
    /// trip and stays far from any deadline.
    pub max_compress: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { max_write: 1 << 20, short_zero: 64 << 10, max_compress: 64 << 20 }
    }
}

/// Most pages in one offer; bounds the queues.
pub const MAX_OFFER_PAGES: u64 = 16_384;
/// Most pieces that may wait when more is offered.
pub const MAX_WAITING: usize = 1024;

/// A span with its place in the order of offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub span: Span,
    /// Later offers have higher numbers.
    pub order: u64,
}

/// What was offered and not yet taken.
#[derive(Clone, Debug)]
pub struct Runs {
    policy: Policy,
    data: VecDeque<Piece>,
    zero: VecDeque<Piece>,
    /// A zero run at the end of what was offered, whose fate depends on what follows.
    held: Option<Span>,
    /// Whether `held` follows directly on data in its window.
    held_after_data: bool,
    order: u64,
}

impl Runs {
    /// Nothing offered.
    ///
    /// # Errors
    ///
    /// A limit of 0.
    pub fn new(policy: Policy) -> Result<Self> {
        if policy.max_write == 0 || policy.max_compress == 0 {
            return Err(Error::misuse("a WRITE or COMPRESS of 0 bytes"));
        }
        Ok(Self {
            policy,
            data: VecDeque::new(),
            zero: VecDeque::new(),
            held: None,
            held_after_data: false,
            order: 0,
        })
    }

    /// Whether more may be offered.
    pub fn has_room(&self) -> bool {
        self.data.len() + self.zero.len() <= MAX_WAITING
    }

    /// Whether everything offered was taken.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.zero.is_empty() && self.held.is_none()
    }

    /// Adds a run of pages. `zero` has one bit for each page of the run, the lowest bit of the first word for its first page;
    /// missing words mean data.
    ///
    /// # Errors
    ///
    /// Not whole pages, more than [`MAX_OFFER_PAGES`], or no [room](Self::has_room): mistakes of the caller.
    pub fn offer(
        &mut self,
        run: Span,
        page_bytes: u64,
        zero: impl IntoIterator<Item = u64>,
        windows: &Windows,
    ) -> Result<()> {
        let whole = page_bytes > 0 && run.len > 0 && run.len.is_multiple_of(page_bytes);
        if !whole || run.len / page_bytes > MAX_OFFER_PAGES {
            return Err(Error::misuse(format!(
                "{} bytes offered in pages of {page_bytes}: 1 to {MAX_OFFER_PAGES} whole pages are taken at once",
                run.len
            )));
        }
        if !self.has_room() {
            return Err(Error::misuse(format!("offered more while {MAX_WAITING} pieces wait")));
        }
        let pages = run.len / page_bytes;
        let mut words = zero.into_iter();
        let (mut word, mut begun) = (0, 0);
        let mut kind = false;
        for page in 0..pages {
            if page % 64 == 0 {
                word = words.next().unwrap_or(0);
            }
            let is_zero = word >> (page % 64) & 1 == 1;
            if page > begun && is_zero != kind {
                self.add(part(&run, begun, page, page_bytes), kind, windows);
                begun = page;
            }
            kind = is_zero;
        }
        self.add(part(&run, begun, pages, page_bytes), kind, windows);
        Ok(())
    }

    fn add(&mut self, span: Span, zero: bool, windows: &Windows) {
        if !zero {
            self.decide_held(Some(&span), windows);
            return self.push_data(span);
        }
        match &mut self.held {
            Some(held) if held.continues_in(&span) => held.len += span.len,
            _ => {
                self.decide_held(None, windows);
                self.held_after_data = self.data.back().is_some_and(|last| {
                    let at = |offset| windows.window_at(span.block, offset);
                    last.span.continues_in(&span) && at(span.offset) == at(span.offset - 1)
                });
                self.held = Some(span);
            }
        }
        self.cut_held();
    }

    /// Sends the front of a long zero run on its way.
    fn cut_held(&mut self) {
        while let Some(held) = self.held.filter(|held| held.len > self.policy.max_compress) {
            let front = Span { len: self.policy.max_compress, ..held };
            self.push_zero(front);
            self.held =
                Some(Span { offset: front.end(), len: held.len - front.len, block: held.block });
            self.held_after_data = false;
        }
    }

    /// Makes the zero run at the end data or a COMPRESS, now that `next` follows (nothing, or something elsewhere, if `None`).
    fn decide_held(&mut self, next: Option<&Span>, windows: &Windows) {
        let Some(held) = self.held.take() else { return };
        let (first, last) = (
            windows.window_at(held.block, held.offset),
            windows.window_at(held.block, held.end() - 1),
        );
        let before_data = next.is_some_and(|next| {
            held.continues_in(next) && windows.window_at(next.block, next.offset) == last
        });
        // Registered, or about to be for the data beside it.
        let first_pays = windows.has_key(first) || self.held_after_data;
        let last_pays = windows.has_key(last) || before_data;
        let registered =
            if first == last { first_pays || last_pays } else { first_pays && last_pays };
        let between = last.index.saturating_sub(first.index) > 1;
        if held.len < self.policy.short_zero && registered && !between {
            self.push_data(held);
        } else {
            self.push_zero(held);
        }
    }

    fn push_data(&mut self, span: Span) {
        let free = !self.zero.iter().any(|piece| piece.span.overlaps(&span));
        push(&mut self.data, span, free, &mut self.order);
    }

    fn push_zero(&mut self, span: Span) {
        let short = self
            .zero
            .back()
            .is_none_or(|last| last.span.len + span.len <= self.policy.max_compress);
        let free = short && !self.data.iter().any(|piece| piece.span.overlaps(&span));
        push(&mut self.zero, span, free, &mut self.order);
    }

    /// Nothing continues what was offered: the window closes, or the guest's memory ends.
    pub fn flush(&mut self, windows: &Windows) {
        self.decide_held(None, windows);
    }

    /// The next WRITE: as long as [`Policy::max_write`], its window and what is contiguous allow. A run at the end of the offers
    /// is kept back while it may still grow, unless `flush`.
    pub fn next_data(&self, windows: &Windows, flush: bool) -> Option<Piece> {
        let head = self.data.front()?;
        let window = windows.span(windows.window_at(head.span.block, head.span.offset));
        let most = self.policy.max_write.min(window.end() - head.span.offset);
        if head.span.len < most && self.data.len() == 1 && self.data_may_grow() && !flush {
            return None;
        }
        Some(Piece { span: Span { len: head.span.len.min(most), ..head.span }, ..*head })
    }

    /// Whether what is offered next may continue the last data run: nothing, or a zero run too short to stand alone, follows it.
    fn data_may_grow(&self) -> bool {
        let (Some(last), Some(held)) = (self.data.back(), &self.held) else { return true };
        last.span.continues_in(held) && held.len < self.policy.short_zero
    }

    /// The next COMPRESS, with the same reserve.
    pub fn next_zero(&self, flush: bool) -> Option<Piece> {
        let head = self.zero.front()?;
        let grows = self.zero.len() == 1
            && self.held.is_some_and(|held| {
                head.span.continues_in(&held)
                    && head.span.len + held.len <= self.policy.max_compress
            });
        (!grows || flush).then_some(*head)
    }

    /// Whether an earlier range of the other queue shares bytes with this one.
    pub fn blocked(&self, piece: &Piece, is_zero: bool) -> bool {
        let others = if is_zero { &self.data } else { &self.zero };
        others.iter().any(|other| other.order < piece.order && other.span.overlaps(&piece.span))
    }

    /// The WRITE is posted.
    pub fn took_data(&mut self, piece: &Piece) {
        take(&mut self.data, piece);
    }

    /// The COMPRESS is sent.
    pub fn took_zero(&mut self, piece: &Piece) {
        take(&mut self.zero, piece);
    }
}

fn part(run: &Span, from: u64, to: u64, page_bytes: u64) -> Span {
    Span { block: run.block, offset: run.offset + from * page_bytes, len: (to - from) * page_bytes }
}

fn push(queue: &mut VecDeque<Piece>, span: Span, may_merge: bool, order: &mut u64) {
    if let Some(last) = queue.back_mut()
        && may_merge
        && last.span.continues_in(&span)
    {
        last.span.len += span.len;
        return;
    }
    *order += 1;
    queue.push_back(Piece { span, order: *order });
}

fn take(queue: &mut VecDeque<Piece>, piece: &Piece) {
    if let Some(head) = queue.front_mut() {
        head.span.offset += piece.span.len;
        head.span.len -= piece.span.len;
        if head.span.len == 0 {
            queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::windows::{Config, Mode},
        *,
    };

    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;

    fn windows() -> Windows {
        let config = Config { window_bytes: 4 * MIB, pinned_budget: 64 * MIB };
        Windows::new(config, Mode::Chunked { unregister: false }, vec![64 * MIB, 64 * MIB]).unwrap()
    }

    fn span(page: u64, pages: u64) -> Span {
        Span { block: 0, offset: page * PAGE, len: pages * PAGE }
    }

    fn runs() -> Runs {
        Runs::new(Policy::default()).unwrap()
    }

    /// Everything that comes out at a flush: (is zero, first page, pages).
    fn drain(runs: &mut Runs, windows: &Windows) -> Vec<(bool, u64, u64)> {
        let mut out = Vec::new();
        runs.flush(windows);
        while let Some(piece) = runs.next_zero(true) {
            runs.took_zero(&piece);
            out.push((true, piece.span.offset / PAGE, piece.span.len / PAGE));
        }
        while let Some(piece) = runs.next_data(windows, true) {
            runs.took_data(&piece);
            out.push((false, piece.span.offset / PAGE, piece.span.len / PAGE));
        }
        assert!(runs.is_empty());
        out
    }

    #[test]
    fn contiguous_offers_become_one_write() {
        let (mut runs, windows) = (runs(), windows());
        for page in 0..100 {
            runs.offer(span(page, 1), PAGE, [], &windows).unwrap();
            assert_eq!(runs.next_data(&windows, false), None);
        }
        assert_eq!(drain(&mut runs, &windows), [(false, 0, 100)]);
    }

    #[test]
    fn a_full_write_does_not_wait_and_ends_with_its_window() {
        let (mut runs, windows) = (runs(), windows());
        runs.offer(span(1000, 100), PAGE, [], &windows).unwrap();
        // The window ends at page 1024.
        let first = runs.next_data(&windows, false).unwrap();
        assert_eq!(first.span, span(1000, 24));
        runs.took_data(&first);
        assert_eq!(runs.next_data(&windows, false), None);
        runs.offer(span(1100, 300), PAGE, [], &windows).unwrap();
        assert_eq!(runs.next_data(&windows, false).unwrap().span, span(1024, 256));
    }

    #[test]
    fn a_short_zero_run_beside_data_is_written() {
        let (mut runs, windows) = (runs(), windows());
        runs.offer(span(0, 12), PAGE, [0b0000_0111_0000], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(false, 0, 12)]);
        runs.offer(span(0, 12), PAGE, [0b1111_0000_0000], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(false, 0, 12)]);
        runs.offer(span(0, 12), PAGE, [0b0000_0000_1111], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(false, 0, 12)]);
    }

    #[test]
    fn a_short_zero_run_alone_registers_nothing() {
        let (mut runs, mut windows) = (runs(), windows());
        runs.offer(span(0, 3), PAGE, [0b111], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(true, 0, 3)]);
        // Data in another window changes nothing.
        runs.offer(span(1020, 8), PAGE, [0b0000_1111], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(true, 1020, 4), (false, 1024, 4)]);
        runs.offer(span(1020, 8), PAGE, [0b1111_0000], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(true, 1024, 4), (false, 1020, 4)]);
        // With a key it is cheaper to write.
        windows.register_sent(windows.window_at(0, 0)).unwrap();
        runs.offer(span(0, 3), PAGE, [0b111], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(false, 0, 3)]);
    }

    #[test]
    fn long_zero_runs_are_compressed_across_offers_and_windows() {
        let (mut runs, windows) = (runs(), windows());
        for offer in 0..20 {
            runs.offer(span(offer * 128, 128), PAGE, [u64::MAX; 2], &windows).unwrap();
        }
        assert_eq!(drain(&mut runs, &windows), [(true, 0, 2560)]);
        let policy = Policy { max_compress: MIB, ..Policy::default() };
        let mut runs = Runs::new(policy).unwrap();
        runs.offer(span(0, 600), PAGE, [u64::MAX; 10], &windows).unwrap();
        assert_eq!(drain(&mut runs, &windows), [(true, 0, 256), (true, 256, 256), (true, 512, 88)]);
    }

    #[test]
    fn shared_bytes_keep_their_order() {
        let (mut runs, windows) = (runs(), windows());
        runs.offer(span(0, 32), PAGE, [u64::MAX], &windows).unwrap();
        runs.offer(span(8, 1), PAGE, [], &windows).unwrap();
        let (zero, data) = (runs.next_zero(true).unwrap(), runs.next_data(&windows, true).unwrap());
        assert!(runs.blocked(&data, false));
        assert!(!runs.blocked(&zero, true));
        // The data run grows into a range that was said to be zero later: a piece of its own.
        runs.offer(span(9, 32), PAGE, [u64::MAX], &windows).unwrap();
        runs.offer(span(9, 1), PAGE, [], &windows).unwrap();
        let orders: Vec<_> = runs.data.iter().map(|piece| piece.order).collect();
        assert_eq!(orders.len(), 2, "{runs:?}");
        // And a zero run over waiting data waits for it.
        runs.offer(span(0, 32), PAGE, [u64::MAX], &windows).unwrap();
        runs.flush(&windows);
        let last = *runs.zero.back().unwrap();
        assert!(runs.blocked(&last, true));
    }

    #[test]
    fn offers_are_bounded() {
        let (mut runs, windows) = (runs(), windows());
        assert!(runs.offer(span(0, MAX_OFFER_PAGES + 1), PAGE, [], &windows).is_err());
        assert!(runs.offer(span(0, 0), PAGE, [], &windows).is_err());
        let odd = Span { block: 0, offset: 0, len: 5000 };
        assert!(runs.offer(odd, PAGE, [], &windows).is_err());
        for page in 0..2000 {
            let taken = runs.offer(span(page * 2, 1), PAGE, [], &windows);
            assert_eq!(taken.is_ok(), page <= MAX_WAITING as u64);
        }
        assert!(!runs.has_room());
        assert!(Runs::new(Policy { max_write: 0, ..Policy::default() }).is_err());
    }
}
