//! Pages received straight into the staging of the placer: whatever the stream holds and however it is cut, the memory
//! is that of a stream read in order.

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use mig_engine::{Destination, Error};
use mig_proto::{
    Configuration, Deflated, Delta, Name, RamWord, SectionHeader, SectionKind,
    encode::{self, Block, ContinueMemory},
};
use mig_ram::{PAGE_SIZE, PlaceMechanism, RamBlock, RamBlocks};
use mig_transport::{Channel, ChannelParts, ReceiveHalf};
use proptest::prelude::*;
use tokio::io::{AsyncRead, ReadBuf};

use crate::support::{Arriving, Diary, TestGuest, stored_zlib, whole};

const PAGES: [usize; 2] = [2048, 64];
const NAMES: [&str; 2] = ["test.ram", "test.rom"];

/// Gives out a stream in chunks of the sizes named, again and again.
struct Cut {
    stream: Vec<u8>,
    given: usize,
    sizes: Vec<usize>,
    next: usize,
}

impl Cut {
    fn chunk(&mut self, room: usize) -> &[u8] {
        let size = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        let from = self.given;
        self.given += size.min(room).min(self.stream.len() - from);
        &self.stream[from..self.given]
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = into.remaining();
        into.put_slice(self.chunk(room));
        Poll::Ready(Ok(()))
    }
}

impl ReceiveHalf for Cut {
    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = into.iter().map(|piece| piece.len()).sum();
        let mut rest = self.chunk(room);
        let came = rest.len();
        for piece in into {
            let (here, after) = rest.split_at(rest.len().min(piece.len()));
            piece[..here.len()].copy_from_slice(here);
            rest = after;
        }
        Poll::Ready(Ok(came))
    }
}

/// What a section of RAM holds, piece by piece.
#[derive(Clone, Debug)]
enum Piece {
    /// Pages in a row, filled from this byte on.
    Pages { block: usize, first: usize, count: usize, fill: u8 },
    /// Zero pages in a row.
    Zeros { block: usize, first: usize, count: usize },
    /// Deltas in a row: each of these pages gets this byte at this place, twice.
    Deltas { block: usize, first: usize, count: usize, at: usize, fill: u8 },
    /// Pages in a row, each a zlib stream.
    Deflated { block: usize, first: usize, count: usize, fill: u8 },
    /// One section ends, the next one begins.
    Section,
}

struct Writer {
    out: Vec<u8>,
    continued: ContinueMemory,
    /// What memory holds after it.
    model: [Vec<u8>; 2],
}

impl Writer {
    fn new() -> Self {
        let mut out = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut out, &Configuration::new(b"test-1.0").unwrap());
        let mut writer = Self {
            out,
            continued: ContinueMemory::new(),
            model: PAGES.map(|pages| vec![0; pages * PAGE_SIZE]),
        };
        writer.begin(SectionKind::Start);
        let blocks = NAMES.iter().zip(PAGES).map(|(name, pages)| {
            Block::new(Name::new(name.as_bytes()).unwrap(), (pages * PAGE_SIZE) as u64)
        });
        encode::block_list(&mut writer.out, blocks);
        writer.end();
        writer.begin(SectionKind::Part);
        writer
    }

    fn begin(&mut self, kind: SectionKind) {
        let idstr = Name::new(b"ram").unwrap();
        let header = SectionHeader { kind, section_id: 2, idstr, instance_id: 0, version_id: 4 };
        encode::section(&mut self.out, &header);
    }

    fn end(&mut self) {
        encode::ram_word(&mut self.out, RamWord::EOS);
        self.out.extend_from_slice(&encode::footer(2));
    }

    fn put(&mut self, piece: &Piece) {
        match *piece {
            Piece::Pages { block, first, count, fill } => {
                for page in first..first + count {
                    let word = RamWord::page((page * PAGE_SIZE) as u64);
                    let word = self.continued.word(block as u32, word);
                    let name = Name::new(NAMES[block].as_bytes()).unwrap();
                    encode::page_head(&mut self.out, word, name);
                    let bytes: Vec<u8> =
                        (0..PAGE_SIZE).map(|at| fill ^ (at as u8) ^ (page as u8)).collect();
                    self.out.extend_from_slice(&bytes);
                    self.page(block, page).copy_from_slice(&bytes);
                }
            }
            Piece::Zeros { block, first, count } => {
                for page in first..first + count {
                    let word = RamWord::zero((page * PAGE_SIZE) as u64);
                    let word = self.continued.word(block as u32, word);
                    let name = Name::new(NAMES[block].as_bytes()).unwrap();
                    encode::zero_page(&mut self.out, word, name);
                    self.page(block, page).fill(0);
                }
            }
            Piece::Deltas { block, first, count, at, fill } => {
                for page in first..first + count {
                    let word = RamWord::xbzrle((page * PAGE_SIZE) as u64);
                    let word = self.continued.word(block as u32, word);
                    let name = Name::new(NAMES[block].as_bytes()).unwrap();
                    let delta = [at as u8 | 0x80, (at >> 7) as u8, 2, fill, fill];
                    encode::xbzrle_page(&mut self.out, word, name, Delta::new(&delta).unwrap());
                    self.page(block, page)[at..at + 2].fill(fill);
                }
            }
            Piece::Deflated { block, first, count, fill } => {
                for page in first..first + count {
                    let word = RamWord::compressed((page * PAGE_SIZE) as u64);
                    let word = self.continued.word(block as u32, word);
                    let name = Name::new(NAMES[block].as_bytes()).unwrap();
                    let bytes = [fill ^ page as u8; PAGE_SIZE];
                    let zlib = stored_zlib(&bytes);
                    let data = Deflated::new(&zlib).unwrap();
                    encode::compressed_page(&mut self.out, word, name, data);
                    self.page(block, page).copy_from_slice(&bytes);
                }
            }
            Piece::Section => {
                self.end();
                self.begin(SectionKind::Part);
            }
        }
    }

    fn page(&mut self, block: usize, page: usize) -> &mut [u8] {
        &mut self.model[block][page * PAGE_SIZE..(page + 1) * PAGE_SIZE]
    }

    /// The end of the last section, and of the stream.
    fn finish(mut self) -> (Vec<u8>, [Vec<u8>; 2]) {
        self.end();
        self.begin(SectionKind::End);
        self.end();
        self.out.push(0);
        (self.out, self.model)
    }
}

