//! Scenarios across crates, and the harness that drives real QEMU.
//!
//! ```text
//!   scenario (tests/*.rs)
//!      │ boots            │ runs                │ tells
//!      ▼                  ▼                     ▼
//!   qemu ── qmp        mig (the binary)      report ── skips, results for docs/interop.md
//!      │ looks inside     │
//!      ▼                  ▼
//!   guest (images, memory check)      paused (guests that never run, memory of our choice)
//! ```
//! `tls` has certificates for both. `lab` is what the tests of target `lab` need to know about the virtual machine they run in, `spare` an RDMA device
//! that one of them may break.
//! Everything here panics with a sentence instead of returning an error: a test has no caller who could do
//! better. Every wait has a deadline, every child is ended by its handle, every name is unique to its test, so
//! the scenarios run beside each other.

pub mod guard;
pub mod guest;
pub mod lab;
pub mod mig;
pub mod paused;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod scratch;
pub mod spare;
pub mod stream;
pub mod tap;
pub mod tls;
