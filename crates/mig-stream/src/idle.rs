//! A deadline on silence, shared by several channels.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::error::Error;

/// When a byte last moved on any channel of a set, and how long silence may last. A channel that waits fails when no
/// channel of the set moved a byte for that long, counted from the start of its own wait at the earliest.
#[derive(Debug)]
pub struct IdleClock {
    limit: Duration,
    base: Instant,
    /// Nanoseconds from `base` to the last byte.
    last: AtomicU64,
    /// The clock of the larger set that these channels are of.
    whole: Option<Arc<Self>>,
}

impl IdleClock {
    /// A clock that runs out after `limit` without a byte. Needs a tokio runtime with its timer enabled.
    pub fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { limit, base: Instant::now(), last: AtomicU64::new(0), whole: None })
    }

    /// A clock for some of the channels of a set, with the limit of all: their bytes are life for the whole set, but a
    /// byte that moves elsewhere is none for them. So a channel that takes nothing cannot hide behind one that is kept
    /// alive by what is no progress.
    pub fn part_of(whole: &Arc<Self>) -> Arc<Self> {
        let (limit, last) = (whole.limit, AtomicU64::new(0));
        Arc::new(Self { limit, base: Instant::now(), last, whole: Some(Arc::clone(whole)) })
    }

    /// How long silence may last.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// A byte moved, or something else happened that shows life.
    pub fn touch(&self) {
        let now = self.base.elapsed().as_nanos();
        // 2^64 nanoseconds are 584 years.
        self.last.fetch_max(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.touch();
        }
    }

    /// Waits for something that is not a byte of a channel of the set, naming the wait in the error: it fails as a read
    /// would when neither it nor any channel shows life for the limit. That it ends is life.
    ///
    /// # Errors
    ///
    /// What the future answers, or [`Error::Deadline`] turned into its error type.
    ///
    /// # Cancel safety
    ///
    /// As that of `future`, which is dropped when the time is over.
    pub async fn attend<T, E: From<Error>>(
        self: &Arc<Self>,
        doing: impl Into<Arc<str>>,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut future = pin!(future);
        let mut watch = IdleWatch::new(Some(Arc::clone(self)));
        let ended = poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
            Poll::Pending => watch.poll_expired(cx).map(Err),
        });
        match ended.await {
            Ok(outcome) => {
                self.touch();
                outcome
            }
            Err(after) => Err(Error::Deadline { doing: doing.into(), place: None, after }.into()),
        }
    }

    fn last(&self) -> Instant {
        self.base + Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// One half's view of a clock: its own wait and its one timer.
#[derive(Debug)]
pub(crate) struct IdleWatch {
    clock: Option<Arc<IdleClock>>,
    /// Since when this half waits. Kept when a waiting future is dropped, so that a loop of short waits runs out too.
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl IdleWatch {
    pub(crate) fn new(clock: Option<Arc<IdleClock>>) -> Self {
        Self { clock, waiting_since: None, timer: None }
    }

    /// A byte moved here.
    pub(crate) fn progress(&mut self) {
        self.waiting_since = None;
        if let Some(clock) = &self.clock {
            clock.touch();
        }
    }

    /// The half goes to another runtime, which has a timer of its own.
    pub(crate) fn rehome(&mut self) {
        self.timer = None;
    }

    /// To be asked when the channel is not ready: answers the limit once it has run out.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(clock) = &self.clock else {
            return Poll::Pending;
        };
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        loop {
            // A limit too far away to be a time is none.
            let Some(deadline) = since.max(clock.last()).checked_add(clock.limit) else {
                return Poll::Pending;
            };
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // A timer set for an earlier byte is left to fire early: resetting it at every wait would cost more.
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            match timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if Instant::now() >= deadline => return Poll::Ready(clock.limit),
                Poll::Ready(()) => timer.as_mut().reset(deadline),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn silence_is_measured_from_the_last_byte_of_any_channel() {
        let start = Instant::now();
        let clock = IdleClock::new(Duration::from_secs(10));
        let mut watch = IdleWatch::new(Some(Arc::clone(&clock)));
        let other = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            clock.touch();
        });
        assert_eq!(poll_fn(|cx| watch.poll_expired(cx)).await, Duration::from_secs(10));
        assert_eq!(start.elapsed().as_secs(), 17);
        other.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_life_for_the_whole_and_not_the_other_way_round() {
        let start = Instant::now();
        let whole = IdleClock::new(Duration::from_secs(10));
        let part = IdleClock::part_of(&whole);
        let mut of_part = IdleWatch::new(Some(Arc::clone(&part)));
        let others = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            part.touch();
            tokio::time::sleep(Duration::from_secs(4)).await;
            whole.touch();
        });
        poll_fn(|cx| of_part.poll_expired(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 14);
        others.await.unwrap();

        let start = Instant::now();
        let whole = IdleClock::new(Duration::from_secs(10));
        let part = IdleClock::part_of(&whole);
        let mut of_whole = IdleWatch::new(Some(whole));
        tokio::time::sleep(Duration::from_secs(7)).await;
        part.touch();
        poll_fn(|cx| of_whole.poll_expired(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 17);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_attended_may_last_as_long_as_somebody_touches_the_clock() {
        let start = Instant::now();
        let clock = IdleClock::new(Duration::from_secs(10));
        let other = Arc::clone(&clock);
        let alive = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(7)).await;
                other.touch();
            }
        });
        let never = std::future::pending::<Result<(), Error>>();
        let error = clock.attend("holding a window", never).await.unwrap_err();
        assert_eq!(error.to_string(), "holding a window: not done within 10s");
        assert_eq!(start.elapsed().as_secs(), 45);
        let soon = async { Ok::<_, Error>(7) };
        assert_eq!(clock.attend("x", soon).await.unwrap(), 7);
        alive.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn time_before_the_wait_does_not_count_but_dropped_waits_do() {
        let clock = IdleClock::new(Duration::from_secs(10));
        let mut watch = IdleWatch::new(Some(clock));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        for _ in 0..100 {
            let wait = poll_fn(|cx| watch.poll_expired(cx));
            if tokio::time::timeout(Duration::from_secs(3), wait).await.is_ok() {
                break;
            }
        }
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}
