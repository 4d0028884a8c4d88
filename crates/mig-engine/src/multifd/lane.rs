//! A thread that serves one data channel.

use std::{
    future::Future,
    num::NonZero,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    runtime,
    sync::{oneshot, watch},
};

use crate::{
    error::{Error, Result},
    handle::Shared,
};

/// A thread with a runtime of its own and one future on it. Dropped, it drops that future, and with it all that the
/// future owns (its channel is closed), and waits for the thread: no longer than one poll of the future takes.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    name: String,
    result: oneshot::Receiver<Result<T>>,
    /// Gone, it ends the future.
    alive: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Lane<T> {
    /// Starts the thread. `serve` is called on it, within its runtime, so that channels can be
    /// [moved](mig_stream::StreamReader::rehome) there.
    pub(crate) fn spawn<F: Future<Output = Result<T>>>(
        name: String,
        migration: &Arc<Shared>,
        serve: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self> {
        let failed = |error| {
            Error::new(mig_transport::Blame::Io, format!("the thread of {name}")).caused_by(error)
        };
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let migration = Arc::clone(migration);
        let (alive, mut ended) = watch::channel(());
        let (tell, result) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let outcome = runtime.block_on(async move {
                    let mut serve = pin!(serve());
                    tokio::select! {
                        biased;
                        _gone = ended.changed() => Err(Error::cancelled()),
                        outcome = &mut serve => outcome,
                    }
                });
                migration.statistics.lanes_cpu_us.add(micros(thread_cpu()));
                // Whoever dropped the lane does not ask.
                let _nobody = tell.send(outcome);
            })
            .map_err(failed)?;
        Ok(Self { name, result, alive: Some(alive), thread: Some(thread) })
    }
}

impl<T> Lane<T> {
    /// How the future ended; ask again only until it did.
    pub(crate) fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        pin!(&mut self.result).poll(cx).map(|told| {
            told.unwrap_or_else(|_panicked| {
                Err(Error::misuse(format!("the thread of {} broke down", self.name)))
            })
        })
    }
}

impl<T> Lane<T> {
    /// Whether its thread has ended, so that dropping it waits for nothing.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the future be dropped, without waiting for that. Of several lanes that are to be dropped, each one is told
    /// before the first is waited for.
    pub(crate) fn end(&mut self) {
        self.alive = None;
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        self.end();
        if let Some(Err(_panicked)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!(lane = self.name, "a thread of a data channel broke down");
        }
    }
}

/// Processor time of the thread that asks, since it began.
pub(super) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // A time since the thread began: neither part is negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// As the statistics count it.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How many processors this process may use; 1 if nobody can say.
pub(super) fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::mpsc, time::Duration};

    use super::*;
    use crate::{handle::MigrationHandle, parameters::Parameters};

    fn migration() -> MigrationHandle {
        MigrationHandle::new(Parameters::default(), 4096)
    }

    #[tokio::test]
    async fn the_result_comes_back() {
        let mut lane = Lane::spawn("one".into(), migration().shared(), || async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(7)
        })
        .unwrap();
        assert_eq!(poll_fn(|cx| lane.poll_result(cx)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let mut lane =
            Lane::<()>::spawn("two".into(), migration().shared(), || async { panic!("as told") })
                .unwrap();
        let error = poll_fn(|cx| lane.poll_result(cx)).await.unwrap_err();
        assert!(error.to_string().contains("the thread of two broke down"), "{error}");
    }

    #[tokio::test]
    async fn dropping_it_drops_what_the_future_owns() {
        struct Owned(mpsc::Sender<&'static str>);
        impl Drop for Owned {
            fn drop(&mut self) {
                let _told = self.0.send("gone");
            }
        }
        let (tell, told) = mpsc::channel();
        let owned = Owned(tell);
        let lane = Lane::<()>::spawn("three".into(), migration().shared(), move || async move {
            let _owned = owned;
            std::future::pending().await
        })
        .unwrap();
        drop(lane);
        assert_eq!(told.try_recv(), Ok("gone"));
    }
}
