//! Compresses the pages of packets, where they are compressed (docs/wire/ram.md §9.6).

use std::{
    mem::take,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use mig_compress::{Budget, Compressor, Level, MAX_SAMPLE_BYTES, choose_level, payload_bound};
use mig_proto::multifd::{Method, PACKET_PAGES};
use mig_ram::PAGE_SIZE;

use super::{
    lane::processors,
    slow_compressor::{Packet, SlowCompressor},
};
use crate::{
    error::{Error, Result},
    parameters::{MultifdCompression, Parameters},
    source::pages::{Block, Pages},
};

/// How the pages of all channels are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    pub(crate) method: Method,
    /// Not looked at where nothing is compressed.
    pub(crate) level: Level,
    /// The level follows what the channel does with it. Only zlib's can change.
    adapts: bool,
}

/// What choosing a level may take; a cancel waits for it.
const CHOICE_TIME: Duration = Duration::from_millis(50);

/// Pages that are looked at for a sample.
const SAMPLE_PAGES: usize = MAX_SAMPLE_BYTES / PAGE_SIZE;

/// Packets after which a level that adapts is thought over.
const REVIEW_PACKETS: u32 = 32;

/// Levels between which one adapts: 0 stores, and above 6 zlib gains next to nothing for twice the time.
const ADAPTING: RangeInclusive<i32> = 1..=6;

/// From this level on zstd takes longer for a packet than a cancel may wait: 4 MB/s and less, and tables to be set up first.
const SLOW_ZSTD: i32 = 13;

/// One channel's compressor, for the channel's whole life. Costs the channel 1.1 MiB beside the library's own state.
pub(super) struct Packer {
    stream: Option<Stream>,
}

struct Stream {
    place: Place,
    /// The guest goes on writing: what is compressed must hold still.
    pages: Vec<u8>,
    payload: Vec<u8>,
    adapts: bool,
    /// Since the level was last thought over.
    recent: Spent,
    packets: u32,
}

/// Where pages are compressed.
enum Place {
    /// On the lane, which hears a cancel after each packet.
    Here(Compressor),
    /// Beside it, because that would take too long.
    Aside(SlowCompressor),
}

impl Place {
    fn of(compressor: Compressor) -> Result<Self> {
        let slow = compressor.method() == mig_compress::Method::Zstd
            && compressor.level().number() >= SLOW_ZSTD;
        Ok(match slow {
            true => Self::Aside(SlowCompressor::start(compressor)?),
            false => Self::Here(compressor),
        })
    }
}

/// What compressing cost, and what it brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) compressing: Duration,
    pub(super) waiting: Duration,
    /// Processor time of other threads than the lane's.
    pub(super) aside: Duration,
}

impl Spent {
    pub(super) fn add(&mut self, other: &Self) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.compressing += other.compressing;
        self.waiting += other.waiting;
        self.aside += other.aside;
    }
}

impl Packing {
    /// What the parameters ask for; where they name no level, one is chosen by a sample of what is to be sent, which
    /// takes no longer than [`CHOICE_TIME`].
    pub(crate) fn chosen(parameters: &Parameters, pages: &Pages) -> Result<Self> {
        let method = match parameters.multifd_compression {
            MultifdCompression::None => Method::None,
            MultifdCompression::Zlib => Method::Zlib,
            MultifdCompression::Zstd => Method::Zstd,
        };
        let asked = match method {
            Method::Zlib => parameters.multifd_zlib_level.map(i32::from),
            _ => parameters.multifd_zstd_level.map(i32::from),
        };
        let mut packing = Self { method, level: Level::DEFAULT, adapts: false };
        let Some(compression) = packing.compression()? else { return Ok(packing) };
        if let Some(asked) = asked {
            packing.level =
                Level::new(compression, asked).map_err(|error| Error::misuse(error.to_string()))?;
            return Ok(packing);
        }
        let processors = processors();
        let budget = Budget {
            link_bytes_per_sec: Some(parameters.max_bandwidth).filter(|rate| *rate > 0),
            workers: u32::from(parameters.multifd_channels)
                .min(u32::try_from(processors).unwrap_or(u32::MAX)),
            time: CHOICE_TIME,
        };
        let choice = choose_level(compression, &sample(pages), budget).map_err(failed)?;
        tracing::info!(
            %compression,
            level = %choice.level,
            ratio = choice.ratio,
            mib_per_sec = choice.compress_bytes_per_sec / f64::from(1 << 20),
            "compression level chosen by a sample"
        );
        packing.level = choice.level;
        packing.adapts = compression == mig_compress::Method::Zlib;
        Ok(packing)
    }

