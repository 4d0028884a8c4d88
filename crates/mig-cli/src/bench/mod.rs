//! `mig bench`: a live migration of a synthetic guest over every transport, measured.
//!
//! ```text
//!   flags ──▶ plans, one a transport and run ──▶ worker thread: mig::bench::run, one after the other
//!                                                  │ handles, reports
//!   signals, progress ◀── this thread ◀────────────┘ ──▶ table, JSON
//! ```

mod table;

use std::{fs, io, io::Write, path::Path, thread};

use mig::{
    bench::{
        BenchReport, Handles, Machine, Memory, RunPlan, RunReport, RunStatus, Transport, Workload,
    },
    engine::{Capabilities, Parameters},
    ram::PlacementOptions,
    transport::Blame,
};
use tokio::sync::mpsc;

use crate::{
    failure::{Failure, Outcome},
    flags::{BenchFlags, Channels},
    multifd, pinning,
    supervise::{Signals, block_on},
    talk::{Progress, Talk},
};

/// Every benchmark starts from the same noise, so that two of them can be compared.
const SEED: u64 = 0x6d69_6720_6265_6e63;

/// What the worker tells.
enum News {
    Started(Handles),
    Done(Box<RunReport>),
}

/// Runs the command.
pub(crate) fn run(flags: &BenchFlags) -> Outcome {
    let json_to_stdout = flags.json.as_deref() == Some(Path::new("-"));
    let talk = Talk::new(flags.quiet, false);
    let plans = plan(flags)?;
    let runs = block_on(measure(plans, &talk))?;
    let report = BenchReport { machine: Machine::here(), runs };
    let text = table::render(&report);
    if json_to_stdout {
        talk.say(&format!("results\n{text}"));
    } else {
        let mut out = io::stdout().lock();
        // Whoever closed stdout does not want the table; the exit code still tells.
        let _closed = writeln!(out, "{text}");
    }
    // Behind the table: a file that cannot be written must not cost the results.
    if let Some(path) = &flags.json {
        write_json(path, &report)?;
    }
    verdict(&report.runs, !flags.transport.is_empty())
}

fn plan(flags: &BenchFlags) -> Outcome<Vec<RunPlan>> {
    if flags.zero + flags.compressible > 100 {
        return Err(Failure::misuse(format!(
            "--zero {} and --compressible {}: there are only 100 percent",
            flags.zero, flags.compressible
        )));
    }
    let transports = match flags.transport.as_slice() {
        [] => Transport::all(),
        some => some.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
    };
    let ram_bytes = flags.size.0;
    if ram_bytes < 4096 {
        return Err(Failure::misuse("--size: a guest has at least one page, 4096 bytes"));
    }
    let mut parameters = Parameters::default();
    if let Some(rate) = &flags.max_bandwidth {
        parameters.max_bandwidth = rate.0;
    }
    if let Some(limit) = &flags.downtime_limit {
        parameters.downtime_limit = u64::try_from(limit.0.as_millis()).unwrap_or(u64::MAX);
    }
    let workload = Workload {
        dirty_rate: flags.dirty_rate.0,
        working_set: flags.working_set.as_ref().map_or(ram_bytes / 8, |size| size.0),
        zero_percent: flags.zero,
        compressible_percent: flags.compressible,
        seed: SEED,
    };
    let channels = match flags.channels.as_slice() {
        [] => &[Channels::Count(0)],
        some => some,
    };
    let rdma = transports.iter().any(|transport| transport.scheme() == "rdma");
    let pinning = pinning::check(rdma, flags.rdma_pin_all, flags.rdma_pinned_memory)?;
    let memory = if flags.warm { Memory::Warm } else { Memory::Cold };
    let runs = flags.runs as usize;
    let named = !flags.transport.is_empty();
    let mut plans = Vec::new();
    for transport in transports {
        for channels in channels {
            if *channels != Channels::Count(0) && !SEVERAL.contains(&transport.scheme()) {
                if named {
                    return Err(Failure::misuse(format!(
                        "--channels: {transport} is one connection and cannot have others beside it; tcp, unix and vsock \
                         can"
                    )));
                }
                continue;
            }
            let mut parameters = parameters.clone();
            let mut capabilities = Capabilities::default();
            capabilities.multifd = *channels != Channels::Count(0);
            multifd::set(*channels, flags.compression, &mut parameters);
            if *channels == Channels::Auto {
                multifd::limit(flags.cpu_budget, &mut parameters)?;
            }
            let plan = RunPlan {
                transport: transport.clone(),
                ram_bytes,
                workload,
                memory,
                tls: false,
                capabilities,
                parameters,
                placing: PlacementOptions::default(),
                rdma_pin_all: pinning.all,
                rdma_pinned_memory: pinning.at_most,
            };
            let secured = tls(flags, &plan)?;
            plans.extend(std::iter::repeat_n(plan, runs));
            plans.extend(secured.into_iter().flat_map(|plan| std::iter::repeat_n(plan, runs)));
        }
    }
    Ok(plans)
}

