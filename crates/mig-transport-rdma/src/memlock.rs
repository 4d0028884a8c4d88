//! Whether as much memory may be locked as registering needs, said before anything is registered.

use mig_transport::{Error, Result};

use crate::verbs::{DeviceLimits, MemoryLock};

/// Control buffers, and what the libraries lock for themselves.
pub(crate) const RESERVE: u64 = 16 << 20;

/// The budget for guest memory where none was given: up to 1 GiB, as far as the limit allows.
pub(crate) fn default_budget() -> u64 {
    const MOST: u64 = 1 << 30;
    MemoryLock::current()
        .allowed()
        .map_or(MOST, |allowed| allowed.saturating_sub(RESERVE).min(MOST))
}

/// Bytes that devices have pinned of this process already, by the kernel's count, which is what the limit is held against.
pub(crate) fn pinned_now() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib.saturating_mul(1024))
}

/// Fails unless `bytes` of guest memory can be locked at a time.
pub(crate) fn check(bytes: u64, what: &str) -> Result<()> {
    let needed = bytes.saturating_add(pinned_now().max(RESERVE));
    match MemoryLock::current().allowed() {
        Some(allowed) if allowed < needed => Err(too_little(needed, what)),
        _ => Ok(()),
    }
}

/// Fails unless the device can register memory of these lengths, each in one piece.
pub(crate) fn check_device(limits: &DeviceLimits, lens: impl Iterator<Item = u64>) -> Result<()> {
    let (mut count, mut longest) = (0_u64, 0);
    for len in lens {
        count += 1;
        longest = longest.max(len);
    }
    let device = &limits.device;
    if longest > limits.max_mr_size {
        return Err(Error::Unavailable {
            what: format!(
                "rdma: {longest} bytes are to be registered in one piece, device {device} takes {}",
                limits.max_mr_size
            ),
            remedy: "migrate without rdma-pin-all, which registers smaller pieces".into(),
        });
    }
    if count > u64::from(limits.max_mr) {
        return Err(Error::Unavailable {
            what: format!(
                "rdma: {count} pieces of memory are to be registered, device {device} takes {}",
                limits.max_mr
            ),
            remedy: "use a device with more memory regions".into(),
        });
    }
    Ok(())
}

/// The limit on locked memory is in the way.
pub(crate) fn too_little(needed: u64, what: &str) -> Error {
    let lock = MemoryLock::current();
    let allowed = lock.allowed().map_or_else(
        || "this process has no limit, so the device or the system is out of memory".to_owned(),
        |allowed| format!("RLIMIT_MEMLOCK allows {allowed}"),
    );
    let raised = match lock.hard {
        Some(hard) if hard < needed => {
            format!("as root, `ulimit -l {}` first", needed.div_ceil(1024))
        }
        _ => format!("`ulimit -l {}` first", needed.div_ceil(1024)),
    };
    Error::Unavailable {
        what: format!("rdma: {needed} bytes must be locked for {what}, {allowed}"),
        remedy: format!("{raised}, or LimitMEMLOCK= of the service, or give it CAP_IPC_LOCK"),
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::Blame;

    use super::*;
    use crate::verbs::LinkLayer;

    #[test]
    fn a_device_is_asked_for_what_it_can_before_anything_is_registered() {
        let limits = DeviceLimits {
            device: "rxe0".into(),
            port: 1,
            max_message_size: 1 << 20,
            max_mr_size: 1 << 30,
            max_mr: 2,
            max_qp_wr: 64,
            max_cqe: 64,
            link_layer: LinkLayer::Ethernet,
            on_demand_paging: false,
        };
        assert!(check_device(&limits, [1 << 30, 5].into_iter()).is_ok());
        let error = check_device(&limits, [(1 << 30) + 1].into_iter()).unwrap_err();
        assert_eq!(error.blame(), Blame::Unavailable);
        assert!(error.to_string().contains("1073741825"), "{error}");
        let error = check_device(&limits, [1, 2, 3].into_iter()).unwrap_err();
        assert!(error.to_string().contains("3 pieces"), "{error}");
    }

    #[test]
    fn the_exact_figure_is_in_the_error() {
        let text = too_little(12_345_678, "a test").to_string();
        assert!(text.contains("12345678 bytes must be locked for a test"), "{text}");
        assert!(text.contains("ulimit -l 12057"), "{text}");
    }
}
