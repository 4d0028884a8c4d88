//! Behind the final EOF: VMDESCRIPTION and whatever else (docs/wire/stream.md §5).
//!
//! The guest's state is complete by then, so nothing here is an error of the stream: VMDESCRIPTION
//! may be absent, cut or nonsense.

use super::{Advance, Decoder, End, Event, Found, Kind, State};
use crate::reader::{Reader, Stop, fail};

/// Type byte of VMDESCRIPTION.
const VMDESCRIPTION: u8 = 6;

impl Decoder {
    pub(super) fn after_eof<'i>(&mut self, window: &'i [u8], end: End) -> Advance<'i> {
        let mut reader = Reader::new(window);
        let is_description = reader.u8()? == VMDESCRIPTION && self.options.vmdescription;
        let cut_in_header = window.len() < 5 && end == End::Closed;
        if !is_description || cut_in_header {
            self.state = State::Trailing;
            return Ok((0, Found::Progress));
        }
        let len = reader.u32()?;
        let limit = self.options.limits.vmdescription_bytes;
        if len > limit {
            return fail(1, Kind::VmdescriptionTooLong { len, limit });
        }
        self.state = State::VmDescription { left: len };
        Ok((reader.at(), Found::Event(Event::VmDescription { len })))
    }

    pub(super) fn vm_description<'i>(&mut self, window: &'i [u8], left: u32) -> Advance<'i> {
        if left == 0 {
            self.state = State::Trailing;
            return Ok((0, Found::Progress));
        }
        if window.is_empty() {
            return Err(Stop::Need(1));
        }
        let len = window.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let taken = u32::try_from(len).expect("at most what is left");
        self.state = State::VmDescription { left: left - taken };
        Ok((len, Found::Event(Event::VmDescriptionData(&window[..len]))))
    }

    pub(super) fn trailing(window: &[u8]) -> Advance<'_> {
        if window.is_empty() {
            return Err(Stop::Need(1));
        }
        Ok((window.len(), Found::Event(Event::Trailing(window))))
    }
}
