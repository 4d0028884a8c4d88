//! When to stop the guest: the decision at the end of each pass.

/// A remainder that is sent in this many milliseconds is not worth another pass.
const SHORT_MS: u64 = 2;

/// Passes that may be spent on a shorter downtime once the limit would already be kept.
const POLISHING_PASSES: u32 = 8;

/// What to do after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Send what was dirtied meanwhile, with the guest running.
    AnotherPass,
    /// Stop the guest and send the rest.
    SwitchOver,
}

/// Decides by what remains, what the downtime allows, and whether another pass would still help.
///
/// QEMU stops as soon as the remainder fits the downtime. Another pass costs little while the remainder shrinks by
/// half each time, and every halving is downtime that the guest does not see; so the limit is a limit here, not an aim.
#[derive(Debug, Default)]
pub(super) struct Convergence {
    previous: Option<u64>,
    polished: u32,
}

impl Convergence {
    /// `remaining` bytes are unsent, `threshold` may be sent with the guest stopped.
    pub(super) fn decide(
        &mut self,
        remaining: u64,
        threshold: u64,
        bandwidth_bytes_per_sec: u64,
    ) -> Decision {
        let previous = self.previous.replace(remaining);
        if remaining == 0 {
            return Decision::SwitchOver;
        }
        if remaining > threshold {
            self.polished = 0;
            return Decision::AnotherPass;
        }
        let short = remaining <= bandwidth_bytes_per_sec / 1000 * SHORT_MS;
        let shrinking = previous.is_none_or(|previous| remaining <= previous / 2);
        if short || !shrinking || self.polished >= POLISHING_PASSES {
            return Decision::SwitchOver;
        }
        self.polished += 1;
        Decision::AnotherPass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn nothing_left_switches_even_without_bandwidth() {
        assert_eq!(Convergence::default().decide(0, 0, 0), Decision::SwitchOver);
        assert_eq!(Convergence::default().decide(4096, 0, 0), Decision::AnotherPass);
    }

    #[test]
    fn a_shrinking_remainder_is_worth_another_pass_and_a_standing_one_is_not() {
        let mut convergence = Convergence::default();
        assert_eq!(convergence.decide(900 * MB, 300 * MB, 1000 * MB), Decision::AnotherPass);
        assert_eq!(convergence.decide(200 * MB, 300 * MB, 1000 * MB), Decision::AnotherPass);
        assert_eq!(convergence.decide(150 * MB, 300 * MB, 1000 * MB), Decision::SwitchOver);
    }

    #[test]
    fn polishing_ends() {
        let mut convergence = Convergence::default();
        let mut remaining = 1 << 40;
        let mut passes = 0;
        while convergence.decide(remaining, u64::MAX, 1) == Decision::AnotherPass {
            remaining /= 2;
            passes += 1;
        }
        assert_eq!(passes, POLISHING_PASSES);
    }
}
