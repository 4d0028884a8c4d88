//! The kernel and its network settings.

use std::{fs, thread};

use mig::transport::ZeroCopyLimits;

use crate::doctor::report::{Check, Group, Machine};

/// Which machine this is.
pub(crate) fn machine() -> Machine {
    Machine {
        mig: env!("CARGO_PKG_VERSION"),
        kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").unwrap_or_default()),
        architecture: std::env::consts::ARCH,
        cores: thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_bytes().unwrap_or(0),
    }
}

/// All checks of this group.
pub(crate) fn checks() -> Vec<Check> {
    vec![congestion_control(), socket_buffers(), zero_copy(), pipe_size(), cores()]
}

fn congestion_control() -> Check {
    const NAME: &str = "congestion control";
    let in_force = read("/proc/sys/net/ipv4/tcp_congestion_control");
    let available = read("/proc/sys/net/ipv4/tcp_available_congestion_control");
    match (in_force, available) {
        (Some(in_force), Some(available)) => Check::works(
            Group::System,
            NAME,
            format!("{in_force} (available: {available}; tcp:HOST:PORT,congestion=NAME chooses)"),
        ),
        _ => Check::limited(
            Group::System,
            NAME,
            "not readable here",
            "mount /proc with the network settings of this namespace",
        ),
    }
}

fn socket_buffers() -> Check {
    const NAME: &str = "tcp buffers";
    let most = |path: &str| read(path)?.split_whitespace().last()?.parse::<u64>().ok();
    match (most("/proc/sys/net/ipv4/tcp_wmem"), most("/proc/sys/net/ipv4/tcp_rmem")) {
        (Some(send), Some(receive)) => {
            let detail =
                format!("up to {} KiB to send, {} KiB to receive", send >> 10, receive >> 10);
            // 10 Gbit/s over a round trip of 3 ms needs 3.75 MB.
            if send.min(receive) >= 4_000_000 {
                return Check::works(Group::System, NAME, detail);
            }
            Check::limited(
                Group::System,
                NAME,
                format!("{detail}: too little for a fast link with a long round trip"),
                "sysctl net.ipv4.tcp_wmem='4096 65536 16777216' net.ipv4.tcp_rmem='4096 131072 16777216'",
            )
        }
        _ => Check::limited(Group::System, NAME, "not readable here", "mount /proc"),
    }
}

fn zero_copy() -> Check {
    const NAME: &str = "zero-copy sends";
    let version = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (4, 14) {
        return Check::missing(
            Group::System,
            NAME,
            "SO_ZEROCOPY came with Linux 4.14",
            "a newer kernel",
        );
    }
    let limits = ZeroCopyLimits::here();
    if let Some(shortage) = limits.shortage() {
        // It says what to do as well.
        let (what, remedy) = shortage.split_once(": ").unwrap_or((&shortage, ""));
        return Check::limited(
            Group::System,
            NAME,
            format!("SO_ZEROCOPY is there; {what}"),
            remedy,
        );
    }
    let figure =
        |bytes: Option<u64>| bytes.map_or("no limit".into(), |bytes| format!("{bytes} bytes"));
    Check::works(
        Group::System,
        NAME,
        format!(
            "SO_ZEROCOPY for tcp; lockable memory {}, optmem_max {}; the loopback always copies",
            figure(limits.memlock_bytes),
            figure(limits.optmem_bytes)
        ),
    )
}

fn pipe_size() -> Check {
    const NAME: &str = "pipe size";
    match read("/proc/sys/fs/pipe-max-size").and_then(|text| text.parse::<u64>().ok()) {
        Some(bytes) if bytes >= 1 << 20 => {
            Check::works(Group::System, NAME, format!("up to {} KiB", bytes >> 10))
        }
        Some(bytes) => Check::limited(
            Group::System,
            NAME,
            format!("up to {} KiB: exec: and pipes are slower", bytes >> 10),
            "sysctl fs.pipe-max-size=1048576",
        ),
        None => Check::limited(Group::System, NAME, "not readable here", "mount /proc"),
    }
}

fn cores() -> Check {
    const NAME: &str = "cores";
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores >= 2 {
        return Check::works(Group::System, NAME, format!("{cores} usable"));
    }
    Check::limited(
        Group::System,
        NAME,
        "one usable: source, destination and guest of `mig bench` share it",
        "give this process more (taskset, cgroup)",
    )
}

fn memory_bytes() -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
