//! How a data channel introduces itself. docs/wire/ram.md §9.1.
//!
//! ```text
//!   0  magic │ 4  version │ 8  uuid[16] │ 24  id │ 25  39 reserved bytes
//! ```

use super::error::{MultifdError, MultifdErrorKind, MultifdMessage};
use super::header::{magic_and_version, preamble};

/// The first 64 bytes of a data channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The source's VM UUID; zero if it has none.
    pub uuid: [u8; 16],
    /// Number of the channel, from 0.
    pub id: u8,
}

impl Hello {
    /// Bytes on the wire.
    pub const LEN: usize = 64;

    /// The bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&preamble());
        bytes[8..24].copy_from_slice(&self.uuid);
        bytes[24] = self.id;
        bytes
    }

    /// Reads a hello; what its reserved bytes hold is ignored.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, MultifdError> {
        magic_and_version(bytes, MultifdMessage::Hello)?;
        let uuid = bytes[8..].first_chunk().expect("16 of 56 bytes");
        Ok(Self { uuid: *uuid, id: bytes[24] })
    }
}

/// Which data channels have introduced themselves.
///
/// They come in any order. A hello that is refused fails the migration: after decryption only the
/// source can have sent it.
#[derive(Debug, Clone)]
pub struct Hellos {
    channels: u8,
    uuid: Option<[u8; 16]>,
    admitted: u8,
    taken: [bool; 256],
}

impl Hellos {
    /// Expects `channels` channels of the VM `uuid`; without one, all of the VM that the first
    /// one names.
    pub const fn new(channels: u8, uuid: Option<[u8; 16]>) -> Self {
        Self { channels, uuid, admitted: 0, taken: [false; 256] }
    }

    /// Counts the channel in. On error nothing has changed.
    pub fn admit(&mut self, hello: &Hello) -> Result<(), MultifdError> {
        let refuse = |at, kind| Err(MultifdError::new(MultifdMessage::Hello, at, kind));
        let expected = self.uuid.unwrap_or(hello.uuid);
        if hello.uuid != expected {
            return refuse(8, MultifdErrorKind::Uuid { found: hello.uuid, expected });
        }
        if hello.id >= self.channels {
            let kind = MultifdErrorKind::ChannelId { id: hello.id, channels: self.channels };
            return refuse(24, kind);
        }
        let taken = &mut self.taken[usize::from(hello.id)];
        if *taken {
            return refuse(24, MultifdErrorKind::ChannelTaken { id: hello.id });
        }
        *taken = true;
        self.uuid = Some(expected);
        self.admitted += 1;
        Ok(())
    }

    /// True once all channels are there.
    pub const fn is_complete(&self) -> bool {
        self.admitted == self.channels
    }

    /// The channels that are not there yet.
    pub fn missing(&self) -> impl Iterator<Item = u8> + '_ {
        (0..self.channels).filter(|&id| !self.taken[usize::from(id)])
    }

    /// The VM that the channels belong to, once it is known.
    pub const fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid
    }
}
