//! The virtual machine in which the tests of target `lab` run: what it has, and its addresses (docs/testing.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use crate::process::STEP;
use crate::report;

/// The soft-RoCE device's IPv4 address.
pub const IPV4: &str = "10.55.0.1";
/// Its IPv6 address.
pub const IPV6: &str = "fd55::1";
/// The device.
pub const DEVICE: &str = "rxe0";

/// Whether this is the lab; if not, says that the running test is skipped.
#[must_use]
#[track_caller]
pub fn or_skip() -> bool {
    let inside = std::env::var_os("MIG_LAB_OUT").is_some();
    if !inside {
        report::skip("needs the lab: `cargo xtask test --lab` runs it there");
    }
    inside
}

/// A port, of any address family, that no other test of this process uses. The lab is ours alone, so nobody else does.
#[must_use]
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(4400);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits until somebody listens on this port of the RDMA connection manager.
#[track_caller]
pub fn wait_for_rdma_listener(port: u16) {
    let deadline = Instant::now() + STEP;
    let wanted = format!(":{port} ");
    loop {
        let told = rdma(&["resource", "show", "cm_id"]);
        if told.lines().any(|line| line.contains("state LISTEN") && line.contains(&wanted)) {
            return;
        }
        assert!(Instant::now() < deadline, "nobody listens on RDMA port {port}:\n{told}");
    }
}

/// How much of everything [`DEVICE`] has given out, by the kernel's names: "qp", "mr", "cm_id" … Not how many have it
/// open: librdmacm keeps it open for as long as its process lives.
#[must_use]
#[track_caller]
pub fn given_out() -> BTreeMap<String, u64> {
    given_out_by(DEVICE)
}

/// [`given_out`], of another device.
///
/// # Panics
/// If the kernel has no such device; the message has those it has.
#[must_use]
#[track_caller]
pub fn given_out_by(device: &str) -> BTreeMap<String, u64> {
    let told = rdma(&["resource", "show", device]);
    counts(device, &told).unwrap_or_else(|| {
        panic!(
            "`rdma resource show {device}` does not tell what {device} has given out: {told:?}; \
             `rdma link show`:\n{}",
            rdma(&["link", "show"])
        )
    })
}

/// The counts in "0: rxe0: pd 1 cq 1 qp 1 …".
fn counts(device: &str, told: &str) -> Option<BTreeMap<String, u64>> {
    let (_, counts) = told.split_once(&format!(" {device}: "))?;
    let words: Vec<&str> = counts.split_whitespace().collect();
    let counted =
        words.windows(2).filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?)));
    let mut counted: BTreeMap<_, _> = counted.collect();
    counted.remove("ctx");
    (counted.contains_key("qp") && counted.contains_key("mr")).then_some(counted)
}

/// Waits until [`DEVICE`] has no more of anything given out than `before`, which [`given_out`] told: the kernel takes
/// things back some time after the end of the process that had them.
#[track_caller]
pub fn wait_until_given_back(before: &BTreeMap<String, u64>) {
    wait_until_given_back_to(DEVICE, before);
}

/// [`wait_until_given_back`], of another device.
#[track_caller]
pub fn wait_until_given_back_to(device: &str, before: &BTreeMap<String, u64>) {
    let deadline = Instant::now() + STEP;
    loop {
        let now = given_out_by(device);
        if now.iter().all(|(what, count)| before.get(what).is_some_and(|before| count <= before)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not given back to {device}: before {before:?}, now {now:?}"
        );
    }
}

/// Who has this RDMA device open: "PROCESS COMMAND: FILE". A process that ever looked at devices keeps those open that
/// there were then, the tests' own included.
#[must_use]
pub fn holders(device: &str) -> Vec<String> {
    let mut holders = Vec::new();
    let Some(node) = verbs_node(device) else { return holders };
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        // "self" is there a second time, by its number.
        if process.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        // Nothing if it has just ended.
        let open = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        for file in open.filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
            if file == node {
                let command = std::fs::read_to_string(process.path().join("comm"));
                let command = command.unwrap_or_default();
                let process = process.file_name();
                holders.push(format!(
                    "{} {}: {}",
                    process.display(),
                    command.trim(),
                    file.display()
                ));
            }
        }
    }
    holders
}

/// The file through which a device is used; `None` once it is gone.
fn verbs_node(device: &str) -> Option<PathBuf> {
    let classes = std::fs::read_dir("/sys/class/infiniband_verbs").into_iter().flatten().flatten();
    classes
        .filter(|class| {
            std::fs::read_to_string(class.path().join("ibdev"))
                .is_ok_and(|name| name.trim() == device)
        })
        .map(|class| Path::new("/dev/infiniband").join(class.file_name()))
        .next()
}

/// What the program `rdma` prints about the devices and who uses them.
#[must_use]
#[track_caller]
pub fn rdma(arguments: &[&str]) -> String {
    let output = Command::new("rdma").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run rdma (iproute2): {error}"));
    assert!(output.status.success(), "rdma {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_device() {
        let told = "0: rxe0: pd 1 cq 2 qp 3 cm_id 4 mr 5 ctx 6 srq 0 \n";
        let counted = counts("rxe0", told).expect("it is there");
        let words = ["cm_id", "cq", "mr", "pd", "qp", "srq"];
        assert_eq!(counted.keys().collect::<Vec<_>>(), words);
        assert_eq!((counted["qp"], counted["mr"]), (3, 5));
        assert_eq!(counts("rxe1", told), None);
        assert_eq!(counts("rxe0", ""), None);
    }
}
