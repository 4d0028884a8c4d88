//! The process that was started, which leads the group of everything it starts.
//!
//! Its number, and the group's, stay ours until it is reaped: signals are sent before that and never after, so none can
//! hit a stranger that got the number next. To know that it exited without reaping it, a pidfd is watched and `waitid`
//! is asked with `WNOWAIT`.

use std::{io, os::fd::OwnedFd, process, sync::Arc, time::Duration};

use mig_transport::{Error, FdIo, FdKind, Result};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus},
};
use tokio::io::Interest;

use crate::group::Ending;

/// For a process that even SIGKILL does not end: it hangs in the kernel.
const UNKILLABLE_WAIT: Duration = Duration::from_secs(2);

/// Dropping it before it was reaped kills the group.
pub(crate) struct Leader {
    /// `None` once reaped, or given up.
    child: Option<process::Child>,
    pid: Pid,
    exit: Arc<FdIo>,
}

impl Leader {
    /// Takes a child that was started as the leader of its own group. Needs a tokio runtime.
    pub(crate) fn new(child: process::Child, name: &str) -> Result<Self> {
        let pid = Pid::from_child(&child);
        let watch = || -> io::Result<Arc<FdIo>> {
            let fd: OwnedFd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            FdIo::new(fd, FdKind::Pipe, Interest::READABLE)
        };
        match watch() {
            Ok(exit) => Ok(Self { child: Some(child), pid, exit }),
            Err(error) => {
                kill_and_reap(child, pid);
                Err(if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) {
                    Error::Unavailable {
                        what: format!("{name}: this kernel has no pidfd_open"),
                        remedy: "Linux 5.3 or newer is needed".into(),
                    }
                } else {
                    Error::io(format!("{name}: watching it"), error)
                })
            }
        }
    }

    /// Until the process has exited. It is not reaped.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the process is not reaped.
    pub(crate) async fn exited(&self) -> Ending {
        loop {
            if self.exit.readable().await.is_err() {
                return Ending::Unknown;
            }
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            match rustix::process::waitid(WaitId::Pid(self.pid), options) {
                Ok(Some(status)) => return ending(&status),
                // Readable and yet not waitable: only for a moment.
                Ok(None) | Err(Errno::INTR) => tokio::task::yield_now().await,
                Err(_) => return Ending::Unknown,
            }
        }
    }

    /// Ends the whole group: SIGTERM, `grace` for `finished` to come true, SIGKILL, and answers how the leader ended.
    ///
    /// # Cancel safety
    ///
    /// Signals that were sent stay sent; dropping the leader sends what is missing.
    pub(crate) async fn end_group(
        &mut self,
        grace: Duration,
        finished: impl Future<Output = ()>,
    ) -> Ending {
        self.signal(Signal::TERM);
        let all_finished = async {
            let ending = self.exited().await;
            finished.await;
            ending
        };
        // Whether they finished or not: who ignored SIGTERM with its pipes closed is ended too.
        let _in_time = tokio::time::timeout(grace, all_finished).await;
        self.signal(Signal::KILL);
        tokio::time::timeout(UNKILLABLE_WAIT, self.exited()).await.unwrap_or(Ending::Unknown)
    }

    /// Reaps it; call after [`exited`](Self::exited). From here on nothing is signalled.
    pub(crate) fn reap(&mut self) {
        if let Some(mut child) = self.child.take()
            && let Ok(None) = child.try_wait()
        {
            kill_and_reap(child, self.pid);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            signal_unreaped(child, self.pid, signal);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            kill_and_reap(child, self.pid);
        }
    }
}

/// Signals the group, provided that its leader is still ours: another part of the process may have waited for any child.
fn signal_unreaped(_unreaped: &process::Child, pid: Pid, signal: Signal) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    if let Err(Errno::CHILD) = rustix::process::waitid(WaitId::Pid(pid), options) {
        return;
    }
    if let Err(error) = rustix::process::kill_process_group(pid, signal) {
        tracing::debug!(%error, ?signal, "signalling the group of a command");
    }
}

/// For destructors: kills without waiting, and lets a thread collect the process.
fn kill_and_reap(mut child: process::Child, pid: Pid) {
    signal_unreaped(&child, pid, Signal::KILL);
    if let Ok(Some(_)) = child.try_wait() {
        return;
    }
    let reaper = std::thread::Builder::new().name("mig-exec-reap".into());
    if let Err(error) = reaper.spawn(move || child.wait()) {
        tracing::warn!(%error, "no thread to collect an ended command");
    }
}

fn ending(status: &WaitIdStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Ending::Status(status),
        (None, Some(signal)) => Ending::Signal(signal),
        (None, None) => Ending::Unknown,
    }
}
