//! The description as values. docs/wire/vmstate.md §8.1.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// The whole VMDESC.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmDescription {
    /// The layout of CONFIGURATION (8.2 and later).
    pub configuration: Option<Description>,
    /// The target page size.
    pub page_size: Option<u64>,
    /// The FULL sections, in stream order.
    pub devices: Vec<DeviceDescription>,
}

impl VmDescription {
    /// The description of the section with this idstr and instance id; the first, should there be
    /// several.
    pub fn device(&self, idstr: &[u8], instance_id: u32) -> Option<&DeviceDescription> {
        self.devices
            .iter()
            .find(|device| device.instance_id == instance_id && device.name.as_bytes() == idstr)
    }
}

/// One FULL section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDescription {
    /// The idstr of its section.
    pub name: String,
    /// The instance id of its section.
    pub instance_id: u32,
    /// What its payload is.
    pub layout: DeviceLayout,
}

/// The payload of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceLayout {
    /// Described field by field.
    Fields(Description),
    /// A legacy handler: so many bytes.
    Opaque {
        /// Bytes of the payload.
        size: u64,
    },
}

/// A VMState description: fields, then subsections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// `vmsd_name`; a subsection's name on the wire.
    pub vmsd_name: String,
    /// Its version; of a device, the section's version_id.
    pub version: u32,
    /// The fields that were written, in order.
    pub fields: Vec<FieldDescription>,
    /// The subsections that were written, in order.
    pub subsections: Vec<Description>,
}

/// A field, or one run of elements of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDescription {
    /// Its name. Elements of an array that could not be written as one run share it.
    pub name: String,
    /// Its type.
    pub field_type: FieldType,
    /// Elements, if it is an array in one run.
    pub array_len: Option<u64>,
    /// Which element of an array in several runs. QEMU 10.0 to 11.0 leave it out on the last
    /// element, so nothing is concluded from it: consecutive fields of one name are one array
    /// (real repeats carry a `[k]` in the name).
    pub index: Option<u64>,
    /// Bytes of one element.
    pub size: u64,
    /// What is inside, of `struct`, `vstruct` and `tmp`.
    pub nested: Option<Box<Description>>,
}

/// The type of a field. docs/wire/vmstate.md §2 and §8.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldType {
    /// `bool`: any non-zero is true.
    Bool,
    /// `int8`, `int16`, `int32`, `int64`, and their checked forms (`int32 equal`, `int32 le`).
    Signed {
        /// Bytes.
        width: u8,
    },
    /// `uint8` … `uint64`, `timer`, and their checked forms. `int64 equal` is unsigned: the JSON
    /// name is QEMU's slip.
    Unsigned {
        /// Bytes.
        width: u8,
    },
    /// `CPU_Double_U`: an IEEE double.
    Double,
    /// `fd`: one byte 0x20.
    Fd,
    /// `nullptr`: one byte 0x30.
    Null,
    /// `struct`, `vstruct`, `tmp`: see [`FieldDescription::nested`].
    Struct(String),
    /// `buffer`, `unused_buffer`, `bitmap`: bytes without inner structure.
    Bytes(String),
    /// Everything else: lists, private codecs, the unknown.
    Opaque(String),
}

impl FieldType {
    /// The type of that JSON name; unknown names are opaque.
    pub fn from_name(name: String) -> Self {
        match name.as_str() {
            "bool" => Self::Bool,
            "int8" => Self::Signed { width: 1 },
            "int16" => Self::Signed { width: 2 },
            "int32" | "int32 equal" | "int32 le" => Self::Signed { width: 4 },
            "int64" => Self::Signed { width: 8 },
            "uint8" | "uint8 equal" => Self::Unsigned { width: 1 },
            "uint16" | "uint16 equal" => Self::Unsigned { width: 2 },
            "uint32" | "uint32 equal" => Self::Unsigned { width: 4 },
            "uint64" | "int64 equal" | "timer" => Self::Unsigned { width: 8 },
            "CPU_Double_U" => Self::Double,
            "fd" => Self::Fd,
            "nullptr" => Self::Null,
            "struct" | "vstruct" | "tmp" => Self::Struct(name),
            "buffer" | "unused_buffer" | "bitmap" => Self::Bytes(name),
            _ => Self::Opaque(name),
        }
    }

    /// The bytes of one element, of types that always have the same.
    pub const fn fixed_size(&self) -> Option<u64> {
        match self {
            Self::Bool | Self::Fd | Self::Null => Some(1),
            Self::Signed { width } | Self::Unsigned { width } => Some(*width as u64),
            Self::Double => Some(8),
            Self::Struct(_) | Self::Bytes(_) | Self::Opaque(_) => None,
        }
    }

    /// A name for messages and for opaque values: the JSON's, or the plain type of a checked one.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Bool => "bool",
            Self::Signed { width: 1 } => "int8",
            Self::Signed { width: 2 } => "int16",
            Self::Signed { width: 4 } => "int32",
            Self::Signed { .. } => "int64",
            Self::Unsigned { width: 1 } => "uint8",
            Self::Unsigned { width: 2 } => "uint16",
            Self::Unsigned { width: 4 } => "uint32",
            Self::Unsigned { .. } => "uint64",
            Self::Double => "CPU_Double_U",
            Self::Fd => "fd",
            Self::Null => "nullptr",
            Self::Struct(name) | Self::Bytes(name) | Self::Opaque(name) => name,
        }
    }
}
