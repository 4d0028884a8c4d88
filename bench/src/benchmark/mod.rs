//! The benchmarks, one file each kind, in the order in which they run.

mod cancel;
mod cold;
mod curve;
mod decoder;
mod door;
mod downtime;
mod multifd;
mod netem;
mod rate_limit;
mod rdma;
mod receiver_memory;
mod stripe;
mod tls;
mod warm;
mod xbzrle;
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
    /// Whether it needs what the lab has: a device, a link to be shaped.
    pub(crate) lab: bool,
    pub(crate) run: fn(&Plan, &mut Section) -> Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Benchmark] = &[
    Benchmark {
        name: "tcp-warm",
        title: "one tcp stream into warm memory, against iperf3",
        lab: false,
        run: warm::tcp,
    },
    Benchmark {
        name: "unix-warm",
        title: "one unix stream into warm memory, against a bare loop",
        lab: false,
        run: warm::unix,
    },
    Benchmark {
        name: "tcp-cold",
        title: "one tcp stream into cold memory, against QEMU",
        lab: false,
        run: cold::tcp,
    },
    Benchmark {
        name: "unix-cold",
        title: "one unix stream into cold memory, against QEMU",
        lab: false,
        run: cold::unix,
    },
    Benchmark {
        name: "multifd-cold",
        title: "2 data channels over tcp into cold memory, against QEMU",
        lab: false,
        run: multifd::cold,
    },
    Benchmark {
        name: "multifd-warm",
        title: "2 data channels into warm memory, against iperf3",
        lab: false,
        run: multifd::warm,
    },
    Benchmark {
        name: "multifd-zstd",
        title: "2 data channels with zstd into cold memory, against QEMU",
        lab: false,
        run: multifd::zstd,
    },
    Benchmark {
        name: "multifd-curve",
        title: "2 data channels, from a small guest to a large one",
        lab: false,
        run: curve::run,
    },
    Benchmark {
        name: "tls",
        title: "TLS into warm memory, against plain, against QEMU's, against decrypting alone",
        lab: false,
        run: tls::run,
    },
    Benchmark {
        name: "xbzrle",
        title: "deltas of a guest that touches 8 bytes a page, against QEMU",
        lab: false,
        run: xbzrle::run,
    },
    Benchmark {
        name: "stripe",
        title: "every second page dirty, against as many in one run",
        lab: false,
        run: stripe::run,
    },
    Benchmark {
        name: "idle-downtime",
        title: "downtime of an idle guest over tcp",
        lab: false,
        run: downtime::run,
    },
    Benchmark {
        name: "rate-limit",
        title: "a limited rate over tcp, as the receiver sees it",
        lab: false,
        run: rate_limit::run,
    },
    Benchmark {
        name: "decoder",
        title: "the decoder on a stream in memory",
        lab: false,
        run: decoder::run,
    },
    Benchmark {
        name: "recv-rss",
        title: "memory of `mig recv` for a short and a long stream",
        lab: false,
        run: receiver_memory::run,
    },
    Benchmark {
        name: "door",
        title: "what a stranger costs a listener",
        lab: false,
        run: door::run,
    },
    Benchmark {
        name: "cancel",
        title: "how long a cancel takes, in every wait",
        lab: false,
        run: cancel::run,
    },
    Benchmark {
        name: "multifd-netem",
        title: "links of 1 Gbit/s and less with 20 ms, how far they are filled",
        lab: true,
        run: netem::run,
    },
    Benchmark {
        name: "rdma-throughput",
        title: "incompressible memory over rdma, against ib_write_bw and QEMU",
        lab: true,
        run: rdma::throughput,
    },
    Benchmark {
        name: "rdma-zero",
        title: "zero pages over rdma, against incompressible ones",
        lab: true,
        run: rdma::zero,
    },
    Benchmark {
        name: "rdma-stream",
        title: "stream bytes over rdma, against messages of 32 KiB one at a time",
        lab: true,
        run: rdma::stream,
    },
    Benchmark {
        name: "zero-scan",
        title: "the zero test of zeros, against reading memory",
        lab: false,
        run: zero::run,
    },
];
