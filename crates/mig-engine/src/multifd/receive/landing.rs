//! Pages of one data channel on their way into memory: as few system calls and copies as can be.
//!
//! ```text
//!   memory that exists:    readv ─▶ the pages themselves      ┐ and the next packet's
//!   memory that does not:  readv ─▶ staging ─▶ UFFDIO_COPY    ┘ header in the same call
//!   compressed:            fill ──▶ buffer ─▶ inflated ─▶ copied or staged
//! ```
//!
//! A page that is still staged when it comes again is the one case in which what was read must go back into the reader's
//! buffer: no honest source sends that.

use std::{io::IoSliceMut, sync::Arc};

use mig_compress::Decompressor;
use mig_proto::multifd::{HEADER_LEN, Method, PACKET_PAGES};
use mig_ram::{PAGE_SIZE, Placer};
use mig_stream::StreamReader;
use mig_transport::{Region, RegionSlice, VecRegion};

use crate::error::{Error, Result};

/// See the module.
pub(super) struct Landing {
    placer: Placer,
    unpacking: Option<Unpacking>,
    places: Vec<RegionSlice>,
    next_header: NextHeader,
}

/// Where the next packet's header is read to, when it is read with this packet's pages.
struct NextHeader {
    bytes: Box<[u8; HEADER_LEN]>,
    /// The same for reads into guest memory.
    region: Arc<dyn Region>,
}

struct Unpacking {
    decompressor: Decompressor,
    pages: Box<[u8]>,
}

impl Landing {
    pub(super) fn new(placer: Placer, method: Method) -> Result<Self> {
        let method = match method {
            Method::None => None,
            Method::Zlib => Some(mig_compress::Method::Zlib),
            Method::Zstd => Some(mig_compress::Method::Zstd),
            other => {
                return Err(Error::misuse(format!(
                    "multifd-compression {other} belongs to hardware"
                )));
            }
        };
        let unpacking = method.map(|method| {
            let decompressor = Decompressor::new(method).map_err(|e| unpacked(&e))?;
            let pages = vec![0; PACKET_PAGES * PAGE_SIZE].into_boxed_slice();
            Ok::<_, Error>(Unpacking { decompressor, pages })
        });
        let next_header =
            NextHeader { bytes: Box::new([0; HEADER_LEN]), region: VecRegion::zeroed(HEADER_LEN) };
        Ok(Self { placer, unpacking: unpacking.transpose()?, places: Vec::new(), next_header })
    }

