//! Capability `auto-converge`: how much the guest is slowed down so that it is sent faster than it writes.
//!
//! ```text
//!   a period: dirtied > threshold % of transferred?  ── no ──▶ nothing, the count begins anew
//!      └─ yes, twice in a row ──▶ 0 % ─▶ initial ─▶ + increment ─▶ … ─▶ max
//! ```
//!
//! Arithmetic only: bytes and time in, a percentage out. Twice, because the first period after a change was begun under
//! the old percentage. It never lets go by itself: a guest that is slowed down and then converges would speed up and not
//! converge.

use std::time::Duration;

use crate::parameters::Parameters;

/// A pass shorter than this is judged together with those after it: what a processor does in a few milliseconds says
/// little about its rate, and a brake that is applied in slices of time shows no effect in less.
const PERIOD: Duration = Duration::from_millis(100);

/// Periods in a row in which the guest wrote too much.
const HIGH_PERIODS: u8 = 2;

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) dirtied_bytes: u64,
    pub(super) transferred_bytes: u64,
    pub(super) elapsed: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    percent: u8,
    high: u8,
    period: Interval,
}

impl Throttle {
    /// Takes what happened since the last call; answers the percentage if it is to be changed.
    pub(super) fn judge(&mut self, since: Interval, rules: &Parameters) -> Option<u8> {
        let period = &mut self.period;
        period.dirtied_bytes = period.dirtied_bytes.saturating_add(since.dirtied_bytes);
        period.transferred_bytes = period.transferred_bytes.saturating_add(since.transferred_bytes);
        period.elapsed = period.elapsed.saturating_add(since.elapsed);
        if period.elapsed < PERIOD {
            return None;
        }
        let period = std::mem::take(period);
        let threshold = u64::from(rules.throttle_trigger_threshold.clamp(1, 100));
        let allowed = period.transferred_bytes / 100 * threshold;
        if period.dirtied_bytes <= allowed {
            self.high = 0;
            return None;
        }
        self.high += 1;
        if self.high < HIGH_PERIODS {
            return None;
        }
        self.high = 0;
        let next = self.next(period.dirtied_bytes, allowed, rules);
        (next != std::mem::replace(&mut self.percent, next)).then_some(next)
    }

    fn next(&self, dirtied: u64, allowed: u64, rules: &Parameters) -> u8 {
        let initial = rules.cpu_throttle_initial.clamp(1, 99);
        let max = rules.max_cpu_throttle.clamp(initial, 99);
        if self.percent == 0 {
            return initial;
        }
        let mut step = rules.cpu_throttle_increment.max(1);
        if rules.cpu_throttle_tailslow {
            step = step.min(ideal_step(self.percent, dirtied, allowed));
        }
        // A limit that was lowered meanwhile is kept too.
        self.percent.saturating_add(step).min(max)
    }
}

/// How much more would be just enough, if what the guest writes is as much as it runs; at least 1.
fn ideal_step(percent: u8, dirtied: u64, allowed: u64) -> u8 {
    let running = u128::from(100 - percent.min(99));
    let enough = running * u128::from(allowed) / u128::from(dirtied.max(1));
    u8::try_from(running.saturating_sub(enough)).unwrap_or(u8::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// A whole period in which 100 MB were sent.
    fn period(dirtied_bytes: u64) -> Interval {
        Interval { dirtied_bytes, transferred_bytes: 100 * MB, elapsed: PERIOD }
    }

    fn percentages(rules: &Parameters, dirtied: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let mut throttle = Throttle::default();
        dirtied.into_iter().filter_map(|bytes| throttle.judge(period(bytes), rules)).collect()
    }

    #[test]
    fn twice_in_a_row_starts_at_initial_and_grows_by_increment_to_the_limit() {
        let rules = Parameters::default();
        assert_eq!(percentages(&rules, [80 * MB; 6]), [20, 30, 40]);
        let all = percentages(&rules, [80 * MB; 40]);
        assert_eq!(all, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    }

    #[test]
    fn at_the_threshold_and_with_a_calm_period_between_nothing_happens() {
        let rules = Parameters::default();
        assert!(percentages(&rules, [50 * MB; 10]).is_empty());
        assert!(percentages(&rules, [80 * MB, 50 * MB].repeat(10)).is_empty());
        let strict = Parameters { throttle_trigger_threshold: 1, ..rules };
        assert_eq!(percentages(&strict, [2 * MB; 2]), [20]);
    }

    #[test]
    fn it_never_lets_go_by_itself() {
        let rules = Parameters::default();
        assert_eq!(percentages(&rules, [80 * MB, 80 * MB, 0, 0, 0, 80 * MB, 80 * MB]), [20, 30]);
    }

    #[test]
    fn short_passes_are_judged_together() {
        let mut throttle = Throttle::default();
        let rules = Parameters::default();
        let short = Interval {
            dirtied_bytes: 9 * MB,
            transferred_bytes: 10 * MB,
            elapsed: Duration::from_millis(10),
        };
        let changes: Vec<Option<u8>> = (0..20).map(|_| throttle.judge(short, &rules)).collect();
        assert_eq!(changes.iter().position(Option::is_some), Some(19));
        assert_eq!(changes[19], Some(20));
    }

    #[test]
    fn near_the_end_the_steps_are_as_small_as_is_enough() {
        let rules = Parameters {
            cpu_throttle_tailslow: true,
            cpu_throttle_initial: 90,
            cpu_throttle_increment: 10,
            ..Parameters::default()
        };
        // 60 MB where 50 are allowed, at a tenth of the time: eight and a third percent of it would do.
        assert_eq!(percentages(&rules, [60 * MB; 4]), [90, 92]);
        assert_eq!(percentages(&rules, [51 * MB; 6]), [90, 91, 92], "at least one percent");
        // Far from the end the increment is the smaller one.
        let early = Parameters { cpu_throttle_initial: 20, ..rules };
        assert_eq!(percentages(&early, [400 * MB; 4]), [20, 30]);
    }

    #[test]
    fn nonsense_is_bounded() {
        let wild = Parameters {
            throttle_trigger_threshold: 0,
            cpu_throttle_initial: 0,
            cpu_throttle_increment: 255,
            max_cpu_throttle: 255,
            ..Parameters::default()
        };
        assert_eq!(percentages(&wild, [80 * MB; 6]), [1, 99]);
        let inverted = Parameters { max_cpu_throttle: 5, ..Parameters::default() };
        assert_eq!(percentages(&inverted, [80 * MB; 6]), [20]);
        let stalled = Interval { dirtied_bytes: 1, transferred_bytes: 0, elapsed: PERIOD };
        let mut throttle = Throttle::default();
        assert_eq!(throttle.judge(stalled, &Parameters::default()), None);
        assert_eq!(throttle.judge(stalled, &Parameters::default()), Some(20));
    }
}
