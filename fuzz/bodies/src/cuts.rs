//! Cutting an input into pieces, from one byte of the input itself.

/// Lengths of pieces, for ever; seeded, so that a crash repeats.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    dice: u64,
    longest: u64,
}

impl Cuts {
    /// A seed of 0 leaves the input whole.
    pub(crate) fn new(seed: u8) -> Self {
        // Short pieces cost time and say little more than middling ones: one input in eight comes byte by byte.
        let longest = match (seed >> 1) % 8 {
            0 => 1,
            1 => 8,
            2..=4 => 40,
            _ => 200,
        };
        Self {
            dice: (u64::from(seed) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            longest: if seed == 0 { u64::MAX } else { longest },
        }
    }

    /// The next piece's length; at least 1.
    pub(crate) fn next(&mut self) -> usize {
        if self.longest == u64::MAX {
            return usize::MAX;
        }
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        1 + (self.dice % self.longest) as usize
    }
}
