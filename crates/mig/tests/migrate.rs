//! A synthetic guest migrates over every local transport while it is being written, and arrives whole.

use mig::{
    bench::{Memory, RunPlan, RunReport, RunStatus, Workload, run},
    engine::Parameters,
    ram::PlacementOptions,
};

fn plan(transport: &str, memory: Memory) -> RunPlan {
    RunPlan {
        transport: transport.parse().expect("a transport that can be benchmarked"),
        ram_bytes: 32 << 20,
        workload: Workload {
            dirty_rate: 100 << 20,
            working_set: 4 << 20,
            zero_percent: 20,
            compressible_percent: 10,
            seed: 42,
        },
        memory,
        parameters: Parameters::default(),
        placing: PlacementOptions::default(),
        rdma_pin_all: false,
        rdma_pinned_memory: None,
    }
}

fn completed(transport: &str, memory: Memory) -> RunReport {
    let report = run(&plan(transport, memory), |_| {});
    assert_eq!(report.status, RunStatus::Completed, "{:?}", report.reason);
    assert!(report.verified);
    assert!(report.normal_pages >= 6000, "{report:?}");
    assert!(report.zero_pages >= 1500, "{report:?}");
    assert!(report.wire_bytes > 24 << 20, "{report:?}");
    report
}

#[test]
fn over_tcp() {
    assert!(completed("tcp", Memory::Cold).confirmed);
    assert!(completed("tcp:[::1]:0", Memory::Warm).confirmed);
}

#[test]
fn over_unix() {
    assert!(completed("unix", Memory::Cold).confirmed);
    assert!(completed("unix", Memory::Warm).confirmed);
}

#[test]
fn over_fd() {
    assert!(completed("fd", Memory::Cold).confirmed);
}

#[test]
fn over_exec_it_is_sent_and_not_confirmed() {
    assert!(!completed("exec", Memory::Cold).confirmed);
}

#[test]
fn over_a_file_it_is_sent_and_not_confirmed() {
    assert!(!completed("file", Memory::Cold).confirmed);
}

#[test]
fn over_vsock_or_the_reason_why_not() {
    let report = run(&plan("vsock", Memory::Cold), |_| {});
    match report.status {
        RunStatus::Completed => assert!(report.verified),
        RunStatus::Unavailable => assert!(report.reason.is_some_and(|reason| !reason.is_empty())),
        other => panic!("{other:?}: {:?}", report.reason),
    }
}

#[test]
fn over_rdma() {
    for pin_all in [false, true] {
        // Where there is no device it is made of software, on a processor made of software: slowly.
        let mut plan = plan("rdma", Memory::Cold);
        plan.workload.dirty_rate = 4 << 20;
        plan.parameters.downtime_limit = 10_000;
        plan.rdma_pin_all = pin_all;
        let report = run(&plan, |_| {});
        if report.status == RunStatus::Unavailable {
            let reason = report.reason.unwrap_or_default();
            return mig_testkit::not_applicable("rdma-device", &reason);
        }
        assert_eq!(report.status, RunStatus::Completed, "{:?}", report.reason);
        assert!(report.verified && report.confirmed, "{report:?}");
        assert!(report.normal_pages >= 6000 && report.zero_pages >= 1000, "{report:?}");
        assert!(report.wire_bytes > 24 << 20, "{report:?}");
        let registration = report.registration.expect("rdma counts it");
        assert_eq!(registration.rdma_pin_all, pin_all);
        assert!(registration.source_registered_bytes > 0, "{registration:?}");
        assert!(registration.destination_registered_bytes > 0, "{registration:?}");
        assert!(registration.control_round_trips > 0, "{registration:?}");
        if pin_all {
            assert_eq!(registration.source_registered_bytes, plan.ram_bytes);
        }
    }
}
