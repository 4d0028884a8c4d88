//! A synthetic guest migrates over every local transport while it is being written, and arrives whole.

use mig::{
    bench::{Memory, RunPlan, RunReport, RunStatus, Workload, run},
    engine::{AutoChannels, Capabilities, MultifdCompression, Parameters, ZeroPageDetection},
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
        tls: false,
        capabilities: Capabilities::default(),
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
    // A fifth of 8192 pages, but for those of the working set that were written before their turn came.
    assert!(report.zero_pages >= 1400, "{report:?}");
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
fn with_tls() {
    for (transport, memory) in [("tcp", Memory::Cold), ("unix", Memory::Warm)] {
        let report = run(&RunPlan { tls: true, ..plan(transport, memory) }, |_| {});
        assert_eq!(report.status, RunStatus::Completed, "{:?}", report.reason);
        assert!(report.verified && report.confirmed && report.tls, "{report:?}");
    }
}

#[test]
fn what_cannot_have_tls_says_so() {
    let report = run(&RunPlan { tls: true, ..plan("file", Memory::Cold) }, |_| {});
    assert_ne!(report.status, RunStatus::Completed, "nobody is there to agree with");
    assert!(report.reason.is_some_and(|reason| reason.contains("TLS")));
}

/// A plan with data channels, and what became of it.
fn beside(transport: &str, memory: Memory, change: impl FnOnce(&mut Parameters)) -> RunReport {
    let mut plan = plan(transport, memory);
    plan.capabilities.multifd = true;
    change(&mut plan.parameters);
    let report = run(&plan, |_| {});
    assert_eq!(report.status, RunStatus::Completed, "{:?}", report.reason);
    assert!(report.verified && report.confirmed, "{report:?}");
    // Some of the zero ones may be written before they are looked at.
    assert!(report.normal_pages >= 6000 && report.zero_pages >= 1000, "{report:?}");
    report
}

#[test]
fn over_data_channels() {
    for (transport, memory) in [
        ("tcp", Memory::Cold),
        ("tcp", Memory::Warm),
        ("unix", Memory::Cold),
        ("unix", Memory::Warm),
    ] {
        for channels in [1, 2, 5] {
            let report = beside(transport, memory, |parameters| {
                parameters.multifd_channels = channels;
            });
            assert_eq!(report.channels, u32::from(channels));
            assert!(report.wire_bytes > 24 << 20, "{report:?}");
        }
    }
}

/// The guest writes pages that the kernel may still be reading.
#[test]
fn over_data_channels_that_ask_for_no_copy() {
    for transport in ["tcp", "unix"] {
        let mut plan = plan(transport, Memory::Cold);
        plan.capabilities.multifd = true;
        plan.capabilities.zero_copy_send = true;
        let report = run(&plan, |_| {});
        assert_eq!(report.status, RunStatus::Completed, "{:?}", report.reason);
        assert!(report.verified && report.confirmed, "{report:?}");
    }
}

#[test]
fn over_data_channels_compressed() {
    for method in [MultifdCompression::Zlib, MultifdCompression::Zstd] {
        for (zlib, zstd) in [(None, None), (Some(1), Some(1)), (Some(0), Some(-7))] {
            let report = beside("unix", Memory::Cold, |parameters| {
                parameters.multifd_compression = method;
                parameters.multifd_zlib_level = zlib;
                parameters.multifd_zstd_level = zstd;
            });
            let compression = report.multifd.and_then(|multifd| multifd.compression);
            let compression = compression.expect("it was asked for");
            assert!(compression.bytes_in >= 6000 * 4096, "{compression:?}");
            assert!(
                compression.verdict.contains("bottleneck") || compression.verdict.contains("even")
            );
        }
    }
}

#[test]
fn zero_pages_go_wherever_they_are_asked_to() {
    let legacy = |parameters: &mut Parameters| {
        parameters.zero_page_detection = ZeroPageDetection::Legacy;
    };
    beside("unix", Memory::Warm, legacy);
    let mut plan = plan("unix", Memory::Cold);
    plan.capabilities.multifd = true;
    plan.parameters.zero_page_detection = ZeroPageDetection::None;
    let report = run(&plan, |_| {});
    assert!(report.verified, "{report:?}");
    assert_eq!(report.zero_pages, 0, "{report:?}");
}

#[test]
fn the_number_of_data_channels_finds_itself() {
    let report = beside("tcp", Memory::Warm, |parameters| {
        // Slow enough for several trials.
        parameters.max_bandwidth = 20 << 20;
        let mut auto = AutoChannels::default();
        auto.most = 3;
        parameters.multifd_auto = Some(auto);
    });
    let multifd = report.multifd.expect("there were some");
    assert!((2..=3).contains(&multifd.channels), "{multifd:?}");
    let why = multifd.channels_chosen.expect("somebody chose");
    assert!(why.contains("MB/s"), "{why}");
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
