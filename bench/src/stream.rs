//! A migration's bytes, made by hand: as many rounds over a guest's memory as one likes.

use mig_proto::{Configuration, Name, RamWord, SectionHeader, SectionKind, encode};

const PAGE: usize = 4096;

/// The stream of a guest without devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    ram_pages: usize,
}

impl Stream {
    /// Of a guest that has so many pages.
    pub(crate) const fn of_pages(ram_pages: usize) -> Self {
        Self { ram_pages }
    }

    /// The guest's memory.
    pub(crate) const fn ram_bytes(self) -> usize {
        self.ram_pages * PAGE
    }

    /// Header, configuration, and the blocks of memory.
    pub(crate) fn head(self) -> Vec<u8> {
        let mut stream = beginning();
        encode::section(&mut stream, &header(SectionKind::Start));
        let blocks = [encode::Block::new(block(), self.ram_bytes() as u64)];
        encode::block_list(&mut stream, blocks.into_iter());
        end(&mut stream);
        stream
    }

    /// All of memory once more.
    pub(crate) fn round(self, contents: u8) -> Vec<u8> {
        let mut stream = Vec::with_capacity(self.ram_pages * (PAGE + 8) + 300);
        encode::section(&mut stream, &header(SectionKind::Part));
        let mut continued = encode::ContinueMemory::new();
        for page in 0..self.ram_pages {
            let word = continued.word(0, RamWord::page((page * PAGE) as u64));
            encode::page_head(&mut stream, word, block());
            let filled = stream.len() + PAGE;
            stream.resize(filled, contents | 1);
        }
        end(&mut stream);
        stream
    }

    /// The end of memory and of the stream, without a VMDESC.
    pub(crate) fn tail() -> Vec<u8> {
        let mut stream = Vec::new();
        encode::section(&mut stream, &header(SectionKind::End));
        end(&mut stream);
        stream.push(encode::EOF);
        stream
    }
}

/// Header and configuration: what any stream of such a guest begins with.
pub(crate) fn beginning() -> Vec<u8> {
    let mut stream = encode::FILE_HEADER.to_vec();
    let configuration = Configuration::new(b"mig-bench-1").expect("a short name");
    encode::configuration(&mut stream, &configuration);
    stream
}

fn header(kind: SectionKind) -> SectionHeader<'static> {
    let idstr = Name::new(b"ram").expect("three bytes");
    SectionHeader { kind, section_id: 1, idstr, instance_id: 0, version_id: 4 }
}

fn block() -> Name<'static> {
    Name::new(b"bench.ram").expect("nine bytes")
}

fn end(stream: &mut Vec<u8>) {
    encode::ram_word(stream, RamWord::EOS);
    stream.extend_from_slice(&encode::footer(1));
}
