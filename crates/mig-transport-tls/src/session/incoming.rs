//! Ciphertext as it comes from the channel, cut into records.
//!
//! ```text
//!   0        start              end        capacity
//!   │ used   │ record │ record │ part of one │ room │
//! ```
//! Records are decrypted where they lie, and their plaintext is handed out from there. What is moved, when the room runs out,
//! is the part of one record at the end, once for many records. There is little room at first: most who connect to a listener
//! under a flood never say anything.

use std::ops::Range;

use super::engine::{HEADER_BYTES, MAX_RECORD_BYTES};

/// A hello, and most other records of a handshake.
const FIRST_BYTES: usize = 2 * 1024;
/// Enough for any record of a handshake, and what a stranger can make us hold.
const HANDSHAKE_BYTES: usize = 20 * 1024;
const _: () = assert!(HANDSHAKE_BYTES >= MAX_RECORD_BYTES);
/// Ciphertext that one read may bring once data flows: sixteen records.
pub(crate) const TRAFFIC_BYTES: usize = 256 * 1024;
/// The rest is moved to the front when there is less room than this: a read should bring several records.
const LEAST_ROOM: usize = 4 * MAX_RECORD_BYTES;

/// These bytes cannot begin a TLS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotTls(pub(crate) [u8; HEADER_BYTES]);

/// See the module.
pub(crate) struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; FIRST_BYTES], start: 0, end: 0 }
    }

    /// Makes it as large as data wants it, keeping what is there.
    pub(crate) fn grow(&mut self) {
        let mut buffer = vec![0; TRAFFIC_BYTES];
        let held = self.end - self.start;
        buffer[..held].copy_from_slice(&self.buffer[self.start..self.end]);
        *self = Self { buffer, start: 0, end: held };
    }

    /// Where the next bytes go; never empty if no whole record is there.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start > 0 && self.buffer.len() - self.end < LEAST_ROOM {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() && self.end < HANDSHAKE_BYTES {
            self.buffer.resize((2 * self.end).min(HANDSHAKE_BYTES), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that `n` bytes were put into [`room`](Self::room).
    pub(crate) fn came(&mut self, n: usize) {
        self.end += n;
        assert!(self.end <= self.buffer.len(), "more came than there was room for");
    }

    /// What has come and is not used yet.
    pub(crate) fn held(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// How long the next record is, if all of it is here.
    pub(crate) fn whole_record(&self) -> Result<Option<usize>, NotTls> {
        let held = self.held();
        let Some(&header) = held.first_chunk::<HEADER_BYTES>() else {
            // Enough to tell who does not speak TLS at all, and then says nothing more.
            return match held {
                [kind, ..] if !is_record_type(*kind) => Err(NotTls::of(held)),
                [_, major, ..] if *major != 3 => Err(NotTls::of(held)),
                _ => Ok(None),
            };
        };
        let [kind, major, _, a, b] = header;
        let len = HEADER_BYTES + usize::from(u16::from_be_bytes([a, b]));
        if !is_record_type(kind) || major != 3 || len > MAX_RECORD_BYTES {
            return Err(NotTls(header));
        }
        Ok((held.len() >= len).then_some(len))
    }

    /// Takes the next `len` bytes, a whole record; answers where they lie.
    pub(crate) fn take(&mut self, len: usize) -> Range<usize> {
        let at = self.start..self.start + len;
        assert!(at.end <= self.end, "a record that is not all here");
        self.start = at.end;
        at
    }

    /// Bytes that were taken, until [`room`](Self::room) is asked for.
    pub(crate) fn at(&self, at: Range<usize>) -> &[u8] {
        &self.buffer[at]
    }

    /// See [`at`](Self::at).
    pub(crate) fn at_mut(&mut self, at: Range<usize>) -> &mut [u8] {
        &mut self.buffer[at]
    }
}

impl NotTls {
    fn of(bytes: &[u8]) -> Self {
        let mut header = [0; HEADER_BYTES];
        let n = bytes.len().min(HEADER_BYTES);
        header[..n].copy_from_slice(&bytes[..n]);
        Self(header)
    }
}

/// change_cipher_spec, alert, handshake, application_data (RFC 8446 §5.1).
fn is_record_type(kind: u8) -> bool {
    (20..=23).contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(incoming: &mut Incoming, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = incoming.room();
            let n = room.len().min(rest.len()).min(1000);
            room[..n].copy_from_slice(&rest[..n]);
            incoming.came(n);
            rest = &rest[n..];
        }
    }

    fn record(fill: u8, len: usize) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend_from_slice(&(len as u16).to_be_bytes());
        record.resize(HEADER_BYTES + len, fill);
        record
    }

    #[test]
    fn records_of_every_length_come_out_as_they_went_in() {
        for grown in [false, true] {
            let mut incoming = Incoming::new();
            if grown {
                incoming.grow();
            }
            let mut waiting = std::collections::VecDeque::new();
            for number in 0..2000usize {
                let next = record(number as u8, number * 7919 % (MAX_RECORD_BYTES - 5));
                // Room for it may need a record to go first, as in a real session.
                while incoming.held().len() + next.len() > HANDSHAKE_BYTES {
                    take_one(&mut incoming, &mut waiting);
                }
                put(&mut incoming, &next);
                waiting.push_back(next);
            }
            while !waiting.is_empty() {
                take_one(&mut incoming, &mut waiting);
            }
            assert_eq!(incoming.held(), b"");
        }
    }

    fn take_one(incoming: &mut Incoming, waiting: &mut std::collections::VecDeque<Vec<u8>>) {
        let len = incoming.whole_record().expect("a record").expect("all of it");
        let at = incoming.take(len);
        assert!(waiting.pop_front().is_some_and(|record| record == incoming.at(at)));
    }

    #[test]
    fn what_is_no_record_is_seen_by_its_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Ok(None)),
            (b"\x16", Ok(None)),
            (b"\x16\x03\x01\x00", Ok(None)),
            (b"Q", Err(NotTls(*b"Q\0\0\0\0"))),
            (b"QEVM\0\0\0\x03", Err(NotTls(*b"QEVM\0"))),
            (b"\x16\x04", Err(NotTls(*b"\x16\x04\0\0\0"))),
            (b"\x18\x03\x03\x00\x01", Err(NotTls(*b"\x18\x03\x03\x00\x01"))),
            (b"\x17\x03\x03\x48\x01", Err(NotTls(*b"\x17\x03\x03\x48\x01"))),
            (b"\x17\x03\x03\x48\x00", Ok(None)),
            (b"\x17\x03\x03\x00\x01x", Ok(Some(6))),
        ] {
            let mut incoming = Incoming::new();
            put(&mut incoming, bytes);
            assert_eq!(incoming.whole_record(), expected, "{bytes:?}");
        }
    }
}
