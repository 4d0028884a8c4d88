//! Names as the wire carries them: one length byte, then that many bytes (docs/wire/stream.md §0).

use core::fmt;
use core::ops::Deref;

/// A name of 1 to 255 bytes: an idstr or a RAM block name, comparable as bytes.
///
/// ```text
///   | n: u8 | n bytes |
/// ```
///
/// The type is the proof that the length fits its byte, so encoding a name cannot fail.
/// `Display` shows it as text, with what is not UTF-8 replaced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

/// The bytes offered cannot be a name: none, or more than 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name on the wire has 1 to 255 bytes, not {len}")]
pub struct InvalidName {
    /// How many bytes were offered.
    pub len: usize,
}

impl<'a> Name<'a> {
    /// Longest name: its length is one byte on the wire.
    pub const MAX_LEN: usize = 255;

    /// Takes `bytes` as a name if there are 1 to 255 of them.
    pub const fn new(bytes: &'a [u8]) -> Result<Self, InvalidName> {
        if bytes.is_empty() || bytes.len() > Self::MAX_LEN {
            return Err(InvalidName { len: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// The bytes, with the lifetime of what the name was taken from.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The length byte.
    pub(crate) fn len_byte(self) -> u8 {
        u8::try_from(self.0.len()).expect("Name::new admits at most 255 bytes")
    }
}

impl Deref for Name<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl AsRef<[u8]> for Name<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl PartialEq<str> for Name<'_> {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Name<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<[u8]> for Name<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        self.0 == other
    }
}

impl<'a> TryFrom<&'a [u8]> for Name<'a> {
    type Error = InvalidName;

    fn try_from(bytes: &'a [u8]) -> Result<Self, InvalidName> {
        Self::new(bytes)
    }
}

impl<'a> TryFrom<&'a str> for Name<'a> {
    type Error = InvalidName;

    fn try_from(text: &'a str) -> Result<Self, InvalidName> {
        Self::new(text.as_bytes())
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn a_name_has_1_to_255_bytes() {
        assert_eq!(Name::new(b""), Err(InvalidName { len: 0 }));
        assert_eq!(Name::new(&[b'x'; 256]), Err(InvalidName { len: 256 }));
        assert_eq!(Name::new(&[b'x'; 255]).expect("longest name").len_byte(), 255);
        assert_eq!(format!("{}", Name::new(b"pc.ram\xff").expect("a name")), "pc.ram\u{fffd}");
    }
}
