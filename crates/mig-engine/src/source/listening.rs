//! Sending while the destination may speak, and what its verdict means.
//!
//! ```text
//!   send ──────────▶ done ─▶ (the verdict is waited for)
//!   verdict ──▶ gave up, closed ─▶ nothing more is sent
//! ```
//!
//! The first failure is often not the first cause: a write breaks because the destination hung up, the way back is
//! silent because a data channel takes nothing. So whoever fails gives the other a moment to say more.

use std::{
    future::Future,
    pin::{Pin, pin},
    time::Duration,
};

use mig_transport::Blame;

use super::{End, Job, Progress, ReturnPath, Verdict, Writing};
use crate::error::{Error, Owner, Result};

/// How long a destination's last words are waited for after the link broke.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long deadlines that run out together may be apart, on a busy machine.
const SAME_TIME: Duration = Duration::from_millis(500);

/// Sends and listens at once, so that a destination that gives up is heard at once.
///
/// # Cancel safety
///
/// Not cancel safe: give the migration up.
pub(super) async fn send_listening(
    job: &mut Job<'_>,
    back: &mut ReturnPath,
    progress: &Progress,
) -> Result<()> {
    let sent = {
        let mut send = pin!(job.send());
        tokio::select! {
            // In this order: a failure of writing is known before what is heard is judged by it.
            biased;
            sent = &mut send => sent,
            verdict = back.verdict() => {
                let verdict = match verdict {
                    Err(silence) => return Err(who_is_silent(silence, send.as_mut()).await),
                    Ok(verdict) => verdict,
                };
                decide(verdict, Writing::Well, progress)?;
                // It may say so before we have written the description that follows the end. The rest is still owed;
                // that nobody reads it is no failure any more.
                let rest = tokio::time::timeout_at(progress.owed_until(), send).await;
                tracing::debug!(?rest, "after the verdict");
                return Ok(());
            }
        }
    };
    let Err(error) = sent else { return Ok(()) };
    let writing = Writing::of(&job.out);
    // A write that failed is often the echo of a destination that hung up after it said why.
    match tokio::time::timeout(LAST_WORDS, back.verdict()).await {
        Ok(Ok(verdict @ (Verdict::Succeeded | Verdict::Failed(_)))) => {
            // What broke on the way there may be what it gave up for.
            decide(verdict, writing, progress).map_err(|told| told.caused_by(error))
        }
        Ok(Ok(ended @ Verdict::Ended(_))) => {
            let owner = progress.settle(writing, &ended);
            tracing::debug!(?ended, ?writing, ?owner, "sending failed, and the way back ended");
            Err(error)
        }
        // A transport's own reason (a TLS alert) says more than that writing failed; silence says less.
        Ok(Err(heard))
            if error.blame() == Blame::Io
                && !matches!(heard.blame(), Blame::Io | Blame::Deadline) =>
        {
            Err(heard.caused_by(error))
        }
        _ => Err(error),
    }
}

/// The error of a way back that failed while everything else was being sent. If that was silence, a channel that takes
/// nothing runs out at the same time, and its name is worth more.
///
/// # Cancel safety
///
/// As that of `send`.
pub(crate) async fn who_is_silent(
    silence: Error,
    send: Pin<&mut impl Future<Output = Result<()>>>,
) -> Error {
    if silence.blame() != Blame::Deadline {
        return silence;
    }
    match tokio::time::timeout(SAME_TIME, send).await {
        Ok(Err(stuck)) => stuck,
        _ => silence,
    }
}

pub(crate) fn said_too_early() -> Error {
    Error::peer_misbehaved(
        "the destination said that it has everything (SHUT 0) before the end of the stream was sent: it cannot have \
         the guest, look at its log",
    )
}

/// The way back ended after everything was sent, and perhaps without the destination: the verdict may be what was lost.
pub(crate) fn ended_by_whom(end: End) -> Error {
    let what = match end {
        End::Relayed => {
            "what carries the channel (a command, a pipe) ended it, and a verdict of the destination may have been lost there"
        }
        End::Announced | End::Orderly => {
            "the connection broke, and a verdict of the destination may have been lost with it"
        }
    };
    Error::new(Blame::Io, what)
}

/// What a verdict means for the guest.
pub(super) fn decide(verdict: Verdict, writing: Writing, progress: &Progress) -> Result<()> {
    let owner = progress.settle(writing, &verdict);
    let refused = match (verdict, owner) {
        (Verdict::Succeeded, Owner::Destination) => return Ok(()),
        // The end has not left yet: nobody can have everything, and the guest may still be running here.
        (Verdict::Succeeded, _) => return Err(said_too_early()),
        (Verdict::Ended(end), Owner::Unknown) => return Err(ended_by_whom(end)),
        (Verdict::Failed(status), _) => format!(
            "the destination gave up (SHUT {status}); its own log or standard error says why"
        ),
        (Verdict::Ended(End::Relayed), _) => {
            "what carries the channel (a command, a pipe) ended it without a verdict: the destination gave up, and its own \
             log or standard error says why, or the command lost its connection"
                .into()
        }
        (Verdict::Ended(_), _) => {
            "the destination closed the connection without a verdict: it gave up, and its own log or standard error says why"
                .into()
        }
    };
    Err(Error::new(Blame::PeerIncompatible, refused))
}
