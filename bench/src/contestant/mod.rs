//! Who takes part: each moves the same bytes between two processes of its own.

mod decrypt;
mod ib_write_bw;
mod iperf;
mod mig;
mod plain_loop;
mod qemu;
mod rdma_stream;
mod touched;

pub(crate) use self::{
    decrypt::Decrypt,
    ib_write_bw::IbWriteBw,
    iperf::Iperf,
    mig::{Mig, Transport},
    plain_loop::PlainLoop,
    qemu::{Binary, Qemu, QemuState, QemuTouched},
    rdma_stream::RdmaStream,
    touched::Touched,
};
use crate::{contest::Sample, failure::Result};

/// One way to move bytes.
pub(crate) trait Contestant {
    /// What tables call it.
    fn name(&self) -> String;

    /// Memory that both ends together are going to touch.
    fn memory_bytes(&self) -> u64;

    /// Moves them once.
    fn run(&mut self) -> Result<Turn>;
}

/// One turn's outcome.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) sample: Sample,
    /// Something a reader should know of how it was done.
    pub(crate) remark: Option<String>,
}
