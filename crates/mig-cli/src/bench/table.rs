//! The table of a benchmark.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use indicatif::BinaryBytes;
use mig::bench::{BenchReport, RunReport, RunStatus};

/// One line as soon as a run is done.
pub(super) fn line(run: &RunReport) -> String {
    match run.status {
        RunStatus::Completed => format!(
            "{}: {}/s, {:.2} s, downtime {:.1} ms{}",
            run.transport,
            BinaryBytes(run.throughput_bytes_per_sec as u64),
            run.seconds,
            run.downtime_ms,
            if run.confirmed { "" } else { " (sent, not confirmed)" },
        ),
        _ => format!(
            "{}: {}: {}",
            run.transport,
            word(run.status),
            run.reason.as_deref().unwrap_or("no reason known")
        ),
    }
}

fn word(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
        RunStatus::Cancelled => "cancelled",
        RunStatus::Unavailable => "unavailable here",
    }
}

/// The whole table, a row a run.
pub(super) fn render(report: &BenchReport) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header([
        "transport",
        "throughput",
        "seconds",
        "CPU s/GiB\nsource",
        "\ndestination",
        "rounds",
        "downtime\nof goal ms",
        "memory",
    ]);
    for index in 1..7 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for run in &report.runs {
        if run.status == RunStatus::Completed {
            table.add_row(row(run));
        }
    }
    let mut text = table.trim_fmt();
    for run in report.runs.iter().filter(|run| run.status != RunStatus::Completed) {
        text.push('\n');
        text.push_str(&line(run));
    }
    text
}

fn row(run: &RunReport) -> [String; 8] {
    [
        run.transport.clone(),
        format!("{}/s", BinaryBytes(run.throughput_bytes_per_sec as u64)),
        format!("{:.2}", run.seconds),
        format!("{:.2}", run.source_cpu_per_gib()),
        format!("{:.2}", run.destination_cpu_per_gib()),
        run.rounds.to_string(),
        format!("{:.1} of {}", run.downtime_ms, run.downtime_limit_ms),
        match (run.verified, run.confirmed) {
            (true, true) => "verified".into(),
            (true, false) => "verified, unconfirmed".into(),
            (false, _) => "not verified".into(),
        },
    ]
}
