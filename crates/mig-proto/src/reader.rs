//! The one bounded reader: big-endian values from a borrowed slice, or how many bytes are missing.

use crate::error::DecodeErrorKind;

/// Why a reader stopped before it had a value.
#[derive(Debug)]
pub(crate) enum Stop {
    /// At least this many bytes, counted from where the reader began, must be there.
    Need(usize),
    /// The bytes are wrong, `at` bytes after where the reader began.
    Fail { at: usize, kind: DecodeErrorKind },
}

pub(crate) fn fail<T>(at: usize, kind: DecodeErrorKind) -> Result<T, Stop> {
    Err(Stop::Fail { at, kind })
}

pub(crate) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let end = self.at + len;
        let bytes = self.input.get(self.at..end).ok_or(Stop::Need(end))?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take answers exactly the length asked"))
    }

    /// The next byte, to be read again.
    pub(crate) fn peek_u8(&self) -> Result<u8, Stop> {
        Self { ..*self }.u8()
    }

    /// The next eight bytes, to be read again.
    pub(crate) fn peek_u64(&self) -> Result<u64, Stop> {
        Self { ..*self }.u64()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn bytes16(&mut self) -> Result<[u8; 16], Stop> {
        self.array()
    }

    /// `str8`: may be empty.
    pub(crate) fn str8(&mut self) -> Result<&'a [u8], Stop> {
        let len = self.u8()?;
        self.take(usize::from(len))
    }
}
