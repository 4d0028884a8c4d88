//! The lab itself: the device is there, and somebody else's programs reach each other through it.

use std::process::Command;

use mig_tests::lab;
use mig_tests::process::{Process, STEP};

use crate::in_the_lab;

#[test]
fn the_device_is_active() {
    in_the_lab(|| {
        let told = lab::rdma(&["link", "show"]);
        let link = told.lines().find(|line| line.contains(lab::DEVICE));
        assert!(link.is_some_and(|line| line.contains("state ACTIVE")), "{told}");
    });
}

fn rping(address: &str) {
    let port = lab::port().to_string();
    let start = |role: &str| {
        let mut command = Command::new("rping");
        command.args([role, "-a", address, "-p", &port, "-C", "5", "-V"]);
        Process::start(&format!("rping {role}"), command, true)
    };
    let mut server = start("-s");
    lab::wait_for_rdma_listener(port.parse().expect("made from a number"));
    let mut client = start("-c");
    for end in [&mut client, &mut server] {
        let status = end.wait(STEP);
        assert!(status.success(), "{}: {status}\n{}", end.name(), end.stderr().text());
    }
}

#[test]
fn rping_reaches_itself_over_ipv4() {
    in_the_lab(|| rping(lab::IPV4));
}

#[test]
fn rping_reaches_itself_over_ipv6() {
    in_the_lab(|| rping(lab::IPV6));
}
