//! docs/interop.md: the table of what was tried against which QEMU, written from a run's results.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::repository::Repository;

/// Columns: QEMU's version, ordered as numbers, and the machine.
type Column = (Vec<u32>, String);
/// Rows: transport and feature.
type Row = (String, String);

const HEAD: &str = "\
# Interoperability, as tested

Written by `cargo xtask test` from the results of the matrix in `tests/tests/`; do not edit. What a row means, and
how it is proved (all memory compared, the guest goes on counting, `query-migrate` at both real ends, the saved file
loads in a third QEMU without us), is in [testing.md](testing.md). \"refused\" is the right answer where the
transport has no way back: the test demands that both ends refuse and that the guest stays with its source.
Rows \"without mig\" are QEMU's own baseline, from the lab: \"refused\" and \"fails\" there are what QEMU does.

";

/// Renders the table into the target directory, and into docs/ if the run was a complete one outside CI.
pub(crate) fn render(
    repository: &Repository,
    results: &Path,
    complete: bool,
) -> Result<(), String> {
    let text = fs::read_to_string(results).unwrap_or_default();
    let cells = parse(&text);
    if cells.is_empty() {
        return Ok(());
    }
    let table = table(&cells);
    let rendered = repository.target.join("interop.md");
    let write = |file: &Path| {
        fs::write(file, &table).map_err(|error| format!("cannot write {}: {error}", file.display()))
    };
    write(&rendered)?;
    if complete && std::env::var_os("CI").is_none() {
        write(&repository.root.join("docs/interop.md"))?;
    }
    eprintln!("xtask: {} results against QEMU are in {}", cells.len(), rendered.display());
    Ok(())
}

/// One JSON object a line (tests/src/report.rs); a test that ran twice is told by its last line.
fn parse(text: &str) -> BTreeMap<(Row, Column), String> {
    let mut cells = BTreeMap::new();
    for cell in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let word = |key: &str| cell[key].as_str().unwrap_or("?").to_owned();
        let version = word("qemu").split('.').map(|part| part.parse().unwrap_or(0)).collect();
        let row = (word("transport"), word("feature"));
        cells.insert((row, (version, word("machine"))), word("result"));
    }
    cells
}

fn table(cells: &BTreeMap<(Row, Column), String>) -> String {
    let rows: BTreeSet<&Row> = cells.keys().map(|(row, _)| row).collect();
    let columns: BTreeSet<&Column> = cells.keys().map(|(_, column)| column).collect();
    let mut out = String::from(HEAD);
    out.push_str("| transport | feature |");
    for (version, machine) in &columns {
        let version: Vec<String> = version.iter().map(u32::to_string).collect();
        let _ = write!(out, " QEMU {} {machine} |", version.join("."));
    }
    out.push_str("\n|---|---|");
    out.push_str(&"---|".repeat(columns.len()));
    for row in rows {
        let _ = write!(out, "\n| {} | {} |", row.0, row.1);
        for &column in &columns {
            let result = cells.get(&(row.clone(), column.clone()));
            let _ = write!(out, " {} |", result.map_or("–", String::as_str));
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_as_numbers_and_holes_are_visible() {
        let text = r#"{"qemu":"10.0.2","machine":"pc","transport":"unix","feature":"plain","result":"works"}
{"qemu":"7.2.22","machine":"pc","transport":"unix","feature":"plain","result":"FAILED"}
{"qemu":"7.2.22","machine":"pc","transport":"unix","feature":"plain","result":"works"}
{"qemu":"7.2.22","machine":"pc","transport":"file","feature":"plain","result":"works"}
"#;
        let table = table(&parse(text));
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(
            lines,
            [
                "| transport | feature | QEMU 7.2.22 pc | QEMU 10.0.2 pc |",
                "|---|---|---|---|",
                "| file | plain | works | – |",
                "| unix | plain | works | works |",
            ]
        );
    }
}
