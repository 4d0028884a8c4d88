//! The closed list of malformed messages, which the library has for tests only: taken in as it is, so that these tests need
//! no feature and `cargo xtask test` runs them in the lab.

#![expect(unreachable_pub, reason = "it is public in the library")]

pub(crate) use mig_transport_rdma::protocol::{blocks, header, serve, stream};

#[path = "../../src/protocol/malformed.rs"]
pub(crate) mod malformed;
