//! Receiving ahead of the decoder: while pages come one after the other, each is read straight into the buffer from
//! which it is placed, and its record's word beside it.
//!
//! ```text
//!   normal:  channel ─▶ read buffer ─▶ decoder ─▶ copied to staging ─▶ placed
//!   ahead:   channel ─┬▶ words   ─▶ decoder ─┐
//!                     └▶ staging ────────────┴──────────────────────▶ placed
//! ```
//!
//! It is a guess about the stream's next bytes: word, page, word, page. The words are looked at first, and from the first
//! one that is anything else, all bytes are given back to the reader in order, as if they had come in its buffer. A wrong
//! guess costs a copy of at most one staging buffer, and the next one is made only after a longer row of pages.

use std::io::IoSliceMut;

use mig_proto::RamWord;
use mig_ram::PAGE_SIZE;
use mig_stream::StreamReader;

use super::loader::Loader;
use crate::{
    error::Result,
    turn::Turn,
    walk::{InputEnd, StreamWalk},
};

/// A word and its page.
const PAIR: usize = WORD + PAGE_SIZE;
const WORD: usize = size_of::<u64>();

/// How many pages in a row make the first guess worth it.
const FIRST_ROW: u64 = 64;
/// However often a guess fails, after so many pages in a row another one is made.
const LONGEST_ROW: u64 = 64 * 1024;
/// A guess that brought fewer pages than this did not pay.
const WORTH_PAGES: u64 = 128;
/// Pages at a read: the kernel takes 1024 pieces at a call.
const MOST_PAIRS: usize = 512;

/// Whether to guess, and what a guess needs.
#[derive(Debug)]
pub(super) struct Ahead {
    words: Vec<[u8; WORD]>,
    row: u64,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self { words: Vec::new(), row: FIRST_ROW }
    }

    /// Receives pages for as long as nothing else comes, if so many came in a row that it is worth trying; answers
    /// whether it did. What was not a page is in the reader's buffer then, to be decoded before anything is read.
    ///
    /// # Errors
    ///
    /// What the reader, the decoder or the placer answers; all are final.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the stream may be lost.
    pub(super) async fn receive(
        &mut self,
        reader: &mut StreamReader,
        walk: &mut StreamWalk,
        loader: &mut Loader<'_>,
        turn: &mut Turn,
        mut told: impl FnMut(&mut Loader<'_>),
    ) -> Result<bool> {
        if loader.row() < self.row || loader.lend().is_none() {
            return Ok(false);
        }
        if !finish_page(reader, walk, loader).await? {
            return Ok(false);
        }
        let before = loader.row();
        self.read_pairs(reader, walk, loader, turn, &mut told).await?;
        self.row = if loader.row() - before >= WORTH_PAGES {
            FIRST_ROW
        } else {
            (self.row * 4).min(LONGEST_ROW)
        };
        loader.end_row();
        Ok(true)
    }

    async fn read_pairs(
        &mut self,
        reader: &mut StreamReader,
        walk: &mut StreamWalk,
        loader: &mut Loader<'_>,
        turn: &mut Turn,
        told: &mut impl FnMut(&mut Loader<'_>),
    ) -> Result<()> {
        let most = MOST_PAIRS.min(reader.capacity() / PAIR);
        self.words.resize(most, [0; WORD]);
        // Of a word the reader may have the beginning.
        let mut filled = reader.buffer().len();
        self.words[0][..filled].copy_from_slice(reader.buffer());
        reader.consume(filled);
        // `filled` counts the bytes since the beginning of the first word whose page was not handed in; that page lies
        // in the first slot that is lent.
        while let Some(lent) = loader.lend() {
            let came = {
                let mut pieces = Vec::with_capacity(2 * most);
                let mut done = filled;
                for (word, page) in self.words.iter_mut().zip(lent.chunks_mut(PAGE_SIZE)) {
                    for piece in [&mut word[..], page] {
                        let here = done.min(piece.len());
                        done -= here;
                        pieces.push(IoSliceMut::new(&mut piece[here..]));
                    }
                }
                reader.read_vectored(&mut pieces).await?
            };
            filled += came;

            let mut taken = 0;
            while filled >= WORD && came > 0 {
                let word = self.words[taken];
                if !is_next_page(word) {
                    return self.give_back(taken, filled, reader, loader);
                }
                if filled < PAIR {
                    break;
                }
                if !walk.page_word(&word, |piece| loader.visit(&piece))? {
                    return self.give_back(taken, filled, reader, loader);
                }
                if !loader.take_lent()? {
                    // The decoder has the word, and waits for the page.
                    return self.give_back_from(taken, WORD, filled, reader, loader);
                }
                walk.page_landed();
                filled -= PAIR;
                taken += 1;
            }
            if came == 0 {
                return self.give_back(taken, filled, reader, loader);
            }
            told(loader);
            turn.pause().await;
            // What came of the next page is in the slot that is the first one now; its word has to follow.
            if taken < most {
                self.words[0] = self.words[taken];
            }
        }
        Ok(())
    }

    fn give_back(
        &self,
        pair: usize,
        filled: usize,
        reader: &mut StreamReader,
        loader: &mut Loader<'_>,
    ) -> Result<()> {
        self.give_back_from(pair, 0, filled, reader, loader)
    }

    /// Gives `filled` bytes back to the reader, from the word at `pair` on, less the first `skip` of them. The page of
    /// that word lies in the first slot that is lent.
    fn give_back_from(
        &self,
        pair: usize,
        skip: usize,
        filled: usize,
        reader: &mut StreamReader,
        loader: &mut Loader<'_>,
    ) -> Result<()> {
        let lent = loader.lend().unwrap_or_default();
        let (mut skip, mut left) = (skip, filled);
        let pairs = self.words[pair..].iter().zip(lent.chunks(PAGE_SIZE));
        let pieces = pairs.flat_map(|(word, page)| [&word[..], page]).map(|piece| {
            let piece = &piece[..left.min(piece.len())];
            left -= piece.len();
            let piece = &piece[skip.min(piece.len())..];
            skip = 0;
            piece
        });
        Ok(reader.give_back(pieces)?)
    }
}

/// Reads the rest of a page that came in part; false if the stream goes on with anything but a word.
///
/// # Cancel safety
///
/// Not cancel safe: a page may be lost.
async fn finish_page(
    reader: &mut StreamReader,
    walk: &mut StreamWalk,
    loader: &mut Loader<'_>,
) -> Result<bool> {
    while walk.payload_left() > 0 {
        if reader.fill_at_most(walk.payload_left()).await? == 0 {
            return Ok(false);
        }
        let walked = walk.walk(reader.buffer(), InputEnd::Open, |piece| loader.visit(&piece))?;
        reader.consume(walked.consumed);
    }
    Ok(reader.buffer().len() < WORD)
}

/// Whether a word is that of a page which follows another one of its block, the only guess there is.
fn is_next_page(word: [u8; WORD]) -> bool {
    const FLAGS: u64 = RamWord::page(0).continued().raw();
    u64::from_be_bytes(word) & (PAGE_SIZE as u64 - 1) == FLAGS
}
