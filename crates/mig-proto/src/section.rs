//! Section headers and the memory of which id means which section (docs/wire/stream.md §4).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::error::SectionName;
use crate::error::lossy;
use crate::name::Name;

/// Type byte of a section footer.
pub(crate) const FOOTER: u8 = 0x7e;
/// idstr of the one iterable section that is decoded.
pub(crate) const RAM: &[u8] = b"ram";
/// The only version of the `ram` section (docs/wire/ram.md).
pub(crate) const RAM_VERSION: u32 = 4;

/// The four types of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// First of an iterable handler; binds the id to a name.
    Start,
    /// A further piece of an iterable handler.
    Part,
    /// The last piece of an iterable handler.
    End,
    /// A complete device state.
    Full,
}

impl SectionKind {
    /// The item type byte.
    pub const fn type_byte(self) -> u8 {
        match self {
            Self::Start => 1,
            Self::Part => 2,
            Self::End => 3,
            Self::Full => 4,
        }
    }

    /// START and FULL carry the section's identity, PART and END only its id.
    pub const fn has_identity(self) -> bool {
        matches!(self, Self::Start | Self::Full)
    }
}

/// A section header.
///
/// ```text
///   START / FULL : 01 / 04 | be32 section_id | str8 idstr | be32 instance_id | be32 version_id
///   PART / END   : 02 / 03 | be32 section_id
/// ```
///
/// For PART and END the identity is that of the START (or FULL) which introduced the id; it is
/// not encoded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionHeader<'a> {
    /// Which of the four types.
    pub kind: SectionKind,
    /// Number chosen by the source, without meaning beyond the stream.
    pub section_id: u32,
    /// Name of the state.
    pub idstr: Name<'a>,
    /// Tells several states of one name apart.
    pub instance_id: u32,
    /// The source's version of the state.
    pub version_id: u32,
}

impl SectionHeader<'_> {
    /// True for guest memory: what follows are RAM records, not opaque bytes.
    pub fn is_ram(&self) -> bool {
        self.idstr.as_bytes() == RAM
    }
}

/// Identity of a section id.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) idstr: Box<[u8]>,
    pub(crate) instance_id: u32,
    pub(crate) version_id: u32,
    /// Introduced by START: PART and END may follow.
    pub(crate) iterable: bool,
}

/// Which id means what. The last START or FULL of an id wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct SectionTable {
    by_id: BTreeMap<u32, Identity>,
}

impl SectionTable {
    pub(crate) fn find(&self, section_id: u32) -> Option<&Identity> {
        self.by_id.get(&section_id)
    }

    /// False, and nothing kept, if that would make more than `limit` ids.
    pub(crate) fn bind(&mut self, section_id: u32, identity: Identity, limit: u32) -> bool {
        if !self.by_id.contains_key(&section_id) && self.by_id.len() as u64 >= u64::from(limit) {
            return false;
        }
        self.by_id.insert(section_id, identity);
        true
    }

    pub(crate) fn header(&self, kind: SectionKind, section_id: u32) -> Option<SectionHeader<'_>> {
        let identity = self.find(section_id)?;
        Some(SectionHeader {
            kind,
            section_id,
            idstr: Name::new(&identity.idstr).ok()?,
            instance_id: identity.instance_id,
            version_id: identity.version_id,
        })
    }

    pub(crate) fn name(&self, section_id: u32) -> Option<Box<SectionName>> {
        let identity = self.find(section_id)?;
        Some(Box::new(SectionName {
            section_id,
            idstr: lossy(&identity.idstr),
            instance_id: identity.instance_id,
        }))
    }
}
