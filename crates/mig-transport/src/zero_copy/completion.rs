//! What the kernel says about sends it is done with.

/// The kernel is done with the sends numbered `first` to `last`, both included; the numbers wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) first: u32,
    pub(super) last: u32,
    /// It copied at least one of them after all.
    pub(super) copied: bool,
}

impl Completion {
    pub(super) fn covers(self, number: u32) -> bool {
        number.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_wrap_around() {
        let done = Completion { first: u32::MAX, last: 1, copied: false };
        for number in [u32::MAX, 0, 1] {
            assert!(done.covers(number), "{number}");
        }
        for number in [u32::MAX - 1, 2, 7] {
            assert!(!done.covers(number), "{number}");
        }
    }
}