    /// What `mig-compress` calls the method; `None` where pages go as they are.
    pub(crate) fn compression(&self) -> Result<Option<mig_compress::Method>> {
        match self.method {
            Method::None => Ok(None),
            Method::Zlib => Ok(Some(mig_compress::Method::Zlib)),
            Method::Zstd => Ok(Some(mig_compress::Method::Zstd)),
            other => Err(Error::misuse(format!("multifd-compression {other} belongs to hardware"))),
        }
    }
}

impl Packer {
    pub(super) fn new(packing: &Packing) -> Result<Self> {
        let Some(method) = packing.compression()? else { return Ok(Self { stream: None }) };
        let compressor = Compressor::new(method, packing.level).map_err(failed)?;
        const PACKET: usize = PACKET_PAGES * PAGE_SIZE;
        let stream = Stream {
            place: Place::of(compressor)?,
            pages: Vec::with_capacity(PACKET),
            payload: Vec::with_capacity(payload_bound(PACKET)),
            adapts: packing.adapts,
            recent: Spent::default(),
            packets: 0,
        };
        Ok(Self { stream: Some(stream) })
    }

    /// The payload of a packet with these pages of a block, and what it cost; empty where nothing is compressed, and
    /// where there are no pages.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the compressor has taken a part of a packet.
    pub(super) async fn pack(&mut self, block: &Block, offsets: &[u64]) -> Result<(&[u8], Spent)> {
        let Some(stream) = self.stream.as_mut().filter(|_| !offsets.is_empty()) else {
            return Ok((&[], Spent::default()));
        };
        stream.pages.resize(offsets.len() * PAGE_SIZE, 0);
        for (offset, page) in offsets.iter().zip(stream.pages.chunks_mut(PAGE_SIZE)) {
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            block.region.copy_out_at(at, page).map_err(|error| Error::misuse(error.to_string()))?;
        }
        stream.payload.clear();
        let begun = Instant::now();
        let mut aside = Duration::ZERO;
        match &mut stream.place {
            Place::Here(compressor) => {
                compressor.compress(&stream.pages, &mut stream.payload).map_err(failed)?;
            }
            Place::Aside(compressor) => {
                let (pages, payload) = (take(&mut stream.pages), take(&mut stream.payload));
                let packed = compressor.pack(Packet { pages, payload, cpu: aside }).await?;
                (stream.pages, stream.payload, aside) = (packed.pages, packed.payload, packed.cpu);
            }
        }
        let spent = Spent {
            bytes_in: stream.pages.len() as u64,
            bytes_out: stream.payload.len() as u64,
            compressing: begun.elapsed(),
            waiting: Duration::ZERO,
            aside,
        };
        Ok((&stream.payload, spent))
    }

    /// A packet went, and this is what it cost, the wait for the channel included.
    pub(super) fn sent(&mut self, spent: &Spent) -> Result<()> {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.adapts) else {
            return Ok(());
        };
        let Place::Here(compressor) = &mut stream.place else { return Ok(()) };
        stream.recent.add(spent);
        stream.packets += 1;
        if stream.packets < REVIEW_PACKETS {
            return Ok(());
        }
        stream.packets = 0;
        let recent = take(&mut stream.recent);
        let level = compressor.level().number();
        let better = adapted(level, &recent);
        if better != level {
            let better = Level::new(compressor.method(), better).map_err(failed)?;
            compressor.set_level(better).map_err(failed)?;
            tracing::debug!(level = %better, "zlib level changed");
        }
        Ok(())
    }
}

