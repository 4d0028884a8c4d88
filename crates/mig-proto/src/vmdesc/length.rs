//! How long a payload is. docs/wire/vmstate.md §8.3.

use super::error::Path;
use super::{Description, DeviceDescription, DeviceLayout, FieldDescription, VmdescError};

/// Marker, length byte and version of a subsection, beside its name.
const SUBSECTION_OVERHEAD: u64 = 1 + 1 + 4;

/// Bytes of the payload of this device's section.
///
/// # Errors
///
/// [`VmdescError`] if the description overflows or contradicts itself: `size` of a type of fixed
/// size, or of a field whose contents are described, must agree.
pub fn payload_len(device: &DeviceDescription) -> Result<u64, VmdescError> {
    match &device.layout {
        DeviceLayout::Opaque { size } => Ok(*size),
        DeviceLayout::Fields(description) => description_len(description, Path::root(&device.name)),
    }
}

/// Fields, then subsections.
fn description_len(description: &Description, path: Path<'_>) -> Result<u64, VmdescError> {
    let mut sum = Sum { total: 0, path };
    for field in &description.fields {
        sum.add(field_len(field, path.join(&field.name))?)?;
    }
    for subsection in &description.subsections {
        let name = &subsection.vmsd_name;
        let path = path.join(name);
        let name_len = u8::try_from(name.len())
            .map_err(|_| VmdescError::LongSubsectionName { path: path.text(), len: name.len() })?;
        sum.add(SUBSECTION_OVERHEAD + u64::from(name_len))?;
        sum.add(description_len(subsection, path)?)?;
    }
    Ok(sum.total)
}

/// All elements of one field.
fn field_len(field: &FieldDescription, path: Path<'_>) -> Result<u64, VmdescError> {
    let computed = match (field.field_type.fixed_size(), &field.nested) {
        (Some(size), _) => Some(size),
        (None, Some(nested)) => Some(description_len(nested, path)?),
        (None, None) => None,
    };
    if let Some(computed) = computed.filter(|&computed| computed != field.size) {
        let (path, size) = (path.text(), field.size);
        return Err(VmdescError::SizeMismatch { path, size, computed });
    }
    let elements = field.array_len.unwrap_or(1);
    field.size.checked_mul(elements).ok_or_else(|| VmdescError::Overflow { path: path.text() })
}

/// A sum that does not wrap.
struct Sum<'a> {
    total: u64,
    path: Path<'a>,
}

impl Sum<'_> {
    fn add(&mut self, len: u64) -> Result<(), VmdescError> {
        self.total = self
            .total
            .checked_add(len)
            .ok_or_else(|| VmdescError::Overflow { path: self.path.text() })?;
        Ok(())
    }
}
