//! Going through a stream event by event, with the bytes each event stands for.
//!
//! ```text
//!   input, cut anywhere ──▶ StreamWalk ──▶ Piece { position, bytes, event }
//! ```
//!
//! Every byte of the stream is in exactly one piece. What the decoder takes before it can say what it is (the front of
//! a device section, of a block list) comes as a piece without an event; the event that ends it follows.

use mig_proto::{DecodeError, Decoder, Event, Options, Step};

use crate::error::{Error, Result as EngineResult};

/// What is known about the bytes behind an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// More will come.
    Open,
    /// More may come, but has not for a while; see [`Decoder::settle`].
    Quiet,
    /// Nothing will come.
    Closed,
}

/// A run of bytes and, where it is known, what they say.
#[derive(Debug)]
#[non_exhaustive]
pub struct Piece<'a> {
    /// Byte position of the beginning of the event that these bytes belong to.
    pub position: u64,
    /// The bytes of this piece; for an event that came in several pieces, the last of them.
    pub bytes: &'a [u8],
    /// What they say; `None` as long as the decoder cannot tell.
    pub event: Option<Event<'a>>,
}

impl Piece<'_> {
    /// What dealing with it takes at the most, in zero pages that are looked at.
    #[inline]
    pub(crate) fn cost(&self) -> u32 {
        match self.event {
            Some(Event::CompressedPage { .. }) => 32,
            _ => 1,
        }
    }
}

/// How far a walk came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Walked {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// Come again with at least this many bytes behind those; 0 when the stream is complete.
    pub at_least: usize,
}

/// Where the end of a stream is in sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    NotYet,
    /// EOF came; VMDESCRIPTION may follow.
    PastEof,
    /// So many bytes of VMDESCRIPTION are still to come.
    Description(u64),
}

/// A decoder and the position of the event it is in.
#[derive(Debug)]
pub struct StreamWalk {
    decoder: Decoder,
    start: u64,
    tail: Tail,
}

impl StreamWalk {
    /// A walk from the beginning of a main channel.
    pub fn new(options: Options) -> Self {
        Self { decoder: Decoder::new(options), start: 0, tail: Tail::NotYet }
    }

    /// The decoder, for what it knows beside the events.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Goes through `input`, which follows what was consumed before, and shows every piece to `visit`.
    ///
    /// # Errors
    ///
    /// What `visit` answers, or the decoder's error; both are final.
    #[inline]
    pub fn walk<E: From<DecodeError>>(
        &mut self,
        input: &[u8],
        end: InputEnd,
        mut visit: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<Walked, E> {
        self.walk_while(input, end, |piece| visit(piece).map(|()| true))
    }

    /// The same until `visit` answers false to an event: it is the last that was consumed, and the walk goes on with what
    /// follows it. `at_least` is 1 then, and may be there already.
    ///
    /// # Errors
    ///
    /// As [`walk`](Self::walk).
    pub fn walk_while<E: From<DecodeError>>(
        &mut self,
        input: &[u8],
        end: InputEnd,
        mut visit: impl FnMut(Piece<'_>) -> Result<bool, E>,
    ) -> Result<Walked, E> {
        let mut done = 0;
        loop {
            let rest = &input[done..];
            let step = match end {
                InputEnd::Open => self.decoder.decode(rest),
                InputEnd::Quiet => self.decoder.settle(rest),
                InputEnd::Closed => self.decoder.finish(rest),
            }?;
            match step {
                Step::Event { consumed, event } => {
                    self.tail = self.tail.after(&event);
                    let page = matches!(event, Event::Page(_));
                    let go_on = visit(Piece {
                        position: self.start,
                        bytes: &rest[..consumed],
                        event: Some(event),
                    })?;
                    done += consumed;
                    self.start = self.decoder.position();
                    if !go_on {
                        return Ok(Walked { consumed: done, at_least: 1 });
                    }
                    if page {
                        done += self.land_page(&input[done..], &mut visit)?;
                    }
                }
                Step::NeedMore { consumed, at_least } => {
                    if consumed > 0 {
                        let bytes = &rest[..consumed];
                        visit(Piece { position: self.start, bytes, event: None })?;
                    }
                    return Ok(Walked { consumed: done + consumed, at_least });
                }
                Step::Finished => return Ok(Walked { consumed: done, at_least: 0 }),
            }
        }
    }

    /// Shows the payload of the page that was just announced, if all of it is here: most of a stream is whole pages, and
    /// this spares the decoder half of its steps. Answers how many bytes that were.
    #[inline]
    fn land_page<E>(
        &mut self,
        rest: &[u8],
        visit: &mut impl FnMut(Piece<'_>) -> Result<bool, E>,
    ) -> Result<usize, E> {
        let left = self.decoder.payload_left();
        let Some(bytes) = rest.get(..left as usize).filter(|bytes| !bytes.is_empty()) else {
            return Ok(0);
        };
        visit(Piece { position: self.start, bytes, event: Some(Event::Payload(bytes)) })?;
        self.decoder.payload_landed(left).expect("no more than was left");
        self.start = self.decoder.position();
        Ok(bytes.len())
    }

    /// Takes eight bytes that look like the word of a page, PAGE and CONTINUE. True if they are: the page's payload is to be
    /// [landed](Self::page_landed) next. False, and nothing is taken, if something else is due here.
    ///
    /// # Errors
    ///
    /// As [`walk`](Self::walk).
    pub(crate) fn page_word(
        &mut self,
        word: &[u8; 8],
        mut visit: impl FnMut(Piece<'_>) -> EngineResult<()>,
    ) -> EngineResult<bool> {
        let event = match self.decoder.decode(word)? {
            Step::Event { consumed: 8, event: event @ Event::Page(_) } => event,
            Step::NeedMore { consumed: 0, .. } => return Ok(false),
            _ => {
                let what = "the stream goes on with another record where pages were being received";
                return Err(Error::peer_misbehaved(what).at(self.start));
            }
        };
        visit(Piece { position: self.start, bytes: word, event: Some(event) })?;
        self.start = self.decoder.position();
        Ok(true)
    }

    /// The payload of the page whose word was taken went to its place.
    pub(crate) fn page_landed(&mut self) {
        let left = self.decoder.payload_left();
        self.decoder.payload_landed(left).expect("no more than was left");
        self.start = self.decoder.position();
    }

    /// Bytes of a page's payload that are still to come.
    pub(crate) fn payload_left(&self) -> usize {
        self.decoder.payload_left() as usize
    }

    /// Whether the final EOF came.
    pub fn is_past_eof(&self) -> bool {
        self.tail != Tail::NotYet
    }

    /// Whether VMDESCRIPTION began.
    pub fn is_in_description(&self) -> bool {
        matches!(self.tail, Tail::Description(_))
    }

    /// Whether VMDESCRIPTION came to its announced end: nothing that matters can follow.
    pub fn is_complete(&self) -> bool {
        self.tail == Tail::Description(0)
    }
}

impl Tail {
    fn after(self, event: &Event<'_>) -> Self {
        match (self, event) {
            (_, Event::Eof { in_package: false }) => Self::PastEof,
            (_, Event::VmDescription { len }) => Self::Description(u64::from(*len)),
            (Self::Description(left), Event::VmDescriptionData(bytes)) => {
                Self::Description(left - bytes.len() as u64)
            }
            (same, _) => same,
        }
    }
}
