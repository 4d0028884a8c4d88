//! What a machine type decides about multifd. docs/wire/ram.md §9.5, §11.
//!
//! ```text
//!   machine type     a sync's mark on the main channel     pages of zeros
//!   up to 8.0        the EOS of each section               on the main channel
//!   8.1, 8.2         MULTIFD_FLUSH                         on the main channel
//!   9.0 and newer    MULTIFD_FLUSH                         in packets
//! ```
//!
//! Both ends run the same machine type, so they agree. A type without a version (`microvm`, `none`,
//! a distribution's own) counts as the newest. A receiver need not guess: in the newer dialects
//! START carries MULTIFD_FLUSH before its EOS, and pages of zeros are taken from everywhere.

/// When the data channels are synchronised and what marks that on the main channel.
///
/// Both exist because the rule changed in QEMU 8.1: one sync for each section costs more than one
/// for each pass over memory, and the older machine types have to keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncMode {
    /// At the end of START's block list and of each pass over memory; marked by MULTIFD_FLUSH.
    #[default]
    PerRound,
    /// At the end of each START, PART and END; marked by its EOS.
    PerSection,
}

/// Who tells about pages of zeros.
///
/// Both exist because channels look for zeros themselves only since QEMU 9.0 (`zero-page-detection`
/// `multifd`; before: `legacy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroPages {
    /// They are in the packets of the data channels.
    #[default]
    InPackets,
    /// They are ZERO records on the main channel.
    OnMain,
}

/// What a machine type decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// When the data channels are synchronised.
    pub sync: SyncMode,
    /// Who tells about pages of zeros.
    pub zero_pages: ZeroPages,
}

impl Dialect {
    /// The dialect of a machine type, by its name.
    ///
    /// ```
    /// use mig_proto::multifd::{Dialect, SyncMode, ZeroPages};
    /// let dialect = Dialect::of_machine(b"pc-q35-8.2");
    /// assert_eq!(dialect.sync, SyncMode::PerRound);
    /// assert_eq!(dialect.zero_pages, ZeroPages::OnMain);
    /// ```
    pub fn of_machine(machine: &[u8]) -> Self {
        let Some(version) = MachineVersion::of(machine) else { return Self::default() };
        let sync = if version <= MachineVersion::new(8, 0) {
            SyncMode::PerSection
        } else {
            SyncMode::PerRound
        };
        let zero_pages = if version <= MachineVersion::new(8, 2) {
            ZeroPages::OnMain
        } else {
            ZeroPages::InPackets
        };
        Self { sync, zero_pages }
    }
}

/// The version in a machine type's name: that of the QEMU it behaves like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineVersion {
    /// Before the dot.
    pub major: u16,
    /// After it.
    pub minor: u16,
}

impl MachineVersion {
    /// A version.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// The version in `machine`, if there is one: the last part between dashes that is two numbers
    /// around a dot. A distribution's own numbers (`rhel9.4.0`) are none.
    pub fn of(machine: &[u8]) -> Option<Self> {
        machine.rsplit(|&byte| byte == b'-').find_map(|part| {
            let dot = part.iter().position(|&byte| byte == b'.')?;
            Some(Self { major: number(&part[..dot])?, minor: number(&part[dot + 1..])? })
        })
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_last_part_that_is_one() {
        let version = |name: &str| MachineVersion::of(name.as_bytes()).map(|v| (v.major, v.minor));
        assert_eq!(version("pc-q35-8.0"), Some((8, 0)));
        assert_eq!(version("pc-i440fx-2.11"), Some((2, 11)));
        assert_eq!(version("s390-ccw-virtio-10.1"), Some((10, 1)));
        assert_eq!(version("pc-q35-8.0-custom"), Some((8, 0)));
        for name in
            ["", "microvm", "pc-q35-noble", "pc-q35-rhel9.4.0", "pc-q35-8.", "a-.1", "x-+1.2", "-"]
        {
            assert_eq!(version(name), None, "{name}");
        }
        assert_eq!(version("pc-99999.1"), None);
    }

    #[test]
    fn the_machine_type_decides() {
        use SyncMode::{PerRound, PerSection};
        use ZeroPages::{InPackets, OnMain};
        for (machine, sync, zero_pages) in [
            ("pc-i440fx-7.2", PerSection, OnMain),
            ("pc-q35-8.0", PerSection, OnMain),
            ("pc-q35-8.1", PerRound, OnMain),
            ("pc-q35-8.2", PerRound, OnMain),
            ("pc-q35-9.0", PerRound, InPackets),
            ("pc-q35-10.0", PerRound, InPackets),
            ("microvm", PerRound, InPackets),
        ] {
            let dialect = Dialect::of_machine(machine.as_bytes());
            assert_eq!(dialect, Dialect { sync, zero_pages }, "{machine}");
        }
    }
}
