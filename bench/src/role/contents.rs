//! What guest memory holds before it migrates.

use mig_ram::{PAGE_SIZE, RamBlocks};
use serde::{Deserialize, Serialize};

use crate::{
    failure::Result,
    memory::{Texture, fill, whole},
};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Contents {
    /// Pages that neither compress nor repeat; repeatable by the seed.
    Noise(u64),
    /// Pages of which a quarter is noise: 4 : 1 for a compressor.
    Quarter(u64),
    /// Zeros that somebody wrote: every page is there.
    Zeros,
    /// What nobody touched.
    Nothing,
}

impl Contents {
    /// The noise of all contests.
    pub(crate) const NOISE: Self = Self::Noise(7);

    pub(crate) fn put_into(self, ram: &RamBlocks) -> Result<()> {
        let memory = whole(ram);
        match self {
            Self::Noise(seed) => fill(&memory, seed, Texture::Noise),
            Self::Quarter(seed) => fill(&memory, seed, Texture::Quarter),
            Self::Zeros => {
                for offset in (0..memory.len()).step_by(PAGE_SIZE) {
                    memory.sub(offset, 1)?.copy_in(&[0]);
                }
            }
            Self::Nothing => {}
        }
        Ok(())
    }
}