    /// Everything is in memory when this returns.
    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.placer.flush()?)
    }

    /// Makes pages zero.
    pub(super) fn zero(&mut self, block: usize, offsets: &[u64]) -> Result<()> {
        for offset in offsets {
            self.placer.place_zero(block, *offset)?;
        }
        Ok(())
    }

    /// Receives a packet's payload, which is next on the channel.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the channel are lost.
    pub(super) async fn land(
        &mut self,
        reader: &mut StreamReader,
        block: usize,
        offsets: &[u64],
        payload_len: usize,
    ) -> Result<()> {
        match &mut self.unpacking {
            Some(_) if offsets.is_empty() => Ok(()),
            Some(unpacking) => {
                while reader.buffer().len() < payload_len {
                    if reader.fill().await? == 0 {
                        return Err(truncated(payload_len - reader.buffer().len()));
                    }
                }
                let pages = &mut unpacking.pages[..offsets.len() * PAGE_SIZE];
                let payload = &reader.buffer()[..payload_len];
                unpacking.decompressor.decompress(payload, pages).map_err(|e| unpacked(&e))?;
                reader.consume(payload_len);
                for (page, offset) in pages.chunks_exact(PAGE_SIZE).zip(offsets) {
                    self.placer.place_page(block, *offset, page)?;
                }
                Ok(())
            }
            None => self.land_raw(reader, block, offsets).await,
        }
    }

    /// The same for pages as they are.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the channel are lost.
    async fn land_raw(
        &mut self,
        reader: &mut StreamReader,
        block: usize,
        offsets: &[u64],
    ) -> Result<()> {
        let mut left = offsets;
        while let Some((offset, behind)) = left.split_first() {
            let have = reader.buffer().len();
            if have >= PAGE_SIZE {
                self.placer.place_page(block, *offset, &reader.buffer()[..PAGE_SIZE])?;
                reader.consume(PAGE_SIZE);
                left = behind;
            } else if have == 0 && self.placer.in_place(block, left, &mut self.places)? {
                self.receive_in_place(reader, left.len() * PAGE_SIZE).await?;
                self.placer.received_in_place(block, left)?;
                return Ok(());
            } else if have == 0 && self.placer.lend().is_some() {
                left = &left[self.receive_staged(reader, block, left).await?..];
            } else if reader.fill_at_most(PAGE_SIZE - have).await? == 0 {
                return Err(truncated(left.len() * PAGE_SIZE - have));
            }
        }
        Ok(())
    }

    /// Reads `len` bytes into `places`.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the channel are lost.
    async fn receive_in_place(&mut self, reader: &mut StreamReader, len: usize) -> Result<()> {
        self.places.push(RegionSlice::whole(Arc::clone(&self.next_header.region)));
        let last = self.places.len() - 1;
        let (mut first, mut done) = (0, 0);
        let outcome = loop {
            let came = match reader.receive(&self.places[first..]).await {
                Ok(0) => break Err(truncated(len - done)),
                Ok(came) => came,
                Err(error) => break Err(error.into()),
            };
            done += came;
            if done >= len {
                break Ok(done - len);
            }
            let mut came = came;
            while first < last && came >= self.places[first].len() {
                came -= self.places[first].len();
                first += 1;
            }
            let place = &self.places[first];
            match place.sub(came, place.len() - came) {
                Ok(rest) => self.places[first] = rest,
                Err(error) => break Err(Error::misuse(error.to_string())),
            }
        };
        self.places.clear();
        let ahead = outcome?;
        if ahead > 0 {
            let NextHeader { bytes, region } = &mut self.next_header;
            let bytes = &mut bytes[..ahead];
            region.copy_out_at(0, bytes).map_err(|e| Error::misuse(e.to_string()))?;
            reader.give_back(std::iter::once(&*bytes))?;
        }
        Ok(())
    }

    /// Reads pages into memory from which they are placed, as many as there is room for; answers how many that were. Fewer
    /// if one is staged already: it and what followed it are in the reader's buffer then.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the channel are lost.
    async fn receive_staged(
        &mut self,
        reader: &mut StreamReader,
        block: usize,
        offsets: &[u64],
    ) -> Result<usize> {
        let room = self.placer.lend().map_or(0, |lent| lent.len() / PAGE_SIZE);
        let count = offsets.len().min(room);
        let with_header = count == offsets.len();
        let header = &mut self.next_header.bytes[..];
        let (mut taken, mut filled) = (0, 0);
        while taken < count {
            let want = (count - taken) * PAGE_SIZE;
            let lent = self.placer.lend().unwrap_or_default();
            if lent.len() < want {
                return Err(Error::misuse("staging memory that was lent was taken back"));
            }
            let header = if with_header { &mut header[..] } else { &mut [] };
            let mut pieces =
                [IoSliceMut::new(&mut lent[filled..want]), IoSliceMut::new(&mut header[..])];
            let came = reader.read_vectored(&mut pieces).await?;
            if came == 0 {
                return Err(truncated((offsets.len() - taken) * PAGE_SIZE - filled));
            }
            filled += came;
            let ahead = filled.saturating_sub(want);
            for _whole in 0..filled.min(want) / PAGE_SIZE {
                if !self.placer.take_lent(block, offsets[taken])? {
                    let lent = self.placer.lend().unwrap_or_default();
                    let lent = &lent[..filled - ahead];
                    reader.give_back([lent, &header[..ahead]].into_iter())?;
                    return Ok(taken);
                }
                taken += 1;
                filled -= PAGE_SIZE;
            }
            if taken == count && ahead > 0 {
                reader.give_back(std::iter::once(&header[..ahead]))?;
            }
        }
        Ok(count)
    }
}

fn truncated(missing: usize) -> Error {
    Error::peer_misbehaved(format!("the channel ended inside it: {missing} bytes are missing"))
}

fn unpacked(error: &mig_compress::Error) -> Error {
    if error.is_peers_fault() {
        Error::peer_misbehaved(error.to_string())
    } else {
        Error::misuse(error.to_string())
    }
}
