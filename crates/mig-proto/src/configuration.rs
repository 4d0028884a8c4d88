//! CONFIGURATION: the machine type and what must agree with it (docs/wire/stream.md §3).
//!
//! ```text
//!   07 | be32 len | machine type name | subsection*
//!   subsection: 05 | str8 name | be32 version = 1 | fields
//!        configuration/target-page-bits   be32 log2 of the target page size
//!        configuration/capabilities       be32 count, count times str8
//!        configuration/uuid               16 bytes
//! ```
//!
//! There is no end mark: it ends where the next byte begins no subsection.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::error::{DecodeErrorKind as Kind, lossy};
use crate::name::{InvalidName, Name};

/// Prefix that makes a subsection one of CONFIGURATION's.
pub(crate) const PREFIX: &[u8] = b"configuration";
pub(crate) const TARGET_PAGE_BITS: &[u8] = b"configuration/target-page-bits";
pub(crate) const CAPABILITIES: &[u8] = b"configuration/capabilities";
pub(crate) const UUID: &[u8] = b"configuration/uuid";
/// There are three kinds; a source sends each once at most. Room for repeats, which a receiver
/// accepts, but not for an endless row of them.
pub(crate) const MAX_SUBSECTIONS: u32 = 8;

const IGNORE_SHARED: &str = "x-ignore-shared";
const MAPPED_RAM: &str = "mapped-ram";
/// Names of capabilities that are known but not validated: listed ones are ignored.
const KNOWN_CAPABILITIES: [&str; 22] = [
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "compress",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "block",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
];

/// The CONFIGURATION of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    pub(crate) machine: Box<[u8]>,
    pub(crate) subsections: Vec<ConfigurationSubsection>,
}

/// One subsection of CONFIGURATION.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigurationSubsection {
    /// log2 of the target page size; absent where it is the CPU's minimum.
    TargetPageBits(u32),
    /// The validated capabilities that are on. Each name has at most 255 bytes.
    Capabilities(CapabilityList),
    /// The VM's UUID, in the order of its text.
    Uuid([u8; 16]),
}

/// Names in `configuration/capabilities`, each of at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CapabilityList(pub(crate) Vec<Box<[u8]>>);

impl CapabilityList {
    /// The names in wire order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.iter().map(|name| &**name)
    }
}

impl Configuration {
    /// A configuration without subsections. The machine name is the resolved, versioned one, of
    /// at most 255 bytes.
    pub fn new(machine: &[u8]) -> Result<Self, InvalidName> {
        if machine.len() > Name::MAX_LEN {
            return Err(InvalidName { len: machine.len() });
        }
        Ok(Self { machine: machine.into(), subsections: Vec::new() })
    }

    /// Adds the target page size, as log2; for CPUs with several, above the smallest.
    #[must_use]
    pub fn with_target_page_bits(self, bits: u32) -> Self {
        self.with(ConfigurationSubsection::TargetPageBits(bits))
    }

