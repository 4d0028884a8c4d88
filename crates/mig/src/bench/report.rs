//! What a benchmark found, in the shape scripts rely on.

use mig_engine::MultifdInfo;
use serde::Serialize;

/// A whole benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Where it ran.
    pub machine: Machine,
    /// One entry a run, in the order in which they ran.
    pub runs: Vec<RunReport>,
}

/// The machine, as far as it explains figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processors this process may use.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The processor architecture.
    pub arch: &'static str,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The system's congestion control for tcp, where it is known.
    pub congestion_control: Option<String>,
    /// Huge pages for guest memory: the system's setting, where it is known.
    pub transparent_hugepage: Option<String>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let uname = rustix::system::uname();
        let memory = rustix::system::sysinfo();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.release().to_string_lossy().into_owned(),
            arch: std::env::consts::ARCH,
            memory_bytes: memory.totalram as u64 * u64::from(memory.mem_unit),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            transparent_hugepage: line("/sys/kernel/mm/transparent_hugepage/enabled"),
        }
    }
}

fn line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// The guest arrived.
    Completed,
    /// It did not.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// This machine cannot run this transport.
    Unavailable,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The transport's scheme.
    pub transport: String,
    /// The address that was connected to; empty where there is none.
    pub uri: String,
    /// Channels that carried pages.
    pub channels: u32,
    /// How it ended.
    pub status: RunStatus,
    /// Why, unless it completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the destination's memory and devices were compared with the source's, and were the same.
    pub verified: bool,
    /// Whether the destination said so on the return path.
    pub confirmed: bool,
    /// Whether the destination's memory had been touched before the clock started.
    pub warm: bool,
    /// Whether every channel had TLS.
    pub tls: bool,
    /// Bytes of guest memory.
    pub ram_bytes: u64,
    /// Bytes sent by the source.
    pub wire_bytes: u64,
    /// Seconds from the beginning of the connect to the destination's verdict.
    pub seconds: f64,
    /// Wire bytes over these seconds.
    pub throughput_bytes_per_sec: f64,
    /// CPU seconds of the source's threads, the guest's own not counted. What the kernel does for nobody in particular
    /// (interrupts, a software RDMA device) is not in it.
    pub source_cpu_seconds: f64,
    /// CPU seconds of the destination's threads.
    pub destination_cpu_seconds: f64,
    /// Times the dirty log was read.
    pub rounds: u64,
    /// Whole pages sent.
    pub normal_pages: u64,
    /// Zero pages sent.
    pub zero_pages: u64,
    /// Milliseconds the guest stood still.
    pub downtime_ms: f64,
    /// Milliseconds it was allowed to.
    pub downtime_limit_ms: u64,
    /// How the guest's writes were found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_tracking: Option<String>,
    /// How pages were brought into the destination's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<String>,
    /// What only a transport with registered memory has.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// Only where data channels carried pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd: Option<MultifdInfo>,
}

/// Registered memory and what its negotiation cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// All memory was to be registered up front.
    pub rdma_pin_all: bool,
    /// The most bytes of guest memory registered at a time at the source.
    pub source_registered_bytes: u64,
    /// The same at the destination.
    pub destination_registered_bytes: u64,
    /// Control messages, of both ends, that waited for the other end to be ready.
    pub control_round_trips: u64,
}

impl RunReport {
    /// CPU seconds of the source for a GiB on the wire.
    pub fn source_cpu_per_gib(&self) -> f64 {
        per_gib(self.source_cpu_seconds, self.wire_bytes)
    }

    /// CPU seconds of the destination for a GiB on the wire.
    pub fn destination_cpu_per_gib(&self) -> f64 {
        per_gib(self.destination_cpu_seconds, self.wire_bytes)
    }
}

fn per_gib(seconds: f64, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { seconds * (1u64 << 30) as f64 / bytes as f64 }
}
