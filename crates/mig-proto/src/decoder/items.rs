//! The item loop: section headers, footers, commands, EOF (docs/wire/stream.md §1.1, §4, §6).

use super::{Advance, Command, Decoder, Event, Found, Kind, State};
use crate::command::{self, Advise};
use crate::error::lossy;
use crate::name::Name;
use crate::options::UnknownIterables;
use crate::reader::{Reader, Stop, fail};
use crate::section::{FOOTER, Identity, RAM, RAM_VERSION, SectionKind};

impl Decoder {
    pub(super) fn item<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        match reader.u8()? {
            0 => Ok((1, Found::Event(self.eof()))),
            1 => self.introduced(reader, SectionKind::Start),
            2 => self.referred(reader, SectionKind::Part),
            3 => self.referred(reader, SectionKind::End),
            4 => self.introduced(reader, SectionKind::Full),
            8 => {
                let command = command::read(&mut reader)?;
                self.obey(&command, reader.at())?;
                Ok((reader.at(), Found::Event(Event::Command(command))))
            }
            found => fail(0, Kind::BadItem { found }),
        }
    }

    pub(super) fn footer<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        let mut reader = Reader::new(window);
        let found = reader.u8()?;
        if found != FOOTER {
            return fail(0, Kind::FooterMissing { found });
        }
        let found = reader.u32()?;
        let expected = self.section.expect("a footer is read only while a section is open");
        if found != expected {
            return fail(1, Kind::FooterMismatch { found, expected });
        }
        self.close_section();
        Ok((reader.at(), Found::Event(Event::Footer { section_id: found })))
    }

    /// What remains of a package behind its EOF or POSTCOPY_RUN.
    pub(super) fn package_tail<'i>(&mut self, window: &'i [u8]) -> Advance<'i> {
        if self.package_left().is_none_or(|left| left == 0) {
            self.package_end = None;
            self.state = State::Items;
            return Ok((0, Found::Progress));
        }
        if window.is_empty() {
            return Err(Stop::Need(1));
        }
        Ok((window.len(), Found::Event(Event::PackageTail(window))))
    }

    /// The payload is over: a footer follows, unless this stream has none.
    pub(super) fn end_of_payload(&mut self) {
        if self.options.footers {
            self.state = State::Footer;
        } else {
            self.close_section();
        }
    }

    fn close_section(&mut self) {
        self.section = None;
        self.state = State::Items;
    }

    fn eof<'i>(&mut self) -> Event<'i> {
        let in_package = self.in_package();
        self.state = if in_package { State::PackageTail } else { State::AfterEof };
        Event::Eof { in_package }
    }

    /// START and FULL: the header binds the id.
    fn introduced<'i>(&mut self, mut reader: Reader<'i>, kind: SectionKind) -> Advance<'i> {
        let section_id = reader.u32()?;
        let name_at = reader.at();
        let Ok(idstr) = Name::new(reader.str8()?) else {
            return fail(name_at, Kind::EmptySectionName);
        };
        let instance_at = reader.at();
        let instance_id = reader.u32()?;
        let version_id = reader.u32()?;
        let is_ram = idstr.as_bytes() == RAM;
        let iterable = kind == SectionKind::Start;
        if is_ram && instance_id != 0 {
            return fail(instance_at, Kind::RamInstance { found: instance_id });
        }
        if is_ram && version_id != RAM_VERSION {
            return fail(instance_at + 4, Kind::RamVersion { found: version_id });
        }
        if iterable && !is_ram && self.options.unknown_iterables == UnknownIterables::Refuse {
            return fail(name_at, Kind::UnknownIterable { idstr: lossy(&idstr) });
        }
        let identity =
            Identity { idstr: idstr.as_bytes().into(), instance_id, version_id, iterable };
        let limit = self.options.limits.sections;
        if !self.sections.bind(section_id, identity, limit) {
            return fail(1, Kind::TooManySections { limit });
        }
        self.open_section(kind, section_id, reader.at())?;
        Ok((reader.at(), Found::Section(kind, section_id)))
    }

    /// PART and END: the id was bound before.
    fn referred<'i>(&mut self, mut reader: Reader<'i>, kind: SectionKind) -> Advance<'i> {
        let section_id = reader.u32()?;
        if self.sections.find(section_id).is_none() {
            return fail(1, Kind::UnknownSectionId { section_id });
        }
        self.open_section(kind, section_id, reader.at())?;
        Ok((reader.at(), Found::Section(kind, section_id)))
    }

    fn open_section(&mut self, kind: SectionKind, id: u32, header: usize) -> Result<(), Stop> {
        self.section = Some(id);
        if self.header(kind, id).is_ram() {
            self.state = State::Records;
            return Ok(());
        }
        self.open_opaque(kind, id, header)
    }

    /// What a command changes for the decoder itself, and the checks that need to know what came
    /// before. `end` is where the command ends, and so where a package begins.
    fn obey(&mut self, command: &Command<'_>, end: usize) -> Result<(), Stop> {
        /// Type byte, number, length: then the payload.
        const PAYLOAD: usize = 5;
        match *command {
            Command::OpenReturnPath => self.return_path = true,
            Command::Ping(_) if !self.return_path => return fail(0, Kind::PingWithoutReturnPath),
            Command::PostcopyAdvise(advise) => {
                self.check_advise(advise)
                    .map_err(|(at, kind)| Stop::Fail { at: PAYLOAD + at, kind })?;
                if let Some(Advise { page_sizes, .. }) = advise {
                    self.advised = Some(self.advised.unwrap_or(0) | page_sizes);
                }
            }
            Command::PostcopyListen => {
                self.listening = true;
                self.last_block = None;
            }
            // Ends the loop of the package; on the channel itself the state tables judge it.
            Command::PostcopyRun if self.in_package() => self.state = State::PackageTail,
            Command::Packaged { len } => {
                if self.in_package() {
                    return fail(0, Kind::PackageNested);
                }
                if len == 0 {
                    return fail(PAYLOAD, Kind::PackageEmpty);
                }
                let limit = self.options.limits.package_bytes;
                if len > limit {
                    return fail(PAYLOAD, Kind::PackageTooLong { len, limit });
                }
                self.package_end = Some(self.position + end as u64 + u64::from(len));
            }
            Command::EnableColo => return fail(0, Kind::ColoUnsupported),
            _ => {}
        }
        Ok(())
    }

    fn check_advise(&self, advise: Option<Advise>) -> Result<(), (usize, Kind)> {
        let Some(local) = &self.options.postcopy else { return Ok(()) };
        match advise {
            None if local.postcopy_ram => Err((0, Kind::AdviseWithoutPageSizes)),
            Some(_) if !local.postcopy_ram => Err((0, Kind::AdviseWithoutPostcopyRam)),
            Some(Advise { page_sizes: found, .. }) if found != local.page_sizes => {
                Err((0, Kind::AdvisePageSizes { found, local: local.page_sizes }))
            }
            Some(Advise { target_page_size: found, .. })
                if found != u64::from(self.page_size.bytes()) =>
            {
                let local = u64::from(self.page_size.bytes());
                Err((8, Kind::AdviseTargetPageSize { found, local }))
            }
            _ => Ok(()),
        }
    }
}