struct Arrived {
    outcome: Result<(), Error>,
    ram: Arc<RamBlocks>,
    /// Pages received ahead; `None` where this system has no userfaultfd.
    lent: Option<u64>,
}

fn receive(stream: Vec<u8>, sizes: Vec<usize>) -> Arrived {
    let blocks = NAMES.iter().zip(PAGES);
    let ram = Arc::new(
        RamBlocks::new(
            blocks.map(|(name, pages)| RamBlock::new(name, (pages * PAGE_SIZE) as u64).unwrap()),
        )
        .unwrap(),
    );
    let channel = Channel::new(ChannelParts {
        receive: Some(Box::new(Cut { stream, given: 0, sizes, next: 0 })),
        ..ChannelParts::default()
    });
    let mut destination =
        Destination::new(ram.clone(), Box::new(TestGuest::new(&Diary::default())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(destination.run(&mut Arriving::new([channel]))).map(drop);
    let lent = destination.placement().and_then(|placement| {
        let in_bulk = placement.info().mechanism == PlaceMechanism::Userfault;
        in_bulk.then(|| placement.statistics().pages_lent)
    });
    Arrived { outcome, ram, lent }
}

fn check(ram: &RamBlocks, model: &[Vec<u8>; 2]) {
    for (index, expected) in model.iter().enumerate() {
        let mut bytes = vec![0; expected.len()];
        whole(ram, index).copy_out(&mut bytes);
        let wrong = bytes.chunks(PAGE_SIZE).zip(expected.chunks(PAGE_SIZE));
        let wrong: Vec<usize> =
            wrong.enumerate().filter(|(_, (a, b))| a != b).map(|p| p.0).collect();
        assert!(wrong.is_empty(), "pages {wrong:?} of block {index} differ");
    }
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let pages = |block: usize, longest: usize| {
        (0..PAGES[block], 1..longest, any::<u8>()).prop_map(move |(first, count, fill)| {
            let count = count.min(PAGES[block] - first);
            Piece::Pages { block, first, count, fill }
        })
    };
    let piece = prop_oneof![
        4 => pages(0, 700),
        2 => pages(0, 4),
        1 => pages(1, 64),
        1 => (0..PAGES[0], 1_usize..80).prop_map(|(first, count)| {
            Piece::Zeros { block: 0, first, count: count.min(PAGES[0] - first) }
        }),
        2 => (0..2_usize, 0..64_usize, 1_usize..20, 0..PAGE_SIZE - 1, any::<u8>()).prop_map(
            |(block, first, count, at, fill)| {
                Piece::Deltas { block, first, count: count.min(PAGES[1] - first), at, fill }
            }
        ),
        1 => (0..2_usize, 0..64_usize, 1_usize..20, any::<u8>()).prop_map(
            |(block, first, count, fill)| {
                Piece::Deflated { block, first, count: count.min(PAGES[1] - first), fill }
            }
        ),
        1 => Just(Piece::Section),
    ];
    prop::collection::vec(piece, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_is_that_of_the_stream_however_it_is_cut(
        pieces in pieces(),
        sizes in prop::collection::vec(
            prop_oneof![1_usize..40, 4000_usize..4300, 10_000_usize..2_000_000],
            1..6,
        ),
    ) {
        // Byte by byte takes too long for megabytes.
        prop_assume!(sizes.iter().sum::<usize>() > 3000 * sizes.len());
        let mut writer = Writer::new();
        for piece in &pieces {
            writer.put(piece);
        }
        let (stream, model) = writer.finish();
        let arrived = receive(stream, sizes);
        arrived.outcome.unwrap();
        check(&arrived.ram, &model);
    }
}

#[test]
fn most_pages_of_a_long_row_are_received_where_they_are_placed_from() {
    let mut writer = Writer::new();
    writer.put(&Piece::Pages { block: 0, first: 0, count: 2000, fill: 9 });
    // Within the staging buffer that holds it already.
    writer.put(&Piece::Pages { block: 0, first: 1990, count: 20, fill: 7 });
    writer.put(&Piece::Zeros { block: 0, first: 100, count: 3 });
    let (stream, model) = writer.finish();
    let arrived = receive(stream, vec![200_000]);
    arrived.outcome.unwrap();
    check(&arrived.ram, &model);
    if let Some(lent) = arrived.lent {
        assert!((1500..=2020).contains(&lent), "{lent} of 2020 pages");
    }
}

#[test]
fn a_stream_cut_or_wrong_in_a_long_row_fails_as_everywhere() {
    let mut writer = Writer::new();
    writer.put(&Piece::Pages { block: 0, first: 0, count: 1000, fill: 9 });
    let (stream, _) = writer.finish();
    for missing in [2_000_000, 2_000_001, 2_000_010, 2_004_104] {
        let cut = stream[..stream.len() - missing].to_vec();
        let len = cut.len();
        let error = receive(cut, vec![100_000]).outcome.unwrap_err();
        assert!(error.to_string().contains("ends"), "{error}");
        assert!(error.to_string().contains(&len.to_string()), "{error} (of {len} bytes)");
    }
    // The word of page 500 names a page behind the block's end.
    let right = RamWord::page(500 * 4096).continued().raw().to_be_bytes();
    let word = stream.windows(8).position(|window| *window == right).unwrap();
    let mut wrong = stream;
    wrong[word..word + 8]
        .copy_from_slice(&RamWord::page(5000 * 4096).continued().raw().to_be_bytes());
    let error = receive(wrong, vec![100_000]).outcome.unwrap_err();
    assert!(error.to_string().contains(&word.to_string()), "{error} (at {word})");
}

#[test]
fn a_page_that_cannot_be_made_is_the_sources_fault_and_named() {
    let long = stored_zlib(&[7; PAGE_SIZE + 1]);
    let damaged: Vec<u8> = stored_zlib(&[7; PAGE_SIZE]).into_iter().rev().collect();
    let whole = stored_zlib(&[7; PAGE_SIZE]);
    let deflated = [&long[..], &damaged, &whole[..whole.len() - 1]];
    let deltas: [&[u8]; 3] = [&[5], &[0xff, 0x1f, 2, 1, 2], &[1, 1, 7, 0, 1, 7]];
    let records = deflated.iter().map(|bytes| (true, *bytes));
    for (compressed, bytes) in records.chain(deltas.iter().map(|bytes| (false, *bytes))) {
        let mut writer = Writer::new();
        writer.put(&Piece::Pages { block: 0, first: 0, count: 1, fill: 9 });
        let (position, name) = (writer.out.len(), Name::new(b"test.rom").unwrap());
        let what = if compressed {
            let data = Deflated::new(bytes).unwrap();
            encode::compressed_page(&mut writer.out, RamWord::compressed(0x7000), name, data);
            "compressed data"
        } else {
            let delta = Delta::new(bytes).unwrap();
            encode::xbzrle_page(&mut writer.out, RamWord::xbzrle(0x7000), name, delta);
            "XBZRLE delta"
        };
        let error = receive(writer.finish().0, vec![100_000]).outcome.unwrap_err();
        assert_eq!(error.blame(), mig_transport::Blame::PeerMisbehaved, "{error}");
        assert_eq!(error.position(), Some(position as u64), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{what} for page 0x7000 of block 'test.rom'")), "{text}");
    }
}

#[test]
fn a_block_list_behind_a_long_row_is_no_page_whatever_it_looks_like() {
    let mut writer = Writer::new();
    writer.put(&Piece::Pages { block: 0, first: 0, count: 100, fill: 9 });
    encode::ram_word(&mut writer.out, RamWord::mem_size(1 << 20));
    // The length of a name and its beginning; the low bits are those of a page that follows another one.
    let (mut stream, begun) = (writer.out, RamWord::page(0).continued().raw() as u8);
    stream.extend_from_slice(&[5, 0x41, 0x41, 0x41, 0x41, 0x41, 0, begun]);
    let list = stream.len();
    stream.resize(list + 2 * PAGE_SIZE, 0x41);
    // Cut where the reader looks up: right behind the word of the list, and elsewhere.
    for sizes in [vec![list - 8, 1 << 20], vec![list, 1 << 20], vec![100_000]] {
        let error = receive(stream.clone(), sizes).outcome.unwrap_err();
        assert_eq!(error.blame(), mig_transport::Blame::PeerMisbehaved, "{error}");
    }
}
