//! Bytes to messages, split anywhere.
//!
//! ```text
//!   Head ──4 bytes──▶ Body ──len bytes──▶ message
//!                       └─ RECV_BITMAP ─▶ Size ─8─▶ Bitmap ─size─▶ EndMark ─8─▶ message
//! ```

use alloc::vec::Vec;

use super::{
    BITMAP_END_MARK, Bitmap, BlockName, MAX_BODY_LEN, Message, MessageType, ReturnPathError,
    Violation,
};

/// How long a bitmap may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapLimit {
    /// The source knows the block: exactly so many bytes.
    Exactly(u64),
    /// An onlooker does not: this many at most.
    AtMost(u64),
}

/// Whether and how long a bitmap may come: asked before any byte of it is kept.
///
/// [`SourceReturnPath`](super::SourceReturnPath) answers from its block table; a plain
/// [`BitmapLimit`] answers the same for every block.
pub trait BitmapRules {
    /// The limit for this block.
    ///
    /// # Errors
    ///
    /// The rule that forbids it.
    fn bitmap_limit(&self, block: &BlockName) -> Result<BitmapLimit, Violation>;
}

impl BitmapRules for BitmapLimit {
    fn bitmap_limit(&self, _: &BlockName) -> Result<BitmapLimit, Violation> {
        Ok(*self)
    }
}

/// A message and where it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Position of its first byte, counted from the first byte of the connection.
    pub at: u64,
    /// The message.
    pub message: Message,
}

/// What is being read.
#[derive(Debug, Clone)]
enum State {
    Head,
    Body { kind: MessageType, len: u16 },
    BitmapSize { block: BlockName },
    Bitmap { block: BlockName, size: usize, bytes: Vec<u8> },
    EndMark { block: BlockName, bytes: Vec<u8> },
    Broken(ReturnPathError),
}

/// Incremental decoder of one connection's return path.
///
/// Memory: [`MAX_BODY_LEN`] bytes, plus one bitmap that grows as its bytes arrive, up to twice the
/// limit given with each call. After an error every further call repeats it.
#[derive(Debug, Clone)]
pub struct ReturnPathDecoder {
    state: State,
    /// The part of the current fixed-size piece that is here.
    piece: Vec<u8>,
    /// Bytes consumed since the connection began.
    position: u64,
    /// Where the current message began.
    message_at: u64,
}

impl Default for ReturnPathDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ReturnPathDecoder {
    /// A decoder for a new connection.
    pub const fn new() -> Self {
        Self { state: State::Head, piece: Vec::new(), position: 0, message_at: 0 }
    }

