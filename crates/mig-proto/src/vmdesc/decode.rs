//! A payload into named values, by its description. docs/wire/vmstate.md §2, §3, §6.

use alloc::string::String;
use alloc::vec::Vec;

use super::error::Path;
use super::{
    Description, DeviceDescription, DeviceLayout, FieldDescription, FieldTree, FieldType,
    FieldValue, MAX_ARRAY_VALUES, MAX_KEPT_BYTES, MAX_VALUES, SubsectionTree, VmdescError,
    payload_len,
};

/// The byte that opens a subsection.
const SUBSECTION: u8 = 5;

/// Decodes the payload of a FULL section into named values.
///
/// Nothing is allocated before the whole description was found to add up to exactly the length of
/// `payload`; arrays above [`MAX_ARRAY_VALUES`] and buffers above [`MAX_KEPT_BYTES`] are kept as
/// their first bytes and their length.
///
/// # Errors
///
/// [`VmdescError`]: the description contradicts itself or the payload, or there is more in it than
/// anybody can read.
pub fn decode_fields(device: &DeviceDescription, payload: &[u8]) -> Result<FieldTree, VmdescError> {
    let described = payload_len(device)?;
    // usize is at most 64 bits wide on every target of Rust.
    if described != payload.len() as u64 {
        let (device, actual) = (device.name.clone(), payload.len());
        return Err(VmdescError::PayloadLength { device, actual, described });
    }
    let mut reader = Reader { payload, at: 0, values: 0 };
    match &device.layout {
        DeviceLayout::Fields(description) => reader.tree(description, Path::root(&device.name)),
        DeviceLayout::Opaque { size } => Ok(FieldTree {
            fields: [("data".into(), reader.opaque("buffer", *size))].into(),
            subsections: Vec::new(),
        }),
    }
}

/// Walks a payload whose length was checked against its description, so that every read is inside.
struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
    /// Values made so far.
    values: usize,
}

impl<'a> Reader<'a> {
    fn tree(
        &mut self,
        description: &Description,
        path: Path<'_>,
    ) -> Result<FieldTree, VmdescError> {
        let mut fields: Vec<(String, FieldValue)> = Vec::new();
        for field in &description.fields {
            let value = self.field(field, path.join(&field.name))?;
            match fields.last_mut() {
                // One array in several runs: see `FieldDescription::index`.
                Some((name, before)) if *name == field.name => append(before, value),
                _ => fields.push((field.name.clone(), value)),
            }
        }
        let mut subsections = Vec::new();
        for subsection in &description.subsections {
            let path = path.join(&subsection.vmsd_name);
            self.count(path)?;
            let version = self.subsection_header(subsection, path)?;
            let fields = self.tree(subsection, path)?;
            subsections.push(SubsectionTree {
                name: subsection.vmsd_name.clone(),
                version,
                fields,
            });
        }
        Ok(FieldTree { fields, subsections })
    }

    /// `05 | str8 name | be32 version`: returns the version.
    fn subsection_header(
        &mut self,
        subsection: &Description,
        path: Path<'_>,
    ) -> Result<u32, VmdescError> {
        let at = self.at;
        let name = subsection.vmsd_name.as_bytes();
        let head = self.take(2);
        let named = self.take(name.len() as u64) == name;
        // Names above 255 bytes were refused with the length.
        if head[0] != SUBSECTION || usize::from(head[1]) != name.len() || !named {
            return Err(VmdescError::NoSubsection { at, path: path.text() });
        }
        Ok(u32::try_from(unsigned(self.take(4))).expect("four bytes are 32 bits"))
    }

    fn field(
        &mut self,
        field: &FieldDescription,
        path: Path<'_>,
    ) -> Result<FieldValue, VmdescError> {
        let Some(elements) = field.array_len else {
            return self.element(field, path);
        };
        // An element of no bytes says nothing, and there may be 2⁶³ of them.
        if elements > MAX_ARRAY_VALUES || field.size == 0 {
            self.count(path)?;
            return Ok(self.opaque(field.field_type.as_str(), elements * field.size));
        }
        let mut values = Vec::new();
        for _ in 0..elements {
            values.push(self.element(field, path)?);
        }
        Ok(FieldValue::Array(values))
    }

    fn element(
        &mut self,
        field: &FieldDescription,
        path: Path<'_>,
    ) -> Result<FieldValue, VmdescError> {
        self.count(path)?;
        if let Some(nested) = &field.nested {
            return Ok(FieldValue::Struct(self.tree(nested, path)?));
        }
        Ok(match &field.field_type {
            FieldType::Bool => FieldValue::Bool(self.take(1) != [0]),
            FieldType::Signed { width } => FieldValue::Signed(signed(self.take(u64::from(*width)))),
            FieldType::Unsigned { width } => {
                FieldValue::Unsigned(unsigned(self.take(u64::from(*width))))
            }
            FieldType::Double => FieldValue::Double(f64::from_bits(unsigned(self.take(8)))),
            FieldType::Null => {
                self.take(1);
                FieldValue::Null
            }
            FieldType::Bytes(name) => {
                let kept = self.keep(field.size);
                FieldValue::Bytes { field_type: name.clone(), len: field.size, kept }
            }
            FieldType::Fd | FieldType::Struct(_) | FieldType::Opaque(_) => {
                self.opaque(field.field_type.as_str(), field.size)
            }
        })
    }

    fn opaque(&mut self, field_type: &str, len: u64) -> FieldValue {
        FieldValue::Opaque { field_type: field_type.into(), len, kept: self.keep(len) }
    }

    fn keep(&mut self, len: u64) -> Vec<u8> {
        let bytes = self.take(len);
        bytes[..bytes.len().min(MAX_KEPT_BYTES)].to_vec()
    }

    /// One value more.
    fn count(&mut self, path: Path<'_>) -> Result<(), VmdescError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(VmdescError::TooManyValues { at: self.at, path: path.text() });
        }
        Ok(())
    }

    fn take(&mut self, len: u64) -> &'a [u8] {
        let len = usize::try_from(len).expect("the description adds up to the payload's length");
        let taken = &self.payload[self.at..][..len];
        self.at += len;
        taken
    }
}

/// Joins the next run of an array to what is there. Only a run is an [`FieldValue::Array`] here: a
/// single element never is.
fn append(before: &mut FieldValue, value: FieldValue) {
    if !matches!(before, FieldValue::Array(_)) {
        let first = core::mem::replace(before, FieldValue::Null);
        *before = FieldValue::Array([first].into());
    }
    if let FieldValue::Array(all) = before {
        match value {
            FieldValue::Array(more) => all.extend(more),
            one => all.push(one),
        }
    }
}

/// Up to eight bytes, big-endian.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// One to eight bytes, big-endian, two's complement.
fn signed(bytes: &[u8]) -> i64 {
    let unused_bits = 64 - 8 * u32::try_from(bytes.len()).expect("integers have 8 bytes at most");
    (unsigned(bytes) << unused_bits).cast_signed() >> unused_bits
}
