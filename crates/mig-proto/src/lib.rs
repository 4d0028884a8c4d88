//! QEMU's migration wire format as values: decoder, encoder, state tables; no I/O, no clock.
//!
//! ```text
//!             bytes, cut anywhere                     Event<'_>
//!   channel ─────────────────────▶ Decoder ────────────────────────▶ whoever loads or stores
//!   channel ◀───────────────────── encode  ◀──────────────────────── whoever saves or replays
//!             bytes                          values, Event<'_>
//! ```
//!
//! The happy path: feed [`Decoder::decode`] whatever arrived, act on the [`Event`] in the
//! [`Step`], drop the bytes it consumed, come again. A page event tells where the page belongs
//! and how many bytes follow; its payload is the caller's to land. What does not follow
//! `docs/wire` ends in a [`DecodeError`]: the byte position, what was found, what was expected and
//! [who is to blame](DecodeError::blame). Encoding cannot fail: values that could not be encoded
//! cannot be built. `encode::event` of every event of a stream gives the stream back, byte for
//! byte.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod classify;
mod command;
mod configuration;
mod decoder;
pub mod encode;
mod error;
mod event;
pub mod globalstate;
pub mod multifd;
mod name;
mod options;
pub mod peer;
mod ram;
mod reader;
pub mod return_path;
mod section;
pub mod state;
pub mod vmdesc;
pub mod xbzrle;

pub use classify::{FirstBytes, classify};
pub use command::{Advise, Command, DiscardRange, RamDiscard};
pub use configuration::{CapabilityList, Configuration, ConfigurationSubsection, LocalMachine};
pub use decoder::{Decoder, MAX_NEED, PayloadOverrun};
pub use error::{DecodeError, DecodeErrorKind, Fault, SectionName};
pub use event::{Event, Step};
pub use name::{InvalidName, Name};
pub use options::{
    Limits, LocalPostcopy, Options, PayloadLength, Presence, TargetPageSize, UnknownIterables,
};
pub use ram::{BlockEntry, BlockId, Deflated, Delta, PageRecord, RamBlock, RamWord, flag};
pub use section::{SectionHeader, SectionKind};
