//! Turns the pieces of a stream into a report.

use std::collections::BTreeMap;

use mig::{
    engine::{PageCounts, Piece},
    proto::{
        self, BlockId, Event, PageRecord, SectionHeader, SectionKind,
        globalstate::GlobalState,
        vmdesc::{MAX_JSON_LEN, VmDescription, decode_fields},
    },
};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    inspect::{
        error_kind,
        report::{
            Block, Command, Configuration, FileHeader, Item, Ram, Records, Report, Section, What,
        },
    },
};

/// Sections above this size that wait for a VMDESC which comes last are not kept; a file's VMDESC is known beforehand.
const KEPT_SECTION_BYTES: usize = 1 << 20;
/// All of them together. The values of a section take some thirty times its bytes, so the same bound holds for what is
/// explained.
const KEPT_BYTES: usize = 16 << 20;
/// Items that are listed; the rest is only counted. An hour of migration has some 72,000.
const MAX_ITEMS: usize = 1 << 18;

/// Sees every piece of a stream, in order.
pub(crate) struct Collector {
    report: Report,
    /// From the end of a file; a live stream's comes last.
    description: Option<VmDescription>,
    /// Position behind the last piece.
    position: u64,
    /// Payloads of FULL sections whose description is still to come, by item.
    waiting: Vec<(usize, Vec<u8>)>,
    waiting_bytes: usize,
    /// Bytes of payloads that were explained.
    explained_bytes: usize,
    /// The item that the position is in is not listed.
    omitting: bool,
    /// VMDESC as it comes, if it is wanted and not too long.
    json: Option<Vec<u8>>,
    saw_eof: bool,
    in_package: bool,
}

impl Collector {
    pub(crate) fn new(description: Option<&VmDescription>) -> Self {
        Self {
            report: Report {
                bytes: 0,
                complete: false,
                error: None,
                file_header: None,
                configuration: None,
                items: Vec::new(),
                items_omitted: 0,
                ram: Ram::default(),
                page_size: None,
            },
            description: description.cloned(),
            position: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            explained_bytes: 0,
            omitting: false,
            json: None,
            saw_eof: false,
            in_package: false,
        }
    }

    /// The next piece.
    pub(crate) fn piece(&mut self, piece: &Piece<'_>) {
        self.position += piece.bytes.len() as u64;
        let Some(event) = &piece.event else {
            return;
        };
        self.count(event);
        match event {
            Event::FileHeader => self.report.file_header = Some(FileHeader { version: 3 }),
            Event::Configuration(configuration) => {
                self.configuration(configuration, piece.position)
            }
            Event::Section(header) => self.section(header, piece.position),
            Event::SectionData(payload) => self.payload(payload),
            Event::Footer { .. } | Event::EndOfRecords(_) => self.close(),
            Event::Command(command) => {
                let what = What::Command(Command {
                    command: command.name(),
                    payload: payload_of(command),
                });
                self.item("command", piece.position, what);
                self.close();
                self.in_package |= matches!(command, proto::Command::Packaged { .. });
            }
            Event::Eof { in_package } => {
                self.item("eof", piece.position, What::Nothing {});
                self.close();
                self.in_package = false;
                self.saw_eof |= !in_package;
            }
            Event::VmDescription { len } => {
                let devices = self.description.as_ref().map(|known| known.devices.len());
                self.item(
                    "vmdescription",
                    piece.position,
                    What::Description { length: *len, devices },
                );
                let wanted = self.description.is_none() && *len as usize <= MAX_JSON_LEN;
                self.json = wanted.then(Vec::new);
                self.close();
            }
            Event::VmDescriptionData(bytes) => {
                if let Some(json) = &mut self.json {
                    json.extend_from_slice(bytes);
                }
                self.close();
            }
            Event::Trailing(_) => {
                match self.report.items.last() {
                    Some(item) if item.kind == "trailing" => {}
                    _ => self.item("trailing", piece.position, What::Nothing {}),
                }
                self.close();
            }
            Event::PackageTail(_) => self.in_package = false,
            _ => {}
        }
    }

    /// The report. `failure` is why the stream could not be read to its end.
    pub(crate) fn finish(mut self, bytes: u64, failure: Option<&Failure>) -> Report {
        self.late_description();
        self.report.bytes = bytes;
        self.report.complete = failure.is_none() && self.saw_eof;
        self.report.error = failure.map(|failure| {
            let mut error = failure.json();
            error["kind"] = error_kind(failure).into();
            error
        });
        self.report
    }

    /// The same for a stream that came over a channel: its position is what was seen.
    pub(crate) fn finish_live(self, failure: Option<&Failure>) -> Report {
        let position = self.position;
        self.finish(position, failure)
    }

    fn item(&mut self, kind: &'static str, offset: u64, what: What) {
        // The end of the stream is always worth a line.
        self.omitting =
            self.report.items.len() >= MAX_ITEMS && !matches!(kind, "eof" | "vmdescription");
        if self.omitting {
            self.report.items_omitted += 1;
            return;
        }
        let in_package = self.in_package;
        self.report.items.push(Item { kind, offset, size: 0, what, in_package });
    }

    /// The last item reaches at least to here.
    fn close(&mut self) {
        let position = self.position;
        if let Some(item) = self.last_item() {
            item.size = position - item.offset;
        }
    }

