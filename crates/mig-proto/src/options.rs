//! What a decoder must be told because the wire does not say it, and every bound it keeps.
//!
//! There is no negotiation on the wire (docs/wire/stream.md §13): both ends know the machine type
//! and the capabilities beforehand. The defaults fit a precopy stream of any machine type since
//! 2.4 and check nothing against a local machine, as a tool that stores or inspects wants it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::configuration::LocalMachine;

/// Whether a part of the stream is there; known only out of band.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It must be there.
    #[default]
    Required,
    /// It is not there: old machine types, Xen.
    Absent,
    /// Look at the type byte: for tools that open files of unknown origin.
    IfPresent,
}

/// What to do with an iterable section (START) that is not `ram`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownIterables {
    /// Its payload cannot be understood, so a destination must refuse it.
    #[default]
    Refuse,
    /// Keep START, PART and END payloads as opaque bytes that end at the footer: for a recorder,
    /// which only stores them.
    KeepRaw,
}

/// Guest page unit of the stream, a power of two from 1 KiB to 64 KiB.
///
/// The lower bound leaves room for the flags in a RAM word (docs/wire/ram.md §1), the upper one
/// bounds what a single record can make the caller present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPageSize(u32);

impl TargetPageSize {
    /// 4 KiB: x86 and most others.
    pub const SIZE_4K: Self = Self(4096);
    /// The largest there is, 64 KiB.
    pub const MAX: Self = Self(1 << 16);

    /// The page size of `1 << bits` bytes, for 10 to 16 bits.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits >= 10 && bits <= 16 { Some(Self(1 << bits)) } else { None }
    }

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// log2 of the size, as `configuration/target-page-bits` carries it.
    pub const fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }
}

impl Default for TargetPageSize {
    fn default() -> Self {
        Self::SIZE_4K
    }
}

/// Payload length of one FULL section, from a VMDESC that belongs to the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadLength {
    /// Section identity: name.
    pub idstr: Box<[u8]>,
    /// Section identity: instance.
    pub instance_id: u32,
    /// Bytes between header and footer.
    pub len: u64,
}

/// This end's postcopy facts, which ADVISE is compared with (docs/wire/stream.md §6.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalPostcopy {
    /// Capability `postcopy-ram` is on.
    pub postcopy_ram: bool,
    /// OR of the host page sizes of all RAM blocks.
    pub page_sizes: u64,
    /// Blocks whose host page size is not the usual one, with that size: in the block list a word
    /// follows exactly these, once ADVISE came (docs/wire/ram.md §2).
    pub unusual_blocks: Vec<(Box<[u8]>, u64)>,
}

/// Every bound a decoder keeps, whatever the input announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the machine type's name.
    pub machine_name_bytes: u32,
    /// Names listed in `configuration/capabilities`.
    pub capabilities: u32,
    /// Distinct RAM blocks, and entries in one block list.
    pub blocks: u32,
    /// Distinct section ids.
    pub sections: u32,
    /// Bytes of one device section, which the decoder holds while it looks for the end.
    pub section_bytes: usize,
    /// Bytes of one PACKAGED blob. It is decoded in place, never held.
    pub package_bytes: u32,
    /// Announced length of VMDESCRIPTION. It is passed through, never held; a real destination
    /// accepts any (docs/wire/stream.md §5), so the default does too.
    pub vmdescription_bytes: u32,
}

impl Default for Limits {
    /// Bounds from docs/wire/stream.md §14; where it names none, about ten times what the largest
    /// captured stream needs.
    fn default() -> Self {
        Self {
            machine_name_bytes: 255,
            capabilities: 64,
            blocks: 1024,
            sections: 4096,
            section_bytes: 64 << 20,
            package_bytes: u32::MAX,
            vmdescription_bytes: u32::MAX,
        }
    }
}

/// What the decoder is told about a stream. Start from `Options::default()` and change fields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The bounds.
    pub limits: Limits,
    /// Guest page unit. `configuration/target-page-bits` overrides it unless `local` is given.
    pub target_page_size: TargetPageSize,
    /// CONFIGURATION: absent with x86 machine types up to 2.3 and Xen (docs/wire/stream.md §3).
    pub configuration: Presence,
    /// Footers: absent with x86 machine types up to 2.3 and Xen (docs/wire/stream.md §4.1).
    /// Without them a device section's end is known only from `lengths`.
    pub footers: bool,
    /// VMDESCRIPTION may follow the final EOF. If false, whatever follows is trailing bytes.
    pub vmdescription: bool,
    /// Compare CONFIGURATION with this machine; without it every well-formed one is accepted.
    pub local: Option<LocalMachine>,
    /// `x-ignore-shared` is on although no CONFIGURATION says so: an address follows each block.
    pub ignore_shared: bool,
    /// Compare ADVISE with this; without it both well-formed forms are accepted, and a host page
    /// size in the block list is told by its value (docs/wire/ram.md §2).
    pub postcopy: Option<LocalPostcopy>,
    /// Payload lengths of FULL sections in stream order. What is not listed is found by its footer.
    pub lengths: Vec<PayloadLength>,
    /// START sections other than `ram`.
    pub unknown_iterables: UnknownIterables,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            target_page_size: TargetPageSize::default(),
            configuration: Presence::Required,
            footers: true,
            vmdescription: true,
            local: None,
            ignore_shared: false,
            postcopy: None,
            lengths: Vec::new(),
            unknown_iterables: UnknownIterables::Refuse,
        }
    }
}
