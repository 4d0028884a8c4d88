//! What connect and accept carry beside themselves (docs/wire/rdma.md §2.4).
//!
//! ```text
//!  byte  0               4               8               12              16
//!        | version = 1   | flags         | 'm' 'i' 'g' 1 | extensions    |
//!        └── QEMU, both directions ──────┴── ours, ignored by QEMU ──────┘
//! ```
//!
//! The connection manager pads with zeros, so any length from 8 up is taken. QEMU answers a request with 8 fresh bytes: an
//! extension is in force only if the reply carries our magic. Whoever gets a request without the magic answers without it.

use super::error::{Error, Result};

/// Longest private data that fits a request on every fabric.
pub const MAX_REQUEST: usize = 56;
/// What [`Request::encode`] makes; also the longest [`Reply`].
pub const ENCODED_LEN: usize = 16;

const PLAIN_LEN: usize = 8;
const VERSION: u32 = 1;
const PIN_ALL: u32 = 1;
/// Three letters and the format of what follows. A new format is a new fourth byte, and old readers take it for silence.
const MAGIC: [u8; 4] = *b"mig\x01";

/// What two of our own ends can do and QEMU cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// UNREGISTER is handled properly, so that the source may keep the destination's pinned memory within a budget.
    pub unregister: bool,
}

impl Extensions {
    const UNREGISTER: u32 = 1;

    /// Everything this build knows.
    pub const ALL: Self = Self { unregister: true };

    fn from_bits(bits: u32) -> Self {
        Self { unregister: bits & Self::UNREGISTER != 0 }
    }

    fn bits(self) -> u32 {
        if self.unregister { Self::UNREGISTER } else { 0 }
    }

    fn and(self, other: Self) -> Self {
        Self::from_bits(self.bits() & other.bits())
    }
}

/// What both ends settled on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// All blocks are registered whole, up front.
    pub pin_all: bool,
    /// The other end is one of ours.
    pub ours: bool,
    /// What both know.
    pub extensions: Extensions,
}

/// What the source asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Register everything up front.
    pub pin_all: bool,
    /// What we know; `None` asks like a QEMU.
    pub extensions: Option<Extensions>,
}

impl Request {
    /// As it goes into connect.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.pin_all, self.extensions)
    }

    /// What a destination received. Unknown flags are dropped here, and so never come back in a reply.
    ///
    /// # Errors
    ///
    /// Fewer than 8 bytes, or another version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (pin_all, extensions) = decode(bytes)?;
        Ok(Self { pin_all, extensions })
    }

    /// The destination's answer: pin-all if asked for and allowed, extensions that both know, our magic only to our own.
    pub fn answer(&self, allow_pin_all: bool, known: Extensions) -> Reply {
        Reply {
            pin_all: self.pin_all && allow_pin_all,
            extensions: self.extensions.map(|theirs| theirs.and(known)),
        }
    }

    /// What the source may count on after `reply` came: nothing it did not ask for.
    pub fn settle(&self, reply: &Reply) -> Agreed {
        let both = self.extensions.zip(reply.extensions);
        Agreed {
            pin_all: self.pin_all && reply.pin_all,
            ours: both.is_some(),
            extensions: both.map(|(asked, given)| asked.and(given)).unwrap_or_default(),
        }
    }
}

/// What the destination answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Everything will be registered up front.
    pub pin_all: bool,
    /// `None` to, and from, a QEMU.
    pub extensions: Option<Extensions>,
}

impl Reply {
    /// As it goes into accept.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.pin_all, self.extensions)
    }

    /// What a source received.
    ///
    /// # Errors
    ///
    /// Fewer than 8 bytes, or another version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (pin_all, extensions) = decode(bytes)?;
        Ok(Self { pin_all, extensions })
    }

    /// What the destination that sends this may count on.
    pub fn agreed(&self) -> Agreed {
        Agreed {
            pin_all: self.pin_all,
            ours: self.extensions.is_some(),
            extensions: self.extensions.unwrap_or_default(),
        }
    }
}

