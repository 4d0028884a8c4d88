//! A bound on how often the same thing is logged, so that a flood of strangers does not flood the log.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// Lets a few lines through, then one for each pause, which tells how many were left out.
///
/// ```
/// use mig_transport::LogLimit;
/// let mut limit = LogLimit::default();
/// assert_eq!(limit.say(), Some(None));
/// ```
#[derive(Debug)]
pub struct LogLimit {
    /// Lines that may still be said in this pause.
    left: u32,
    since: Option<Instant>,
    unsaid: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { left: Self::BURST, since: None, unsaid: 0 }
    }
}

impl LogLimit {
    /// Lines at once.
    pub const BURST: u32 = 8;
    /// How long it takes until as many may come again.
    pub const PAUSE: Duration = Duration::from_secs(10);

    /// Whether to log now: the number of lines that were left out since the last one, if any were, as a field that shows only
    /// then; or `None` to leave out this one, too.
    pub fn say(&mut self) -> Option<Option<NonZeroU64>> {
        self.say_at(Instant::now())
    }

    fn say_at(&mut self, now: Instant) -> Option<Option<NonZeroU64>> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= Self::PAUSE {
            (self.since, self.left) = (Some(now), Self::BURST);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(NonZeroU64::new(std::mem::take(&mut self.unsaid)))
            }
            None => {
                self.unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let said = (0..1000).filter(|_| limit.say_at(start).is_some()).count();
        assert_eq!(said, LogLimit::BURST as usize);
        let unsaid = NonZeroU64::new(1000 - u64::from(LogLimit::BURST));
        assert_eq!(limit.say_at(start + LogLimit::PAUSE), Some(unsaid));
        assert_eq!(limit.say_at(start + LogLimit::PAUSE), Some(None));
    }
}
