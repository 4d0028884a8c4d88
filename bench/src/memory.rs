//! Memory of a benchmark: made ready, filled, summed up.

use std::{
    fs::File,
    hint::black_box,
    io::{self, Write},
    os::fd::AsRawFd,
};

use mig_ram::{BlockOptions, GuestMemory, HugePages, PAGE_SIZE, RamBlock, RamBlocks};
use mig_transport::RegionSlice;
use rustix::fs::MemfdFlags;

use crate::failure::Result;

/// Bytes filled or summed at a time.
const CHUNK: usize = 1 << 20;

/// Touches `bytes` and gives them back: memory that the host lent elsewhere is here again, and the kernel's free lists
/// look alike before every turn.
pub(crate) fn prime(bytes: u64) {
    // Not in one piece: what one piece needs, two ends need in halves.
    let pieces: Vec<Vec<u8>> = (0..bytes.div_ceil(256 << 20)).map(|_| vec![1; 256 << 20]).collect();
    black_box(&pieces);
}

/// One block of guest memory without huge pages, untouched.
pub(crate) fn guest_ram(bytes: u64) -> Result<RamBlocks> {
    let options = BlockOptions { huge_pages: HugePages::Never, ..BlockOptions::default() };
    Ok(RamBlocks::new([RamBlock::with_options("bench.ram", bytes, &options)?])?)
}

/// Zeros of our own, of which references may be made: present, and without huge pages as guest memory is.
pub(crate) fn plain_words(bytes: usize) -> Result<Vec<u64>> {
    rustix::thread::disable_transparent_huge_pages(true)?;
    let mut words = vec![0u64; bytes / 8];
    for word in words.iter_mut().step_by(PAGE_SIZE / 8) {
        *black_box(word) = 0;
    }
    rustix::thread::disable_transparent_huge_pages(false)?;
    Ok(words)
}

/// All of the one block.
pub(crate) fn whole(ram: &RamBlocks) -> RegionSlice {
    RegionSlice::whole(ram.block(0).expect("guest_ram makes one block").region)
}

/// What pages hold; the same seed gives the same bytes, in guest memory and in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Texture {
    /// They neither compress nor repeat.
    Noise,
    /// A quarter of each does not, the rest is one byte repeated: 4 : 1 for any general compressor.
    Quarter,
}

/// Fills guest memory.
pub(crate) fn fill(ram: &RegionSlice, seed: u64, texture: Texture) {
    let mut noise = Noise::new(seed, texture);
    let mut chunk = vec![0; CHUNK.min(ram.len())];
    for offset in (0..ram.len()).step_by(CHUNK) {
        let len = CHUNK.min(ram.len() - offset);
        noise.fill(&mut chunk[..len]);
        ram.sub(offset, len)
            .expect("offset and length were cut to the region")
            .copy_in(&chunk[..len]);
    }
}

/// A number that tells two memories apart, order included.
pub(crate) fn checksum(ram: &RegionSlice) -> u64 {
    let mut chunk = vec![0; CHUNK.min(ram.len())];
    let mut sum = 0u64;
    for offset in (0..ram.len()).step_by(CHUNK) {
        let len = CHUNK.min(ram.len() - offset);
        let chunk = &mut chunk[..len];
        ram.sub(offset, len).expect("offset and length were cut to the region").copy_out(chunk);
        for word in chunk.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            sum = (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
    sum
}

/// A file in memory, filled like guest memory, which another process can open by its path while this one lives.
#[derive(Debug)]
pub(crate) struct FilledFile {
    file: File,
    bytes: u64,
}

impl FilledFile {
    pub(crate) fn new(bytes: u64, seed: u64, texture: Texture) -> io::Result<Self> {
        let mut file = File::from(rustix::fs::memfd_create("mig-bench", MemfdFlags::CLOEXEC)?);
        let mut noise = Noise::new(seed, texture);
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let len = left.min(CHUNK as u64);
            let chunk = &mut chunk[..len as usize];
            noise.fill(chunk);
            file.write_all(chunk)?;
            left -= len;
        }
        Ok(Self { file, bytes })
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Repeatable noise (xorshift64*).
struct Noise {
    state: u64,
    texture: Texture,
}

impl Noise {
    fn new(seed: u64, texture: Texture) -> Self {
        Self { state: seed | 1, texture }
    }

    /// Whole pages, the last of all perhaps cut.
    fn fill(&mut self, into: &mut [u8]) {
        match self.texture {
            Texture::Noise => self.noise(into),
            Texture::Quarter => {
                for page in into.chunks_mut(PAGE_SIZE) {
                    let (noise, rest) = page.split_at_mut((PAGE_SIZE / 4).min(page.len()));
                    self.noise(noise);
                    rest.fill(0x5a);
                }
            }
        }
    }

    fn noise(&mut self, into: &mut [u8]) {
        for word in into.chunks_mut(8) {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let next = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            word.copy_from_slice(&next[..word.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::VecRegion;

    use super::*;

    #[test]
    fn the_checksum_sees_contents_and_order() {
        let ram = RegionSlice::whole(VecRegion::zeroed(8192));
        let zero = checksum(&ram);
        fill(&ram, 7, Texture::Noise);
        let filled = checksum(&ram);
        assert_ne!(filled, zero);
        fill(&ram, 8, Texture::Noise);
        assert_ne!(checksum(&ram), filled);
        let (mut first, mut second) = (vec![0; 4096], vec![0; 4096]);
        let halves = [ram.sub(0, 4096).unwrap(), ram.sub(4096, 4096).unwrap()];
        fill(&ram, 7, Texture::Noise);
        halves[0].copy_out(&mut first);
        halves[1].copy_out(&mut second);
        halves[0].copy_in(&second);
        halves[1].copy_in(&first);
        assert_ne!(checksum(&ram), filled);
    }

    #[test]
    fn a_file_holds_what_guest_memory_holds() {
        const BYTES: usize = CHUNK + 3 * PAGE_SIZE;
        for texture in [Texture::Noise, Texture::Quarter] {
            let ram = RegionSlice::whole(VecRegion::zeroed(BYTES));
            fill(&ram, 7, texture);
            let mut memory = vec![0; BYTES];
            ram.copy_out(&mut memory);
            let file = FilledFile::new(BYTES as u64, 7, texture).unwrap();
            assert!(memory == std::fs::read(file.path()).unwrap(), "{texture:?}");
            let last = &memory[BYTES - PAGE_SIZE..];
            let repeats = last[PAGE_SIZE / 4..].iter().all(|byte| *byte == 0x5a);
            assert_eq!(repeats, texture == Texture::Quarter);
        }
    }
}
