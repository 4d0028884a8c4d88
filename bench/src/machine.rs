//! The machine, as far as it explains figures.

use std::fs;

use serde::Serialize;

/// What it is; nothing that changes from day to day.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) processor: Option<String>,
    pub(crate) kernel: String,
    pub(crate) memory_bytes: u64,
    pub(crate) congestion_control: Option<String>,
    pub(crate) transparent_hugepage: Option<String>,
    pub(crate) transparent_hugepage_defrag: Option<String>,
    pub(crate) unprivileged_userfaultfd: Option<String>,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let memory = rustix::system::sysinfo();
        let memory_bytes = memory.totalram as u64 * u64::from(memory.mem_unit);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            processor: processor(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            memory_bytes,
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            transparent_hugepage: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            transparent_hugepage_defrag: chosen("/sys/kernel/mm/transparent_hugepage/defrag"),
            unprivileged_userfaultfd: line("/proc/sys/vm/unprivileged_userfaultfd"),
        }
    }

    /// In one line.
    pub(crate) fn describe(&self) -> String {
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        format!(
            "{} processors ({}), {:.0} GiB of memory, Linux {}; tcp congestion control {}, transparent huge pages {} \
             (defrag {})",
            self.cpus,
            known(&self.processor),
            self.memory_bytes as f64 / (1u64 << 30) as f64,
            self.kernel,
            known(&self.congestion_control),
            known(&self.transparent_hugepage),
            known(&self.transparent_hugepage_defrag),
        )
    }
}

/// Below it nobody else is there.
pub(crate) const IDLE: f64 = 0.5;

/// Says on stderr that figures will be poor.
pub(crate) fn warn_of(load: f64) {
    eprintln!(
        "something else runs on this machine (load {load:.1}): trust ratios, and those only a little"
    );
}

/// The same, for whoever reads the tables.
pub(crate) fn note_of(load: f64) -> String {
    format!(
        "Something else ran on the machine when this was measured (load {load:.1} at the beginning)."
    )
}

/// Processes that wanted to run, on average over the last minute: more than one of them is not ours.
pub(crate) fn load() -> Option<f64> {
    line("/proc/loadavg")?.split_whitespace().next()?.parse().ok()
}

fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = info.lines().find(|line| line.starts_with("model name"))?;
    Some(name.split_once(':')?.1.trim().to_owned())
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Of `always [madvise] never`, the middle one.
fn chosen(path: &str) -> Option<String> {
    let line = line(path)?;
    let chosen = line.split_once('[')?.1.split_once(']')?.0;
    Some(chosen.to_owned())
}
