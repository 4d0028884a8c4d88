//! A run of bytes in a block.

/// `len` bytes at `offset` of block `block`, an index in the source's order. Never empty where this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The block.
    pub block: u32,
    /// First byte, from the block's start.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Span {
    /// The byte after the last one.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether a byte belongs to both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.block == other.block && self.offset < other.end() && other.offset < self.end()
    }

    /// Whether `next` begins where this one ends.
    pub fn continues_in(&self, next: &Self) -> bool {
        self.block == next.block && self.end() == next.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_is_not_overlapping() {
        let span = |block, offset, len| Span { block, offset, len };
        assert!(!span(0, 0, 4).overlaps(&span(0, 4, 4)));
        assert!(span(0, 0, 4).continues_in(&span(0, 4, 4)));
        assert!(span(0, 0, 5).overlaps(&span(0, 4, 4)));
        assert!(span(0, 2, 1).overlaps(&span(0, 0, 8)));
        assert!(!span(1, 0, 5).overlaps(&span(0, 4, 4)));
        assert!(!span(1, 0, 4).continues_in(&span(0, 4, 4)));
    }
}
