//! A live migration of a synthetic guest, measured: what `mig bench` runs.
//!
//! ```text
//!   guest thread ──writes──▶ source RAM                          destination RAM
//!                              └─ source thread ── transport ──▶ destination thread ─┘
//!                                        both stopped ▶ compared, byte for byte
//! ```
//!
//! Both ends run in this process, each on a thread of its own with a runtime of its own, so that their CPU time can be
//! told apart. A transport that cannot run here is reported as unavailable, with the reason; it is no failure.

mod guest;
mod meeting;
mod report;
mod run;

pub use self::{
    guest::{SyntheticGuest, Workload},
    meeting::Transport,
    report::{BenchReport, Machine, Registration, RunReport, RunStatus},
    run::{Handles, Memory, RunPlan, run},
};
