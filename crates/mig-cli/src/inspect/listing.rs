//! The report for people.

use std::io::{self, Write};

use indicatif::BinaryBytes;
use mig::{engine::PageCounts, proto::vmdesc::FieldTree};

use crate::inspect::report::{Item, Report, Section, What};

/// Characters of a section's fields that fit a line; `--json` has all of them.
const FIELD_CHARS: usize = 100;

/// Writes the whole listing.
pub(crate) fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    match &report.file_header {
        Some(header) => writeln!(out, "migration stream, version {}", header.version)?,
        None => writeln!(out, "no migration stream")?,
    }
    if let Some(configuration) = &report.configuration {
        writeln!(out, "machine type   {}", configuration.machine)?;
        if !configuration.capabilities.is_empty() {
            writeln!(out, "capabilities   {}", configuration.capabilities.join(", "))?;
        }
        if let Some(uuid) = &configuration.uuid {
            writeln!(out, "uuid           {uuid}")?;
        }
        if let Some(bits) = configuration.target_page_bits {
            writeln!(out, "target pages   2^{bits} bytes")?;
        }
    }
    if !report.ram.blocks.is_empty() {
        writeln!(out, "\nguest memory")?;
        for block in &report.ram.blocks {
            let size = BinaryBytes(block.used_length).to_string();
            writeln!(out, "  {size:>12}  {:<40} {}", block.idstr, pages(&block.pages))?;
        }
        writeln!(out, "  all records: {}", pages(&report.ram.pages))?;
    }
    if !report.items.is_empty() {
        writeln!(out, "\n      offset       size  item")?;
    }
    for item in &report.items {
        write_item(out, item)?;
    }
    if report.items_omitted > 0 {
        writeln!(out, "{:>12}             and {} more items", "", report.items_omitted)?;
    }
    match (&report.error, report.complete) {
        (Some(_), _) => writeln!(out, "\nINCOMPLETE: readable up to byte {}", report.bytes),
        (None, true) => writeln!(out, "\ncomplete, {} bytes", report.bytes),
        (None, false) => writeln!(out, "\nended without EOF, {} bytes", report.bytes),
    }
}

fn write_item(out: &mut dyn Write, item: &Item) -> io::Result<()> {
    let indent = if item.in_package { "  | " } else { "" };
    write!(out, "{:>12} {:>10}  {indent}", item.offset, item.size)?;
    match &item.what {
        What::Section(section) => write_section(out, item.kind, section),
        What::Command(command) => {
            write!(out, "command {}", command.command)?;
            for (key, value) in &command.payload {
                write!(out, " {key}={value}")?;
            }
            writeln!(out)
        }
        What::Description { length, devices } => {
            write!(out, "vmdescription, {length} bytes of JSON")?;
            match devices {
                Some(devices) => writeln!(out, ", {devices} devices"),
                None => writeln!(out),
            }
        }
        What::Nothing {} => writeln!(out, "{}", item.kind),
    }
}

fn write_section(out: &mut dyn Write, kind: &str, section: &Section) -> io::Result<()> {
    let Section { section_id, idstr, instance_id, version_id, .. } = section;
    write!(out, "{kind:<5} {section_id:>3} {idstr}")?;
    if *instance_id != 0 {
        write!(out, " instance {instance_id}")?;
    }
    if matches!(kind, "start" | "full") {
        write!(out, " v{version_id}")?;
    }
    if let Some(records) = &section.records {
        write!(out, "  {}", pages(&records.pages))?;
    }
    if let Some(error) = &section.fields_error {
        write!(out, "  ! {error}")?;
    } else if let Some(fields) = &section.fields {
        write!(out, "  {}", brief(fields))?;
    }
    writeln!(out)
}

fn pages(pages: &PageCounts) -> String {
    let kinds = [
        (pages.normal, "normal"),
        (pages.zero, "zero"),
        (pages.xbzrle, "xbzrle"),
        (pages.compressed, "compressed"),
    ];
    let said: Vec<_> =
        kinds.iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!("{n} {kind}")).collect();
    if said.is_empty() { "no pages".into() } else { said.join(", ") }
}

fn brief(fields: &FieldTree) -> String {
    let json = serde_json::to_string(fields).unwrap_or_default();
    match json.char_indices().nth(FIELD_CHARS) {
        Some((end, _)) => format!("{}…", &json[..end]),
        None => json,
    }
}
