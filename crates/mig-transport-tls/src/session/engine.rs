//! One TLS connection as a machine over bytes: no I/O, no clock, no waiting, no lock that outlives a call.
//!
//! ```text
//!                 record of the peer            bytes to send
//!   Handshake ◀──── advance(record, out) ─────▶ out          until Step::Done
//!       │ finish()
//!       ▼
//!   Established ─┬─ open: Box<dyn Open>   one record in, its plaintext at the same place     (reading task)
//!                └─ seal: Box<dyn Seal>   plaintext in, a record of it at the same place     (writing task)
//! ```
//!
//! The session cuts the byte stream into records, so an engine always gets exactly one whole record: five bytes of header
//! and what they announce, at most [`MAX_RECORD_BYTES`]. Opening and sealing are two objects because two tasks, even on two
//! runtimes, use them at the same time; an engine that has one state for both (OpenSSL) shares it between the two behind a
//! lock of its own, held during a call only.
//!
//! When opening makes TLS want to write (the answer to a key update, an alert), `open` says so in [`Opened::owes`] or
//! fails; the session then calls [`Seal::settle`] from whichever task it is in, so those bytes leave even if nobody writes.
//!
//! Errors: a handshake answers [`mig_transport::Error`], precise about names and blame. A record that cannot be opened or
//! sealed answers an `io::Error` that carries one (`Error::into_io`), and the connection is unusable from then on.

use std::{io, ops::Range};

use mig_transport::{Error, Result};

/// Bytes before the body of a record: type, version, length.
pub(crate) const HEADER_BYTES: usize = 5;
/// Most plaintext in one record (RFC 8446 §5.1, RFC 5246 §6.2.1).
pub(crate) const MAX_PLAINTEXT_BYTES: usize = 1 << 14;
/// The longest record there is, header included: TLS 1.2 allows 2048 bytes of expansion, TLS 1.3 256.
pub(crate) const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_PLAINTEXT_BYTES + 2048;

/// A connection whose keys are not agreed yet.
pub(crate) trait Handshake: Send {
    /// Takes one whole record of the peer and appends to `out` what has to go to it. The first call has no record: a
    /// client says its hello then, a server nothing.
    ///
    /// # Errors
    ///
    /// Why there will be no connection, in words that name names. What was appended to `out` before (an alert) should still
    /// be sent.
    fn advance(&mut self, record: Option<&mut [u8]>, out: &mut Vec<u8>) -> Result<Step>;

    /// What was agreed. Called once, after [`Step::Done`]; everything in `out` was or will be sent before anything that is
    /// sealed.
    fn finish(self: Box<Self>) -> Result<Established>;
}

/// What is said about a connection that does not come about. An engine may know better and answer its own words.
pub(crate) trait Words: Send + Sync {
    /// TLS gave up, during the handshake or, on an alert of the peer, after it.
    fn failed(&self, error: &rustls::Error) -> Error;

    /// The peer closed the connection during the handshake; whether it had said anything.
    fn ended(&self, spoke: bool) -> Error;

    /// The peer does not speak TLS at all, if its first bytes show that.
    fn not_tls(&self, first_bytes: &[u8]) -> Option<Error>;

    /// What it probably means when the connection ends after the handshake before anything was received over it.
    fn hung_up_hint(&self) -> &'static str;
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The peer has to say something.
    More,
    /// Both ends have all they need; the next record of the peer is for [`Open`].
    Done,
}

/// A connection whose keys are agreed.
pub(crate) struct Established {
    /// For the task that reads.
    pub(crate) open: Box<dyn Open>,
    /// For the task that writes.
    pub(crate) seal: Box<dyn Seal>,
    /// Who the other end is.
    pub(crate) peer: Peer,
    /// Version and cipher suite, for messages: `TLS 1.3, AES_128_GCM_SHA256`.
    pub(crate) agreed: String,
    /// What its keys can protect in one direction, if they cannot be changed before.
    pub(crate) most_bytes: Option<u64>,
}

/// What the other end proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It showed a certificate that was verified; this is the end-entity one, DER.
    Certificate(Vec<u8>),
    /// It knows the key of this identity (TLS-PSK).
    #[cfg_attr(
        not(any(feature = "tls-psk", test)),
        expect(dead_code, reason = "rustls has no PSK")
    )]
    Key(String),
    /// Nothing was asked of it.
    Anonymous,
}

/// Makes plaintext of records.
pub(crate) trait Open: Send {
    /// Decrypts one whole record in place.
    ///
    /// # Errors
    ///
    /// An `io::Error` carrying [`mig_transport::Error`]: a record that fails its authentication, a broken rule, an alert of
    /// the peer. Nothing of such a record may be used. [`Seal::settle`] then has the alert, if one is due.
    fn open(&mut self, record: &mut [u8]) -> io::Result<Opened>;
}

