//! Control messages as values (docs/wire/rdma.md §3.2, §3.3).
//!
//! Received arrays stay in the control buffer and are read element by element ([`Elements`]), so that no length a peer names
//! is ever allocated.

use std::marker::PhantomData;

use super::{
    MAX_BLOCKS,
    error::{Error, Result},
    header::{Frame, HEADER_LEN, Header, Kind, MAX_PAYLOAD, MAX_REPEAT},
};

/// A fixed-size array element.
pub trait Element: Copy {
    /// Bytes on the wire.
    const LEN: usize;

    /// Reads one from exactly [`Self::LEN`] bytes.
    fn read(bytes: &[u8]) -> Self;

    /// Writes one into exactly [`Self::LEN`] bytes.
    fn write(&self, bytes: &mut [u8]);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes were cut out"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes were cut out"))
}

/// One block as the destination describes it.
///
/// ```text
///  0               8               16              24      28      32
///  | host_addr u64 | ram_offset u64| length u64    |rkey u32|pad u32|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteBlock {
    /// Destination virtual address of the block's first byte.
    pub host_addr: u64,
    /// The block's base in the destination's ram address space.
    pub ram_offset: u64,
    /// Bytes in use.
    pub length: u64,
    /// Key of the whole block with pin-all, else 0.
    pub rkey: u32,
}

impl Element for RemoteBlock {
    const LEN: usize = 32;

    fn read(bytes: &[u8]) -> Self {
        Self {
            host_addr: u64_at(bytes, 0),
            ram_offset: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
            rkey: u32_at(bytes, 24),
        }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.host_addr.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.ram_offset.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.rkey.to_be_bytes());
        bytes[28..32].fill(0);
    }
}

/// A range of the destination's memory that holds one byte value, always 0.
///
/// ```text
///  0        4         8               16              24
///  |value u32|block u32| ram_addr u64  | length u64    |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compress {
    /// 0.
    pub value: u32,
    /// Block index.
    pub block: u32,
    /// First byte, in the destination's ram address space.
    pub ram_addr: u64,
    /// Bytes.
    pub length: u64,
}

impl Element for Compress {
    const LEN: usize = 24;

    fn read(bytes: &[u8]) -> Self {
        Self {
            value: u32_at(bytes, 0),
            block: u32_at(bytes, 4),
            ram_addr: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
        }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&self.value.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.block.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.ram_addr.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_be_bytes());
    }
}

/// One element of REGISTER_REQUEST and UNREGISTER_REQUEST.
///
/// ```text
///  0               8         12      16              24
///  | key u64       |block u32|pad u32| chunks u64    |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// REGISTER: destination ram address of the first byte to be written. UNREGISTER: chunk number within the block.
    pub key: u64,
    /// Block index.
    pub block: u32,
    /// REGISTER: chunks after the first. UNREGISTER: unused.
    pub chunks: u64,
}

impl Element for Register {
    const LEN: usize = 24;

    fn read(bytes: &[u8]) -> Self {
        Self { key: u64_at(bytes, 0), block: u32_at(bytes, 8), chunks: u64_at(bytes, 16) }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.key.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.block.to_be_bytes());
        bytes[12..16].fill(0);
        bytes[16..24].copy_from_slice(&self.chunks.to_be_bytes());
    }
}

/// The key that answers a REGISTER_REQUEST.
///
/// ```text
///  0        4       8               16
///  |rkey u32|pad u32| host_addr u64 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterResult {
    /// The key.
    pub rkey: u32,
    /// Destination virtual address of the block's (not the chunk's) first byte.
    pub host_addr: u64,
}

impl Element for RegisterResult {
    const LEN: usize = 16;

    fn read(bytes: &[u8]) -> Self {
        Self { rkey: u32_at(bytes, 0), host_addr: u64_at(bytes, 8) }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&self.rkey.to_be_bytes());
        bytes[4..8].fill(0);
        bytes[8..16].copy_from_slice(&self.host_addr.to_be_bytes());
    }
}

/// A received array, still in the buffer it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements<'a, T> {
    bytes: &'a [u8],
    element: PhantomData<T>,
}

impl<'a, T: Element> Elements<'a, T> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, element: PhantomData }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len() / T::LEN
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Each in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + use<'a, T> {
        self.bytes.chunks_exact(T::LEN).map(T::read)
    }
}

