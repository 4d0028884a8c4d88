//! The table of a benchmark.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use indicatif::BinaryBytes;
use mig::bench::{BenchReport, RunReport, RunStatus};

/// One line as soon as a run is done.
pub(super) fn line(run: &RunReport) -> String {
    match run.status {
        RunStatus::Completed => format!(
            "{}{}: {}/s, {:.2} s, downtime {:.1} ms{}",
            name(run),
            data_channels(run),
            BinaryBytes(run.throughput_bytes_per_sec as u64),
            run.seconds,
            run.downtime_ms,
            if run.confirmed { "" } else { " (sent, not confirmed)" },
        ),
        _ => format!("{}: {}: {}", name(run), word(run.status), reason(run)),
    }
}

/// What a run is called: its transport, and whether it had TLS.
pub(super) fn name(run: &RunReport) -> String {
    format!("{}{}", run.transport, if run.tls { " + TLS" } else { "" })
}

fn data_channels(run: &RunReport) -> String {
    match &run.multifd {
        None => String::new(),
        Some(multifd) if multifd.channels == 1 => ", 1 data channel".into(),
        Some(multifd) => format!(", {} data channels", multifd.channels),
    }
}

/// What data channels have to say: why there are so many, and whether compression was in the way.
fn remarks(run: &RunReport) -> impl Iterator<Item = String> {
    let multifd = run.multifd.as_ref();
    let chosen = multifd.and_then(|multifd| multifd.channels_chosen.as_ref());
    let compression = multifd.and_then(|multifd| multifd.compression.as_ref());
    let name = format!("{}{}", name(run), data_channels(run));
    let chosen = chosen.map(|why| format!("{name}: {why}"));
    let verdict = compression
        .map(|done| format!("{name}, {} level {}: {}", done.method, done.level, done.verdict));
    chosen.into_iter().chain(verdict)
}

/// Why it did not complete. Some reasons begin with the transport's name, which is said anyway.
pub(super) fn reason(run: &RunReport) -> &str {
    let reason = run.reason.as_deref().unwrap_or("no reason known");
    let own = reason.strip_prefix(run.transport.as_str()).and_then(|rest| rest.strip_prefix(": "));
    own.unwrap_or(reason)
}

fn word(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
        RunStatus::Cancelled => "cancelled",
        RunStatus::Unavailable => "unavailable here",
    }
}

/// The whole table, a row a run. Columns that only some transports fill are there when one of them ran.
pub(super) fn render(report: &BenchReport) -> String {
    let completed = || report.runs.iter().filter(|run| run.status == RunStatus::Completed);
    let multifd = completed().any(|run| run.multifd.is_some());
    let registers = completed().any(|run| run.registration.is_some());
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    let mut header = vec!["transport"];
    if multifd {
        header.push("data\nchannels");
    }
    header.extend([
        "throughput",
        "seconds",
        "CPU s/GiB\nsource",
        "\ndestination",
        "rounds",
        "downtime\nof goal ms",
    ]);
    if registers {
        header.extend(["registered\nsource", "\ndestination", "control\nround trips"]);
    }
    let numbers = 1..header.len();
    header.push("memory");
    table.set_header(header);
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for run in completed() {
        table.add_row(row(run, multifd, registers));
    }
    let mut text = table.trim_fmt();
    for remark in completed().flat_map(remarks) {
        text.push('\n');
        text.push_str(&remark);
    }
    for run in report.runs.iter().filter(|run| run.status != RunStatus::Completed) {
        text.push('\n');
        text.push_str(&line(run));
    }
    text
}

fn row(run: &RunReport, multifd: bool, registers: bool) -> Vec<String> {
    let mut cells = vec![name(run)];
    if multifd {
        let channels = run.multifd.as_ref().map(|multifd| multifd.channels.to_string());
        cells.push(channels.unwrap_or_else(|| "-".into()));
    }
    cells.extend([
        format!("{}/s", BinaryBytes(run.throughput_bytes_per_sec as u64)),
        format!("{:.2}", run.seconds),
        format!("{:.2}", run.source_cpu_per_gib()),
        format!("{:.2}", run.destination_cpu_per_gib()),
        run.rounds.to_string(),
        format!("{:.1} of {}", run.downtime_ms, run.downtime_limit_ms),
    ]);
    if registers {
        cells.extend(match &run.registration {
            Some(registration) => [
                BinaryBytes(registration.source_registered_bytes).to_string(),
                BinaryBytes(registration.destination_registered_bytes).to_string(),
                registration.control_round_trips.to_string(),
            ],
            None => [const { String::new() }; 3],
        });
    }
    cells.push(match (run.verified, run.confirmed) {
        (true, true) => "verified".into(),
        (true, false) => "verified, unconfirmed".into(),
        (false, _) => "not verified".into(),
    });
    cells
}

#[cfg(test)]
mod tests {
    use mig::bench::{Machine, Registration};

    use super::*;

    fn run(transport: &str, registration: Option<Registration>) -> RunReport {
        RunReport {
            transport: transport.into(),
            uri: String::new(),
            channels: 1,
            status: RunStatus::Completed,
            reason: None,
            verified: true,
            confirmed: true,
            warm: false,
            tls: false,
            ram_bytes: 1 << 30,
            wire_bytes: 1 << 30,
            seconds: 1.0,
            throughput_bytes_per_sec: (1u64 << 30) as f64,
            source_cpu_seconds: 0.25,
            destination_cpu_seconds: 0.5,
            rounds: 3,
            normal_pages: 1 << 18,
            zero_pages: 0,
            downtime_ms: 1.0,
            downtime_limit_ms: 300,
            dirty_tracking: None,
            placement: None,
            registration,
            multifd: None,
        }
    }

    fn table(runs: Vec<RunReport>) -> String {
        render(&BenchReport { machine: Machine::here(), runs })
    }

    #[test]
    fn columns_of_registered_memory_come_with_a_transport_that_has_it() {
        let alone = table(vec![run("tcp", None)]);
        assert!(!alone.contains("registered"), "{alone}");
        let registration = Registration {
            rdma_pin_all: false,
            source_registered_bytes: 64 << 20,
            destination_registered_bytes: 128 << 20,
            control_round_trips: 4321,
        };
        let both = table(vec![run("tcp", None), run("rdma", Some(registration))]);
        assert!(both.contains("registered") && both.contains("round trips"), "{both}");
        let line = |name: &str| both.lines().find(|line| line.trim().starts_with(name)).unwrap();
        for figure in ["64.00 MiB", "128.00 MiB", "4321"] {
            assert!(line("rdma").contains(figure), "{both}");
            assert!(!line("tcp").contains(figure), "{both}");
        }
    }
}
