//! Runs one migration under signals, a time limit and a progress display.
//!
//! ```text
//!   SIGINT, SIGTERM ─┐
//!   --timeout ───────┴─▶ MigrationHandle::cancel ──▶ the engine tells the far end, leaves nothing behind
//!   a second signal ───▶ leave at once, exit code 4
//! ```

use std::{future::Future, process, time::Duration};

use mig::{engine::MigrationHandle, transport::Blame};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    exit,
    failure::{Failure, Outcome},
    talk::{Progress, Talk},
};

/// The runtime of the data path: one thread, because one stream is one flow of bytes.
///
/// Threads that hang in the operating system do not delay the end of the process.
pub(crate) fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Blame::Io, "starting the runtime").caused_by(&error))?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}

/// SIGINT and SIGTERM, from now on ours.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Caught so that a file that may grow no further is an error with a place, and not the end of the process.
    _file_size: Signal,
}

impl Signals {
    /// Must be called inside the runtime, before anything that must not be left behind.
    pub(crate) fn catch() -> Outcome<Self> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Blame::Io, "catching signals").caused_by(&error))
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            _file_size: catch(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What stops a command before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Signal,
    /// The limit, and what the migration was doing.
    Timeout(Duration, &'static str, &'static str),
}

/// Runs `work` to its end, whatever happens: a signal or the time limit make it cancel, they do not drop it.
pub(crate) async fn supervise<T>(
    talk: &Talk,
    handle: &MigrationHandle,
    signals: &mut Signals,
    timeout: Option<Duration>,
    mut progress: Progress,
    work: impl Future<Output = mig::engine::Result<T>>,
) -> Outcome<T> {
    let mut work = std::pin::pin!(work);
    let mut limit = std::pin::pin!(deadline(timeout));
    let mut redraw = tokio::time::interval(Progress::INTERVAL);
    let mut stop = None;
    let mut addresses_told = false;
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut work => break outcome,
            () = signals.next() => {
                if stop.replace(Stop::Signal) == Some(Stop::Signal) {
                    talk.say("interrupted twice: leaving at once");
                    process::exit(exit::number(Err(Blame::Cancelled)).into());
                }
                handle.cancel();
            }
            after = &mut limit, if stop.is_none() => {
                stop = Some(Stop::Timeout(after, handle.status().as_str(), handle.waits_for()));
                handle.cancel();
            }
            _ = redraw.tick() => {
                let info = handle.info();
                if !addresses_told && !info.socket_address.is_empty() {
                    addresses_told = true;
                    tell_addresses(talk, &info.socket_address);
                }
                progress.show(&info);
            }
        }
    };
    drop(progress);
    outcome.map_err(|error| match (error.blame(), stop) {
        (Blame::Cancelled, Some(Stop::Timeout(after, state, waits_for))) => Failure::new(
            Blame::Deadline,
            format!(
                "--timeout: not done within {}; it was waiting for {waits_for} (state {state})",
                humantime::format_duration(after)
            ),
        ),
        _ => error.into(),
    })
}

/// Where a destination can be reached, with the port that was really bound.
fn tell_addresses(talk: &Talk, addresses: &[String]) {
    for address in addresses {
        talk.say(&format!("listening on {address}"));
    }
    talk.object(&json!({ "status": "setup", "socket-address": addresses }));
}

async fn deadline(timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(timeout) => {
            tokio::time::sleep(timeout).await;
            timeout
        }
        None => std::future::pending().await,
    }
}
