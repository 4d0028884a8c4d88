//! VMDESC: the JSON at the end of a precopy stream that says how every device section is laid out.
//! docs/wire/vmstate.md §8.
//!
//! ```text
//!   … EOF 06 be32 n {"configuration": …, "page_size": 4096, "devices": [ … ]}
//!            │       └─ VmDescription::parse ─▶ DeviceDescription, one a FULL section
//!            └─ locate, from the end of a file       ├─ payload_len   where the section ends
//!                                                    └─ decode_fields what is in it
//! ```
//!
//! It comes from the peer and is never validated by QEMU, so nothing in it is believed: sizes are
//! added up with overflow checks, compared with each other and with the bytes that are there
//! before anything is allocated for them, and nesting is capped. What it does not explain (lists,
//! device-private codecs, types of the future) is an opaque run of `size` bytes.
//!
//! A description that contradicts itself or the payload is a [`VmdescError`] that says where; the
//! rest of the stream can still be read, only its devices stay unexplained.

mod decode;
mod description;
mod error;
mod length;
mod locate;
mod parse;
mod tree;

pub use decode::decode_fields;
pub use description::{
    Description, DeviceDescription, DeviceLayout, FieldDescription, FieldType, VmDescription,
};
pub use error::VmdescError;
pub use length::payload_len;
pub use locate::{Located, locate};
pub use tree::{FieldTree, FieldValue, SubsectionTree};

/// Largest JSON that is parsed. A machine with 30 devices has 42 to 98 KiB; a thousand devices
/// stay below 4 MiB.
pub const MAX_JSON_LEN: usize = 8 << 20;

/// Deepest nesting of objects and arrays that is parsed. 14 is the deepest seen in real streams,
/// and depth grows with structs inside structs, not with the number of devices.
pub const MAX_NESTING: usize = 64;

/// Longest array that is decoded into values; longer ones stay opaque.
pub const MAX_ARRAY_VALUES: u64 = 4096;

/// Most values that one section is decoded into.
pub const MAX_VALUES: usize = 1 << 18;

/// Most bytes of a buffer or an opaque field that are kept; its length is always told.
pub const MAX_KEPT_BYTES: usize = 256;
