//! The benchmarks, one file each kind, in the order in which they run.

mod cold;
mod decoder;
mod downtime;
mod rate_limit;
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
    /// Guest memory of the throughput contests.
    pub(crate) size: u64,
}

/// One of them.
pub(crate) struct Benchmark {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) run: fn(&Plan, &mut Section) -> Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Benchmark] = &[
    Benchmark {
        name: "tcp-warm",
        title: "one tcp stream into warm memory, against iperf3",
        run: warm::tcp,
    },
    Benchmark {
        name: "unix-warm",
        title: "one unix stream into warm memory, against a bare loop",
        run: warm::unix,
    },
    Benchmark {
        name: "tcp-cold",
        title: "one tcp stream into cold memory, against QEMU",
        run: cold::tcp,
    },
    Benchmark {
        name: "unix-cold",
        title: "one unix stream into cold memory, against QEMU",
        run: cold::unix,
    },
    Benchmark {
        name: "stripe",
        title: "every second page dirty, against as many in one run",
        run: stripe::run,
    },
    Benchmark {
        name: "idle-downtime",
        title: "downtime of an idle guest over tcp",
        run: downtime::run,
    },
    Benchmark {
        name: "rate-limit",
        title: "a limited rate over tcp, as the receiver sees it",
        run: rate_limit::run,
    },
    Benchmark { name: "decoder", title: "the decoder on a stream in memory", run: decoder::run },
    Benchmark {
        name: "recv-rss",
        title: "memory of `mig recv` for a short and a long stream",
        run: receiver_memory::run,
    },
    Benchmark { name: "zero-test", title: "the zero test against reading memory", run: zero::run },
];
