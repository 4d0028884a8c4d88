//! The 16 bytes in front of every control message (docs/wire/rdma.md §3.1).
//!
//! ```text
//!  0      4      8      12     16
//!  +------+------+------+------+-----------------
//!  | len  | type |repeat| pad  | payload
//!  +------+------+------+------+-----------------
//! ```
//!
//! One message is one SEND of exactly `16 + len` bytes. `pad` is whatever QEMU's memory held: ignored here, zero when sent.

use std::fmt;

use super::error::{Error, Result};

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;
/// Bytes of a control buffer, header included (docs/wire/rdma.md §1).
pub const CONTROL_BUFFER: usize = 524_288;
/// Longest payload.
pub const MAX_PAYLOAD: usize = CONTROL_BUFFER - HEADER_LEN;
/// What a hook window refuses to exceed in `repeat`, for any message (docs/wire/rdma.md §1).
pub const MAX_REPEAT: u32 = 4096;

/// The type of a control message (docs/wire/rdma.md §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Never sent.
    None = 0,
    /// The sender has given up.
    Error = 1,
    /// One message may be sent now.
    Ready = 2,
    /// Bytes of the migration stream.
    QemuFile = 3,
    /// "Where are your blocks?"
    RamBlocksRequest = 4,
    /// The answer to it.
    RamBlocksResult = 5,
    /// A range is zero.
    Compress = 6,
    /// "Register these chunks."
    RegisterRequest = 7,
    /// The key of the first of them.
    RegisterResult = 8,
    /// The hook window closes.
    RegisterFinished = 9,
    /// "Forget these chunks' keys."
    UnregisterRequest = 10,
    /// They are forgotten.
    UnregisterFinished = 11,
}

impl Kind {
    /// All of them, in order of their number.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::Error,
        Self::Ready,
        Self::QemuFile,
        Self::RamBlocksRequest,
        Self::RamBlocksResult,
        Self::Compress,
        Self::RegisterRequest,
        Self::RegisterResult,
        Self::RegisterFinished,
        Self::UnregisterRequest,
        Self::UnregisterFinished,
    ];

    /// The message with this number.
    ///
    /// # Errors
    ///
    /// The number has no message.
    pub fn from_wire(number: u32) -> Result<Self> {
        Self::ALL.get(number as usize).copied().ok_or_else(|| Error::Header {
            field: "type",
            value: number.into(),
            rule: "0 to 11 are known".into(),
        })
    }

    /// The specification's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Error => "ERROR",
            Self::Ready => "READY",
            Self::QemuFile => "QEMU_FILE",
            Self::RamBlocksRequest => "RAM_BLOCKS_REQUEST",
            Self::RamBlocksResult => "RAM_BLOCKS_RESULT",
            Self::Compress => "COMPRESS",
            Self::RegisterRequest => "REGISTER_REQUEST",
            Self::RegisterResult => "REGISTER_RESULT",
            Self::RegisterFinished => "REGISTER_FINISHED",
            Self::UnregisterRequest => "UNREGISTER_REQUEST",
            Self::UnregisterFinished => "UNREGISTER_FINISHED",
        }
    }

    /// What has to be answered to this message.
    pub fn response(self) -> Option<Self> {
        match self {
            Self::RamBlocksRequest => Some(Self::RamBlocksResult),
            Self::RegisterRequest => Some(Self::RegisterResult),
            Self::UnregisterRequest => Some(Self::UnregisterFinished),
            _ => None,
        }
    }

    /// Whether the other end must have said READY first.
    pub fn needs_ready(self) -> bool {
        matches!(
            self,
            Self::QemuFile
                | Self::RamBlocksRequest
                | Self::Compress
                | Self::RegisterRequest
                | Self::RegisterFinished
                | Self::UnregisterRequest
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The fields of a header that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: u32,
    /// Array elements, for REGISTER and UNREGISTER; noise elsewhere.
    pub repeat: u32,
}

impl Header {
    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.len.to_be_bytes());
        bytes[4..8].copy_from_slice(&(self.kind as u32).to_be_bytes());
        bytes[8..12].copy_from_slice(&self.repeat.to_be_bytes());
        bytes
    }
}

