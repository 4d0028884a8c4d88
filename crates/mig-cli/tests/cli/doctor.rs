//! `mig doctor`: it is a report, so it always succeeds, and what it says can be read by scripts.

use crate::support::{assert_exit, mig, run};
use serde_json::Value;

#[test]
fn the_report_names_every_transport() {
    let output = run(&mut mig(&["doctor", "--json"]));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let checks = report["checks"].as_array().unwrap();
    for scheme in [
        "tcp (IPv4)",
        "tcp (IPv6)",
        "unix",
        "vsock",
        "fd (pipe)",
        "exec",
        "file",
        "rdma",
        "tls (tcp)",
    ] {
        assert!(checks.iter().any(|check| check["name"] == scheme), "{scheme}");
    }
    for check in checks {
        let works = check["status"] == "works";
        assert_eq!(works, check.get("remedy").is_none(), "{check}");
        assert!(!check["detail"].as_str().unwrap().is_empty(), "{check}");
    }
    for certain in ["unix", "exec", "file", "fd (pipe)", "tls (tcp)"] {
        let check = checks.iter().find(|check| check["name"] == certain).unwrap();
        assert_eq!(check["status"], "works", "{check}");
    }
}

#[test]
fn the_table_is_for_people() {
    let output = run(&mut mig(&["doctor"]));
    assert_exit(&output, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("transports") && text.contains("guest memory") && text.contains("system")
    );
    assert!(text.contains("\nRDMA\n") && text.contains("RLIMIT_MEMLOCK"), "{text}");
}

#[test]
fn rdma_is_there_or_the_reason_and_the_remedy_are() {
    let output = run(&mut mig(&["doctor", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rdma = &report["rdma"];
    match rdma["available"].as_bool().unwrap() {
        true => assert!(!rdma["devices"].as_array().unwrap().is_empty(), "{rdma}"),
        false => assert!(rdma["reason"].is_string() && rdma["remedy"].is_string(), "{rdma}"),
    }
    assert!(rdma["memory_lock"]["exempt"].is_boolean(), "{rdma}");
}
