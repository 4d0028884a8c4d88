//! What the halves and the supervising task share: how far the command is, and who wants it to end.
//!
//! ```text
//!   Running ──the command exits──▶ Exited ──all its pipes are closed, or the rest was killed──▶ Gone (reaped)
//! ```
//!
//! Nothing here owns a descriptor, so whoever keeps a shutdown handle keeps no pipe open.

use std::{
    fmt, io,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use mig_transport::{Error, ForceShutdown};
use tokio::sync::Notify;

use crate::stderr::Tail;

/// Bytes of stderr that go into an error text; the tail itself is longer.
const LAST_WORDS_BYTES: usize = 4096;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else in this process waited for it, so nobody can tell.
    Unknown,
}

impl Ending {
    /// Whether it ended well.
    pub fn is_success(self) -> bool {
        self == Self::Status(0)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(126) => f.write_str("ended with status 126 (found, but cannot be run)"),
            Self::Status(127) => f.write_str("ended with status 127 (the command was not found)"),
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Unknown => f.write_str(
                "ended, but its status was collected by another part of this process (or SIGCHLD is ignored)",
            ),
        }
    }
}

/// A command failed, or ended before it had taken everything. Found as the source of the
/// [`Error::Io`] that a channel reports.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the command {ending}{early}{}", .stderr.shown())]
pub struct CommandFailed {
    /// How it ended.
    pub ending: Ending,
    early: &'static str,
    stderr: LastWords,
}

impl CommandFailed {
    /// The end of what it wrote to stderr.
    pub fn stderr(&self) -> &str {
        &self.stderr.0
    }
}

#[derive(Clone, Debug)]
struct LastWords(String);

impl LastWords {
    fn shown(&self) -> String {
        if self.0.is_empty() {
            "; it wrote nothing to stderr".into()
        } else {
            format!("; its last words: {}", self.0)
        }
    }
}

/// How far the command is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    Running,
    Exited(Ending),
    Gone(Ending),
}

/// Who waits for a phase.
#[derive(Clone, Copy)]
pub(crate) enum Waiter {
    Sender = 0,
    Receiver = 1,
}

struct State {
    phase: Phase,
    stop: bool,
    /// Both halves are gone.
    released: bool,
    /// By us; the others by anybody who could write there.
    stdin_open: bool,
    stdout_open: bool,
    stderr_open: bool,
    wakers: [Option<Waker>; 2],
}

/// See the module.
pub(crate) struct Group {
    /// The command as messages show it.
    pub(crate) name: String,
    pub(crate) stderr: Tail,
    state: Mutex<State>,
    /// Wakes the supervisor.
    changed: Notify,
}

impl Group {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            stderr: Tail::default(),
            state: Mutex::new(State {
                phase: Phase::Running,
                stop: false,
                released: false,
                stdin_open: true,
                stdout_open: true,
                stderr_open: true,
                wakers: [None, None],
            }),
            changed: Notify::new(),
        }
    }

    /// The phase now; a later one wakes the task.
    pub(crate) fn poll_phase(&self, waiter: Waiter, cx: &Context<'_>) -> Phase {
        let mut state = self.lock();
        let slot = &mut state.wakers[waiter as usize];
        if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        state.phase
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Asks the supervisor to end the whole group.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_waiters();
    }

    /// The stream into the command ended. Of two ways, the one that ends last waits for the command.
    pub(crate) fn stdin_closed(&self) {
        let mut state = self.lock();
        state.stdin_open = false;
        let waker = state.wakers[Waiter::Receiver as usize].take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_stdin_open(&self) -> bool {
        self.lock().stdin_open
    }

    pub(crate) fn is_stdout_open(&self) -> bool {
        self.lock().stdout_open
    }

    pub(crate) fn stdout_closed(&self) {
        self.lock().stdout_open = false;
        self.changed.notify_waiters();
    }

    pub(crate) fn stderr_closed(&self) {
        self.lock().stderr_open = false;
        self.changed.notify_waiters();
    }

    /// Until somebody asks for the end: at once when the channel is stopped, after `grace` when both halves are gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: it only looks.
    pub(crate) async fn stop_wanted(&self, grace: Duration) {
        self.wait_for(|state| state.stop || state.released).await;
        if !self.lock().stop {
            let stopped = self.wait_for(|state| state.stop);
            let _in_time = tokio::time::timeout(grace, stopped).await;
        }
    }

    /// Until nobody holds the pipes that we read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: it only looks.
    pub(crate) async fn let_go(&self) {
        self.wait_for(State::pipes_closed).await;
    }

    /// # Cancel safety
    ///
    /// Nothing is lost: it only looks.
    async fn wait_for(&self, condition: impl Fn(&State) -> bool) {
        loop {
            let changed = pin!(self.changed.notified());
            // Made before the look, so a change between look and wait is not missed.
            if condition(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// The failure that `ending` is; `early` when bytes were left unread.
    pub(crate) fn failure(&self, ending: Ending, early: bool) -> io::Error {
        let failed = CommandFailed {
            ending,
            early: if early { " before it had read everything" } else { "" },
            stderr: LastWords(self.stderr.last(LAST_WORDS_BYTES)),
        };
        Error::Io { doing: self.name.clone(), source: io::Error::other(failed) }.into_io()
    }

    /// Nothing if `ending` is a good one.
    pub(crate) fn check(&self, ending: Ending) -> io::Result<()> {
        if ending.is_success() { Ok(()) } else { Err(self.failure(ending, false)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pipes_closed(&self) -> bool {
        !self.stdout_open && !self.stderr_open
    }
}

/// Held by the halves: when the last one goes, nobody needs the command any more.
pub(crate) struct Lease(pub(crate) std::sync::Arc<Group>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.lock().released = true;
        self.0.changed.notify_waiters();
    }
}

/// What a shutdown handle holds.
pub(crate) struct Stop(pub(crate) std::sync::Arc<Group>);

impl ForceShutdown for Stop {
    fn force_shutdown(&self) {
        self.0.stop();
    }
}