    /// Adds the list of validated capabilities that are on.
    #[must_use]
    pub fn with_capabilities<'n>(self, names: impl IntoIterator<Item = Name<'n>>) -> Self {
        let names = names.into_iter().map(|name| name.as_bytes().into()).collect();
        self.with(ConfigurationSubsection::Capabilities(CapabilityList(names)))
    }

    /// Adds the VM's UUID.
    #[must_use]
    pub fn with_uuid(self, uuid: [u8; 16]) -> Self {
        self.with(ConfigurationSubsection::Uuid(uuid))
    }

    /// The machine type name.
    pub fn machine(&self) -> &[u8] {
        &self.machine
    }

    /// The subsections in wire order.
    pub fn subsections(&self) -> &[ConfigurationSubsection] {
        &self.subsections
    }

    /// The names listed in `configuration/capabilities`.
    pub fn capabilities(&self) -> impl Iterator<Item = &[u8]> {
        self.subsections
            .iter()
            .flat_map(|subsection| match subsection {
                ConfigurationSubsection::Capabilities(list) => &list.0[..],
                _ => &[],
            })
            .map(|name| &**name)
    }

    /// True if `configuration/capabilities` lists `x-ignore-shared`: the block list then has an
    /// address for each block.
    pub fn ignore_shared(&self) -> bool {
        self.capabilities().any(|name| name == IGNORE_SHARED.as_bytes())
    }

    /// The VM's UUID, if sent.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.subsections.iter().find_map(|subsection| match subsection {
            ConfigurationSubsection::Uuid(uuid) => Some(*uuid),
            _ => None,
        })
    }

    /// log2 of the target page size, if sent.
    pub fn target_page_bits(&self) -> Option<u32> {
        self.subsections.iter().find_map(|subsection| match subsection {
            ConfigurationSubsection::TargetPageBits(bits) => Some(*bits),
            _ => None,
        })
    }

    /// Adds in the order of docs/wire/stream.md §3, which is the order of the enum.
    fn with(mut self, new: ConfigurationSubsection) -> Self {
        let place = |of: &ConfigurationSubsection| match of {
            ConfigurationSubsection::TargetPageBits(_) => 0,
            ConfigurationSubsection::Capabilities(_) => 1,
            ConfigurationSubsection::Uuid(_) => 2,
        };
        self.subsections.retain(|old| place(old) != place(&new));
        self.subsections.push(new);
        self.subsections.sort_by_key(place);
        self
    }
}

/// The local machine that a stream's CONFIGURATION must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMachine {
    /// Resolved, versioned machine type name.
    pub machine: Box<[u8]>,
    /// log2 of the CPU's smallest target page size: what a stream means that names none.
    pub minimum_page_bits: u32,
    /// Capability `x-ignore-shared` is on.
    pub ignore_shared: bool,
    /// The VM's UUID; without one, every UUID is accepted.
    pub uuid: Option<[u8; 16]>,
}

impl LocalMachine {
    /// A machine with 4 KiB pages, no validated capability on and no UUID.
    pub fn new(machine: &[u8]) -> Self {
        Self { machine: machine.into(), minimum_page_bits: 12, ignore_shared: false, uuid: None }
    }

    /// A received prefix of the local name is accepted, even an empty one: that is what real
    /// destinations do.
    pub(crate) fn check_machine(&self, found: &[u8]) -> Result<(), Kind> {
        if self.machine.starts_with(found) {
            return Ok(());
        }
        Err(Kind::MachineMismatch { found: lossy(found), local: lossy(&self.machine) })
    }

    pub(crate) fn check_uuid(&self, found: [u8; 16]) -> Result<(), Kind> {
        match self.uuid {
            Some(local) if local != found => Err(Kind::UuidMismatch { found, local }),
            _ => Ok(()),
        }
    }

    /// What only the end of CONFIGURATION shows: what was not there.
    pub(crate) fn check_absences(&self, found: &Configuration, bits: u32) -> Result<(), Kind> {
        if found.target_page_bits().is_none() && self.minimum_page_bits != bits {
            let found = self.minimum_page_bits;
            return Err(Kind::TargetPageBitsMismatch { found, local: bits });
        }
        if self.ignore_shared && !found.ignore_shared() {
            return Err(Kind::CapabilityMismatch { name: IGNORE_SHARED, source_on: false });
        }
        Ok(())
    }
}

pub(crate) fn check_capability(name: &[u8], local: Option<&LocalMachine>) -> Result<(), Kind> {
    if name == MAPPED_RAM.as_bytes() {
        return Err(Kind::MappedRam);
    }
    if name == IGNORE_SHARED.as_bytes() {
        return match local {
            Some(LocalMachine { ignore_shared: false, .. }) => {
                Err(Kind::CapabilityMismatch { name: IGNORE_SHARED, source_on: true })
            }
            _ => Ok(()),
        };
    }
    if KNOWN_CAPABILITIES.iter().any(|known| known.as_bytes() == name) {
        return Ok(());
    }
    Err(Kind::UnknownCapability { name: lossy(name) })
}
