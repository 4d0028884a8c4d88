//! What tasks and threads share in the parts of this crate that loom models: std's and tokio's types, or loom's.
//!
//! Built with `--cfg modelled`, the models next to those parts try every order of events there is (docs/testing.md). Time
//! stands still in them: what only time would end never ends, and loom calls that a deadlock.

#[cfg(modelled)]
pub(crate) use self::modelled::{Mutex, MutexGuard, Notify, now, sleep_until};
#[cfg(not(modelled))]
pub(crate) use {
    self::real::{now, sleep_until},
    std::sync::{Mutex, MutexGuard},
    tokio::sync::Notify,
};

#[cfg(not(modelled))]
mod real {
    use std::time::Instant;

    pub(crate) fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn sleep_until(time: Instant) {
        tokio::time::sleep_until(tokio::time::Instant::from_std(time)).await;
    }
}

/// Tries every order of events in which threads are interrupted so many times where they need not stop: without a bound
/// there is no end, and nearly all mistakes need one or two. `LOOM_MAX_PREEMPTIONS` overrides it.
#[cfg(all(test, modelled))]
pub(crate) fn model(events: impl Fn() + Send + Sync + 'static) {
    const PREEMPTIONS: usize = 2;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(events);
}

#[cfg(modelled)]
mod modelled {
    use std::{
        future::{Future, pending},
        pin::Pin,
        sync::{OnceLock, PoisonError},
        task::{Context, Poll, Waker},
        time::Instant,
    };

    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) fn now() -> Instant {
        static STOPPED: OnceLock<Instant> = OnceLock::new();
        *STOPPED.get_or_init(Instant::now)
    }

    pub(crate) async fn sleep_until(_time: Instant) {
        pending().await
    }

    /// What tokio's promises: `notify_waiters` reaches whoever had called `notified` before, polled or not.
    #[derive(Debug, Default)]
    pub(crate) struct Notify(Mutex<Notified>);

    #[derive(Debug, Default)]
    struct Notified {
        times: u64,
        waiting: Vec<Waker>,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notified(&self) -> Waiting<'_> {
            Waiting { notify: self, before: self.lock().times }
        }

        pub(crate) fn notify_waiters(&self) {
            let waiting = {
                let mut notified = self.lock();
                notified.times += 1;
                std::mem::take(&mut notified.waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
        }

        fn lock(&self) -> MutexGuard<'_, Notified> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    pub(crate) struct Waiting<'a> {
        notify: &'a Notify,
        before: u64,
    }

    impl Future for Waiting<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let mut notified = self.notify.lock();
            if notified.times != self.before {
                return Poll::Ready(());
            }
            notified.waiting.push(cx.waker().clone());
            Poll::Pending
        }
    }
}
