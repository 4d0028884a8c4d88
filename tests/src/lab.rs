//! The virtual machine in which the tests of target `lab` run: what it has, and its addresses (docs/testing.md).

use std::collections::BTreeMap;
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

/// How much of everything the device has given out, by the kernel's names: "qp", "mr", "cm_id" … Not how many have it
/// open: librdmacm keeps it open for as long as its process lives.
#[must_use]
#[track_caller]
pub fn given_out() -> BTreeMap<String, u64> {
    let told = rdma(&["resource", "show", DEVICE]);
    // "0: rxe0: pd 1 cq 1 qp 1 …"
    let (_, counts) = told.split_once(DEVICE).unwrap_or_default();
    let words: Vec<&str> = counts.split_whitespace().filter(|word| *word != ":").collect();
    let counted =
        words.windows(2).filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?)));
    let mut counted: BTreeMap<_, _> = counted.collect();
    counted.remove("ctx");
    assert!(
        counted.contains_key("qp") && counted.contains_key("mr"),
        "not what rdma prints: {told:?}"
    );
    counted
}

/// Waits until no more of anything is given out than `before`, which [`given_out`] told: the kernel takes things back
/// some time after the end of the process that had them.
#[track_caller]
pub fn wait_until_given_back(before: &BTreeMap<String, u64>) {
    let deadline = Instant::now() + STEP;
    loop {
        let now = given_out();
        if now.iter().all(|(what, count)| before.get(what).is_some_and(|before| count <= before)) {
            return;
        }
        assert!(Instant::now() < deadline, "not given back: before {before:?}, now {now:?}");
    }
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