/// A received control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The other end has given up.
    Error,
    /// One message may be sent.
    Ready,
    /// Stream bytes, at least one.
    QemuFile(&'a [u8]),
    /// "Where are your blocks?"
    RamBlocksRequest,
    /// At most [`MAX_BLOCKS`].
    RamBlocksResult(Elements<'a, RemoteBlock>),
    /// A range is zero.
    Compress(Compress),
    /// 1 to [`MAX_REPEAT`].
    RegisterRequest(Elements<'a, Register>),
    /// The first key.
    RegisterResult(RegisterResult),
    /// The window closes.
    RegisterFinished,
    /// 1 to [`MAX_REPEAT`].
    UnregisterRequest(Elements<'a, Register>),
    /// Done.
    UnregisterFinished,
}

impl<'a> Message<'a> {
    /// Takes the bytes of one received message apart; see [`Frame::decode`].
    ///
    /// # Errors
    ///
    /// What [`Frame::decode`] refuses, NONE, and a payload whose length does not fit its type. Values inside payloads are
    /// judged by who uses them.
    pub fn decode(received: &'a [u8]) -> Result<Self> {
        Self::from_frame(&Frame::decode(received)?)
    }

    /// The message in a frame; see [`Message::decode`].
    ///
    /// # Errors
    ///
    /// NONE, and a payload whose length does not fit its type.
    pub fn from_frame(frame: &Frame<'a>) -> Result<Self> {
        let payload = frame.payload;
        let kind = frame.header.kind;
        let exactly = |len: usize| {
            if payload.len() == len {
                return Ok(());
            }
            Err(Error::field(kind, "len", payload.len() as u64, format!("it has {len} bytes")))
        };
        Ok(match kind {
            Kind::None => return Err(Error::unexpected(kind, "which is never sent")),
            // The peer has failed; that it failed strangely adds nothing.
            Kind::Error => Self::Error,
            Kind::Ready => exactly(0).map(|()| Self::Ready)?,
            Kind::QemuFile if payload.is_empty() => {
                return Err(Error::field(kind, "len", 0u32, "at least one stream byte"));
            }
            Kind::QemuFile => Self::QemuFile(payload),
            Kind::RamBlocksRequest => exactly(0).map(|()| Self::RamBlocksRequest)?,
            Kind::RamBlocksResult => Self::RamBlocksResult(blocks(payload)?),
            Kind::Compress => {
                exactly(Compress::LEN).map(|()| Self::Compress(Compress::read(payload)))?
            }
            Kind::RegisterRequest => Self::RegisterRequest(requests(frame)?),
            Kind::RegisterResult => exactly(RegisterResult::LEN)
                .map(|()| Self::RegisterResult(RegisterResult::read(payload)))?,
            Kind::RegisterFinished => exactly(0).map(|()| Self::RegisterFinished)?,
            Kind::UnregisterRequest => Self::UnregisterRequest(requests(frame)?),
            Kind::UnregisterFinished => exactly(0).map(|()| Self::UnregisterFinished)?,
        })
    }

    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Error => Kind::Error,
            Self::Ready => Kind::Ready,
            Self::QemuFile(_) => Kind::QemuFile,
            Self::RamBlocksRequest => Kind::RamBlocksRequest,
            Self::RamBlocksResult(_) => Kind::RamBlocksResult,
            Self::Compress(_) => Kind::Compress,
            Self::RegisterRequest(_) => Kind::RegisterRequest,
            Self::RegisterResult(_) => Kind::RegisterResult,
            Self::RegisterFinished => Kind::RegisterFinished,
            Self::UnregisterRequest(_) => Kind::UnregisterRequest,
            Self::UnregisterFinished => Kind::UnregisterFinished,
        }
    }
}

fn blocks(payload: &[u8]) -> Result<Elements<'_, RemoteBlock>> {
    let refuse =
        |rule: String| Err(Error::field(Kind::RamBlocksResult, "len", payload.len() as u64, rule));
    if !payload.len().is_multiple_of(RemoteBlock::LEN) {
        return refuse("32 bytes for each block".into());
    }
    if payload.len() / RemoteBlock::LEN > MAX_BLOCKS {
        return refuse(format!("at most {MAX_BLOCKS} blocks"));
    }
    Ok(Elements::new(payload))
}

fn requests<'a>(frame: &Frame<'a>) -> Result<Elements<'a, Register>> {
    let Header { kind, repeat, len } = frame.header;
    if !(1..=MAX_REPEAT).contains(&repeat) {
        return Err(Error::field(kind, "repeat", repeat, format!("1 to {MAX_REPEAT} elements")));
    }
    let expected = repeat as usize * Register::LEN;
    if frame.payload.len() != expected {
        return Err(Error::field(
            kind,
            "len",
            len,
            format!("{expected} bytes for repeat {repeat}"),
        ));
    }
    Ok(Elements::new(frame.payload))
}