/// The next level: less effort where the channel waits for the compressor, more where the compressor waits.
fn adapted(level: i32, recent: &Spent) -> i32 {
    let all = recent.compressing + recent.waiting;
    if !ADAPTING.contains(&level) || all.is_zero() {
        return level;
    }
    let better = match recent.compressing.div_duration_f64(all) {
        share if share > 0.75 => level - 1,
        share if share < 0.4 => level + 1,
        _ => level,
    };
    better.clamp(*ADAPTING.start(), *ADAPTING.end())
}

/// Pages from all over the guest's memory, as they would be compressed: zero pages are not.
fn sample(pages: &Pages) -> Vec<u8> {
    let total = usize::try_from(pages.total_bytes()).unwrap_or(usize::MAX) / PAGE_SIZE;
    // Some are zero: look at twice as many as are wanted.
    let stride = total.div_ceil(2 * SAMPLE_PAGES).max(1);
    let mut sample = Vec::with_capacity(MAX_SAMPLE_BYTES);
    let mut page = [0; PAGE_SIZE];
    for block in pages.blocks() {
        let count = usize::try_from(block.used_length).unwrap_or(usize::MAX) / PAGE_SIZE;
        for number in (0..count).step_by(stride) {
            if sample.len() == MAX_SAMPLE_BYTES {
                return sample;
            }
            let copied = block.region.copy_out_at(number * PAGE_SIZE, &mut page);
            if copied.is_ok() && page.iter().any(|byte| *byte != 0) {
                sample.extend_from_slice(&page);
            }
        }
    }
    sample
}

fn failed(error: mig_compress::Error) -> Error {
    Error::misuse("compressing pages").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(compressing: u64, waiting: u64) -> Spent {
        Spent {
            compressing: Duration::from_millis(compressing),
            waiting: Duration::from_millis(waiting),
            ..Spent::default()
        }
    }

    /// A packet at the highest level takes most of a second, which nobody waits for who wants to end.
    #[tokio::test]
    async fn a_slow_level_is_waited_for_beside_and_its_payload_is_whole() {
        let ram =
            mig_ram::RamBlocks::new([mig_ram::RamBlock::new("x", 512 << 10).unwrap()]).unwrap();
        let memory: &dyn mig_ram::GuestMemory = &ram;
        let mut noise = vec![0; 512 << 10];
        let mut state = 1_u32;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 28) as u8;
        }
        memory.block(0).unwrap().region.copy_in_at(0, &noise).unwrap();
        let pages = Pages::new(memory).unwrap();
        let level = Level::new(mig_compress::Method::Zstd, 20).unwrap();
        let packing = Packing { method: Method::Zstd, level, adapts: false };
        let mut packer = Packer::new(&packing).unwrap();
        let offsets: Vec<u64> = (0..PACKET_PAGES).map(|page| (page * PAGE_SIZE) as u64).collect();
        let (payload, spent) = packer.pack(&pages.blocks()[0], &offsets).await.unwrap();
        assert!(spent.aside > Duration::ZERO, "it was compressed on the lane");
        assert_eq!(spent.bytes_in, 512 << 10);
        let mut unpacked = vec![0; 512 << 10];
        let mut decompressor = mig_compress::Decompressor::new(mig_compress::Method::Zstd).unwrap();
        decompressor.decompress(payload, &mut unpacked).unwrap();
        assert!(unpacked == noise);
    }

    #[test]
    fn the_level_follows_what_is_waited_for() {
        assert_eq!(adapted(3, &spent(90, 10)), 2, "the channel waits");
        assert_eq!(adapted(3, &spent(10, 90)), 4, "the compressor waits");
        assert_eq!(adapted(3, &spent(50, 50)), 3);
        assert_eq!(adapted(1, &spent(100, 0)), 1, "as cheap as it gets");
        assert_eq!(adapted(6, &spent(0, 100)), 6);
        assert_eq!(adapted(0, &spent(0, 100)), 0, "chosen because nothing compresses");
        assert_eq!(adapted(3, &spent(0, 0)), 3);
    }
}
