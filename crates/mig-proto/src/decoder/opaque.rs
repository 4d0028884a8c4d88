//! Payloads that are not understood: whole, by their known length or by their footer.
//!
//! ```text
//!   04 id … | payload … 7e id ✗ … payload … | 7e id | 00, 01, 02, 03, 04 or 08 and plausible
//!                       └ not followed        └ the end
//!                         by a legal item
//! ```
//!
//! The bytes looked at behind a candidate stay with the caller until they are decoded for what
//! they are, so never more than the longest section header is asked for.

use alloc::vec::Vec;

use super::{Advance, Decoder, End, Event, Found, Kind, State};
use crate::command;
use crate::error::lossy;
use crate::reader::{Stop, fail};
use crate::section::{FOOTER, SectionKind};

/// Footer marker and id.
const FOOTER_LEN: usize = 5;
/// What the buffer keeps between sections; few devices need more.
const KEPT_BUFFER: usize = 1 << 20;
/// Sections whose payload length is part of the protocol: globalstate (docs/wire/stream.md §10).
const FIXED_LENGTHS: [(&[u8], u32, u32, u64); 1] = [(b"globalstate", 0, 1, 104)];

/// Whether bytes may be what follows a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
    /// Not to be told from fewer bytes than this.
    Need(usize),
}

impl Decoder {
    /// Prepares for the payload of a section that is not `ram`; `at` is where it begins.
    pub(super) fn open_opaque(
        &mut self,
        kind: SectionKind,
        section_id: u32,
        at: usize,
    ) -> Result<(), Stop> {
        let limit = self.options.limits.section_bytes;
        self.opaque.buffer.clear();
        self.opaque.buffer.shrink_to(KEPT_BUFFER);
        self.opaque.len = None;
        if let Some(len) = self.known_length(kind, section_id) {
            match usize::try_from(len) {
                Ok(len) if len <= limit => self.opaque.len = Some(len),
                _ => return fail(at, Kind::SectionTooLong { limit }),
            }
        } else if !self.options.footers {
            let idstr = lossy(&self.header(kind, section_id).idstr);
            return fail(at, Kind::PayloadLengthUnknown { idstr });
        }
        self.state = State::Opaque;
        Ok(())
    }

