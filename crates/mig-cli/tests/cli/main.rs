//! The binary from outside: what users type and see. One program, so that the support is compiled once.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

mod bench;
mod doctor;
mod door;
mod failing;
mod inspect;
mod multifd;
mod rdma;
mod stuck;
mod support;
mod tls;
mod transfer;
mod usage;