/// A control message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// We have given up.
    Error,
    /// The other end may send one message.
    Ready,
    /// 1 to [`MAX_PAYLOAD`] stream bytes, copied; [`StreamFill`](super::stream::StreamFill) gathers them in place.
    QemuFile(&'a [u8]),
    /// "Where are your blocks?"
    RamBlocksRequest,
    /// At most [`MAX_BLOCKS`].
    RamBlocksResult(&'a [RemoteBlock]),
    /// A range is zero.
    Compress(Compress),
    /// One element; more are broken in QEMU (docs/wire/rdma.md §9.2).
    Register(Register),
    /// The first key; `repeat` of the request.
    RegisterResult {
        /// The key.
        result: RegisterResult,
        /// Copied from the request.
        repeat: u32,
    },
    /// The window closes.
    RegisterFinished,
    /// One element, only where the extension is in force (docs/wire/rdma.md §9.4).
    Unregister(Register),
    /// Done.
    UnregisterFinished {
        /// Copied from the request.
        repeat: u32,
    },
}

impl Outgoing<'_> {
    /// Its type.
    pub fn kind(&self) -> Kind {
        self.header().kind
    }

    /// Bytes of the whole message.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.payload_len()
    }

    fn payload_len(&self) -> usize {
        match self {
            Self::QemuFile(bytes) => bytes.len(),
            Self::RamBlocksResult(blocks) => blocks.len() * RemoteBlock::LEN,
            Self::Compress(_) => Compress::LEN,
            Self::Register(_) | Self::Unregister(_) => Register::LEN,
            Self::RegisterResult { .. } => RegisterResult::LEN,
            _ => 0,
        }
    }

    fn header(&self) -> Header {
        let (kind, repeat) = match *self {
            Self::Error => (Kind::Error, 1),
            Self::Ready => (Kind::Ready, 1),
            // As QEMU since 8.2.
            Self::QemuFile(_) => (Kind::QemuFile, 0),
            Self::RamBlocksRequest => (Kind::RamBlocksRequest, 1),
            Self::RamBlocksResult(_) => (Kind::RamBlocksResult, 1),
            Self::Compress(_) => (Kind::Compress, 1),
            Self::Register(_) => (Kind::RegisterRequest, 1),
            Self::RegisterResult { repeat, .. } => (Kind::RegisterResult, repeat),
            Self::RegisterFinished => (Kind::RegisterFinished, 1),
            Self::Unregister(_) => (Kind::UnregisterRequest, 1),
            Self::UnregisterFinished { repeat } => (Kind::UnregisterFinished, repeat),
        };
        // A length past u32 is refused by `encode` before it can go out.
        Header { kind, len: u32::try_from(self.payload_len()).unwrap_or(u32::MAX), repeat }
    }

    /// Writes the message to the front of `buffer` and says how long it is.
    ///
    /// # Errors
    ///
    /// The payload is longer than [`MAX_PAYLOAD`], or `buffer` shorter than the message; nothing was written.
    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize> {
        let len = self.encoded_len();
        if self.payload_len() > MAX_PAYLOAD || len > buffer.len() {
            return Err(Error::misuse(format!(
                "{} of {len} bytes does not fit a control buffer of {}",
                self.kind(),
                buffer.len(),
            )));
        }
        let (head, rest) = buffer.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&self.header().encode());
        let payload = &mut rest[..len - HEADER_LEN];
        match self {
            Self::QemuFile(bytes) => payload.copy_from_slice(bytes),
            Self::RamBlocksResult(blocks) => {
                for (block, bytes) in blocks.iter().zip(payload.chunks_exact_mut(RemoteBlock::LEN))
                {
                    block.write(bytes);
                }
            }
            Self::Compress(compress) => compress.write(payload),
            Self::Register(register) | Self::Unregister(register) => register.write(payload),
            Self::RegisterResult { result, .. } => result.write(payload),
            _ => {}
        }
        Ok(len)
    }

    /// The message in a vector of its own.
    ///
    /// # Errors
    ///
    /// The payload is longer than [`MAX_PAYLOAD`].
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.encoded_len().min(HEADER_LEN + MAX_PAYLOAD)];
        self.encode(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(kind: Kind, repeat: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Header { kind, len: payload.len() as u32, repeat }.encode().to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn payloads_are_these_bytes() {
        let mut wire = [0xff; 32];
        RemoteBlock { host_addr: 1, ram_offset: 2, length: 3, rkey: 4 }.write(&mut wire);
        assert_eq!(
            wire,
            [
                0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4,
                0, 0, 0, 0
            ]
        );
        let mut wire = [0xff; 24];
        Compress { value: 1, block: 2, ram_addr: 3, length: 4 }.write(&mut wire);
        assert_eq!(wire, [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4]);
        Register { key: 1, block: 2, chunks: 3 }.write(&mut wire);
        assert_eq!(wire, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        let mut wire = [0xff; 16];
        RegisterResult { rkey: 1, host_addr: 2 }.write(&mut wire);
        assert_eq!(wire, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_payload_must_have_its_types_length() {
        for kind in
            [Kind::Ready, Kind::RamBlocksRequest, Kind::RegisterFinished, Kind::UnregisterFinished]
        {
            assert_eq!(Message::decode(&bytes(kind, 1, &[])).unwrap().kind(), kind);
            assert!(Message::decode(&bytes(kind, 1, &[0])).is_err(), "{kind}");
        }
        assert!(Message::decode(&bytes(Kind::Compress, 1, &[0; 23])).is_err());
        assert!(Message::decode(&bytes(Kind::Compress, 1, &[0; 25])).is_err());
        assert!(Message::decode(&bytes(Kind::RegisterResult, 1, &[0; 32])).is_err());
        assert!(Message::decode(&bytes(Kind::RamBlocksResult, 1, &[0; 33])).is_err());
        assert!(Message::decode(&bytes(Kind::None, 1, &[])).is_err());
        assert!(Message::decode(&bytes(Kind::QemuFile, 0, &[])).is_err());
        // Garbage in `repeat` of a stream message is what older QEMUs send.
        assert!(Message::decode(&bytes(Kind::QemuFile, u32::MAX, &[1])).is_ok());
    }

    #[test]
    fn repeat_and_length_of_requests_must_agree() {
        for kind in [Kind::RegisterRequest, Kind::UnregisterRequest] {
            assert!(Message::decode(&bytes(kind, 0, &[])).is_err());
            assert!(Message::decode(&bytes(kind, 1, &[0; 48])).is_err());
            assert!(Message::decode(&bytes(kind, 2, &[0; 24])).is_err());
            assert!(Message::decode(&bytes(kind, 4096, &vec![0; 4096 * 24])).is_ok());
            assert!(Message::decode(&bytes(kind, 4097, &vec![0; 4097 * 24])).is_err());
        }
    }

    #[test]
    fn the_most_blocks_that_fit() {
        let blocks =
            vec![RemoteBlock { host_addr: 0, ram_offset: 0, length: 0, rkey: 0 }; MAX_BLOCKS];
        let bytes = Outgoing::RamBlocksResult(&blocks).to_vec().unwrap();
        let Message::RamBlocksResult(back) = Message::decode(&bytes).unwrap() else { panic!() };
        assert_eq!(back.len(), MAX_BLOCKS);
        let more = vec![blocks[0]; MAX_BLOCKS + 1];
        assert!(Outgoing::RamBlocksResult(&more).to_vec().is_err());
    }

    #[test]
    fn a_short_buffer_is_refused_untouched() {
        let mut buffer = [7; 20];
        let sent = Outgoing::Compress(Compress { value: 0, block: 0, ram_addr: 0, length: 1 });
        assert!(sent.encode(&mut buffer).is_err());
        assert_eq!(buffer, [7; 20]);
    }

    proptest! {
        #[test]
        fn messages_come_back(a: u64, b: u64, c: u64, d: u32, e: u32, repeat in 1u32..=4096) {
            let block = RemoteBlock { host_addr: a, ram_offset: b, length: c, rkey: d };
            let sent = Outgoing::RamBlocksResult(&[block, block]).to_vec().unwrap();
            let Message::RamBlocksResult(back) = Message::decode(&sent).unwrap() else { panic!() };
            prop_assert_eq!(back.iter().collect::<Vec<_>>(), vec![block, block]);

            let compress = Compress { value: d, block: e, ram_addr: a, length: b };
            let sent = Outgoing::Compress(compress).to_vec().unwrap();
            prop_assert_eq!(Message::decode(&sent).unwrap(), Message::Compress(compress));

            let register = Register { key: a, block: d, chunks: b };
            let sent = Outgoing::Register(register).to_vec().unwrap();
            let Message::RegisterRequest(back) = Message::decode(&sent).unwrap() else { panic!() };
            prop_assert_eq!(back.iter().collect::<Vec<_>>(), vec![register]);
            let sent = Outgoing::Unregister(register).to_vec().unwrap();
            let Message::UnregisterRequest(back) = Message::decode(&sent).unwrap() else { panic!() };
            prop_assert_eq!(back.iter().collect::<Vec<_>>(), vec![register]);

            let result = RegisterResult { rkey: d, host_addr: a };
            let sent = Outgoing::RegisterResult { result, repeat }.to_vec().unwrap();
            prop_assert_eq!(Message::decode(&sent).unwrap(), Message::RegisterResult(result));
        }

        #[test]
        fn any_payload_is_a_message_or_an_error(kind in 0u32..14, repeat: u32, payload in proptest::collection::vec(any::<u8>(), 0..128)) {
            let mut bytes = Header { kind: Kind::Ready, len: payload.len() as u32, repeat }.encode().to_vec();
            bytes[4..8].copy_from_slice(&kind.to_be_bytes());
            bytes.extend(payload);
            let _ = Message::decode(&bytes);
        }
    }
}