    /// Bytes consumed so far.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Consumes from the front of `input` up to the end of the next message and returns it, or
    /// consumes everything and returns `None`. Call it until it returns `None`.
    ///
    /// # Errors
    ///
    /// [`ReturnPathError`] at the first byte that breaks a rule; the rest of `input` is lost.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        rules: &impl BitmapRules,
    ) -> Result<Option<Received>, ReturnPathError> {
        if let State::Broken(error) = &self.state {
            return Err(error.clone());
        }
        match self.step(input, rules) {
            Err(error) => {
                self.piece = Vec::new();
                self.state = State::Broken(error.clone());
                Err(error)
            }
            step => step,
        }
    }

    /// Says that no byte follows.
    ///
    /// # Errors
    ///
    /// [`Violation::ClosedInsideMessage`] if a message has begun, or the error that came before.
    /// Whether SHUT was seen is [`SourceReturnPath::handle_closed`]'s question.
    ///
    /// [`SourceReturnPath::handle_closed`]: super::SourceReturnPath::handle_closed
    pub fn finish(&self) -> Result<(), ReturnPathError> {
        match &self.state {
            State::Broken(error) => Err(error.clone()),
            State::Head if self.piece.is_empty() => Ok(()),
            _ => Err(self.error(self.position, Violation::ClosedInsideMessage)),
        }
    }

    fn error(&self, at: u64, violation: Violation) -> ReturnPathError {
        ReturnPathError { at, message_at: self.message_at, violation }
    }

    /// Fills the piece up to `len` bytes; true once it is whole.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        take_into(&mut self.piece, input, len, &mut self.position)
    }

    /// The piece as eight bytes, leaving it empty.
    fn take_be64(&mut self) -> u64 {
        let value = be64(&self.piece);
        self.piece.clear();
        value
    }

    fn step(
        &mut self,
        input: &mut &[u8],
        rules: &impl BitmapRules,
    ) -> Result<Option<Received>, ReturnPathError> {
        loop {
            match core::mem::replace(&mut self.state, State::Head) {
                State::Head => {
                    if self.piece.is_empty() {
                        self.message_at = self.position;
                    }
                    if !self.fill(input, 4) {
                        return Ok(None);
                    }
                    let (kind, len) = self.head()?;
                    self.piece.clear();
                    self.state = State::Body { kind, len };
                }
                State::Body { kind, len } => {
                    if !self.fill(input, len.into()) {
                        self.state = State::Body { kind, len };
                        return Ok(None);
                    }
                    let body = self.body(kind, len);
                    self.piece.clear();
                    match body? {
                        Body::Message(message) => return Ok(Some(self.received(message))),
                        Body::Bitmap(block) => self.state = State::BitmapSize { block },
                    }
                }
                State::BitmapSize { block } => {
                    if !self.fill(input, 8) {
                        self.state = State::BitmapSize { block };
                        return Ok(None);
                    }
                    let size = self.take_be64();
                    let size = self.checked_size(&block, size, rules)?;
                    self.state = State::Bitmap { block, size, bytes: Vec::new() };
                }
                State::Bitmap { block, size, mut bytes } => {
                    if !take_into(&mut bytes, input, size, &mut self.position) {
                        self.state = State::Bitmap { block, size, bytes };
                        return Ok(None);
                    }
                    self.state = State::EndMark { block, bytes };
                }
                State::EndMark { block, bytes } => {
                    if !self.fill(input, 8) {
                        self.state = State::EndMark { block, bytes };
                        return Ok(None);
                    }
                    let found = self.take_be64();
                    if found != BITMAP_END_MARK {
                        let violation = Violation::MissingEndMark { block, found };
                        return Err(self.error(self.position - 8, violation));
                    }
                    let bitmap = Bitmap::from_bytes(bytes).expect("checked with the size");
                    return Ok(Some(self.received(Message::RecvBitmap { block, bitmap })));
                }
                State::Broken(error) => return Err(error),
            }
        }
    }

    fn received(&self, message: Message) -> Received {
        Received { at: self.message_at, message }
    }

    /// Checks type and length, whose bytes are the piece.
    fn head(&self) -> Result<(MessageType, u16), ReturnPathError> {
        let number = u16::from_be_bytes([self.piece[0], self.piece[1]]);
        let len = u16::from_be_bytes([self.piece[2], self.piece[3]]);
        let len_at = self.message_at + 2;
        let kind = MessageType::from_number(number)
            .ok_or_else(|| self.error(self.message_at, Violation::UnknownType { number }))?;
        if usize::from(len) > MAX_BODY_LEN {
            return Err(self.error(len_at, Violation::BodyTooLong { len }));
        }
        let wrong =
            |expected| self.error(len_at, Violation::WrongLength { message: kind, len, expected });
        match kind.fixed_len() {
            Some(expected) if len != expected => Err(wrong(expected)),
            // The name is checked with the body; here only that its length byte is there.
            None if len < shortest_named(kind) => Err(wrong(shortest_named(kind))),
            _ => Ok((kind, len)),
        }
    }

    /// Reads a whole body, which is the piece.
    fn body(&self, kind: MessageType, len: u16) -> Result<Body, ReturnPathError> {
        let body = self.piece.as_slice();
        let word = || be32(body);
        Ok(Body::Message(match kind {
            MessageType::Shut => Message::Shut { status: word() },
            MessageType::Pong => Message::Pong { value: word() },
            MessageType::ResumeAck => Message::ResumeAck { value: word() },
            MessageType::SwitchoverAck => Message::SwitchoverAck,
            MessageType::ReqPages => {
                Message::ReqPages { start: be64(body), length: be32(&body[8..]) }
            }
            MessageType::ReqPagesId => Message::ReqPagesId {
                start: be64(body),
                length: be32(&body[8..]),
                block: self.name(kind, len, 12)?,
            },
            MessageType::RecvBitmap => return Ok(Body::Bitmap(self.name(kind, len, 0)?)),
        }))
    }

    /// The `str8` at `at` of the body, which must end with it.
    fn name(&self, kind: MessageType, len: u16, at: u16) -> Result<BlockName, ReturnPathError> {
        let name_len = self.piece[usize::from(at)];
        let expected = at + 1 + u16::from(name_len);
        if len != expected {
            let violation = Violation::WrongLength { message: kind, len, expected };
            return Err(self.error(self.message_at + 2, violation));
        }
        BlockName::new(&self.piece[usize::from(at) + 1..]).map_err(|_| {
            let at = self.message_at + 4 + u64::from(at);
            self.error(at, Violation::EmptyBlockName { message: kind })
        })
    }

    /// Asks the rules about an announced bitmap size, which was just read.
    fn checked_size(
        &self,
        block: &BlockName,
        size: u64,
        rules: &impl BitmapRules,
    ) -> Result<usize, ReturnPathError> {
        let limit = rules
            .bitmap_limit(block)
            .map_err(|violation| self.error(self.message_at, violation))?;
        let refused = |limit| Violation::BitmapNotAcceptable { block: block.clone(), size, limit };
        let verdict = match limit {
            BitmapLimit::Exactly(expected) if size != expected => {
                Err(Violation::WrongBitmapSize { block: block.clone(), size, expected })
            }
            BitmapLimit::Exactly(limit) | BitmapLimit::AtMost(limit) => {
                if size > limit || !size.is_multiple_of(8) {
                    Err(refused(limit))
                } else {
                    usize::try_from(size).map_err(|_| refused(limit))
                }
            }
        };
        verdict.map_err(|violation| self.error(self.position - 8, violation))
    }
}

/// What a body turned out to be.
enum Body {
    Message(Message),
    /// A bitmap of this block follows.
    Bitmap(BlockName),
}

/// The shortest body of a type that carries a name: everything but the name's characters.
const fn shortest_named(kind: MessageType) -> u16 {
    if matches!(kind, MessageType::ReqPagesId) { 13 } else { 1 }
}

/// Moves bytes until `buffer` holds `len`; true once it does.
fn take_into(buffer: &mut Vec<u8>, input: &mut &[u8], len: usize, position: &mut u64) -> bool {
    let wanted = len.saturating_sub(buffer.len()).min(input.len());
    let (taken, rest) = input.split_at(wanted);
    buffer.extend_from_slice(taken);
    *input = rest;
    // usize is at most 64 bits wide on every target of Rust.
    *position += wanted as u64;
    buffer.len() >= len
}

/// The first four bytes; the caller has checked that they are there.
fn be32(bytes: &[u8]) -> u32 {
    let (head, _) = bytes.split_first_chunk().expect("lengths are checked before bodies are read");
    u32::from_be_bytes(*head)
}

/// The first eight bytes; the caller has checked that they are there.
fn be64(bytes: &[u8]) -> u64 {
    let (head, _) = bytes.split_first_chunk().expect("lengths are checked before bodies are read");
    u64::from_be_bytes(*head)
}
