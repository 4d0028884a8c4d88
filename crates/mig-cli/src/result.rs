//! The last line of `recv --json` and `send --json`.

use mig::{
    engine::{MigrationHandle, MigrationInfo, PageCounts, RecordOptions, Recorder},
    transport::Blame,
};
use serde_json::{Value, json};

use crate::failure::Failure;

/// A migration that came to its end.
pub(crate) fn completed(
    confirmed: bool,
    bytes: u64,
    pages: &PageCounts,
    info: &MigrationInfo,
) -> Value {
    let mut value = base(info);
    value["status"] = "completed".into();
    value["confirmed"] = confirmed.into();
    value["bytes"] = bytes.into();
    value["pages"] = json!(pages);
    value
}

/// One that did not. `begun` is missing where it never began: all numbers are zero then.
pub(crate) fn failed(failure: &Failure, begun: Option<&MigrationHandle>) -> Value {
    let info = match begun {
        Some(handle) => handle.info(),
        None => Recorder::new(RecordOptions::default()).handle().info(),
    };
    let mut value = base(&info);
    let cancelled = failure.blame == Blame::Cancelled;
    value["status"] = if cancelled { "cancelled" } else { "failed" }.into();
    value["confirmed"] = false.into();
    value["error"] = failure.json();
    value
}

fn base(info: &MigrationInfo) -> Value {
    let mut value = json!({ "ram": info.ram, "total-time": info.total_time });
    if let Some(multifd) = &info.multifd {
        value["multifd"] = json!(multifd);
    }
    // Nobody's guest stood still: there is none at this end.
    value["downtime"] = json!(info.downtime.unwrap_or(0.0));
    value
}
