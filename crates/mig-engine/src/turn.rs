//! Work that goes on for as long as there is something to do gives way now and then, so that whoever wants it to stop is
//! heard.
//!
//! ```text
//!   page, page, page, … ── every few hundred: what time is it? ── 5 ms are over ──▶ everybody else, then on
//! ```
//!
//! A task that finds its channel always ready is stopped by nobody: tokio's budget counts operations, and between two of
//! them a peer can put a GiB of zero pages, which are looked at one by one. So it is time that counts here. What is done
//! between two looks at the clock must be short; what is long in itself asks with [`Turn::pause`] between two pieces.

use std::time::{Duration, Instant};

/// How long a turn is: a twentieth of what a cancel may take, and ten thousand times what giving way costs.
const LENGTH: Duration = Duration::from_millis(5);

/// So much is done between two looks at the clock: half a millisecond of the dearest pages, and so many that the clock costs
/// nothing.
const STRIDE: u32 = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct Turn {
    begun: Instant,
    /// Until the next look at the clock.
    left: u32,
    over: bool,
}

impl Turn {
    /// It begins now.
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), left: STRIDE, over: false }
    }

    /// So many pages were dealt with, or things that take no longer; answers whether the turn is over.
    #[inline]
    pub(crate) fn work(&mut self, pages: u32) -> bool {
        if pages < self.left {
            self.left -= pages;
            return self.over;
        }
        self.look()
    }

    /// Whether it was over when the clock was last looked at. It stays so until others [had theirs](Self::give_way).
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    #[cold]
    fn look(&mut self) -> bool {
        self.left = STRIDE;
        self.over = self.begun.elapsed() >= LENGTH;
        self.over
    }

    /// Gives others a turn, and begins another one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub(crate) async fn give_way(&mut self) {
        tokio::task::yield_now().await;
        *self = Self::new();
    }

    /// Looks at the clock, and gives others a turn if this one is over.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub(crate) async fn pause(&mut self) {
        if self.look() {
            self.give_way().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    /// A turn that began so long ago.
    fn since(ago: Duration) -> Turn {
        Turn { begun: Instant::now().checked_sub(ago).unwrap(), left: STRIDE, over: false }
    }

    #[test]
    fn the_clock_is_looked_at_once_in_a_stride() {
        let mut turn = since(2 * LENGTH);
        assert!(!turn.work(1) && !turn.work(STRIDE - 2), "nobody has looked");
        assert!(turn.work(1) && turn.is_over());
        assert!(turn.work(1), "it stays over");
        assert!(since(2 * LENGTH).work(1 << 20));
        assert!(!since(Duration::ZERO).work(STRIDE) || LENGTH < Duration::from_millis(1));
    }

    #[test]
    fn only_a_turn_that_is_over_gives_way_and_the_next_is_whole() {
        let mut context = Context::from_waker(Waker::noop());
        let mut turn = since(2 * LENGTH);
        {
            let mut paused = pin!(turn.pause());
            assert!(paused.as_mut().poll(&mut context).is_pending());
            assert!(paused.as_mut().poll(&mut context).is_ready());
        }
        assert!(!turn.is_over());
        assert_eq!(turn.left, STRIDE);
    }
}
