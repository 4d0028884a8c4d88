//! What a cancel must not leave behind: children, descriptors, threads.
//!
//! This process becomes the parent of whatever its children leave alone, so that such are found.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

use crate::failure::Result;

const TICK: Duration = Duration::from_millis(1);

/// While it lives, orphans of children are children of this process.
pub(super) struct Guardian;

impl Guardian {
    pub(super) fn new() -> Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        Ok(Self)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It worked once with the other value.
        let _undone = set_child_subreaper(None);
    }
}

/// What this process has.
#[derive(Debug)]
pub(super) struct Residue {
    descriptors: usize,
    threads: usize,
}

impl Residue {
    pub(super) fn now() -> Result<Self> {
        let count = |what| Ok::<_, std::io::Error>(fs::read_dir(what)?.count());
        Ok(Self { descriptors: count("/proc/self/fd")?, threads: count("/proc/self/task")? })
    }

    /// What is more than there was, after a grace.
    pub(super) fn left_since(&self, grace: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + grace;
        loop {
            let now = Self::now()?;
            let mut left = children()?;
            for (what, before, now) in [
                ("descriptors", self.descriptors, now.descriptors),
                ("threads", self.threads, now.threads),
            ] {
                if now > before {
                    left.push(format!("{what}: {now} where {before} were"));
                }
            }
            if left.is_empty() || Instant::now() >= deadline {
                return Ok(left);
            }
            thread::sleep(TICK);
        }
    }
}

/// Children that live; those that have ended are done with.
fn children() -> Result<Vec<String>> {
    let mut living = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may end while it is looked at.
        let Ok(children) = fs::read_to_string(task?.path().join("children")) else { continue };
        for child in children.split_whitespace() {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("Z", |(_, rest)| rest);
            if !state.starts_with(['Z', 'X']) {
                let name = stat.split(' ').nth(1).unwrap_or_default();
                living.push(format!("process {child} {name}"));
            } else if let Some(pid) = child.parse().ok().and_then(Pid::from_raw) {
                // If it is nobody's any more that is as good.
                let _reaped = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
    Ok(living)
}
