//! File header and CONFIGURATION (docs/wire/stream.md §2, §3).

use super::{Advance, Decoder, Event, Found, Kind, Presence, State};
use crate::configuration::{
    CAPABILITIES, CapabilityList, Configuration, ConfigurationSubsection, MAX_SUBSECTIONS, PREFIX,
    TARGET_PAGE_BITS, UUID, check_capability,
};
use crate::error::lossy;
use crate::options::TargetPageSize;
use crate::reader::{Reader, Stop, fail};

impl Decoder {
    pub(super) fn file_header<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        let magic = reader.take(4)?;
        if magic != b"QEVM" {
            let found = magic.try_into().expect("4 bytes were taken");
            return fail(0, Kind::NotAMigrationStream { found });
        }
        let found = reader.u32()?;
        if found != 3 {
            return fail(4, Kind::UnsupportedVersion { found });
        }
        self.state = match self.options.configuration {
            Presence::Absent => State::Items,
            Presence::Required | Presence::IfPresent => State::MachineName,
        };
        Ok((reader.at(), Found::Event(Event::FileHeader)))
    }

    pub(super) fn machine_name<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        let found = reader.u8()?;
        if found != 7 {
            if self.options.configuration == Presence::IfPresent {
                self.state = State::Items;
                return Ok((0, Found::Progress));
            }
            return fail(0, Kind::ConfigurationMissing { found });
        }
        let len = reader.u32()?;
        // No name on this side of the wire is longer than a length byte tells.
        let limit = self.options.limits.machine_name_bytes.min(255);
        if len > limit {
            return fail(1, Kind::MachineNameTooLong { len, limit });
        }
        let name_at = reader.at();
        let name = reader.take(len as usize)?;
        if let Some(local) = &self.options.local {
            at(name_at, local.check_machine(name))?;
        }
        self.configuration = Configuration { machine: name.into(), ..Configuration::default() };
        self.state = State::Subsections;
        Ok((reader.at(), Found::Progress))
    }

    /// The next subsection, or the end: whatever does not begin a subsection of CONFIGURATION.
    pub(super) fn subsection<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        if reader.u8()? != 5 {
            return self.end_of_configuration();
        }
        let name = reader.str8()?;
        if !name.starts_with(PREFIX) || name.len() == PREFIX.len() {
            return self.end_of_configuration();
        }
        if self.configuration.subsections.len() as u64 >= u64::from(MAX_SUBSECTIONS) {
            return fail(0, Kind::TooManyConfigurationSubsections { limit: MAX_SUBSECTIONS });
        }
        if ![TARGET_PAGE_BITS, CAPABILITIES, UUID].contains(&name) {
            return fail(2, Kind::UnknownConfigurationSubsection { name: lossy(name) });
        }
        let version_at = reader.at();
        let found = reader.u32()?;
        if found != 1 {
            let name = lossy(name);
            return fail(version_at, Kind::ConfigurationSubsectionVersion { name, found });
        }
        let field_at = reader.at();
        let subsection = if name == TARGET_PAGE_BITS {
            ConfigurationSubsection::TargetPageBits(self.target_page_bits(field_at, reader.u32()?)?)
        } else if name == UUID {
            let uuid = reader.bytes16()?;
            if let Some(local) = &self.options.local {
                at(field_at, local.check_uuid(uuid))?;
            }
            ConfigurationSubsection::Uuid(uuid)
        } else {
            let count = reader.u32()?;
            let limit = self.options.limits.capabilities;
            if count > limit {
                return fail(field_at, Kind::TooManyCapabilities { count, limit });
            }
            self.state = State::Capabilities { left: count };
            ConfigurationSubsection::Capabilities(CapabilityList::default())
        };
        self.configuration.subsections.push(subsection);
        Ok((reader.at(), Found::Progress))
    }

    pub(super) fn capability<'i>(&mut self, window: &'i [u8], left: u32) -> Advance<'i> {
        let Some(left) = left.checked_sub(1) else {
            self.state = State::Subsections;
            return Ok((0, Found::Progress));
        };
        let mut reader = Reader::new(window);
        let name = reader.str8()?;
        at(1, check_capability(name, self.options.local.as_ref()))?;
        if let Some(ConfigurationSubsection::Capabilities(list)) =
            self.configuration.subsections.last_mut()
        {
            list.0.push(name.into());
        }
        self.state = State::Capabilities { left };
        Ok((reader.at(), Found::Progress))
    }

    fn target_page_bits(&mut self, field_at: usize, bits: u32) -> Result<u32, Stop> {
        if self.options.local.is_some() {
            let local = self.page_size.bits();
            if bits != local {
                return fail(field_at, Kind::TargetPageBitsMismatch { found: bits, local });
            }
        }
        let Some(page_size) = TargetPageSize::from_bits(bits) else {
            return fail(field_at, Kind::TargetPageBitsOutOfRange { found: bits });
        };
        self.page_size = page_size;
        Ok(bits)
    }

    fn end_of_configuration<'i>(&mut self) -> Advance<'i> {
        if let Some(local) = &self.options.local {
            at(0, local.check_absences(&self.configuration, self.page_size.bits()))?;
        }
        self.ignore_shared |= self.configuration.ignore_shared();
        self.state = State::Items;
        Ok((0, Found::Configuration))
    }
}

/// Gives a check's verdict its place.
fn at(at: usize, verdict: Result<(), Kind>) -> Result<(), Stop> {
    verdict.map_err(|kind| Stop::Fail { at, kind })
}
