//! The arithmetic of a rate: bytes and now in, instant out.
//!
//! ```text
//!   credit  ┤ full: 8 ms of the rate ──────┐        a grant takes credit; below zero it names the
//!           │          ╱│   ╱│  ╱│         │        instant when the debt will be paid
//!         0 ┼────────╱──┴─╱──┴╱──┴─────────▶ now
//!           │      ╱   grants of at least 2 ms of the rate (or all that is wanted)
//! ```
//!
//! Credit grows with time, also while a sleeper oversleeps, up to [`Pacer::BURST`]: that is the longest burst, and, as
//! no second can hold more than the rate and one burst, the bound on the error of any second. No I/O, no clock.

use std::time::{Duration, Instant};

/// One byte for one nanosecond's worth of a rate: credit is kept in billionths of a byte, so nothing is rounded away.
const UNIT: i128 = 1_000_000_000;

/// Bytes that may leave, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a grant that is not used must be given back"]
pub struct Grant {
    /// How many bytes; at least one if any were wanted.
    pub bytes: usize,
    /// Not before this instant; `None` is at once.
    pub not_before: Option<Instant>,
    /// Under which setting of the rate it was given.
    epoch: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Pacer {
    rate_bytes_per_sec: u64,
    /// Billionths of a byte; negative while grants wait for their time.
    credit: i128,
    updated: Instant,
    epoch: u64,
}

impl Pacer {
    /// The longest burst, as time at the rate. The promise is 10 ms and 1 % of any second; the rest is margin.
    pub const BURST: Duration = Duration::from_millis(8);
    /// The smallest grant while more is wanted, as time at the rate: a few times the timer's granularity of 1 ms, so
    /// that oversleeping is made good out of the burst.
    pub const QUANTUM: Duration = Duration::from_millis(2);
    /// How far urgent bytes may push everybody else back: one window of QEMU's (docs/wire/transports.md §6).
    pub const URGENT_DEBT: Duration = Duration::from_millis(100);
    /// Rates too small for their burst to be worth a system call get bursts of this many bytes (below 256 kB/s).
    const LEAST_BURST: i128 = 2048;
    /// The same for the quantum.
    const LEAST_QUANTUM: i128 = 512;

    /// A pacer of `rate_bytes_per_sec`; 0 is unlimited.
    pub fn new(rate_bytes_per_sec: u64, now: Instant) -> Self {
        Self { rate_bytes_per_sec, credit: 0, updated: now, epoch: 0 }
    }

    /// The smallest grant at this rate while more is wanted.
    pub(crate) fn quantum_bytes(rate_bytes_per_sec: u64) -> usize {
        let worth = u128::from(rate_bytes_per_sec) * Self::QUANTUM.as_nanos() / UNIT.unsigned_abs();
        usize::try_from(worth).unwrap_or(usize::MAX)
    }

    /// The rate in force; 0 is unlimited.
    pub fn rate_bytes_per_sec(&self) -> u64 {
        self.rate_bytes_per_sec
    }

    /// Changes the rate as of `now`. Grants whose time has not come are void: ask again. Debt is forgiven, credit
    /// beyond the new burst is lost.
    pub fn set_rate(&mut self, rate_bytes_per_sec: u64, now: Instant) {
        self.settle(now);
        self.rate_bytes_per_sec = rate_bytes_per_sec;
        self.credit = self.credit.clamp(0, self.burst());
        self.epoch += 1;
    }

    /// Takes up to `wanted` bytes of the rate.
    pub fn take(&mut self, wanted: usize, now: Instant) -> Grant {
        if self.rate_bytes_per_sec == 0 || wanted == 0 {
            return Grant { bytes: wanted, not_before: None, epoch: self.epoch };
        }
        self.settle(now);
        let wanted = wanted as i128 * UNIT;
        let taken = wanted.min(self.quantum().max(self.credit / UNIT * UNIT));
        self.credit -= taken;
        let not_before = (self.credit < 0).then(|| now + self.time_for(-self.credit));
        // `taken` is a whole number of bytes, no more than `wanted`, which was a usize.
        Grant { bytes: (taken / UNIT) as usize, not_before, epoch: self.epoch }
    }

    /// Returns `unused` bytes of a grant, because the channel took fewer or nobody waits for its time any more.
    pub fn give_back(&mut self, grant: Grant, unused: usize) {
        if grant.epoch == self.epoch && self.rate_bytes_per_sec != 0 {
            self.credit = (self.credit + unused as i128 * UNIT).min(self.burst());
        }
    }

    /// Counts bytes that do not wait; what is paced pays for them, to the extent of [`Self::URGENT_DEBT`].
    pub fn charge_urgent(&mut self, bytes: usize, now: Instant) {
        if self.rate_bytes_per_sec == 0 {
            return;
        }
        self.settle(now);
        let floor = (-self.worth(Self::URGENT_DEBT)).min(self.credit);
        self.credit = (self.credit - bytes as i128 * UNIT).max(floor);
    }

    fn settle(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated);
        self.updated = self.updated.max(now);
        self.credit = self.credit.saturating_add(self.worth(elapsed)).min(self.burst());
    }

    fn burst(&self) -> i128 {
        self.worth(Self::BURST).max(Self::LEAST_BURST * UNIT)
    }

    /// Whole bytes, so that a grant is.
    fn quantum(&self) -> i128 {
        (self.worth(Self::QUANTUM) / UNIT).max(Self::LEAST_QUANTUM) * UNIT
    }

    /// What the rate brings in a time. Saturates (292 years of the highest rate there is do not).
    fn worth(&self, time: Duration) -> i128 {
        let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        nanos.saturating_mul(i128::from(self.rate_bytes_per_sec))
    }

    /// How long the rate needs for this much credit, rounded up.
    fn time_for(&self, credit: i128) -> Duration {
        let rate = i128::from(self.rate_bytes_per_sec);
        let nanos = (credit + rate - 1) / rate;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
