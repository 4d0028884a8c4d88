//! Which pages a running guest writes, found by the best means this machine has.

use crate::{
    bitmap::DirtyBitmap,
    error::{Error, Result},
    memory::{BlockInfo, DirtyLogInfo},
};

/// A way to find written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// userfaultfd, asynchronous.
    AsyncWriteProtect,
}

/// Which mechanisms may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackerPolicy {
    /// The best one that works here.
    #[default]
    Best,
    /// This one or none.
    Only(Mechanism),
}

/// Notes writes to blocks from its making until it is dropped.
#[derive(Debug)]
pub struct DirtyTracker {
    info: DirtyLogInfo,
}

impl DirtyTracker {
    /// Starts to note writes.
    pub fn start(_blocks: &[BlockInfo], _policy: TrackerPolicy) -> Result<Self> {
        Err(Error::Unavailable { what: "dirty tracking".into(), remedy: "wait for it".into() })
    }

    /// How.
    pub fn info(&self) -> &DirtyLogInfo {
        &self.info
    }

    /// Moves what was written since the last call into `into`.
    pub fn sync(&self, _index: usize, _into: &DirtyBitmap) -> Result<u64> {
        Ok(0)
    }
}
