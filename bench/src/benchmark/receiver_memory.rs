//! How much memory `mig recv` takes, for a short stream and for one ten times as long.

use std::{
    env,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::Plan;
use crate::{
    child::{Helper, STEP, TRANSFER},
    failure::Result,
    report::{Figure, Goal, Section},
    role::Foreign,
    statistics::Spread,
    stream::Stream,
};

const STREAM: Stream = Stream::of_pages(16 << 10);
// Long enough for every buffer to have been used once.
const SHORT_ROUNDS: usize = 4;
const LONG_ROUNDS: usize = 40;
const MIB: f64 = (1u64 << 20) as f64;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let program = env::current_exe()?.with_file_name("mig");
    if !program.exists() {
        return Err(format!(
            "there is no {}; `cargo build --release -p mig-cli` makes it",
            program.file_name().unwrap_or_default().display()
        )
        .into());
    }
    for (what, save) in [("verified and discarded", false), ("saved to a file", true)] {
        let (mut short, mut long) = (Vec::new(), Vec::new());
        for run in 1..=plan.runs {
            short.push(peak(&program, SHORT_ROUNDS, save)?);
            long.push(peak(&program, LONG_ROUNDS, save)?);
            eprintln!(
                "recv-rss {run}/{} {what}: {:.1} and {:.1} MiB",
                plan.runs,
                short.last().unwrap_or(&f64::NAN),
                long.last().unwrap_or(&f64::NAN)
            );
        }
        let growth = Spread::of_ratios(long.iter().copied(), short.iter().copied());
        let length = |rounds| (rounds * STREAM.ram_bytes()) >> 20;
        section.figures.push(Figure::told(
            format!("peak for {} MiB, {what}", length(SHORT_ROUNDS)),
            "MiB",
            Spread::of(short),
        ));
        section.figures.push(Figure::told(
            format!("peak for {} MiB, {what}", length(LONG_ROUNDS)),
            "MiB",
            Spread::of(long),
        ));
        section.figures.push(Figure::judged(
            format!("long of short, {what}"),
            "",
            growth,
            Goal::AtMost(1.1),
        ));
    }
    section.notes.push(
        "Peak resident memory of `mig recv` over a unix socket. Flat is at most 1.1: what the allocator and the kernel \
         round differs by a few hundred KiB between two runs of the same stream."
            .into(),
    );
    Ok(())
}

/// Peak resident memory in MiB.
fn peak(program: &Path, rounds: usize, save: bool) -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
    let socket: PathBuf = folder.path().join("socket");
    let mut arguments =
        vec!["recv".to_owned(), format!("unix:{}", socket.display()), "--quiet".into()];
    if save {
        arguments.extend(["--save".into(), folder.path().join("stream").display().to_string()]);
    }
    let program = program.display().to_string();
    let foreign = Foreign { program, arguments, ..Foreign::default() };
    let mut receiver = Helper::foreign("mig recv", foreign)?;
    let deadline = Instant::now() + STEP;
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) if receiver.ended()?.is_some() || Instant::now() >= deadline => {
                return Err(receiver.complaint("does not listen").into());
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_write_timeout(Some(STEP))?;
    let mut most = 0;
    let mut look = |receiver: &Helper| most = receiver.peak_rss().unwrap_or(0).max(most);
    for part in 0..=rounds {
        let bytes = match part {
            0 => STREAM.head(),
            _ => STREAM.round(part as u8),
        };
        let sent = stream.write_all(&bytes);
        sent.map_err(|error| receiver.complaint(&format!("stopped reading ({error})")))?;
        look(&receiver);
    }
    stream.write_all(&Stream::tail())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let deadline = Instant::now() + TRANSFER;
    let status = loop {
        look(&receiver);
        match receiver.ended()? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                return Err(receiver.complaint("did not end").into());
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    };
    if !status.success() {
        return Err(receiver.complaint(&format!("failed ({status})")).into());
    }
    Ok(most as f64 / MIB)
}
