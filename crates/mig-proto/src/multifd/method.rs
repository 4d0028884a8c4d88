//! How the pages of a packet are packed. docs/wire/ram.md §9.6.

use core::fmt;

use super::header::flag;

/// Longest payload of a compressed packet: twice what its pages take.
pub const MAX_COMPRESSED_LEN: u32 = 2 * 512 * 1024;

/// `multifd-compression`, the same at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Method {
    /// Raw pages.
    #[default]
    None,
    /// One zlib stream for each channel, flushed at the end of each payload.
    Zlib,
    /// One zstd frame for each channel, flushed at the end of each payload.
    Zstd,
    /// `normal` lengths, then raw DEFLATE streams.
    Qpl,
    /// `normal` lengths, then zlib streams.
    Uadk,
    /// One gzip-framed buffer.
    Qatzip,
}

impl Method {
    /// All of them, in the order of their bits.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Zlib, Self::Zstd, Self::Qpl, Self::Uadk, Self::Qatzip];

    /// The bits that name the method in a packet's flags.
    pub const fn flag_bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Zlib => 0x02,
            Self::Zstd => 0x04,
            Self::Qpl => 0x08,
            Self::Uadk => 0x10,
            Self::Qatzip => 0x20,
        }
    }

    /// The method that a packet's flags name, if it is one that exists.
    pub fn from_flags(flags: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.flag_bits() == flags & flag::METHOD)
    }

    /// QEMU's name of it, as `multifd-compression` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_names_one_method() {
        for method in Method::ALL {
            assert_eq!(Method::from_flags(method.flag_bits() | flag::SYNC), Some(method));
        }
        assert_eq!(Method::from_flags(0x06), None);
        assert_eq!(Method::from_flags(flag::METHOD), None);
    }
}