/// A received message: a checked header and as many bytes as it announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// `header.len` bytes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes a received message apart. `received` is the control buffer cut to the completion's `byte_len`.
    ///
    /// # Errors
    ///
    /// Shorter than a header, a length above [`MAX_PAYLOAD`] or other than what came, an unknown type.
    pub fn decode(received: &'a [u8]) -> Result<Self> {
        let Some((head, payload)) = received.split_first_chunk::<HEADER_LEN>() else {
            return Err(Error::Header {
                field: "byte count",
                value: received.len() as u64,
                rule: "a header alone has 16".into(),
            });
        };
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (len, repeat) = (word(0), word(8));
        if len as usize > MAX_PAYLOAD {
            return Err(Error::Header {
                field: "len",
                value: len.into(),
                rule: format!("at most {MAX_PAYLOAD} fit a message"),
            });
        }
        if len as usize != payload.len() {
            return Err(Error::Header {
                field: "len",
                value: len.into(),
                rule: format!("{} bytes followed the header", payload.len()),
            });
        }
        Ok(Self { header: Header { kind: Kind::from_wire(word(4))?, len, repeat }, payload })
    }

    /// The check that a hook window adds: `repeat` at most [`MAX_REPEAT`], whatever the type.
    ///
    /// # Errors
    ///
    /// `repeat` is larger.
    pub fn check_repeat(&self) -> Result<()> {
        if self.header.repeat > MAX_REPEAT {
            return Err(Error::Field {
                kind: self.header.kind,
                field: "repeat",
                value: self.header.repeat.into(),
                rule: format!("at most {MAX_REPEAT} in a hook window"),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_these_bytes() {
        let bytes = Header { kind: Kind::RegisterRequest, len: 24, repeat: 1 }.encode();
        assert_eq!(bytes, [0, 0, 0, 24, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn the_kinds_are_numbered_as_on_the_wire() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(Kind::from_wire(number as u32), Ok(kind));
        }
        assert!(Kind::from_wire(12).is_err());
        assert!(Kind::from_wire(u32::MAX).is_err());
    }

    #[test]
    fn what_is_answered_needs_ready_and_no_answer_does() {
        for kind in Kind::ALL {
            if let Some(response) = kind.response() {
                assert!(kind.needs_ready());
                assert!(!response.needs_ready());
            }
        }
    }

    #[test]
    fn padding_is_ignored() {
        let mut bytes = Header { kind: Kind::Ready, len: 0, repeat: 1 }.encode();
        bytes[12..].fill(0xa5);
        assert_eq!(Frame::decode(&bytes).unwrap().header.kind, Kind::Ready);
    }

    #[test]
    fn lengths_are_checked() {
        let refuse = |bytes: &[u8], field: &str| match Frame::decode(bytes) {
            Err(Error::Header { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{other:?}"),
        };
        refuse(&[0; 15], "byte count");
        let header = |len| Header { kind: Kind::QemuFile, len, repeat: 0 }.encode().to_vec();
        let mut message = header(3);
        refuse(&message, "len");
        message.extend([0; 4]);
        refuse(&message, "len");
        let mut longest = header(MAX_PAYLOAD as u32);
        longest.resize(CONTROL_BUFFER, 0);
        assert!(Frame::decode(&longest).is_ok());
        let mut over = header(MAX_PAYLOAD as u32 + 1);
        over.resize(CONTROL_BUFFER + 1, 0);
        refuse(&over, "len");
    }

    #[test]
    fn repeat_is_only_a_windows_business() {
        let bytes = Header { kind: Kind::Ready, len: 0, repeat: 4097 }.encode();
        let frame = Frame::decode(&bytes).unwrap();
        assert!(frame.check_repeat().is_err());
        let bytes = Header { kind: Kind::Ready, len: 0, repeat: 4096 }.encode();
        assert!(Frame::decode(&bytes).unwrap().check_repeat().is_ok());
    }

    proptest! {
        #[test]
        fn a_header_comes_back(kind in 0u32..12, repeat: u32, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let header = Header { kind: Kind::from_wire(kind).unwrap(), len: payload.len() as u32, repeat };
            let mut bytes = header.encode().to_vec();
            bytes.extend(&payload);
            let frame = Frame::decode(&bytes).unwrap();
            prop_assert_eq!(frame.header, header);
            prop_assert_eq!(frame.payload, &payload[..]);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(&bytes);
        }
    }
}
