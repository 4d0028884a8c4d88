//! Slowing the guest down, and letting it go (capability `auto-converge`); how much is [`throttle`](super::throttle)'s to say.

use std::sync::atomic::Ordering;

use super::{Interval, Job, Source};
use crate::error::{Error, Result};

impl Source {
    /// With auto-converge on, the guest has to be one that can be slowed down.
    pub(super) fn check_throttle(&mut self) -> Result<()> {
        if self.capabilities.auto_converge && !self.guest.throttle(0) {
            return Err(Error::misuse(
                "auto-converge is on, and this guest cannot be slowed down: turn it off, or implement Guest::throttle",
            ));
        }
        Ok(())
    }
}

impl Job<'_> {
    /// Slows the guest down if it writes too much; see [`Throttle`](super::Throttle).
    pub(super) fn brake(&mut self, since: Interval) {
        let Some(throttle) = &mut self.throttle else { return };
        let Some(percent) = throttle.judge(since, &self.shared.parameters()) else { return };
        self.progress.throttled.store(true, Ordering::Relaxed);
        tracing::debug!(percent, "auto-converge");
        self.guest.throttle(percent);
        self.shared.statistics.cpu_throttle_percentage.set(percent.into());
    }

    /// The guest stands still: wherever it goes on, it is at full speed.
    pub(super) fn release_brake(&mut self) {
        if self.progress.throttled.swap(false, Ordering::Relaxed) {
            self.guest.throttle(0);
            self.shared.statistics.cpu_throttle_percentage.set(0);
        }
    }
}
