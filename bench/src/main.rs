//! Ratios from one run on one machine.
//!
//! ```text
//!   flags ─▶ suite ─▶ benchmark/* ──▶ contest: A B A B … ──▶ Section ─▶ stdout, --json, --markdown
//!                                       │ contestant/*         (figures, goals, verdicts)
//!                                       ▼
//!                     two children a run: role/* (this program again), iperf3, QEMU
//! ```
//!
//! What is held constant: contestants take turns, so that whatever else the machine does hits all of them; before each
//! turn as much memory as it needs is touched and freed, so that the host's reclaim does not decide; both ends of a
//! contestant are processes of their own on the loopback; huge pages are off in all of them; every figure is the median
//! over the rounds, with the extremes next to it. A goal that is missed is said and never fails the run: a number is no
//! test. Every wait is bounded, and every child dies with this process.

mod benchmark;
mod certificates;
mod child;
mod contest;
mod contestant;
mod failure;
mod flags;
mod lab;
mod link;
mod machine;
mod markdown;
mod memory;
mod qmp;
mod rdma;
mod report;
mod role;
mod statistics;
mod stream;
mod suite;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == role::ARGUMENT) {
        return role::main(arguments.next());
    }
    match suite::run(&flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mig-bench: {}", failure::chain(&*failure));
            ExitCode::FAILURE
        }
    }
}
