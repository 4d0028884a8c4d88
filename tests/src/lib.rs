//! Scenarios across crates, and the harness that drives real QEMU.
