//! Runs one migration under signals, a time limit and a progress display.
//!
//! ```text
//!                        prepare: names are looked up, files opened    supervise: the migration
//!   SIGINT, SIGTERM ─┐     │                                             │
//!   --timeout ───────┴─────┴─▶ abandoned                                 └─▶ MigrationHandle::cancel ──▶ the engine tells
//!   a second signal ───▶ leave at once, exit code 4                          the far end, leaves nothing behind
//! ```
//!
//! Who may stop it is asked first, each time: work that always has something to do uses up what tokio lets a task do at a
//! time, and whoever is asked after it is not heard.

use std::{
    future::Future,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mig::{engine::MigrationHandle, proto::state::MigrationStatus, transport::Blame};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

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

/// When the whole command has to be over (`--timeout`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit(Option<(Duration, Instant)>);

impl Limit {
    /// So long from now on; without one there is none.
    pub(crate) fn from_now(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|after| Some((after, Instant::now().checked_add(after)?))))
    }

    /// Answers how long it was, once it is over.
    async fn over(self) -> Duration {
        match self.0 {
            Some((after, at)) => {
                tokio::time::sleep_until(at).await;
                after
            }
            None => std::future::pending().await,
        }
    }

    fn ran_out(after: Duration, waits_for: &str, state: &str) -> Failure {
        Failure::new(
            Blame::Deadline,
            format!(
                "--timeout: not done within {}; it was waiting for {waits_for} (state {state})",
                humantime::format_duration(after)
            ),
        )
    }
}

/// Does what comes before a migration and may take long, as looking up a name or opening a file does. A signal or the time
/// limit abandons it; what hangs in the operating system is left behind.
pub(crate) async fn prepare<T>(
    signals: &mut Signals,
    limit: Limit,
    waits_for: &'static str,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    tokio::select! {
        biased;
        () = signals.next() => {
            Err(Failure::new(Blame::Cancelled, format!("cancelled while waiting for {waits_for}")))
        }
        after = limit.over() => {
            Err(Limit::ran_out(after, waits_for, MigrationStatus::None.as_str()))
        }
        done = work => done,
    }
}

/// The same for what can only be waited for by blocking. It counts the bytes that it has seen, for who waits long.
pub(crate) async fn prepare_blocking<T: Send + 'static>(
    signals: &mut Signals,
    limit: Limit,
    waits_for: &'static str,
    mut progress: Progress,
    work: impl FnOnce(&AtomicU64) -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&seen);
    let mut done = tokio::task::spawn_blocking(move || work(&counted));
    let begun = Instant::now();
    let mut redraw = tokio::time::interval_at(begun + WORTH_SHOWING, Progress::INTERVAL);
    let work = async {
        loop {
            tokio::select! {
                biased;
                done = &mut done => {
                    return done.map_err(|error| Failure::new(Blame::Io, waits_for).caused_by(&error))?;
                }
                _ = redraw.tick() => progress.show_bytes(seen.load(Ordering::Relaxed), begun.elapsed()),
            }
        }
    };
    prepare(signals, limit, waits_for, work).await
}

/// What takes less time needs no progress.
const WORTH_SHOWING: Duration = Duration::from_millis(500);

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
    limit: Limit,
    mut progress: Progress,
    work: impl Future<Output = mig::engine::Result<T>>,
) -> Outcome<T> {
    let mut work = std::pin::pin!(work);
    let mut limit = std::pin::pin!(limit.over());
    let mut redraw = tokio::time::interval(Progress::INTERVAL);
    let mut stop = None;
    let mut addresses_told = false;
    let outcome = loop {
        tokio::select! {
            biased;
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
            outcome = &mut work => break outcome,
        }
    };
    drop(progress);
    outcome.map_err(|error| match (error.blame(), stop) {
        (Blame::Cancelled, Some(Stop::Timeout(after, state, waits_for))) => {
            Limit::ran_out(after, waits_for, state)
        }
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

#[cfg(test)]
mod tests {
    use mig::engine::{Discard, RecordOptions, Recorder};

    use super::*;

    /// A hang guard.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Uses up whatever it may do at a time, and wants to go on.
    async fn busy() {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            tokio::task::consume_budget().await;
        }
    }

    #[test]
    fn work_that_is_never_out_of_work_is_stopped_all_the_same() {
        let outcome = block_on(async {
            let talk = Talk::new(true, false);
            let mut signals = Signals::catch()?;
            let address = mig::transport::MigrationAddress::parse("tcp:127.0.0.1:0").unwrap();
            let mut listener = mig::listener(&address, &mig::ListenOptions::default()).await?;
            let recorder = Recorder::new(RecordOptions::default());
            let handle = recorder.handle();
            let work = async {
                tokio::select! {
                    biased;
                    recorded = recorder.run(&mut *listener, Box::new(Discard), None) => recorded,
                    () = busy() => panic!("nobody was heard"),
                }
            };
            let limit = Limit::from_now(Some(Duration::from_millis(1)));
            let progress = talk.progress("nothing", None);
            supervise(&talk, &handle, &mut signals, limit, progress, work).await
        });
        assert_eq!(outcome.unwrap_err().blame, Blame::Deadline);
    }
}
