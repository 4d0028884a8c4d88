//! What this process holds: descriptors, threads, children, pinned and locked memory.

use std::{
    collections::BTreeMap,
    fs,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

/// Batches count what the whole process holds.
static ALONE: RwLock<()> = RwLock::new(());

/// Waits until nothing else runs in this process.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    ALONE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no batch runs in this process: children and pipes of others would be counted in it.
pub(crate) fn beside_no_batch() -> RwLockReadGuard<'static, ()> {
    ALONE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Counted by name, so that a difference says what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held(BTreeMap<String, usize>);

impl Held {
    pub(crate) fn now() -> Self {
        let mut held = BTreeMap::new();
        let mut add = |what: String| *held.entry(what).or_default() += 1;
        for entry in listed("/proc/self/fd") {
            // The listing's own is gone by now, and so is its name.
            if let Ok(target) = fs::read_link(format!("/proc/self/fd/{entry}")) {
                let target = target.to_string_lossy();
                // Inodes differ from life to life.
                let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
                add(format!("descriptor of {kind}"));
            }
        }
        for entry in listed("/proc/self/task") {
            if let Ok(name) = fs::read_to_string(format!("/proc/self/task/{entry}/comm")) {
                // The runner's, one for each test, named after it; and the blocking pool's, which come and go.
                let ours = ["mig-", "data ", "exec"].iter().any(|ours| name.starts_with(ours));
                if ours {
                    add(format!("thread {}", name.trim()));
                }
            }
            let children = format!("/proc/self/task/{entry}/children");
            for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
                add(format!("child {child}"));
            }
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for line in
            status.lines().filter(|line| line.starts_with("VmPin:") || line.starts_with("VmLck:"))
        {
            let (what, amount) = line.split_once(':').expect("found above");
            let kib = amount.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            held.insert(format!("{what} in KiB"), kib);
        }
        Self(held)
    }

    /// There may be less than before: what the first migration left behind its drop is gone by now.
    fn covers(&self, now: &Self) -> bool {
        now.0.iter().all(|(what, count)| self.0.get(what).unwrap_or(&0) >= count)
    }

    fn more(&self, now: &Self) -> Vec<String> {
        let before = |what: &String| *self.0.get(what).unwrap_or(&0);
        let more = now.0.iter().filter(|(what, count)| before(what) < **count);
        more.map(|(what, count)| format!("{what}: {count}, before {}", before(what))).collect()
    }

    /// What there is now beyond this, if anything, but for what begins like one of these.
    pub(crate) fn left_behind(&self, but_for: &[&str]) -> Option<String> {
        let mut more = self.more(&Self::now());
        more.retain(|what| !but_for.iter().any(|known| what.starts_with(known)));
        (!more.is_empty()).then(|| more.join(", "))
    }

    /// Waits until everything is as it was; what ends behind a drop may take a moment.
    ///
    /// # Panics
    /// If something stays.
    pub(crate) async fn again(&self) {
        let mut now = Self::now();
        for _ in 0..600 {
            if self.covers(&now) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            now = Self::now();
        }
        let more = self.more(&now);
        panic!("left behind: {more:#?}");
    }
}

fn listed(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
