//! What threads share in the part of this crate that loom models, the [hub](crate::multifd): std's and tokio's types, or
//! loom's.
//!
//! Built with `--cfg modelled`, the models next to that part try every order of events there is (docs/testing.md). Time
//! stands still in them: what only time would end never ends, and loom calls that a deadlock.

#[cfg(modelled)]
pub(crate) use self::modelled::{Mutex, timeout, watch};
#[cfg(not(modelled))]
pub(crate) use {
    std::sync::Mutex,
    tokio::{sync::watch, time::timeout},
};

/// Tries every order of events in which threads are interrupted up to `preemptions` times where they need not stop: without
/// a bound there is no end, and nearly all mistakes need one or two. `LOOM_MAX_PREEMPTIONS` overrides it; with two, a model
/// of three threads that wait for each other takes minutes.
#[cfg(all(test, modelled))]
pub(crate) fn model(preemptions: usize, events: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(events);
}

#[cfg(modelled)]
mod modelled {
    use std::{convert::Infallible, time::Duration};

    pub(crate) use loom::sync::Mutex;

    /// # Cancel safety
    ///
    /// As that of `wait`.
    pub(crate) async fn timeout<F: Future>(
        _limit: Duration,
        wait: F,
    ) -> Result<F::Output, Infallible> {
        Ok(wait.await)
    }

    /// What tokio's promises, as far as the hub relies on it: a change is one step, and nobody who waits for it to come
    /// about sleeps through it.
    pub(crate) mod watch {
        use std::{
            convert::Infallible,
            future::poll_fn,
            ops::Deref,
            sync::{Arc, PoisonError},
            task::{Poll, Waker},
        };

        use loom::sync::{Mutex, MutexGuard};

        #[derive(Debug)]
        struct Watched<T> {
            value: T,
            waiting: Vec<Waker>,
        }

        #[derive(Debug)]
        pub(crate) struct Sender<T>(Arc<Mutex<Watched<T>>>);

        pub(crate) struct Receiver<T>(Arc<Mutex<Watched<T>>>);

        pub(crate) struct Ref<'a, T>(MutexGuard<'a, Watched<T>>);

        impl<T> Sender<T> {
            pub(crate) fn new(value: T) -> Self {
                Self(Arc::new(Mutex::new(Watched { value, waiting: Vec::new() })))
            }

            pub(crate) fn borrow(&self) -> Ref<'_, T> {
                Ref(lock(&self.0))
            }

            pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
                self.send_if_modified(|value| {
                    change(value);
                    true
                });
            }

            pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
                let waiting = {
                    let mut watched = lock(&self.0);
                    if !change(&mut watched.value) {
                        return;
                    }
                    std::mem::take(&mut watched.waiting)
                };
                waiting.into_iter().for_each(Waker::wake);
            }

            pub(crate) fn subscribe(&self) -> Receiver<T> {
                Receiver(Arc::clone(&self.0))
            }
        }

        impl<T> Receiver<T> {
            pub(crate) async fn wait_for(
                &mut self,
                mut is_so: impl FnMut(&T) -> bool,
            ) -> Result<Ref<'_, T>, Infallible> {
                let watched = &*self.0;
                poll_fn(move |cx| {
                    let mut watched = lock(watched);
                    if is_so(&watched.value) {
                        return Poll::Ready(Ok(Ref(watched)));
                    }
                    watched.waiting.push(cx.waker().clone());
                    Poll::Pending
                })
                .await
            }
        }

        impl<T> Deref for Ref<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0.value
            }
        }

        fn lock<T>(watched: &Mutex<Watched<T>>) -> MutexGuard<'_, Watched<T>> {
            watched.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
