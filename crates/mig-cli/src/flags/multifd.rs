//! Flags of data channels, the same for both ends.

use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Data channels.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MultifdFlags {
    /// Carry pages over N connections beside the main one (tcp, unix, vsock; QEMU's `multifd` and `multifd-channels`).
    /// Both ends must be told the same; between two migs `auto` finds the number while it runs
    #[arg(long, value_name = "N|auto")]
    pub(crate) multifd: Option<Channels>,

    /// How the pages of the data channels are compressed; both ends must be told the same (`multifd-compression`)
    #[arg(long, value_name = "METHOD", value_enum, requires = "multifd")]
    pub(crate) compression: Option<Compression>,
}

/// How many data channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channels {
    /// So many; 0 is none.
    Count(u8),
    /// As many as bring something.
    Auto,
}

impl FromStr for Channels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number
                .parse()
                .map(Self::Count)
                .map_err(|_| "not a number of channels: write 1 to 255, or auto".into()),
        }
    }
}

/// A share of one processor: 150 is one and a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) u32);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim();
        match number.parse() {
            Ok(percent) if percent > 0 => Ok(Self(percent)),
            _ => Err("not a share of a processor: write 50%, 100%, 250% …".into()),
        }
    }
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
    fn channels_are_counted_or_found() {
        assert_eq!("auto".parse(), Ok(Channels::Auto));
        assert_eq!("0".parse(), Ok(Channels::Count(0)));
        assert_eq!("255".parse(), Ok(Channels::Count(255)));
        for wrong in ["", "256", "-1", "Auto", "2.5"] {
            assert!(wrong.parse::<Channels>().is_err(), "{wrong}");
        }
        assert_eq!("250%".parse(), Ok(Percent(250)));
        assert_eq!("50".parse(), Ok(Percent(50)));
        assert!("0".parse::<Percent>().is_err());
    }

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
