//! What can be wrong with a VMDESC, or between it and a payload.

use alloc::string::String;

use thiserror::Error;

use super::{MAX_JSON_LEN, MAX_NESTING, MAX_VALUES};

/// A VMDESC that cannot be used. `path` is device, fields and subsections, joined by `.`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmdescError {
    /// More JSON than is parsed.
    #[error("VMDESC is {len} bytes of JSON, at most {MAX_JSON_LEN} are parsed")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// Nested deeper than is parsed.
    #[error("VMDESC byte {at}: nested deeper than {MAX_NESTING} levels")]
    TooDeep {
        /// Byte position in the JSON.
        at: usize,
    },
    /// Not JSON, or not of the schema.
    #[error("VMDESC byte {at}: not a VM description")]
    Json {
        /// Byte position in the JSON, at or right after the offending token.
        at: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A length that does not fit 64 bits.
    #[error("VMDESC {path}: size × array_len overflows")]
    Overflow {
        /// Where.
        path: String,
    },
    /// A subsection name that does not fit its length byte.
    #[error("VMDESC {path}: subsection name of {len} bytes, at most 255 fit")]
    LongSubsectionName {
        /// Where.
        path: String,
        /// Bytes of the name.
        len: usize,
    },
    /// `size` is not what the type or the nested description adds up to.
    #[error("VMDESC {path}: size {size}, but its contents take {computed}")]
    SizeMismatch {
        /// Where.
        path: String,
        /// The size given.
        size: u64,
        /// The size computed.
        computed: u64,
    },
    /// The payload is not as long as the description says.
    #[error("section {device}: payload of {actual} bytes, described as {described}")]
    PayloadLength {
        /// The idstr.
        device: String,
        /// Bytes given.
        actual: usize,
        /// Bytes described.
        described: u64,
    },
    /// The payload does not have the subsection that the description lists.
    #[error("payload byte {at}: no header of subsection {path}")]
    NoSubsection {
        /// Byte position inside the payload.
        at: usize,
        /// Where.
        path: String,
    },
    /// More values than are decoded.
    #[error("payload byte {at}: more than {MAX_VALUES} values in one section, at {path}")]
    TooManyValues {
        /// Byte position inside the payload.
        at: usize,
        /// Where.
        path: String,
    },
}

impl VmdescError {
    /// Whether the peer (or whoever wrote the file) is to blame: always, there is no local input.
    pub const fn peer_is_to_blame(&self) -> bool {
        true
    }

    /// The byte position, where there is one: inside the JSON for errors of the JSON, inside the
    /// payload for errors of the payload.
    pub const fn at(&self) -> Option<usize> {
        match self {
            Self::TooDeep { at }
            | Self::Json { at, .. }
            | Self::NoSubsection { at, .. }
            | Self::TooManyValues { at, .. } => Some(*at),
            Self::TooLong { .. }
            | Self::Overflow { .. }
            | Self::LongSubsectionName { .. }
            | Self::SizeMismatch { .. }
            | Self::PayloadLength { .. } => None,
        }
    }
}

/// Where we are in a description, without allocating until it is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    name: &'a str,
}

impl<'a> Path<'a> {
    pub(super) const fn root(name: &'a str) -> Self {
        Self { parent: None, name }
    }

    pub(super) const fn join(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name }
    }

    /// `cpu.env.fpregs`, each name cut to what a person reads.
    pub(super) fn text(&self) -> String {
        let mut out = self.parent.map(|parent| parent.text() + ".").unwrap_or_default();
        out.extend(self.name.chars().take(64));
        out
    }
}
