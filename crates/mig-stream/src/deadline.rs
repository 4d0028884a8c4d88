//! A bound on any wait.

use std::{future::Future, sync::Arc, time::Duration};

use crate::error::Error;

/// Waits for `future` no longer than `limit` (`None`: for ever), naming the wait in the error.
///
/// # Errors
///
/// What the future answers, or [`Error::Deadline`] turned into its error type.
///
/// # Cancel safety
///
/// As that of `future`, which is dropped when the time is over.
pub async fn within<T, E: From<Error>>(
    doing: impl Into<Arc<str>>,
    limit: impl Into<Option<Duration>>,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(after) = limit.into() else {
        return future.await;
    };
    match tokio::time::timeout(after, future).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Error::Deadline { doing: doing.into(), place: None, after }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mig_transport::Blame;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_by_its_future_or_by_its_limit() {
        let soon = async { Ok::<_, Error>(7) };
        assert_eq!(within("waiting", Duration::from_secs(1), soon).await.unwrap(), 7);
        let never = std::future::pending::<Result<(), Error>>();
        let error = within("waiting for godot", Duration::from_secs(1), never).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Deadline);
        assert_eq!(error.to_string(), "waiting for godot: not done within 1s");
        assert_eq!(within("x", None, async { Ok::<_, Error>(1) }).await.unwrap(), 1);
    }
}
