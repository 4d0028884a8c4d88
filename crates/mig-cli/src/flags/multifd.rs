//! Flags of data channels, the same for both ends.

use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Data channels.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MultifdFlags {
    /// Carry pages over N connections beside the main one (tcp, unix, vsock); both ends must be told the same (QEMU's
    /// `multifd` and `multifd-channels`)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) multifd: Option<u8>,

    /// How the pages of the data channels are compressed; both ends must be told the same (`multifd-compression`)
    #[arg(long, value_name = "METHOD", value_enum, requires = "multifd")]
    pub(crate) compression: Option<Compression>,

    /// The guest's UUID, as the data channels name it; default: that of the stored stream, or none
    #[arg(long, requires = "multifd")]
    pub(crate) uuid: Option<Uuid>,
}

/// `multifd-compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// As they are
    None,
    /// Every QEMU with multifd has it; slower than zstd
    Zlib,
    /// Faster and smaller; QEMU must have been built with it
    Zstd,
}

/// 16 bytes, written as 32 hexadecimal digits, with or without dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uuid(pub(crate) [u8; 16]);

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let mut bytes = [0; 16];
        let well_formed = digits.len() == 32
            && digits.chunks(2).zip(&mut bytes).all(|(pair, byte)| {
                let parsed = str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
                parsed.map(|value| *byte = value).is_some()
                    && pair.iter().all(u8::is_ascii_hexdigit)
            });
        match well_formed {
            true => Ok(Self(bytes)),
            false => Err("not a UUID: write 32 hexadecimal digits, as in \
                          12345678-9abc-def0-1234-56789abcdef0"
                .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_32_digits() {
        let written = "00112233-4455-6677-8899-aabbccddeeff";
        let parsed: Uuid = written.parse().unwrap();
        assert_eq!(parsed.0[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(parsed, "00112233445566778899AABBCCDDEEFF".parse().unwrap());
        for wrong in ["", "0011", "0x112233445566778899aabbccddeeff", &format!("{written}0")] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
        assert!("+0112233445566778899aabbccddeeff".parse::<Uuid>().is_err());
    }
}
