//! What the process holds, as the kernel counts it.

use std::{fmt, fs, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) mappings: usize,
}

impl Held {
    pub(crate) fn now() -> Self {
        let entries = |path: &str| fs::read_dir(path).unwrap().count();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            rss_kib: rss.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
        }
    }

    /// # Panics
    ///
    /// If `later` is more.
    pub(crate) fn is_still(&self, later: &Self, rss_may_grow_kib: u64) {
        assert!(later.descriptors <= self.descriptors, "descriptors: {self} became {later}");
        assert!(later.threads <= self.threads, "threads: {self} became {later}");
        assert!(later.rss_kib <= self.rss_kib + rss_may_grow_kib, "memory: {self} became {later}");
        // An arena of the allocator more or less, and the guard pages of a thread's stack.
        assert!(later.mappings <= self.mappings + 32, "mappings: {self} became {later}");
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rss_kib, descriptors, threads, mappings } = self;
        write!(
            f,
            "{rss_kib:>6} KiB resident, {descriptors:>3} descriptors, {threads:>2} threads, {mappings:>3} mappings"
        )
    }
}

/// What is held once threads that are on their way out are gone, with what they hold; that is no part of any migration's
/// promise.
pub(crate) async fn settled(before: &Held) -> Held {
    for _ in 0..200 {
        let now = Held::now();
        if now.threads <= before.threads && now.descriptors <= before.descriptors {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Held::now()
}

/// 200 migrations at once, both ends in one process, want more than the customary 1024.
pub(crate) fn allow_many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
