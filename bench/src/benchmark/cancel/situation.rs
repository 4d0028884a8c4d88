//! One wait, how to get there, and what cancelling it took.

use std::time::{Duration, Instant};

use crate::failure::Result;

/// How long one stays in a situation at most before the cancel.
pub(super) const LONGEST_STAY: Duration = Duration::from_millis(40);

/// What a cancel took.
#[derive(Debug)]
pub(super) struct Cancelled {
    /// Until this end was unblocked.
    pub(super) here: Duration,
    /// Until the far end knew, where there is one.
    pub(super) far: Option<Duration>,
    /// What it left in its folder.
    pub(super) files: Vec<String>,
}

impl Cancelled {
    /// From the moments themselves.
    pub(super) fn between(asked: Instant, ended: Instant, far: Option<Instant>) -> Self {
        Self {
            here: ended.saturating_duration_since(asked),
            far: far.map(|far| far.saturating_duration_since(asked)),
            files: Vec::new(),
        }
    }
}

/// Something to be cancelled.
pub(super) struct Situation {
    pub(super) what: &'static str,
    /// Who is at the other end, if anybody.
    pub(super) far: &'static str,
    /// It needs what not every machine has: said and left out there.
    pub(super) may_be_missing: bool,
    pub(super) enter_and_cancel: Box<dyn FnMut(Duration) -> Result<Cancelled>>,
}

impl Situation {
    pub(super) fn new(
        what: &'static str,
        far: &'static str,
        enter_and_cancel: impl FnMut(Duration) -> Result<Cancelled> + 'static,
    ) -> Self {
        let enter_and_cancel = Box::new(enter_and_cancel);
        Self { what, far, may_be_missing: false, enter_and_cancel }
    }

    /// Where the machine may lack what it takes.
    pub(super) fn where_possible(self) -> Self {
        Self { may_be_missing: true, ..self }
    }
}

/// How long to stay the `time`-th time: spread evenly however many there are (the golden ratio's multiples), and the same
/// in every run.
pub(super) fn stay(time: u32) -> Duration {
    LONGEST_STAY.mul_f64((f64::from(time) * 0.618_033_988_749_895).fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_are_spread() {
        let mut stays: Vec<_> = (0..20).map(stay).collect();
        stays.sort();
        assert!(stays.iter().all(|stay| *stay < LONGEST_STAY));
        assert!(stays.windows(2).all(|pair| pair[1] - pair[0] < LONGEST_STAY / 8));
    }
}
