//! Compresses the pages of packets, where they are compressed (docs/wire/ram.md §9.6).

use std::time::{Duration, Instant};

use mig_compress::{Compressor, Level, payload_bound};
use mig_proto::multifd::{Method, PACKET_PAGES};
use mig_ram::PAGE_SIZE;

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
}

/// One channel's compressor, for the channel's whole life. Costs the channel 1.1 MiB beside the library's own state.
pub(super) struct Packer {
    stream: Option<Stream>,
}

struct Stream {
    compressor: Compressor,
    /// The guest goes on writing: what is compressed must hold still.
    pages: Vec<u8>,
    payload: Vec<u8>,
    spent: Duration,
}

impl Packing {
    /// What the parameters ask for.
    pub(crate) fn chosen(parameters: &Parameters, pages: &Pages) -> Result<Self> {
        let _ = pages;
        let method = match parameters.multifd_compression {
            MultifdCompression::None => Method::None,
            MultifdCompression::Zlib => Method::Zlib,
            MultifdCompression::Zstd => Method::Zstd,
        };
        let asked = match method {
            Method::Zlib => parameters.multifd_zlib_level.map(i32::from),
            _ => parameters.multifd_zstd_level.map(i32::from),
        };
        let mut packing = Self { method, level: Level::DEFAULT };
        if let (Some(compression), Some(asked)) = (packing.compression()?, asked) {
            packing.level =
                Level::new(compression, asked).map_err(|error| Error::misuse(error.to_string()))?;
        }
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
            compressor,
            pages: Vec::with_capacity(PACKET),
            payload: Vec::with_capacity(payload_bound(PACKET)),
            spent: Duration::ZERO,
        };
        Ok(Self { stream: Some(stream) })
    }

    /// The payload of a packet with these pages of a block; empty where nothing is compressed, and where there are no
    /// pages.
    pub(super) fn pack(&mut self, block: &Block, offsets: &[u64]) -> Result<&[u8]> {
        let Some(stream) = self.stream.as_mut().filter(|_| !offsets.is_empty()) else {
            return Ok(&[]);
        };
        stream.pages.resize(offsets.len() * PAGE_SIZE, 0);
        for (offset, page) in offsets.iter().zip(stream.pages.chunks_mut(PAGE_SIZE)) {
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            block.region.copy_out_at(at, page).map_err(|error| Error::misuse(error.to_string()))?;
        }
        stream.payload.clear();
        let begun = Instant::now();
        stream.compressor.compress(&stream.pages, &mut stream.payload).map_err(failed)?;
        stream.spent += begun.elapsed();
        Ok(&stream.payload)
    }
}

fn failed(error: mig_compress::Error) -> Error {
    Error::misuse("compressing pages").caused_by(error)
}
