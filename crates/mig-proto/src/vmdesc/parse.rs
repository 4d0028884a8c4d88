//! JSON to [`VmDescription`]. docs/wire/vmstate.md §8.1.
//!
//! Objects are read by hand, not by derive: QEMU repeats keys (lists of two elements and more),
//! which derived readers refuse. The last one wins. Unknown keys are skipped without being kept.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{
    Description, DeviceDescription, DeviceLayout, FieldDescription, FieldType, MAX_JSON_LEN,
    MAX_NESTING, VmDescription, VmdescError,
};

/// Longest name of anything: idstrs and subsection names have a length byte on the wire, and field
/// names are repeated for every element that is decoded.
const MAX_NAME_LEN: usize = 255;

impl VmDescription {
    /// Parses the JSON, without the item header before it.
    ///
    /// Memory: proportional to the JSON, which is [`MAX_JSON_LEN`] at most; the smallest field
    /// takes about ten times the room of its JSON.
    ///
    /// # Errors
    ///
    /// [`VmdescError`]: too long, too deep, not JSON, or not of the schema.
    pub fn parse(json: &[u8]) -> Result<Self, VmdescError> {
        if json.len() > MAX_JSON_LEN {
            return Err(VmdescError::TooLong { len: json.len() });
        }
        if let Some(at) = first_too_deep(json) {
            return Err(VmdescError::TooDeep { at });
        }
        serde_json::from_slice(json)
            .map_err(|source| VmdescError::Json { at: position(json, &source), source })
    }
}

/// Where the nesting exceeds the limit. Looks at brackets outside of strings only, so it is right
/// for JSON and harmless for anything else.
fn first_too_deep(json: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut bytes = json.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                while let Some((_, byte)) = bytes.next() {
                    match byte {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'{' | b'[' if depth == MAX_NESTING => return Some(at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The byte position of an error that is told as line and column.
fn position(json: &[u8], error: &serde_json::Error) -> usize {
    let lines_before = error.line().saturating_sub(1);
    let line_at: usize =
        json.split_inclusive(|&byte| byte == b'\n').take(lines_before).map(<[u8]>::len).sum();
    (line_at + error.column().saturating_sub(1)).min(json.len())
}

/// Passes over a value without keeping it.
fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

impl<'de> Deserialize<'de> for VmDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RootVisitor;

        impl<'de> Visitor<'de> for RootVisitor {
            type Value = VmDescription;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the VM description object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VmDescription, A::Error> {
                let mut root = VmDescription::default();
                let mut devices = None;
                while let Some(key) = map.next_key()? {
                    match key {
                        Key::Configuration => root.configuration = Some(map.next_value()?),
                        Key::PageSize => root.page_size = Some(map.next_value()?),
                        Key::Devices => devices = Some(map.next_value()?),
                        _ => skip(&mut map)?,
                    }
                }
                root.devices = devices.ok_or_else(|| A::Error::missing_field("devices"))?;
                Ok(root)
            }
        }

        deserializer.deserialize_map(RootVisitor)
    }
}

/// The keys that mean something, of any object.
enum Key {
    Configuration,
    PageSize,
    Devices,
    Name,
    InstanceId,
    VmsdName,
    Version,
    Fields,
    Subsections,
    ArrayLen,
    Index,
    Type,
    Struct,
    Size,
    Unknown,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(match key {
                    "configuration" => Key::Configuration,
                    "page_size" => Key::PageSize,
                    "devices" => Key::Devices,
                    "name" => Key::Name,
                    "instance_id" => Key::InstanceId,
                    "vmsd_name" => Key::VmsdName,
                    "version" => Key::Version,
                    "fields" => Key::Fields,
                    "subsections" => Key::Subsections,
                    "array_len" => Key::ArrayLen,
                    "index" => Key::Index,
                    "type" => Key::Type,
                    "struct" => Key::Struct,
                    "size" => Key::Size,
                    _ => Key::Unknown,
                })
            }
        }

        deserializer.deserialize_identifier(KeyVisitor)
    }
}

