//! How fast it goes, over windows of about 100 ms (docs/wire/transports.md §6).

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_millis(100);

/// Bytes and pages a second over the last whole window, or since the start while there was none.
pub(super) struct Bandwidth {
    begun: Instant,
    begun_bytes: u64,
    begun_pages: u64,
    last: Option<Rates>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) bytes_per_sec: u64,
    pub(super) pages_per_sec: u64,
}

impl Bandwidth {
    pub(super) fn new(now: Instant, bytes: u64, pages: u64) -> Self {
        Self { begun: now, begun_bytes: bytes, begun_pages: pages, last: None }
    }

    /// Takes the counters as they are now; answers the rates in force.
    pub(super) fn update(&mut self, now: Instant, bytes: u64, pages: u64) -> Rates {
        let elapsed = now.saturating_duration_since(self.begun);
        let rates = Rates {
            bytes_per_sec: per_second(bytes.saturating_sub(self.begun_bytes), elapsed),
            pages_per_sec: per_second(pages.saturating_sub(self.begun_pages), elapsed),
        };
        if elapsed >= WINDOW {
            *self = Self { last: Some(rates), ..Self::new(now, bytes, pages) };
            return rates;
        }
        self.last.unwrap_or(rates)
    }
}

fn per_second(count: u64, elapsed: Duration) -> u64 {
    match elapsed.as_micros() {
        0 => 0,
        micros => u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lasts_until_the_next_is_whole() {
        let start = Instant::now();
        let mut bandwidth = Bandwidth::new(start, 0, 0);
        let early = bandwidth.update(start + Duration::from_millis(10), 1_000_000, 10);
        assert_eq!(early.bytes_per_sec, 100_000_000, "before the first window: since the start");
        let whole = bandwidth.update(start + Duration::from_millis(100), 5_000_000, 50);
        assert_eq!(whole, Rates { bytes_per_sec: 50_000_000, pages_per_sec: 500 });
        let within = bandwidth.update(start + Duration::from_millis(150), 5_000_000, 50);
        assert_eq!(within, whole);
        let stalled = bandwidth.update(start + Duration::from_millis(200), 5_000_000, 50);
        assert_eq!(stalled.bytes_per_sec, 0);
    }
}
