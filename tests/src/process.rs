//! A child process that cannot outlive its test, and whose every wait ends.
//!
//! ```text
//!   Process ── child (stderr, and stdout if asked, collected line by line)
//!      │
//!      └────── guardian: `sh` blocked on a pipe from us; if we die without a word, it ends the child
//! ```
//! Dropping a [`Process`] kills and reaps the child by its handle, as far as the kernel lets it. The guardian covers the one case in which no
//! destructor runs: the test process itself being killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// How long one step of a scenario may take before it counts as hung: many times what the slowest step needs
/// with all cores taken.
pub const STEP: Duration = Duration::from_secs(60 * SLOWNESS);

/// By how much every hang guard is longer than on real hardware: the lab emulates the CPU.
pub const SLOWNESS: u64 = if cfg!(feature = "lab") { 5 } else { 1 };

/// How long a killed child may take to be gone.
const KILLED: Duration = Duration::from_secs(20 * SLOWNESS);

/// A started child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    guardian: Child,
    stderr: Lines,
    stdout: Option<Lines>,
}

impl Process {
    /// Starts `command` under `name` (for messages). Its stderr is collected, and its stdout too unless `command`
    /// was given another place for it, which the caller says with `collect_stdout = false`.
    #[must_use]
    pub fn start(name: &str, mut command: Command, collect_stdout: bool) -> Self {
        command.stderr(Stdio::piped());
        if collect_stdout {
            command.stdout(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        // Whatever the command still holds (the other ends of pipes given to the child) must close here.
        drop(command);
        let guardian = guardian(child.id());
        let stderr = Lines::collect(child.stderr.take().expect("stderr was piped above"));
        let stdout = collect_stdout
            .then(|| Lines::collect(child.stdout.take().expect("stdout was piped above")));
        Self { name: name.to_owned(), child, status: None, guardian, stderr, stdout }
    }

    /// What this child was called at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr.
    #[must_use]
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// What it has written to stdout.
    #[must_use]
    pub fn stdout(&self) -> &Lines {
        self.stdout.as_ref().unwrap_or_else(|| panic!("{}: stdout is not collected", self.name))
    }

    /// The exit status, if the child has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .unwrap_or_else(|error| panic!("{}: cannot wait: {error}", self.name));
        }
        self.status
    }

    /// Waits for the child's end.
    ///
    /// # Panics
    /// If it has not ended after `limit`; the message carries its stderr.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.ends_within(limit).unwrap_or_else(|| {
            panic!(
                "{} has not ended within {limit:?}; its stderr:\n{}",
                self.name,
                self.stderr.text()
            )
        })
    }

    /// Waits for the child's end; nothing if it has not ended after `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.try_wait().is_none() {
            let pid = Pid::from_child(&self.child);
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .unwrap_or_else(|error| panic!("{}: pidfd_open: {error}", self.name));
            let deadline = Instant::now() + limit;
            while self.try_wait().is_none() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                wait_readable(&pidfd, left);
            }
        }
        self.status
    }

    /// Lets go of a child that the kernel does not end, not even killed. Its guardian kills it when this process ends.
    pub fn abandon(self) {
        std::mem::forget(self);
    }

    /// Sends a signal to the child, unless it has ended.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        if self.try_wait().is_none() {
            rustix::process::kill_process(Pid::from_child(&self.child), signal)
                .unwrap_or_else(|error| panic!("{}: cannot signal: {error}", self.name));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Errors mean that it is gone already.
            let _ = self.child.kill();
            // The kernel may be in the middle of something for it that is not interrupted.
            if self.ends_within(KILLED).is_none() {
                eprintln!("{}: killed, and still there after {KILLED:?}", self.name);
            }
        }
        if let Some(mut word) = self.guardian.stdin.take() {
            let _ = word.write_all(b"done\n");
        }
        let _ = self.guardian.wait();
    }
}

/// Blocks until `fd` is readable or `limit` is over; says which.
pub fn wait_readable(fd: impl std::os::fd::AsFd, limit: Duration) -> bool {
    // 1 ms more than asked, so that a caller's clock has passed its deadline when we come back.
    let limit = Timespec::try_from(limit + Duration::from_millis(1))
        .unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut polled, Some(&limit)), Ok(ready) if ready > 0)
}

fn guardian(ward: u32) -> Child {
    Command::new("/bin/sh")
        .args(["-c", r#"read -r word || kill -9 "$1""#, "guardian", &ward.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start /bin/sh: {error}"))
}

/// Lines that a thread collects from a child's output.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let lines = Self { shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut raw = Vec::new();
            loop {
                raw.clear();
                let more = matches!(reader.read_until(b'\n', &mut raw), Ok(count) if count > 0);
                let mut collected = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                if more {
                    let line = String::from_utf8_lossy(&raw);
                    collected.lines.push(line.trim_end_matches('\n').to_owned());
                } else {
                    collected.ended = true;
                }
                shared.1.notify_all();
                if !more {
                    break;
                }
            }
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far, as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// Waits for the end of the output, then gives all of it.
    ///
    /// # Panics
    /// If somebody still holds the other end open after `limit`.
    #[track_caller]
    pub fn all(&self, limit: Duration) -> String {
        let (collected, timeout) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), limit, |collected| !collected.ended)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "output has not ended within {limit:?}");
        collected.lines.join("\n")
    }

    /// Waits until `pick` finds what it looks for in a line.
    ///
    /// # Panics
    /// If the output ends, or `limit` is over, before that.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        let mut seen = 0;
        let mut collected = self.lock();
        loop {
            while let Some(line) = collected.lines.get(seen) {
                if let Some(found) = pick(line) {
                    return found;
                }
                seen += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !collected.ended && !left.is_zero(),
                "no {what} in the output ({}):\n{}",
                if collected.ended { "it has ended" } else { "time is up" },
                collected.lines.join("\n")
            );
            collected = self
                .shared
                .1
                .wait_timeout(collected, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
