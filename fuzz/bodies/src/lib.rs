//! What a fuzz target does with its bytes: one function each, without libFuzzer.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs ── libFuzzer's bytes ──▶ NAME(&[u8]) ◀── fuzz/corpus/NAME ── tests/corpora.rs
//! ```
//! A body panics when a promise is broken: a crash, an answer that differs from a plain reference, a value that does not
//! come back from its own encoding, an event that depends on how the input was cut. `docs/fuzzing.md` has the list.

mod address;
mod cuts;
mod engine;
mod inflate;
mod multifd;
mod rdma_message;
mod rdma_protocol;
mod return_path;
mod small;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod told;
mod vmdesc;
mod xbzrle;

#[cfg(feature = "tls")]
pub use crate::tls::{tls_credentials, tls_stranger};
pub use crate::{
    address::address,
    engine::{destination, pair, recorder, replayer, source},
    inflate::{decompress, inflate},
    multifd::multifd,
    rdma_message::rdma_message,
    rdma_protocol::rdma_protocol,
    return_path::return_path,
    small::{states, values},
    stream::stream,
    vmdesc::vmdesc,
    xbzrle::xbzrle,
};