    fn configuration(&mut self, configuration: &proto::Configuration, offset: u64) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.report.configuration = Some(Configuration {
            offset,
            machine: text(configuration.machine()),
            capabilities: configuration.capabilities().map(text).collect(),
            uuid: configuration.uuid().map(uuid),
            target_page_bits: configuration.target_page_bits(),
        });
    }

    fn section(&mut self, header: &SectionHeader<'_>, offset: u64) {
        let section = Section {
            section_id: header.section_id,
            idstr: header.idstr.to_string(),
            instance_id: header.instance_id,
            version_id: header.version_id,
            payload_bytes: None,
            fields: None,
            fields_error: None,
            records: header.is_ram().then(Records::default),
        };
        let kind = match header.kind {
            SectionKind::Start => "start",
            SectionKind::Part => "part",
            SectionKind::End => "end",
            SectionKind::Full => "full",
        };
        self.item(kind, offset, What::Section(section));
        self.close();
    }

    fn last_item(&mut self) -> Option<&mut Item> {
        self.report.items.last_mut().filter(|_| !self.omitting)
    }

    fn last_section(&mut self) -> Option<&mut Section> {
        match self.last_item().map(|item| &mut item.what) {
            Some(What::Section(section)) => Some(section),
            _ => None,
        }
    }

    fn payload(&mut self, payload: &[u8]) {
        let full = self.last_item().is_some_and(|item| item.kind == "full");
        self.explained_bytes += payload.len();
        let may_explain = self.explained_bytes <= KEPT_BYTES;
        let description = self.description.take();
        let described = description.is_some();
        if let Some(section) = self.last_section() {
            section.payload_bytes = Some(payload.len() as u64);
            if full && may_explain {
                explain(section, payload, description.as_ref());
            }
        }
        self.description = description;
        let room = self.waiting_bytes + payload.len() <= KEPT_BYTES;
        if full && !described && payload.len() <= KEPT_SECTION_BYTES && room {
            self.waiting_bytes += payload.len();
            self.waiting.push((self.report.items.len() - 1, payload.to_vec()));
        }
        self.close();
    }

    /// A live stream's VMDESC came last: now the sections can be explained.
    fn late_description(&mut self) {
        let Some(json) = self.json.take() else { return };
        let description = match VmDescription::parse(&json) {
            Ok(description) => description,
            Err(error) => {
                tracing::warn!(%error, "the stream's VMDESC cannot be used");
                return;
            }
        };
        for (index, payload) in std::mem::take(&mut self.waiting) {
            if let What::Section(section) = &mut self.report.items[index].what {
                explain(section, &payload, Some(&description));
            }
        }
        for item in &mut self.report.items {
            if let What::Description { devices, .. } = &mut item.what {
                *devices = Some(description.devices.len());
            }
        }
    }

    fn count(&mut self, event: &Event<'_>) {
        let ram = &mut self.report.ram;
        ram.pages.count(event);
        let block = |ram: &mut Ram, page: &PageRecord<'_>| {
            if let Some(block) = ram.blocks.get_mut(page.block.index()) {
                block.pages.count(event);
            }
        };
        match event {
            Event::Page(page)
            | Event::Zero(page)
            | Event::Xbzrle { page, .. }
            | Event::CompressedPage { page, .. } => block(ram, page),
            Event::BlockList { entries, .. } => {
                for entry in *entries {
                    list(ram, entry.id(), entry);
                }
            }
            Event::Hook(_) | Event::MultifdFlush(_) => {}
            _ => return,
        }
        if let Some(records) = self.last_section().and_then(|section| section.records.as_mut()) {
            records.pages.count(event);
            records.hook += u64::from(matches!(event, Event::Hook(_)));
            records.multifd_flush += u64::from(matches!(event, Event::MultifdFlush(_)));
            records.block_lists += u64::from(matches!(event, Event::BlockList { .. }));
        }
    }
}

/// Blocks are numbered in the order in which they were first listed.
fn list(ram: &mut Ram, id: BlockId, entry: &proto::BlockEntry) {
    let new = || Block {
        idstr: entry.name().to_string(),
        used_length: entry.used_length,
        host_page_size: entry.host_page_size,
        address: entry.address,
        pages: PageCounts::default(),
    };
    match ram.blocks.get_mut(id.index()) {
        Some(block) => block.used_length = entry.used_length,
        None => ram.blocks.push(new()),
    }
}

/// Decodes a payload: by the protocol where it says what is in it, else by VMDESC.
fn explain(section: &mut Section, payload: &[u8], description: Option<&VmDescription>) {
    let device =
        description.and_then(|known| known.device(section.idstr.as_bytes(), section.instance_id));
    match device.map(|device| decode_fields(device, payload)) {
        Some(Ok(fields)) => {
            section.fields = Some(fields);
            section.fields_error = None;
        }
        Some(Err(error)) => section.fields_error = Some(error.to_string()),
        None => {}
    }
    if section.idstr == "globalstate"
        && let Err(error) = GlobalState::decode(payload)
    {
        section.fields_error = Some(error.to_string());
    }
}

fn payload_of(command: &proto::Command<'_>) -> BTreeMap<&'static str, Value> {
    let pairs = match command {
        proto::Command::Ping(value) => vec![("value", json!(value))],
        proto::Command::PostcopyAdvise(Some(advise)) => vec![
            ("page_sizes", json!(advise.page_sizes)),
            ("target_page_size", json!(advise.target_page_size)),
        ],
        proto::Command::RamDiscard(discard) => vec![
            ("block", json!(discard.block().to_string())),
            (
                "ranges",
                discard
                    .ranges()
                    .map(|range| json!({ "start": range.start, "length": range.length }))
                    .collect(),
            ),
        ],
        proto::Command::Packaged { len } => vec![("length", json!(len))],
        proto::Command::RecvBitmap { block } => vec![("block", json!(block.to_string()))],
        _ => Vec::new(),
    };
    pairs.into_iter().collect()
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl mig::engine::EventObserver for Collector {
    fn piece(&mut self, piece: &Piece<'_>) {
        Collector::piece(self, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_everywhere() {
        let bytes = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(uuid(bytes), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
