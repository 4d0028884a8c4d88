//! The benchmarks, one file each kind, in the order in which they run.

mod cold;
mod decoder;
mod downtime;
mod rate_limit;
mod rdma;
mod receiver_memory;
mod stripe;
mod warm;
mod zero;

use crate::{failure::Result, report::Section};

/// What a benchmark is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rounds.
    pub(crate) runs: u32,
    /// Guest memory of the throughput contests, if it was said.
    pub(crate) size: Option<u64>,
}

impl Plan {
    /// Guest memory of the throughput contests.
    pub(crate) fn size(&self) -> u64 {
        self.size.unwrap_or(2 << 30)
    }

    /// The same over rdma, which is soft and emulated where there is no device.
    pub(crate) fn rdma_size(&self) -> u64 {
        self.size.unwrap_or(256 << 20)
    }
}

/// One of them.
pub(crate) struct Benchmark {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Whether it needs a device that the lab has.
    pub(crate) rdma: bool,
    pub(crate) run: fn(&Plan, &mut Section) -> Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Benchmark] = &[
    Benchmark {
        name: "tcp-warm",
        title: "one tcp stream into warm memory, against iperf3",
        rdma: false,
        run: warm::tcp,
    },
    Benchmark {
        name: "unix-warm",
        title: "one unix stream into warm memory, against a bare loop",
        rdma: false,
        run: warm::unix,
    },
    Benchmark {
        name: "tcp-cold",
        title: "one tcp stream into cold memory, against QEMU",
        rdma: false,
        run: cold::tcp,
    },
    Benchmark {
        name: "unix-cold",
        title: "one unix stream into cold memory, against QEMU",
        rdma: false,
        run: cold::unix,
    },
    Benchmark {
        name: "stripe",
        title: "every second page dirty, against as many in one run",
        rdma: false,
        run: stripe::run,
    },
    Benchmark {
        name: "idle-downtime",
        title: "downtime of an idle guest over tcp",
        rdma: false,
        run: downtime::run,
    },
    Benchmark {
        name: "rate-limit",
        title: "a limited rate over tcp, as the receiver sees it",
        rdma: false,
        run: rate_limit::run,
    },
    Benchmark {
        name: "decoder",
        title: "the decoder on a stream in memory",
        rdma: false,
        run: decoder::run,
    },
    Benchmark {
        name: "recv-rss",
        title: "memory of `mig recv` for a short and a long stream",
        rdma: false,
        run: receiver_memory::run,
    },
    Benchmark {
        name: "rdma-throughput",
        title: "incompressible memory over rdma, against ib_write_bw and QEMU",
        rdma: true,
        run: rdma::throughput,
    },
    Benchmark {
        name: "rdma-zero",
        title: "zero pages over rdma, against incompressible ones",
        rdma: true,
        run: rdma::zero,
    },
    Benchmark {
        name: "rdma-stream",
        title: "stream bytes over rdma, against messages of 32 KiB one at a time",
        rdma: true,
        run: rdma::stream,
    },
    Benchmark {
        name: "zero-test",
        title: "the zero test against reading memory",
        rdma: false,
        run: zero::run,
    },
];
