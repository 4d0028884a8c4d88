//! One rate for all channels of a migration.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::pacer::{Grant, Pacer};

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
                () = sleep_until(Instant::from_std(not_before)) => return waiting.arrived(),
                // The old grant is void; dropping it gives nothing back.
                () = changed => {}
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

fn now() -> std::time::Instant {
    Instant::now().into_std()
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
    use super::*;
    use std::{sync::Arc, time::Duration};

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
