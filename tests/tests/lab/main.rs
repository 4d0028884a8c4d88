//! What only the lab can show: RDMA on a soft-RoCE device and vsock between two processes of one machine.
//!
//! `cargo xtask test` builds this target, boots the lab once and runs it there, one test at a time: the CPU is
//! emulated, and the device is one. `cargo xtask test --lab FILTER` runs it alone.

mod device;
mod fill;
mod qemu_rdma;
mod vsock;

use mig_tests::guard::guarded;
use mig_tests::lab;

/// A test's frame: only in the lab, and not for ever.
#[track_caller]
fn in_the_lab(body: impl FnOnce() + Send + 'static) {
    if lab::or_skip() {
        guarded(body);
    }
}
