//! The kernel's limits on memory that is lent to it, looked at before anything is.

use std::fs;

/// What one channel with a sensible number of sends in flight locks: two packets of 128 pages.
const NEEDED_MEMLOCK: u64 = 1024 * 1024;
/// What the kernel keeps in mind for one send in flight: with Linux 6.18, some 820 bytes for each 512 KiB.
const OPTMEM_PER_SEND: u64 = 1024;
/// Fewer sends than that in flight, and each one waits for the last.
const FEWEST_SENDS: u64 = 16;
/// More are never in flight: at 128 pages each, more than a socket's buffer takes.
const MOST_SENDS: u64 = 64;

/// `CAP_IPC_LOCK`, as a bit of `CapEff` in `/proc/self/status`.
const CAP_IPC_LOCK: u32 = 14;

/// What limits sends without a copy on this machine, for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZeroCopyLimits {
    /// `RLIMIT_MEMLOCK`, which all processes of a user share; `None` where it does not hold.
    pub memlock_bytes: Option<u64>,
    /// `net.core.optmem_max`, what a socket may use for notes on its sends; `None` if unknown.
    pub optmem_bytes: Option<u64>,
}

impl ZeroCopyLimits {
    /// The limits in force.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).ok();
        let unlimited = read("/proc/self/status").is_some_and(|status| may_lock(&status))
            && read("/proc/self/uid_map").is_some_and(|map| is_initial_namespace(&map));
        Self {
            memlock_bytes: match unlimited {
                true => None,
                false => read("/proc/self/limits").and_then(|limits| memlock(&limits)),
            },
            optmem_bytes: read("/proc/sys/net/core/optmem_max")
                .and_then(|text| text.trim().parse().ok()),
        }
    }

    /// What is too small for a sensible number of sends in flight, if anything: what there is, what is needed, and how to
    /// get it.
    pub fn shortage(&self) -> Option<String> {
        if let Some(bytes) = self.memlock_bytes.filter(|bytes| *bytes < NEEDED_MEMLOCK) {
            return Some(format!(
                "RLIMIT_MEMLOCK is {bytes} bytes, and {NEEDED_MEMLOCK} are needed for each channel: raise it (ulimit -l, \
                 LimitMEMLOCK= of a service), or give the process CAP_IPC_LOCK"
            ));
        }
        let needed = FEWEST_SENDS * OPTMEM_PER_SEND;
        let bytes = self.optmem_bytes.filter(|bytes| *bytes < needed)?;
        Some(format!(
            "net.core.optmem_max is {bytes} bytes, and {needed} are needed for {FEWEST_SENDS} sends in flight: \
             sysctl net.core.optmem_max=131072"
        ))
    }

    /// How many sends may be in flight on one channel.
    pub(super) fn most_sends(&self) -> usize {
        let most = self.optmem_bytes.map_or(MOST_SENDS, |bytes| bytes / OPTMEM_PER_SEND);
        // At most 64.
        most.clamp(1, MOST_SENDS) as usize
    }
}

/// The effective capabilities in `/proc/self/status` have `CAP_IPC_LOCK`.
fn may_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Capabilities within a user namespace do not lift limits.
fn is_initial_namespace(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The soft limit in `/proc/self/limits`; `None` is no limit.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortage(memlock_bytes: Option<u64>, optmem_bytes: Option<u64>) -> Option<String> {
        ZeroCopyLimits { memlock_bytes, optmem_bytes }.shortage()
    }

    #[test]
    fn a_shortage_is_told_in_figures() {
        let told = shortage(Some(65_536), Some(131_072)).unwrap();
        assert!(told.contains("65536") && told.contains("1048576"), "{told}");
        let told = shortage(Some(8 << 20), Some(10_240)).unwrap();
        assert!(told.contains("10240") && told.contains("16384"), "{told}");
        // The defaults of kernels before and after 6.7.
        for optmem in [20_480, 131_072] {
            assert_eq!(shortage(Some(8 << 20), Some(optmem)), None);
        }
        assert_eq!(shortage(None, None), None);
    }

    #[test]
    fn sends_in_flight_are_bounded_by_what_the_socket_may_keep_in_mind() {
        let most = |optmem_bytes| ZeroCopyLimits { memlock_bytes: None, optmem_bytes }.most_sends();
        assert_eq!(
            [most(None), most(Some(1 << 20)), most(Some(20_480)), most(Some(0))],
            [64, 64, 20, 1]
        );
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max cpu time              unlimited            unlimited            seconds   \n\
                      Max locked memory         8388608              8388608              bytes     \n";
        assert_eq!(memlock(limits), Some(8 << 20));
        assert_eq!(memlock("Max locked memory         unlimited   unlimited   bytes"), None);
        assert!(may_lock("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock("Name:\tx\nCapEff:\t0000000000000000\n"));
        assert!(is_initial_namespace("         0          0 4294967295\n"));
        assert!(!is_initial_namespace("         0       1000          1\n"));
    }
}
