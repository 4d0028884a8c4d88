//! How many data channels: one more for as long as one more brings something.
//!
//! ```text
//!   1 channel ─ a while ─▶ 2 channels ─ a while ─▶ … until the last one brought too little, or the processors are used up
//! ```
//!
//! Arithmetic only. A channel that was opened stays: one too many costs next to nothing, for work goes to whoever is
//! free.

use std::time::Duration;

/// How long a number of channels is tried. Shorter ones measured the noise of slow starts.
pub(crate) const TRIAL: Duration = Duration::from_millis(300);

/// What one more channel must bring to be worth the next.
const WORTH: f64 = 1.08;

/// The budget counts as used up from here on: the next channel would go beyond it.
const USED_UP: f64 = 0.9;

/// A source's search for the number of data channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct AutoChannels {
    /// Never more than so many.
    pub most: u8,
    /// Processor time that the channels' threads may take together, in percent of one processor: 250 is two and a half.
    /// `None` is as many processors as this process may use.
    pub cpu_budget: Option<u32>,
}

impl Default for AutoChannels {
    fn default() -> Self {
        Self { most: 16, cpu_budget: None }
    }
}

/// What happened since the last channel was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub(crate) channels: usize,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    /// Of all lanes together.
    pub(crate) cpu: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Growth {
    limits: AutoChannels,
    processors: usize,
    /// Bytes a second with one channel less.
    before: Option<f64>,
    settled: Option<String>,
}

impl Growth {
    pub(crate) fn new(limits: AutoChannels, processors: usize) -> Self {
        Self { limits, processors, before: None, settled: None }
    }

    /// Nothing is to be tried, for this reason.
    pub(crate) fn settled(why: String) -> Self {
        let mut growth = Self::new(AutoChannels::default(), 1);
        growth.settled = Some(why);
        growth
    }

    /// Another channel could not be opened, for this reason: those that there are go on alone.
    pub(crate) fn refused(&mut self, channels: usize, why: &str) {
        tracing::warn!(channels, "data channels: another one could not be opened: {why}");
        self.settled = Some(format!("another than these {channels} could not be opened: {why}"));
    }

    /// Whether nothing more is tried.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// Whether another channel is to be opened, after a trial of at least [`TRIAL`].
    pub(crate) fn wants_another(&mut self, trial: &Trial) -> bool {
        if self.settled.is_some() || trial.time < TRIAL {
            return false;
        }
        let rate = trial.bytes as f64 / trial.time.as_secs_f64();
        let mbps = rate / 1e6;
        let channels = trial.channels;
        let budget = match self.limits.cpu_budget {
            Some(percent) => f64::from(percent) / 100.0,
            None => self.processors as f64,
        };
        let used = trial.cpu.as_secs_f64() / trial.time.as_secs_f64();
        let why = if self.before.is_some_and(|before| rate < before * WORTH) {
            let gain = self.before.map_or(0.0, |before| (rate / before - 1.0) * 100.0);
            format!("the last of {channels} changed the rate by {gain:+.0} % to {mbps:.0} MB/s")
        } else if used >= budget * USED_UP {
            format!(
                "with {channels}, {used:.1} of {budget:.1} processors are used to send {mbps:.0} MB/s"
            )
        } else if channels >= usize::from(self.limits.most) {
            format!("{channels} are as many as were allowed, and send {mbps:.0} MB/s")
        } else {
            self.before = Some(rate);
            return true;
        };
        tracing::info!(channels, "data channels: {why}");
        self.settled = Some(why);
        false
    }

    /// Why there are so many.
    pub(crate) fn why(&self) -> String {
        self.settled.clone().unwrap_or_else(|| "everything was sent before more were tried".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(channels: usize, mb_per_sec: u64, cpu_percent: u64) -> Trial {
        Trial {
            channels,
            bytes: mb_per_sec * 1_000_000,
            time: Duration::from_secs(1),
            cpu: Duration::from_millis(cpu_percent * 10),
        }
    }

    #[test]
    fn it_grows_while_that_brings_something() {
        let mut growth = Growth::new(AutoChannels::default(), 8);
        assert!(growth.wants_another(&trial(1, 500, 40)));
        assert!(growth.wants_another(&trial(2, 900, 80)));
        assert!(!growth.wants_another(&trial(3, 930, 110)));
        assert_eq!(growth.why(), "the last of 3 changed the rate by +3 % to 930 MB/s");
        assert!(!growth.wants_another(&trial(3, 2000, 110)), "settled is settled");
    }

    #[test]
    fn the_budget_caps_it() {
        let limits = AutoChannels { cpu_budget: Some(100), ..AutoChannels::default() };
        let mut growth = Growth::new(limits, 8);
        assert!(growth.wants_another(&trial(1, 500, 50)));
        assert!(!growth.wants_another(&trial(2, 900, 95)));
        assert_eq!(growth.why(), "with 2, 0.9 of 1.0 processors are used to send 900 MB/s");
        // All processors of a small machine.
        let mut growth = Growth::new(AutoChannels::default(), 1);
        assert!(!growth.wants_another(&trial(1, 500, 99)));
    }

    #[test]
    fn the_limit_is_kept() {
        let mut growth = Growth::new(AutoChannels { most: 2, cpu_budget: None }, 8);
        assert!(growth.wants_another(&trial(1, 500, 40)));
        assert!(!growth.wants_another(&trial(2, 1000, 80)));
        assert_eq!(growth.why(), "2 are as many as were allowed, and send 1000 MB/s");
    }

    #[test]
    fn a_short_trial_says_nothing() {
        let mut growth = Growth::new(AutoChannels::default(), 8);
        let short = Trial { time: TRIAL / 2, ..trial(1, 500, 40) };
        assert!(!growth.wants_another(&short));
        assert!(growth.wants_another(&trial(1, 500, 40)));
    }
}
