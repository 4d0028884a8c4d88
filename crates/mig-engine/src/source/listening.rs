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

use super::{AFTERMATH, Progress, ReturnPath, Verdict};
use crate::error::{Error, Owner, Result};

/// How long a destination's last words are waited for after the link broke.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long deadlines that run out together may be apart, on a busy machine.
const SAME_TIME: Duration = Duration::from_millis(500);

/// Sends and listens at once, so that a destination that gives up is heard at once.
///
/// # Cancel safety
///
/// As that of `send`.
pub(super) async fn send_listening(
    send: impl Future<Output = Result<()>>,
    back: &mut ReturnPath,
    progress: &Progress,
) -> Result<()> {
    let mut send = pin!(send);
    let sent = tokio::select! {
        biased;
        sent = &mut send => sent,
        verdict = back.verdict() => {
            let verdict = match verdict {
                Err(silence) => return Err(who_is_silent(silence, send.as_mut()).await),
                Ok(verdict) => verdict,
            };
            decide(verdict, progress)?;
            // It may say so before we have written the description that follows the end. The rest is still owed; that
            // nobody reads it is no failure any more.
            let rest = tokio::time::timeout(AFTERMATH, send).await;
            tracing::debug!(?rest, "after the verdict");
            return Ok(());
        }
    };
    let Err(error) = sent else { return Ok(()) };
    // A write that failed is often the echo of a destination that hung up after it said why.
    match tokio::time::timeout(LAST_WORDS, back.verdict()).await {
        Ok(Ok(verdict @ (Verdict::Succeeded | Verdict::Failed(_)))) => {
            // What broke on the way there may be what it gave up for.
            decide(verdict, progress).map_err(|told| told.caused_by(error))
        }
        Ok(Ok(Verdict::Closed)) => {
            // Closed in order and without a word: it never started the guest, however much was sent.
            progress.set_owner(Owner::Source);
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

/// A relayed channel ended after everything was sent: the verdict may be what was lost.
pub(crate) fn ended_by_whom() -> Error {
    Error::new(
        Blame::Io,
        "what carries the channel (a command, a pipe) ended it, and a verdict of the destination may have been lost there",
    )
}

/// What a verdict means for the guest.
pub(super) fn decide(verdict: Verdict, progress: &Progress) -> Result<()> {
    match verdict {
        // The end has not left yet: nobody can have everything, and the guest may still be running here.
        Verdict::Succeeded if progress.owner() == Owner::Source => Err(said_too_early()),
        Verdict::Succeeded => {
            progress.set_owner(Owner::Destination);
            Ok(())
        }
        Verdict::Failed(status) => {
            progress.set_owner(Owner::Source);
            Err(Error::new(
                Blame::PeerIncompatible,
                format!(
                    "the destination gave up (SHUT {status}); its own log or standard error says why"
                ),
            ))
        }
        Verdict::Closed => {
            progress.set_owner(Owner::Source);
            Err(Error::new(
                Blame::PeerIncompatible,
                "the destination closed the connection without a verdict: it gave up, and its own log or standard \
                 error says why",
            ))
        }
        Verdict::Ended if progress.owner() == Owner::Unknown => Err(ended_by_whom()),
        Verdict::Ended => Err(Error::new(
            Blame::PeerIncompatible,
            "what carries the channel (a command, a pipe) ended it without a verdict: the destination gave up, and its own \
             log or standard error says why, or the command lost its connection",
        )),
    }
}
