//! Stream bytes in QEMU_FILE messages (docs/wire/rdma.md §5).
//!
//! QEMU cuts at 32 KiB and does not coalesce; its reader takes up to [`MAX_PAYLOAD`]. We gather as much as there is, since each
//! message costs a round trip. A message never holds bytes beyond a hook record: the engine flushes there
//! (docs/wire/rdma.md §6).

use super::{
    error::{Error, Result},
    header::{Frame, HEADER_LEN, Header, Kind, MAX_PAYLOAD},
    message::Message,
};

/// Gathers stream bytes behind the place of a header, in a buffer the caller owns.
#[derive(Clone, Debug, Default)]
pub struct StreamFill {
    filled: usize,
}

impl StreamFill {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes gathered.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes that still fit into `buffer`.
    pub fn room(&self, buffer: &[u8]) -> usize {
        buffer.len().saturating_sub(HEADER_LEN).min(MAX_PAYLOAD) - self.filled
    }

    /// Takes over the front of `bytes`; says how many.
    pub fn push(&mut self, buffer: &mut [u8], bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room(buffer));
        let at = HEADER_LEN + self.filled;
        buffer[at..at + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// Puts the header in front: the message is the first that many bytes of `buffer`. `None`, and nothing to send, if
    /// nothing was gathered. Begins an empty message.
    pub fn finish(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let filled = std::mem::take(&mut self.filled);
        if filled == 0 {
            return None;
        }
        let len = u32::try_from(filled).expect("a payload is at most 524 272 bytes");
        let header = Header { kind: Kind::QemuFile, len, repeat: 0 };
        buffer[..HEADER_LEN].copy_from_slice(&header.encode());
        Some(HEADER_LEN + filled)
    }
}

/// What is unread of a received QEMU_FILE message, whose bytes stay in the caller's buffer.
#[derive(Clone, Debug, Default)]
pub struct StreamDrain {
    at: usize,
    end: usize,
}

impl StreamDrain {
    /// The stream bytes of a message that came while stream bytes were wanted.
    ///
    /// # Errors
    ///
    /// ERROR; any other message: outside of hook windows only stream bytes may come; no bytes.
    pub fn of(frame: &Frame<'_>) -> Result<Self> {
        match Message::from_frame(frame)? {
            Message::QemuFile(bytes) => Ok(Self { at: HEADER_LEN, end: HEADER_LEN + bytes.len() }),
            Message::Error => Err(Error::PeerFailed),
            other => Err(Error::unexpected(
                other.kind(),
                "outside of a hook window, where only stream bytes may come",
            )),
        }
    }

    /// Bytes not yet read.
    pub fn unread(&self) -> usize {
        self.end - self.at
    }

    /// Moves bytes from `buffer`, in which the message came, to `into`; says how many.
    pub fn read(&mut self, buffer: &[u8], into: &mut [u8]) -> usize {
        let taken = into.len().min(self.unread());
        into[..taken].copy_from_slice(&buffer[self.at..self.at + taken]);
        self.at += taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::header::CONTROL_BUFFER, *};

    #[test]
    fn a_full_buffer_is_the_longest_message() {
        let mut buffer = vec![0; CONTROL_BUFFER];
        let mut fill = StreamFill::new();
        let bytes = vec![7; CONTROL_BUFFER];
        assert_eq!(fill.push(&mut buffer, &bytes), MAX_PAYLOAD);
        assert_eq!(fill.push(&mut buffer, &bytes), 0);
        let len = fill.finish(&mut buffer).unwrap();
        assert_eq!(Frame::decode(&buffer[..len]).unwrap().payload.len(), MAX_PAYLOAD);
        assert_eq!(fill.finish(&mut buffer), None, "an empty message is never sent");
    }

    #[test]
    fn commands_and_nothing_are_not_stream_bytes() {
        for kind in Kind::ALL {
            let bytes = Header { kind, len: 0, repeat: 1 }.encode();
            assert!(StreamDrain::of(&Frame::decode(&bytes).unwrap()).is_err(), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
            room in 1usize..40,
            take in 1usize..30,
        ) {
            let (mut fill, mut back) = (StreamFill::new(), Vec::<u8>::new());
            let mut buffer = vec![0xee; HEADER_LEN + room];
            let mut receive = |buffer: &[u8]| {
                let mut drain = StreamDrain::of(&Frame::decode(buffer).unwrap()).unwrap();
                while drain.unread() > 0 {
                    let mut into = vec![0; take];
                    let taken = drain.read(buffer, &mut into);
                    back.extend(&into[..taken]);
                }
            };
            for piece in &pieces {
                let mut rest = &piece[..];
                while !rest.is_empty() {
                    rest = &rest[fill.push(&mut buffer, rest)..];
                    if fill.room(&buffer) == 0 {
                        let len = fill.finish(&mut buffer).unwrap();
                        receive(&buffer[..len]);
                    }
                }
            }
            if let Some(len) = fill.finish(&mut buffer) {
                receive(&buffer[..len]);
            }
            prop_assert_eq!(back, pieces.concat());
        }
    }
}
