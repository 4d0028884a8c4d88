//! Live migration's transport layer: QEMU's wire format over any transport, by URI.
//!
//! ```text
//!   "tcp:host:4444" ─▶ MigrationAddress ─┬─ connector ─▶ Source, Replayer
//!                                        └─ listener ──▶ Destination, Recorder
//! ```
//!
//! The front door: the engine and the backends that were chosen, one cargo feature each. Everything below is re-exported
//! under the name of its room.

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "file")]
mod file_sink;
#[cfg(feature = "rdma")]
mod rdma_end;
#[cfg(feature = "tls")]
mod tls_end;
mod transports;

pub use mig_engine as engine;
pub use mig_proto as proto;
pub use mig_ram as ram;
pub use mig_stream as stream;
pub use mig_transport as transport;
#[cfg(feature = "rdma")]
pub use mig_transport_rdma as rdma;
#[cfg(feature = "tls")]
pub use mig_transport_tls as tls;

#[cfg(feature = "file")]
pub use crate::file_sink::file_sink;
#[cfg(feature = "rdma")]
pub use crate::rdma_end::rdma_loopback;
#[cfg(feature = "tls")]
pub use crate::tls_end::{ConnectTls, ListenTls};
pub use crate::transports::{
    ConnectOptions, ListenOptions, OPEN_DOOR, connector, listener, open_to,
};

/// The README's example compiles.
#[cfg(all(doctest, feature = "bench"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
