//! stderr talks: remarks, progress, errors. stdout carries data and nothing else.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mig::engine::MigrationInfo;
use serde_json::{Value, json};

use crate::failure::Failure;

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a log file gets a line of progress, or a script a JSON object.
const LINE: Duration = Duration::from_secs(5);
const JSON_LINE: Duration = Duration::from_secs(1);

/// How a command talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    quiet: bool,
    json: bool,
}

impl Talk {
    pub(crate) fn new(quiet: bool, json: bool) -> Self {
        Self { quiet, json }
    }

    /// A remark.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            line(text);
        }
    }

    /// Something nobody may miss, quiet or not.
    pub(crate) fn warn(&self, text: &str) {
        line(&format!("WARNING: {text}"));
    }

    /// An object for scripts, if they listen.
    pub(crate) fn object(&self, value: &Value) {
        if self.json {
            let mut out = io::stdout().lock();
            // A script that closed its end does not want the rest; the migration goes on.
            let _closed = writeln!(out, "{value}").and_then(|()| out.flush());
        }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        line(&failure.text());
    }

    /// Progress of a migration; `total` bytes if the length is known.
    pub(crate) fn progress(&self, doing: impl Into<String>, total: Option<u64>) -> Progress {
        let doing = doing.into();
        let terminal = !self.quiet && io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::no_length(),
            };
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {msg}",
                None => "{spinner} {prefix} {binary_bytes}, {binary_bytes_per_sec}, {msg}",
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style).with_prefix(doing.clone())
        });
        Progress { talk: *self, bar, doing, last_line: Instant::now(), last_json: Instant::now() }
    }
}

fn line(text: &str) {
    let mut err = io::stderr().lock();
    // There is nobody else to tell.
    let _lost = writeln!(err, "mig: {text}");
}

/// Shows how far a migration is; cleared when dropped.
pub(crate) struct Progress {
    talk: Talk,
    bar: Option<ProgressBar>,
    doing: String,
    last_line: Instant,
    last_json: Instant,
}

impl Progress {
    /// How often [`show`](Self::show) is worth calling.
    pub(crate) const INTERVAL: Duration = REDRAW;

    /// Shows the present state, in the form and as often as whoever watches wants it.
    pub(crate) fn show(&mut self, info: &MigrationInfo) {
        let (moved, status) = (info.ram.transferred, info.status);
        if let Some(bar) = &self.bar {
            let (normal, zero) = (info.ram.normal, info.ram.duplicate);
            bar.set_message(format!("{status}, {normal} pages, {zero} zero"));
        }
        self.tell(moved, Duration::from_millis(info.total_time), status);
        if self.last_json.elapsed() >= JSON_LINE {
            self.last_json = Instant::now();
            self.talk.object(&json!(info));
        }
    }
}

impl Progress {
    /// The same before there is a migration: so many bytes in such a time.
    pub(crate) fn show_bytes(&mut self, seen: u64, elapsed: Duration) {
        self.tell(seen, elapsed, "nothing is sent yet");
    }

    fn tell(&mut self, moved: u64, elapsed: Duration, status: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(moved);
        } else if self.last_line.elapsed() >= LINE {
            self.last_line = Instant::now();
            let seconds = elapsed.as_secs_f64().max(0.001);
            let rate = BinaryBytes((moved as f64 / seconds) as u64);
            self.talk.say(&format!("{} {}, {rate}/s, {status}", self.doing, BinaryBytes(moved)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