/// The same run with TLS, if it was asked for; what was named must be able to have it.
fn tls(flags: &BenchFlags, plan: &RunPlan) -> Outcome<Option<RunPlan>> {
    let transport = &plan.transport;
    match (flags.tls, transport.can_have_tls()) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(RunPlan { tls: true, ..plan.clone() })),
        (true, false) if flags.transport.is_empty() => Ok(None),
        (true, false) => Err(Failure::misuse(format!(
            "--tls: {transport} is measured without; tcp, unix and vsock are measured with TLS"
        ))),
    }
}

/// Transports that can have data channels.
const SEVERAL: [&str; 3] = ["tcp", "unix", "vsock"];

/// Runs the plans one after the other; a signal cancels the one that runs and forgets the rest.
async fn measure(plans: Vec<RunPlan>, talk: &Talk) -> Outcome<Vec<RunReport>> {
    let mut signals = Signals::catch()?;
    let mut reports = Vec::new();
    for plan in plans {
        let (told, mut news) = mpsc::unbounded_channel();
        let total = plan.ram_bytes;
        let tls = if plan.tls { " with TLS" } else { "" };
        let name = format!("{}{tls}", plan.transport);
        let worker = thread::spawn(move || {
            let started = told.clone();
            // Nobody listens any more only when this process is leaving.
            let report = mig::bench::run(&plan, |handles| {
                let _gone = started.send(News::Started(handles));
            });
            let _gone = told.send(News::Done(Box::new(report)));
        });
        let report =
            watch(&mut news, &mut signals, &mut talk.progress(name.as_str(), Some(total))).await;
        if worker.join().is_err() {
            return Err(Failure::new(
                Blame::Io,
                format!("{name}: the benchmark's thread panicked"),
            ));
        }
        let Some(report) = report else {
            return Err(Failure::new(Blame::Cancelled, "cancelled"));
        };
        if report.status == RunStatus::Cancelled {
            return Err(Failure::new(Blame::Cancelled, format!("{name}: cancelled")));
        }
        talk.say(&table::line(&report));
        reports.push(report);
    }
    Ok(reports)
}

/// Watches one run to its end; answers nothing if a signal came.
async fn watch(
    news: &mut mpsc::UnboundedReceiver<News>,
    signals: &mut Signals,
    progress: &mut Progress,
) -> Option<RunReport> {
    let mut redraw = tokio::time::interval(Progress::INTERVAL);
    let mut handles: Option<Handles> = None;
    let mut cancelled = false;
    loop {
        tokio::select! {
            heard = news.recv() => match heard? {
                News::Started(started) => {
                    if cancelled {
                        started.cancel();
                    }
                    handles = Some(started);
                }
                // A run that the signal came too late for is the last one all the same.
                News::Done(report) => return (!cancelled).then_some(*report),
            },
            () = signals.next() => {
                cancelled = true;
                if let Some(handles) = &handles {
                    handles.cancel();
                }
            }
            _ = redraw.tick() => {
                if let Some(handles) = &handles {
                    progress.show(&handles.source.info());
                }
            }
        }
    }
}

fn write_json(path: &Path, report: &BenchReport) -> Outcome {
    let failed = |error: io::Error| {
        Failure::new(Blame::Io, format!("--json {}", path.display())).caused_by(&error)
    };
    let mut text = serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
    text.push('\n');
    if path == Path::new("-") {
        return io::stdout().lock().write_all(text.as_bytes()).map_err(failed);
    }
    fs::write(path, text).map_err(failed)
}

/// A benchmark fails if a run did, or if what was asked for by name cannot run here.
fn verdict(runs: &[RunReport], named: bool) -> Outcome {
    let with = |status| runs.iter().find(|run| run.status == status);
    let reason = |run: &RunReport| format!("{}: {}", table::name(run), table::reason(run));
    if let Some(failed) = with(RunStatus::Failed) {
        return Err(Failure::new(Blame::Io, reason(failed)));
    }
    let missing = with(RunStatus::Unavailable);
    if let Some(missing) = missing.filter(|_| named || with(RunStatus::Completed).is_none()) {
        return Err(Failure::new(Blame::Unavailable, reason(missing)));
    }
    Ok(())
}