fn encode(pin_all: bool, extensions: Option<Extensions>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENCODED_LEN);
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(if pin_all { PIN_ALL } else { 0 }.to_be_bytes());
    if let Some(extensions) = extensions {
        bytes.extend(MAGIC);
        bytes.extend(extensions.bits().to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<(bool, Option<Extensions>)> {
    let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let (Some(version), Some(flags)) = (word(0), word(4)) else {
        return Err(Error::PrivateData {
            what: format!(
                "{} bytes, at least {PLAIN_LEN} expected; is it a migration that listens or calls there?",
                bytes.len()
            ),
        });
    };
    let version = u32::from_be_bytes(version);
    if version != VERSION {
        return Err(Error::PrivateData {
            what: format!("version {version}, only {VERSION} is known (all QEMUs send it)"),
        });
    }
    let extensions = word(8)
        .filter(|magic| *magic == MAGIC)
        .and_then(|_| word(12))
        .map(|bits| Extensions::from_bits(u32::from_be_bytes(bits)));
    Ok((u32::from_be_bytes(flags) & PIN_ALL != 0, extensions))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Request = Request { pin_all: true, extensions: Some(Extensions::ALL) };

    #[test]
    fn a_request_is_these_bytes_and_fits() {
        assert_eq!(OURS.encode(), b"\0\0\0\x01\0\0\0\x01mig\x01\0\0\0\x01");
        const { assert!(ENCODED_LEN <= MAX_REQUEST) };
        assert_eq!(OURS.encode().len(), ENCODED_LEN);
        let plain = Request { pin_all: false, extensions: None };
        assert_eq!(plain.encode(), [0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn padding_of_the_connection_manager_is_not_an_extension() {
        let mut padded = vec![0, 0, 0, 1, 0, 0, 0, 1];
        for _ in 0..200 {
            assert_eq!(
                Request::decode(&padded),
                Ok(Request { pin_all: true, extensions: None }),
                "{} bytes",
                padded.len()
            );
            padded.push(0);
        }
        let mut ours = OURS.encode();
        ours.resize(56, 0);
        assert_eq!(Request::decode(&ours), Ok(OURS));
    }

    #[test]
    fn short_and_foreign_data_is_refused() {
        for len in 0..8 {
            assert!(Request::decode(&OURS.encode()[..len]).is_err());
        }
        assert!(Reply::decode(&[0, 0, 0, 2, 0, 0, 0, 0]).is_err());
        assert!(Reply::decode(&[1, 0, 0, 0, 0, 0, 0, 0]).is_err(), "little-endian");
    }

    #[test]
    fn unknown_flags_are_cleared_in_the_reply() {
        let asked = Request::decode(b"\0\0\0\x01\xff\xff\xff\xffmig\x01\xff\xff\xff\xff").unwrap();
        let reply = asked.answer(true, Extensions::ALL);
        assert_eq!(reply.encode(), b"\0\0\0\x01\0\0\0\x01mig\x01\0\0\0\x01");
    }

    #[test]
    fn an_extension_is_in_force_only_if_echoed() {
        let qemu = Reply::decode(&[0, 0, 0, 1, 0, 0, 0, 1]).unwrap();
        assert_eq!(
            OURS.settle(&qemu),
            Agreed { pin_all: true, ours: false, extensions: Extensions::default() }
        );
        let reply = OURS.answer(false, Extensions::ALL);
        assert_eq!(
            OURS.settle(&reply),
            Agreed { pin_all: false, ours: true, extensions: Extensions::ALL }
        );
        assert_eq!(reply.agreed(), OURS.settle(&reply));
        // A QEMU that asks is answered in 8 bytes, and nobody gets what he did not ask for.
        let plain = Request { pin_all: false, extensions: None };
        assert_eq!(plain.answer(true, Extensions::ALL).encode().len(), 8);
        let generous = Reply { pin_all: true, extensions: Some(Extensions::ALL) };
        assert_eq!(plain.settle(&generous), Agreed::default());
    }

    #[test]
    fn another_format_is_silence() {
        let bytes = b"\0\0\0\x01\0\0\0\0mig\x02\0\0\0\x01";
        assert_eq!(Reply::decode(bytes).unwrap().extensions, None);
        assert_eq!(Reply::decode(&OURS.encode()[..15]).unwrap().extensions, None);
    }

    proptest! {
        #[test]
        fn both_ends_agree(pin_all: bool, allow: bool, asks: Option<bool>, knows: bool, padding in 0usize..40) {
            let extensions = asks.map(|unregister| Extensions { unregister });
            let request = Request { pin_all, extensions };
            let mut bytes = request.encode();
            bytes.resize(bytes.len() + padding, 0);
            let reply = Request::decode(&bytes).unwrap().answer(allow, Extensions { unregister: knows });
            let mut bytes = reply.encode();
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(request.settle(&Reply::decode(&bytes).unwrap()), reply.agreed());
        }
    }
}