/// Everything that a device, a field or a description may have.
#[derive(Default)]
struct Members {
    name: Option<String>,
    instance_id: Option<u32>,
    vmsd_name: Option<String>,
    version: Option<u32>,
    fields: Option<Vec<FieldDescription>>,
    subsections: Option<Vec<Description>>,
    array_len: Option<u64>,
    index: Option<u64>,
    field_type: Option<String>,
    structure: Option<Box<Description>>,
    size: Option<u64>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object describing a device, a field or a subsection")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key()? {
                    match key {
                        Key::Name => members.name = Some(map.next_value::<Text>()?.0),
                        Key::InstanceId => members.instance_id = Some(map.next_value::<Id>()?.0),
                        Key::VmsdName => members.vmsd_name = Some(map.next_value::<Text>()?.0),
                        Key::Version => members.version = Some(map.next_value::<Id>()?.0),
                        Key::Fields => members.fields = Some(map.next_value()?),
                        Key::Subsections => members.subsections = Some(map.next_value()?),
                        Key::ArrayLen => members.array_len = Some(map.next_value()?),
                        Key::Index => members.index = Some(map.next_value()?),
                        Key::Type => members.field_type = Some(map.next_value::<Text>()?.0),
                        Key::Struct => members.structure = Some(map.next_value()?),
                        Key::Size => members.size = Some(map.next_value()?),
                        Key::Configuration | Key::PageSize | Key::Devices | Key::Unknown => {
                            skip(&mut map)?;
                        }
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

impl Members {
    /// What makes a description, if anything does.
    fn into_description(self) -> Option<Description> {
        if self.vmsd_name.is_none() && self.fields.is_none() && self.subsections.is_none() {
            return None;
        }
        Some(Description {
            vmsd_name: self.vmsd_name.unwrap_or_default(),
            version: self.version.unwrap_or_default(),
            fields: self.fields.unwrap_or_default(),
            subsections: self.subsections.unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for Description {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Members::deserialize(deserializer)?
            .into_description()
            .ok_or_else(|| D::Error::missing_field("vmsd_name"))
    }
}

impl<'de> Deserialize<'de> for DeviceDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Members::deserialize(deserializer)?;
        let name = members.name.take().ok_or_else(|| D::Error::missing_field("name"))?;
        let instance_id =
            members.instance_id.ok_or_else(|| D::Error::missing_field("instance_id"))?;
        let layout = match (&members.vmsd_name, members.size) {
            (None, Some(size)) => DeviceLayout::Opaque { size },
            _ => members
                .into_description()
                .map(DeviceLayout::Fields)
                .ok_or_else(|| D::Error::missing_field("vmsd_name"))?,
        };
        Ok(Self { name, instance_id, layout })
    }
}

impl<'de> Deserialize<'de> for FieldDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Members::deserialize(deserializer)?;
        let name = members.name.take().ok_or_else(|| D::Error::missing_field("name"))?;
        let field_type = members.field_type.take();
        let field_type = field_type.ok_or_else(|| D::Error::missing_field("type"))?;
        let size = members.size.ok_or_else(|| D::Error::missing_field("size"))?;
        let (array_len, index) = (members.array_len, members.index);
        // Lists have nested keys too, but only of their last element: those explain nothing.
        let nested = match field_type.as_str() {
            "struct" => members.structure,
            "vstruct" | "tmp" => members.into_description().map(Box::new),
            _ => None,
        };
        let field_type = FieldType::from_name(field_type);
        Ok(Self { name, field_type, array_len, index, size, nested })
    }
}

/// A name of bounded length.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a name of at most {MAX_NAME_LEN} bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                if text.len() > MAX_NAME_LEN {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Text(text.into()))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// A 32-bit number that may have been printed as signed.
struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;

        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 32-bit number")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Id, E> {
                let wide = |_| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self);
                u32::try_from(value).map(Id).map_err(wide)
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Id, E> {
                let wide = |_| E::invalid_value(serde::de::Unexpected::Signed(value), &self);
                i32::try_from(value).map(|value| Id(value.cast_unsigned())).map_err(wide)
            }
        }

        deserializer.deserialize_u32(IdVisitor)
    }
}
