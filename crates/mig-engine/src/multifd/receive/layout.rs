//! Where pages of the source's blocks belong.

use std::sync::Arc;

use mig_ram::Placement;

/// The block list, as data channels need it.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The memory.
    pub(crate) placement: Arc<Placement>,
    /// In the order of the list.
    pub(crate) blocks: Vec<LayoutBlock>,
}

/// A block of the list.
#[derive(Debug)]
pub(crate) struct LayoutBlock {
    pub(crate) name: Box<[u8]>,
    /// Its index in local memory.
    pub(crate) local: usize,
    pub(crate) length: u64,
}

impl Layout {
    /// The block called `name`; looked for at `hint` first.
    pub(super) fn find(&self, name: &[u8], hint: usize) -> Option<(usize, &LayoutBlock)> {
        let is_it = |block: &LayoutBlock| *block.name == *name;
        if let Some(block) = self.blocks.get(hint).filter(|block| is_it(block)) {
            return Some((hint, block));
        }
        self.blocks.iter().enumerate().find(|(_, block)| is_it(block))
    }
}
