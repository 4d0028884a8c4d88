//! What only the lab can show: RDMA on a soft-RoCE device and vsock between two processes of one machine.
//!
//! `cargo xtask test` builds this target, boots the lab once and runs it there, one test at a time: the CPU is
//! emulated, and the device is one. `cargo xtask test --lab FILTER` runs it alone.

mod device;
mod fill;
mod live_rdma;
mod mig_rdma;
mod mig_to_mig_rdma;
mod qemu_rdma;
mod rdma_faults;
mod rdma_one_sided;
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

/// [`in_the_lab`], and afterwards the device has nothing given out that it had not before.
#[track_caller]
fn in_the_lab_without_a_trace(body: impl FnOnce() + Send + 'static) {
    in_the_lab(|| {
        let before = lab::given_out();
        body();
        lab::wait_until_given_back(&before);
    });
}
