//! The hang guard around a whole scenario.
//!
//! Every single wait of the harness ends by itself; this one ends a scenario whose waits add up, or one that waits
//! somewhere else. The length is no promise about speed: it is many times what the slowest scenario takes.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::process::SLOWNESS;

const SCENARIO: Duration = Duration::from_secs(180 * SLOWNESS);

/// Runs `body` and gives its panic on; panics itself if that takes longer than a scenario may.
#[track_caller]
pub fn guarded(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let mut builder = std::thread::Builder::new();
    // The name is the test's, which is how skips are told apart.
    if let Some(name) = std::thread::current().name() {
        builder = builder.name(name.to_owned());
    }
    let runner = builder
        .spawn(move || {
            body();
            // Nobody listens any more if the guard has struck.
            let _ = done.send(());
        })
        .unwrap_or_else(|error| panic!("cannot start a thread: {error}"));
    // A panic drops the sender, which ends the wait too.
    if ended.recv_timeout(SCENARIO) == Err(RecvTimeoutError::Timeout) {
        panic!("hung: the scenario has not ended within {SCENARIO:?}");
    }
    if let Err(panic) = runner.join() {
        resume_unwind(panic);
    }
}
