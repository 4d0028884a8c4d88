//! One rate for all channels of a migration.

use std::sync::PoisonError;

use crate::{
    pacer::{Grant, Pacer},
    sync::{Mutex, MutexGuard, Notify, now, sleep_until},
};

/// A live-changeable rate that any number of writers share (docs/wire/transports.md §6); see [`Pacer`] for what it
/// promises. Waiting needs a tokio runtime with its timer enabled; an unlimited one never waits.
#[derive(Debug)]
pub struct RateLimiter {
    // Held for a few additions; never across an await.
    pacer: Mutex<Pacer>,
    changed: Notify,
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::new(0)
    }
}

impl RateLimiter {
    /// A limiter of `rate_bytes_per_sec`; 0 is unlimited.
    pub fn new(rate_bytes_per_sec: u64) -> Self {
        Self { pacer: Mutex::new(Pacer::new(rate_bytes_per_sec, now())), changed: Notify::new() }
    }

    /// The rate in force; 0 is unlimited.
    pub fn rate_bytes_per_sec(&self) -> u64 {
        self.pacer().rate_bytes_per_sec()
    }

    /// Changes the rate at once: whoever waits under the old one is woken and asks again.
    pub fn set_rate_bytes_per_sec(&self, rate_bytes_per_sec: u64) {
        {
            let mut pacer = self.pacer();
            if pacer.rate_bytes_per_sec() == rate_bytes_per_sec {
                return;
            }
            pacer.set_rate(rate_bytes_per_sec, now());
        }
        self.changed.notify_waiters();
    }

    /// Waits until some of `wanted` bytes may leave. What is not sent must be given back with
    /// [`give_back`](Self::give_back).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a grant that was waited for is given back.
    pub async fn acquire(&self, wanted: usize) -> Grant {
        loop {
            // Made before the question, so that a change in between is not missed.
            let changed = self.changed.notified();
            let grant = self.pacer().take(wanted, now());
            let Some(not_before) = grant.not_before else {
                return grant;
            };
            let waiting = Waiting { limiter: self, grant };
            tokio::select! {
                biased;
                // The old grant is void; dropping it gives nothing back.
                () = changed => {}
                () = sleep_until(not_before) => return waiting.arrived(),
            }
        }
    }

    /// Returns `unused` bytes of a grant.
    pub fn give_back(&self, grant: Grant, unused: usize) {
        if unused > 0 {
            self.pacer().give_back(grant, unused);
        }
    }

    /// Counts bytes that did not wait, as answers to page faults do not; the others wait a little longer for it.
    pub fn charge_urgent(&self, bytes: usize) {
        self.pacer().charge_urgent(bytes, now());
    }

    fn pacer(&self) -> MutexGuard<'_, Pacer> {
        // Arithmetic that cannot panic; a poisoned lock could only come from there.
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A grant whose time has not come; dropped before, it goes back.
struct Waiting<'a> {
    limiter: &'a RateLimiter,
    grant: Grant,
}

impl Waiting<'_> {
    fn arrived(self) -> Grant {
        let grant = self.grant;
        std::mem::forget(self);
        grant
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.limiter.give_back(self.grant, self.grant.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_gives_its_place_back() {
        let limiter = RateLimiter::new(1_000_000);
        for _ in 0..1000 {
            let abandoned = tokio::time::timeout(Duration::ZERO, limiter.acquire(2000));
            assert!(abandoned.await.is_err());
        }
        let start = Instant::now();
        assert_eq!(limiter.acquire(2000).await.bytes, 2000);
        assert_eq!(start.elapsed(), Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_wakes_everybody_who_waits() {
        let limiter = Arc::new(RateLimiter::new(1));
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move { limiter.acquire(1 << 20).await.bytes })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        limiter.set_rate_bytes_per_sec(0);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 1 << 20);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[cfg(all(test, modelled))]
mod models {
    use std::{
        future::{Future, poll_fn},
        pin::pin,
        sync::Arc,
        task::Poll,
    };

    use loom::{future::block_on, thread};

    use super::*;
    use crate::sync::model;

    /// Far more than a rate of one byte a second gives: only a change ends that wait.
    const MUCH: usize = 1 << 20;

    /// Seen to fail (a deadlock) with `notified` called after `take`, and with `notify_waiters` before `set_rate`.
    #[test]
    fn loom_a_change_is_never_slept_through() {
        model(|| {
            let limiter = Arc::new(RateLimiter::new(1));
            let lane = {
                let limiter = Arc::clone(&limiter);
                thread::spawn(move || block_on(limiter.acquire(MUCH)).bytes)
            };
            let changing = {
                let limiter = Arc::clone(&limiter);
                thread::spawn(move || limiter.set_rate_bytes_per_sec(0))
            };
            assert_eq!(block_on(limiter.acquire(MUCH)).bytes, MUCH);
            assert_eq!(lane.join().unwrap(), MUCH);
            changing.join().unwrap();
        });
    }

    /// A wait is dropped while the rate changes: what it had been granted under the old rate is none of the new one's.
    /// Seen to fail with `give_back` blind to the grant's epoch.
    #[test]
    fn loom_an_old_grant_is_no_credit_under_a_new_rate() {
        model(|| {
            let limiter = Arc::new(RateLimiter::new(1_000_000));
            let changing = {
                let limiter = Arc::clone(&limiter);
                thread::spawn(move || limiter.set_rate_bytes_per_sec(1))
            };
            block_on(async {
                let mut waiting = pin!(limiter.acquire(2000));
                // One poll, then it is dropped.
                poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await
            });
            changing.join().unwrap();
            let grant = limiter.pacer().take(2000, now());
            assert!(grant.bytes < 2000 && grant.not_before.is_some(), "{grant:?}");
        });
    }
}