/// What was in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// What it means for whoever reads.
    pub(crate) what: Content,
    /// TLS itself has something to say now: call [`Seal::settle`].
    pub(crate) owes: bool,
}

/// See [`Opened`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Plaintext, now at this place within the record's own bytes; may be empty.
    Data(Range<usize>),
    /// Something between the two TLS ends: a ticket, a key update.
    Internal,
    /// The peer's close_notify: nothing comes any more, and that is authentic.
    Closed,
}

/// Puts plaintext into the memory it is given, as much as there is and fits, and answers how much it was.
pub(crate) type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> usize;

/// Makes records of plaintext.
pub(crate) trait Seal: Send {
    /// Encrypts what `fill` puts at the beginning of the [`MAX_PLAINTEXT_BYTES`] it is given, as one record, after whatever TLS
    /// itself owes. Answers how much that was; nothing is sealed if it was nothing.
    fn seal(&mut self, fill: Fill<'_>, out: &mut Records) -> io::Result<usize>;

    /// Adds what TLS itself owes; nothing, if it owes nothing.
    fn settle(&mut self, out: &mut Records) -> io::Result<()>;

    /// Adds a close_notify, after whatever TLS itself owes. Nothing is sealed afterwards.
    fn close(&mut self, out: &mut Records) -> io::Result<()>;

    /// Changes the sending keys whenever so many records were sealed with them, and asks the peer to do the same each time.
    /// An engine or version that cannot does nothing.
    fn change_keys_after(&mut self, _records: u64) {}

    /// Changes the sending keys from here on and, if `ask`, asks the peer to do the same. An engine or version that cannot
    /// does nothing. (An engine does it by itself before keys wear out.)
    #[cfg(test)]
    fn refresh(&mut self, _ask: bool, _out: &mut Records) -> io::Result<()> {
        Ok(())
    }

    /// Takes the sending keys for worn out after so many records, if they wear out.
    #[cfg(all(test, feature = "tls-psk"))]
    fn wear_out_after(&mut self, _records: u64) {}

    /// How often the sending keys have changed.
    #[cfg(test)]
    fn key_changes(&self) -> u64 {
        0
    }

    /// Tells the peer, if the engine can, that it is refused for what it is (alert access_denied), and ends this direction.
    fn refuse(&mut self, out: &mut Records) -> io::Result<()>;
}

/// Finished records on their way out, in order, and the place where the next one is made.
///
/// ```text
///   0        start             end          capacity
///   │ sent   │ not sent yet    │ room       │
/// ```
/// One stretch of memory for all of them, used again and again: what is encrypted is in the processor's cache from the copy
/// out of the guest to the system call that sends it.
#[derive(Debug, Default)]
pub(crate) struct Records {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Records {
    /// With room for so many bytes. More is made when it is needed, and kept.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes], start: 0, end: 0 }
    }

    /// Where the next `bytes` go; they count when they are [`add`](Self::add)ed.
    pub(crate) fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() < self.end + bytes {
            self.buffer.resize(self.end + bytes, 0);
        }
        &mut self.buffer[self.end..self.end + bytes]
    }

    /// The first `bytes` of [`room`](Self::room) have become whole records.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(self.end <= self.buffer.len(), "more records than there was room for");
    }

    /// Appends bytes of one or more whole records by copying them.
    pub(crate) fn push(&mut self, records: &[u8]) {
        self.room(records.len()).copy_from_slice(records);
        self.add(records.len());
    }

    /// Whether everything was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes not sent yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Forgets the first `n` bytes, which were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        assert!(n <= self.rest().len(), "sent {n} of {} bytes", self.rest().len());
        self.start += n;
    }

    /// Forgets everything, and gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_leave_in_order_however_they_are_cut() {
        for room in [0, 4, 100] {
            let mut records = Records::with_room(room);
            for record in [&b"abc"[..], b"", b"defg"] {
                records.push(record);
            }
            let mut left = Vec::new();
            for n in [1, 2, 3] {
                left.extend_from_slice(&records.rest()[..n]);
                records.advance(n);
            }
            records.room(9)[..2].copy_from_slice(b"hi");
            records.add(1);
            left.extend_from_slice(records.rest());
            records.advance(2);
            assert!(records.is_empty());
            records.push(b"i");
            left.extend_from_slice(records.rest());
            assert_eq!(left, b"abcdefghi", "room for {room}");
        }
    }
}
