//! A decoded payload: named values, ready to be shown.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// The values of one description, in wire order.
///
/// As JSON: an object of the fields, with `"subsections"` after them if there are any:
/// `{"cur_entry": 0, "subsections": {"fw_cfg/dma": {"version": 0, "fields": {"dma_addr": 0}}}}`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldTree {
    /// Field names and values.
    pub fields: Vec<(String, FieldValue)>,
    /// Subsections, in wire order.
    pub subsections: Vec<SubsectionTree>,
}

/// The values of one subsection.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsectionTree {
    /// Its name on the wire.
    pub name: String,
    /// Its version on the wire.
    pub version: u32,
    /// Its values.
    pub fields: FieldTree,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// JSON: true or false.
    Bool(bool),
    /// JSON: a number.
    Unsigned(u64),
    /// JSON: a number.
    Signed(i64),
    /// JSON: a number, null if not finite.
    Double(f64),
    /// A null pointer in an array of pointers. JSON: null.
    Null,
    /// Bytes without inner structure. JSON: a hex string if all bytes were kept, else the object
    /// of [`FieldValue::Opaque`].
    Bytes {
        /// The JSON name of the type.
        field_type: String,
        /// Bytes in the payload.
        len: u64,
        /// The first of them, at most [`MAX_KEPT_BYTES`](super::MAX_KEPT_BYTES).
        kept: Vec<u8>,
    },
    /// What the description does not explain. JSON: `{"type": …, "size": …, "hex": …}`.
    Opaque {
        /// The JSON name of the type.
        field_type: String,
        /// Bytes in the payload.
        len: u64,
        /// The first of them, at most [`MAX_KEPT_BYTES`](super::MAX_KEPT_BYTES).
        kept: Vec<u8>,
    },
    /// Elements of an array. JSON: an array.
    Array(Vec<FieldValue>),
    /// A nested description. JSON: an object.
    Struct(FieldTree),
}

impl FieldTree {
    /// The value of the field of that name; the first, should there be several.
    pub fn field(&self, name: &str) -> Option<&FieldValue> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The subsection of that name.
    pub fn subsection(&self, name: &str) -> Option<&SubsectionTree> {
        self.subsections.iter().find(|subsection| subsection.name == name)
    }
}

impl Serialize for FieldTree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let extra = usize::from(!self.subsections.is_empty());
        let mut map = serializer.serialize_map(Some(self.fields.len() + extra))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        if !self.subsections.is_empty() {
            map.serialize_entry("subsections", &Subsections(&self.subsections))?;
        }
        map.end()
    }
}

/// Subsections by name.
struct Subsections<'a>(&'a [SubsectionTree]);

impl Serialize for Subsections<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|subsection| (&subsection.name, subsection)))
    }
}

impl Serialize for SubsectionTree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("fields", &self.fields)?;
        map.end()
    }
}

impl Serialize for FieldValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Double(value) => serializer.serialize_f64(*value),
            Self::Null => serializer.serialize_unit(),
            // usize is at most 64 bits wide on every target of Rust.
            Self::Bytes { len, kept, .. } if kept.len() as u64 == *len => {
                serializer.collect_str(&Hex(kept))
            }
            Self::Bytes { field_type, len, kept } | Self::Opaque { field_type, len, kept } => {
                let mut map = serializer.serialize_map(Some(3))?;
                map.serialize_entry("type", field_type)?;
                map.serialize_entry("size", len)?;
                map.serialize_entry("hex", &Hex(kept))?;
                map.end()
            }
            Self::Array(values) => serializer.collect_seq(values),
            Self::Struct(tree) => tree.serialize(serializer),
        }
    }
}

/// Bytes as lower-case hex.
struct Hex<'a>(&'a [u8]);

impl core::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
