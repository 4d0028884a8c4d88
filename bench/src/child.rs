//! The other processes of a contest: started, spoken to by lines, never left behind.
//!
//! A child dies with the thread that started it ([`role::become_foreign`](crate::role) and every role ask the kernel
//! for that), and is killed by its handle when its [`Helper`] is dropped.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    failure::Result,
    link::LinkEnd,
    role::{self, Foreign, Role},
    watch,
};

/// How long anything may take that no contest waits for: a start, an end.
pub(crate) const STEP: Duration = Duration::from_secs(60);

/// How long one transfer may take: a hundred times what it needs.
pub(crate) const TRANSFER: Duration = Duration::from_secs(180);

/// How often an exit is looked for.
const TICK: Duration = Duration::from_millis(5);

/// A child process.
#[derive(Debug)]
pub(crate) struct Helper {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Helper {
    /// This program again, in a role of its own.
    pub(crate) fn role(name: &str, role: &Role) -> Result<Self> {
        Self::role_at(None, name, role)
    }

    /// The same, at one end of a link if one is given.
    pub(crate) fn role_at(at: Option<&LinkEnd>, name: &str, role: &Role) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = match at {
            Some(end) => end.command(&program),
            None => Command::new(program),
        };
        command.arg(role::ARGUMENT).arg(serde_json::to_string(role)?);
        Self::start(name, command)
    }

    /// Another program, with the same ties as ours.
    pub(crate) fn foreign(name: &str, foreign: Foreign) -> Result<Self> {
        Self::role(name, &Role::Foreign(foreign))
    }

    fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let stdin = child.stdin.take();
        let stdout = lines(child.stdout.take().expect("it was piped"));
        let stderr = lines(child.stderr.take().expect("it was piped"));
        Ok(Self { name: name.to_owned(), child, stdin, stdout, stderr })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something.
    pub(crate) fn say<T: Serialize>(&mut self, what: &T) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        let name = &self.name;
        let stdin = self.stdin.as_mut().ok_or_else(|| format!("{name} was told its last"))?;
        Ok(stdin.write_all(&line).map_err(|error| format!("{name} does not listen: {error}"))?)
    }

    /// What it says next.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        let line = self.line(limit)?;
        serde_json::from_str(&line)
            .map_err(|error| format!("{} said {line:?}: {error}", self.name).into())
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self, limit: Duration) -> Result<String> {
        self.stdout.recv_timeout(limit).map_err(|why| match why {
            RecvTimeoutError::Timeout => {
                self.complaint(&format!("was silent for {limit:?}")).into()
            }
            RecvTimeoutError::Disconnected => {
                let ended = self
                    .wait(STEP)
                    .map_or_else(|error| error.to_string(), |status| status.to_string());
                self.complaint(&format!("ended too early ({ended})")).into()
            }
        })
    }

    /// Everything it still says, up to its successful end.
    pub(crate) fn rest(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.complaint(&format!("did not end within {limit:?}")).into());
                }
            }
        }
        let status = self.wait(deadline.saturating_duration_since(Instant::now()).max(TICK))?;
        if status.success() {
            return Ok(text);
        }
        Err(self.complaint(&format!("failed ({status}): {}", text.trim())).into())
    }

    /// Its end, if that has come.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Interrupts it, as a person would (SIGINT), and waits for its end.
    pub(crate) fn interrupt(&mut self, limit: Duration) -> Result<Interrupted> {
        let process = Pid::from_child(&self.child);
        let end = pidfd_open(process, PidfdFlags::empty())?;
        let asked = Instant::now();
        kill_process(process, Signal::INT)?;
        let ended = watch::until(&end, PollFlags::IN, limit)
            .map_err(|why| self.complaint(&format!("did not end when interrupted: {why}")))?;
        Ok(Interrupted { asked, ended, status: self.wait(STEP)? })
    }

    /// Its standard input, for somebody else to fill, once.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// The last line of its output, once it has ended.
    pub(crate) fn last_line(&mut self) -> Option<String> {
        self.stdout.iter().last()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(self.complaint(&format!("did not end within {limit:?}")).into());
            }
            thread::sleep(TICK);
        }
    }

    /// Something about it, with what it wrote to stderr.
    pub(crate) fn complaint(&self, what: &str) -> String {
        let words: Vec<_> = self.stderr.try_iter().collect();
        let words = words.join("; ");
        if words.is_empty() {
            format!("{} {what}", self.name)
        } else {
            format!("{} {what}: {words}", self.name)
        }
    }

    /// Processor time of all its threads so far, the ended ones included, in the kernel's ticks of 10 ms.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(Path::new(&format!("/proc/{}/stat", self.id())))
    }

    /// The most memory it ever had in use, in bytes; none once it has ended.
    pub(crate) fn peak_rss(&self) -> Option<u64> {
        peak_rss(self.id())
    }

    /// Processor time of the first of its threads with one of these names.
    pub(crate) fn thread_seconds(&self, names: &[&str]) -> Result<f64> {
        thread_seconds(self.id(), names)
    }
}

/// How an interrupted child ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupted {
    pub(crate) asked: Instant,
    pub(crate) ended: Instant,
    pub(crate) status: ExitStatus,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The most memory a process ever had in use, in bytes; none once it has ended.
pub(crate) fn peak_rss(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Processor time of the first thread of a process with one of these names, to the nanosecond where the kernel keeps it.
pub(crate) fn thread_seconds(process: u32, names: &[&str]) -> Result<f64> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?.path();
        // A thread may end while it is looked at.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        if !names.contains(&name.trim_end()) {
            continue;
        }
        let exact = fs::read_to_string(thread.join("schedstat")).ok();
        let nanos = exact.as_deref().and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        return match nanos {
            Some(nanos) if nanos > 0 => Ok(nanos as f64 / 1e9),
            _ => cpu_seconds(&thread.join("stat")),
        };
    }
    Err(format!("process {process} has no thread called {}", names.join(" or ")).into())
}

fn cpu_seconds(stat: &Path) -> Result<f64> {
    let text = fs::read_to_string(stat)?;
    // The name in parentheses may hold anything; behind it utime and stime are the 12th and 13th field.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks = |index: usize| -> Result<u64> {
        let field = fields.get(index).ok_or("no such field in /proc/PID/stat")?;
        Ok(field.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if to.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let stat = folder.path().join("stat");
        fs::write(&stat, "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 250 0 0 20 0").unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_seconds(&stat).unwrap(), 400.0 / ticks);
        fs::write(&stat, "7 (a) S").unwrap();
        assert!(cpu_seconds(&stat).is_err());
    }
}
