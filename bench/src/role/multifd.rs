//! Data channels beside the main one: what both ends are told, ours and QEMU's.

use mig_engine::{Capabilities, MultifdCompression, Parameters};
use serde::{Deserialize, Serialize};

/// How many, and what their pages go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Multifd {
    pub(crate) channels: u8,
    pub(crate) compression: Compression,
}

/// See [`Multifd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Compression {
    None,
    /// At the level that whoever sends chooses by himself.
    Zstd,
    /// At this one.
    ZstdLevel(i8),
}

impl Multifd {
    /// So many channels, pages as they are.
    pub(crate) const fn plain(channels: u8) -> Self {
        Self { channels, compression: Compression::None }
    }

    /// QEMU's name of the compression.
    pub(crate) fn method(self) -> &'static str {
        match self.compression {
            Compression::None => "none",
            Compression::Zstd | Compression::ZstdLevel(_) => "zstd",
        }
    }

    /// The level, where one is asked for.
    pub(crate) fn level(self) -> Option<i8> {
        match self.compression {
            Compression::None | Compression::Zstd => None,
            Compression::ZstdLevel(level) => Some(level),
        }
    }

    pub(crate) fn apply(self, capabilities: &mut Capabilities, parameters: &mut Parameters) {
        capabilities.multifd = true;
        parameters.multifd_channels = self.channels;
        parameters.multifd_compression = match self.compression {
            Compression::None => MultifdCompression::None,
            Compression::Zstd | Compression::ZstdLevel(_) => MultifdCompression::Zstd,
        };
        parameters.multifd_zstd_level = self.level();
    }
}
