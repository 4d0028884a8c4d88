//! Guest memory: finding written pages, placing received ones, huge pages.

use std::fs;

use mig::ram::{
    BlockInfo, DirtyTracker, GuestMemory, Mechanism, RamBlock, RamBlocks, TrackerPolicy,
};

use crate::doctor::report::{Check, Group};

/// Enough to be tracked, small enough not to be noticed.
const TRIED_BYTES: u64 = 1 << 20;

/// All of them.
pub(crate) fn checks() -> Vec<Check> {
    let mut checks = vec![memfd()];
    checks.extend(Mechanism::ALL.into_iter().map(tracking));
    checks.push(userfaultfd());
    checks.push(huge_pages());
    checks.push(locked_memory());
    checks
}

fn blocks() -> mig::ram::Result<RamBlocks> {
    RamBlocks::new([RamBlock::new("doctor.ram", TRIED_BYTES)?])
}

fn memfd() -> Check {
    match blocks() {
        Ok(_blocks) => Check::works(Group::Memory, "guest RAM (memfd, mmap)", "mapped"),
        Err(error) => Check::missing(
            Group::Memory,
            "guest RAM (memfd, mmap)",
            error.to_string(),
            "allow memfd_create and mmap to this process, and free some memory",
        ),
    }
}

fn tracking(mechanism: Mechanism) -> Check {
    let name = format!("dirty tracking: {mechanism}");
    let tried = blocks().and_then(|blocks| {
        let known: Vec<BlockInfo> =
            (0..blocks.block_count()).filter_map(|index| blocks.block(index)).collect();
        DirtyTracker::start(&known, TrackerPolicy::Only(mechanism))
            .map(|tracker| tracker.info().kernel_writes)
    });
    match tried {
        Ok(true) => Check::works(Group::Memory, &name, "sees every write, system calls' included"),
        Ok(false) => Check::limited(
            Group::Memory,
            &name,
            "works, but system calls that write guest memory fail while it runs",
            "uffd-wp-async (Linux 6.7) has no such limit; else allow userfaultfd in kernel mode \
             (sysctl vm.unprivileged_userfaultfd=1, or CAP_SYS_PTRACE)",
        ),
        Err(error) => Check::missing(
            Group::Memory,
            &name,
            error.to_string(),
            "a kernel from 6.7 on has all of them; a seccomp filter may forbid userfaultfd",
        ),
    }
}

fn userfaultfd() -> Check {
    const NAME: &str = "userfaultfd access";
    let setting = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    match (setting.as_deref().map(str::trim), device) {
        (Ok("1"), _) => Check::works(
            Group::Memory,
            NAME,
            "allowed to everybody (vm.unprivileged_userfaultfd=1)",
        ),
        (_, Ok(_device)) => Check::works(Group::Memory, NAME, "allowed by /dev/userfaultfd"),
        (Ok(_), Err(_)) if rustix::process::geteuid().is_root() => {
            Check::works(Group::Memory, NAME, "allowed to root")
        }
        (Ok(_), Err(error)) => Check::limited(
            Group::Memory,
            NAME,
            format!(
                "user-mode faults only (vm.unprivileged_userfaultfd=0, /dev/userfaultfd: {error})"
            ),
            "sysctl vm.unprivileged_userfaultfd=1, or give access to /dev/userfaultfd",
        ),
        (Err(error), Err(_)) => Check::missing(
            Group::Memory,
            NAME,
            format!("this kernel has none (/proc/sys/vm/unprivileged_userfaultfd: {error})"),
            "a kernel with CONFIG_USERFAULTFD; without it mprotect is used",
        ),
    }
}

fn huge_pages() -> Check {
    const NAME: &str = "transparent huge pages";
    let chosen = |file: &str| {
        let text =
            fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{file}")).ok()?;
        let chosen = text.split_once('[')?.1.split_once(']')?.0;
        Some(chosen.to_owned())
    };
    let reserved = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let reserved = reserved.trim();
    match (chosen("enabled"), chosen("shmem_enabled")) {
        (Some(enabled), shmem) => {
            let shmem = shmem.unwrap_or_else(|| "unknown".into());
            let detail =
                format!("{enabled}, shared memory {shmem}, {reserved} reserved (hugetlbfs)");
            match enabled.as_str() {
                "never" => Check::limited(
                    Group::Memory,
                    NAME,
                    detail,
                    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: fresh memory then costs fewer faults",
                ),
                _ => Check::works(Group::Memory, NAME, detail),
            }
        }
        (None, _) => Check::limited(
            Group::Memory,
            NAME,
            "this kernel has none",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "memory lock limit";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let Some(limit) = limit else { return Check::works(Group::Memory, NAME, "unlimited") };
    let detail = format!("{} KiB", limit >> 10);
    if limit >= 1 << 30 || rustix::process::geteuid().is_root() {
        return Check::works(Group::Memory, NAME, detail);
    }
    Check::limited(
        Group::Memory,
        NAME,
        format!("{detail}: zero copy and pinning need more"),
        "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service",
    )
}