    pub(super) fn opaque<'i>(&mut self, window: &'i [u8], end: End) -> Advance<'i> {
        let room = match self.opaque.len {
            Some(len) => len - self.opaque.buffer.len(),
            None => self.options.limits.section_bytes - self.opaque.buffer.len(),
        };
        let scan = match self.opaque.len {
            Some(_) if window.len() >= room => Scan::End(room),
            Some(_) => Scan::Payload { certain: window.len(), need: 1 },
            None => self.scan(window, end),
        };
        match scan {
            Scan::End(len) | Scan::Payload { certain: len, .. } if len > room => {
                fail(room, Kind::SectionTooLong { limit: self.options.limits.section_bytes })
            }
            Scan::Payload { certain: 0, need } => Err(Stop::Need(need)),
            Scan::Payload { certain, .. } => {
                self.collect(&window[..certain]);
                Ok((certain, Found::Progress))
            }
            Scan::End(len) => {
                self.end_of_payload();
                if self.opaque.buffer.is_empty() {
                    return Ok((len, Found::Event(Event::SectionData(&window[..len]))));
                }
                self.collect(&window[..len]);
                Ok((len, Found::Collected))
            }
        }
    }

    /// Grows by doubling, but never past the limit.
    fn collect(&mut self, bytes: &[u8]) {
        let buffer: &mut Vec<u8> = &mut self.opaque.buffer;
        let needed = buffer.len() + bytes.len();
        if needed > buffer.capacity() {
            let goal = (2 * buffer.capacity()).min(self.options.limits.section_bytes).max(needed);
            buffer.reserve_exact(goal - buffer.len());
        }
        buffer.extend_from_slice(bytes);
    }

    /// Looks for the section's footer in `window`.
    fn scan(&self, window: &[u8], end: End) -> Scan {
        let id = self.section.expect("a payload is scanned only while a section is open");
        let marker = crate::encode::footer(id);
        let mut at = 0;
        while let Some(next) = window[at..].iter().position(|byte| *byte == FOOTER) {
            at += next;
            let candidate = &window[at..];
            let (head, behind) = candidate.split_at(candidate.len().min(FOOTER_LEN));
            if head.len() < FOOTER_LEN && marker.starts_with(head) && end != End::Closed {
                return Scan::Payload { certain: at, need: FOOTER_LEN };
            }
            if head == marker {
                match self.is_item(behind, end) {
                    Verdict::Yes => return Scan::End(at),
                    Verdict::No => {}
                    Verdict::Need(need) => {
                        return Scan::Payload { certain: at, need: FOOTER_LEN + need };
                    }
                }
            }
            at += 1;
        }
        Scan::Payload { certain: window.len(), need: 1 }
    }

    /// Whether `bytes` begin with a legal and plausible item.
    fn is_item(&self, bytes: &[u8], end: End) -> Verdict {
        let Some((kind, rest)) = bytes.split_first() else {
            return need(1, end);
        };
        match kind {
            0 => self.is_eof(rest, end),
            1 | 4 => is_introduction(rest, end),
            2 | 3 => match rest.first_chunk() {
                None => need(5, end),
                Some(id) => {
                    let known = self.sections.find(u32::from_be_bytes(*id));
                    verdict(known.is_some_and(|identity| identity.iterable))
                }
            },
            8 => match rest.first_chunk() {
                None => need(5, end),
                Some(&[a, b, c, d]) => verdict(command::is_plausible(
                    u16::from_be_bytes([a, b]),
                    u16::from_be_bytes([c, d]),
                )),
            },
            _ => Verdict::No,
        }
    }

    /// An EOF stands before VMDESCRIPTION, or before nothing at all.
    fn is_eof(&self, rest: &[u8], end: End) -> Verdict {
        match rest.first() {
            Some(next) => verdict(*next == 6 && self.options.vmdescription && !self.in_package()),
            None if end == End::Closed => Verdict::Yes,
            None if end == End::Quiet && !self.in_package() => Verdict::Yes,
            None => Verdict::Need(2),
        }
    }

    /// The length that the options or the protocol give the section.
    fn known_length(&mut self, kind: SectionKind, section_id: u32) -> Option<u64> {
        if kind != SectionKind::Full {
            return None;
        }
        let header = self.sections.header(kind, section_id)?;
        let idstr = header.idstr.as_bytes();
        let lengths = &self.options.lengths;
        let is_it = |index: &usize| {
            *lengths[*index].idstr == *idstr && lengths[*index].instance_id == header.instance_id
        };
        // In stream order; a section sent twice but listed once has the same length again.
        let next = self.opaque.next_length;
        if let Some(index) = (next..lengths.len()).chain(0..next).find(is_it) {
            let len = lengths[index].len;
            self.opaque.next_length = index + 1;
            return Some(len);
        }
        let fixed = (header.idstr.as_bytes(), header.instance_id, header.version_id);
        FIXED_LENGTHS
            .iter()
            .find(|(idstr, instance, version, _)| (*idstr, *instance, *version) == fixed)
            .map(|(.., len)| *len)
    }
}

/// What a look at the window brought.
enum Scan {
    /// The payload ends after this many bytes.
    End(usize),
    /// The first `certain` bytes are payload; of those behind, `need` must be seen.
    Payload { certain: usize, need: usize },
}

/// A START or FULL header with a printable name, as far as it is there.
fn is_introduction(rest: &[u8], end: End) -> Verdict {
    let Some((len, name)) = rest.get(4..).and_then(<[u8]>::split_first) else {
        return need(6, end);
    };
    let len = usize::from(*len);
    let name = &name[..name.len().min(len)];
    if len == 0 || !name.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Verdict::No;
    }
    // The name is followed by instance and version.
    let header = 6 + len + 8;
    if rest.len() + 1 < header { need(header, end) } else { Verdict::Yes }
}

fn verdict(legal: bool) -> Verdict {
    if legal { Verdict::Yes } else { Verdict::No }
}

/// Where nothing more will come, what is not complete is not an item.
fn need(bytes: usize, end: End) -> Verdict {
    if end == End::Closed { Verdict::No } else { Verdict::Need(bytes) }
}
