//! docs/faults.md: what was made to fail over which transport, and what became of the guest, written from the results of
//! the suite `faults` (tests/tests/faults/).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::repository::Repository;

/// Transport, mode, kind of fault.
type Row = (String, String, String);

/// Outcomes in the order of their columns; one that is not listed comes last.
const OUTCOMES: [&str; 9] = [
    "arrived whole",
    "failed, guest at its source",
    "waited until its deadline, guest at its source",
    "failed, owner unknown",
    "waited until its deadline, owner unknown",
    "sent, not confirmed, not arrived",
    "flipped bit not noticed",
    "verdict falsified, two owners or none",
    "not reached",
];

const HEAD: &str = "\
# Faults, as tried

Written by `cargo xtask faults` from the results of the suite `faults` in `tests/tests/`; do not edit. A small migration is
run once for every number: an operation of a transport fails with an error of the system or never returns, bytes are lost
or turned, sockets are reset, either end is killed, and so on. After each one: both ends have come to an end in bounded time; the guest has one
owner; no descriptor, thread, child or file is left; the error has a cause, down to the system's. How, and how to repeat a
single case, is in [testing.md](testing.md). A case whose ends fail before their fault's turn does not count: it is tried again
by itself with more time, and if it is so again, the suite fails.

- *arrived whole*: what failed was not needed any more, or was got over.
- *failed, guest at its source*: it runs on there, and nowhere else.
- *failed, owner unknown*: the end of the stream has left and no verdict came. The guest runs nowhere until somebody has
  asked the destination. Allowed only behind the last item of the stream.
- *waited until its deadline*, with either owner: an end waited for more that never came. A turned bit of a length, a data
  channel that is there twice or was lost before the destination knew whose it was, a source that was killed before it came, a
  fifo that nobody opens, one direction of RDMA, which cannot end alone: a deadline is all that can end these. Any other fault but a stall must end both ends
  without one, or the suite fails.
- *sent, not confirmed, not arrived*: without a return path a source cannot hear that its destination failed. It says
  \"sent, not confirmed\"; the guest runs nowhere.
- *flipped bit not noticed*: the contents of pages and devices have no checksum in QEMU's format, nor has the offset of a
  page. TLS notices every one of them.
- *verdict falsified, two owners or none*: the destination's word (SHUT) has no checksum either, and a connection that is ended in
  order without one means that the destination gave up. Somebody between the ends who turns the one into the other
  makes two owners, or none. So does a relay that a unix socket leads to and that dies with the verdict unread: its kernel ends
  the connection in order. Sockets that lead to the other end itself do not; against others there is TLS ([security.md](security.md)).
- *not reached*: there was no such operation or byte this time. Which data channel carries what differs from run to run.

";

const NOT_TRIED: &str = "
## Not tried, and why

Every transport, mode and fault that has no row above; the first line that fits counts. The suite has this list
(`tests/tests/faults/product.rs`), and fails where something is neither tried nor listed.

| transport | mode | fault | why |
|---|---|---|---|
";

/// Renders the table into the target directory, and into docs/ if `keep`.
pub(crate) fn render(repository: &Repository, results: &Path, keep: bool) -> Result<(), String> {
    let text = fs::read_to_string(results).unwrap_or_default();
    let counts = parse(&text);
    if counts.is_empty() {
        return Ok(());
    }
    let table = table(&counts) + &not_tried(&text);
    let rendered = repository.target.join("faults.md");
    let write = |file: &Path| {
        fs::write(file, &table).map_err(|error| format!("cannot write {}: {error}", file.display()))
    };
    write(&rendered)?;
    if keep {
        write(&repository.root.join("docs/faults.md"))?;
    }
    let tried: u64 = counts.values().flat_map(BTreeMap::values).sum();
    eprintln!("xtask: what became of {tried} faults is in {}", rendered.display());
    Ok(())
}

fn objects(text: &str) -> impl Iterator<Item = Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// What the suite says it leaves out, once each and in its order, which counts.
fn not_tried(text: &str) -> String {
    let mut rows: Vec<String> = Vec::new();
    for line in objects(text) {
        let Some(what) = line.get("not_tried") else { continue };
        let mut row = String::from("|");
        for key in ["transports", "modes", "faults"] {
            let names = what[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            let names: Vec<&str> = names.collect();
            let _ = write!(
                row,
                " {} |",
                if names.is_empty() { "all".into() } else { names.join("; ") }
            );
        }
        let _ = write!(row, " {} |", line["why"].as_str().unwrap_or("?"));
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => format!("{NOT_TRIED}{}\n", rows.join("\n")),
    }
}

/// One JSON object a line (tests/src/report.rs); of a suite that ran twice the last word counts.
fn parse(text: &str) -> BTreeMap<Row, BTreeMap<String, u64>> {
    let mut counts: BTreeMap<Row, BTreeMap<String, u64>> = BTreeMap::new();
    for line in objects(text).filter(|line| line.get("not_tried").is_none()) {
        let word = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
        let row = counts.entry((word("transport"), word("mode"), word("fault"))).or_default();
        row.insert(word("outcome"), line["count"].as_u64().unwrap_or(0));
    }
    counts
}

fn table(counts: &BTreeMap<Row, BTreeMap<String, u64>>) -> String {
    let others: BTreeSet<&str> = counts
        .values()
        .flat_map(BTreeMap::keys)
        .map(String::as_str)
        .filter(|outcome| !OUTCOMES.contains(outcome))
        .collect();
    let columns: Vec<&str> = OUTCOMES.into_iter().chain(others).collect();
    let total = |row: &BTreeMap<String, u64>| row.values().sum::<u64>();
    let all: u64 = counts.values().map(total).sum();
    let mut out = format!("{HEAD}{all} faults in all.\n\n| transport | mode | fault | tried |");
    for column in &columns {
        let _ = write!(out, " {column} |");
    }
    out.push_str("\n|---|---|---|--:|");
    out.push_str(&"--:|".repeat(columns.len()));
    for ((transport, mode, fault), outcomes) in counts {
        let _ = write!(out, "\n| {transport} | {mode} | {fault} | {} |", total(outcomes));
        for column in &columns {
            match outcomes.get(*column) {
                Some(count) => {
                    let _ = write!(out, " {count} |");
                }
                None => out.push_str(" |"),
            }
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_sum_and_a_new_outcome_its_column() {
        let text = r#"{"transport":"tcp","mode":"plain","fault":"reset","outcome":"arrived whole","count":2}
{"transport":"tcp","mode":"plain","fault":"reset","outcome":"arrived whole","count":3}
{"transport":"tcp","mode":"plain","fault":"reset","outcome":"something new","count":4}
"#;
        let table = table(&parse(text));
        let row = table.lines().last().expect("a row");
        assert_eq!(row, "| tcp | plain | reset | 7 | 3 | | | | | | | | | 4 |");
        assert!(table.contains("7 faults in all."));
    }

    #[test]
    fn what_is_not_tried_is_listed_once_in_its_order_and_no_row() {
        let line = r#"{"not_tried":{"transports":["fd, a pipe","file"],"modes":[],"faults":["reset"]},"why":"a pipe"}"#;
        let other =
            r#"{"not_tried":{"transports":[],"modes":["plain"],"faults":[]},"why":"a reason"}"#;
        let text = format!("{line}\n{other}\n{line}\n");
        assert!(parse(&text).is_empty());
        let list = not_tried(&text);
        let rows =
            "| fd, a pipe; file | all | reset | a pipe |\n| all | plain | all | a reason |\n";
        assert!(list.ends_with(rows), "{list}");
        assert_eq!(not_tried(""), "");
    }
}
