//! What must hold after each case, and one word for what happened.

use std::{error, time::Duration};

use mig::engine::{Error, Owner};
use mig_tests::process::SLOWNESS;

use crate::{
    cases::{End, Kind, Trouble},
    live::{Ended, Mode},
    way::Way,
};

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Word {
    /// The guest arrived whole: what failed was not needed any more, or was got over.
    Arrived,
    /// The guest arrived whole, and this time there was no such operation or byte: which channel carries what differs
    /// from run to run.
    NotReached,
    /// Both ends know that it failed; the guest runs on at the source.
    AtSource,
    /// Everything was sent and no verdict came: the guest runs nowhere until somebody has asked the destination.
    Unknown,
    /// Without a return path: the source was told nothing of the destination's failure. The guest runs nowhere.
    NotConfirmed,
    /// A flipped bit was not noticed: nothing in the format could have told.
    Unnoticed,
    /// Somebody between the ends made a "no" of the destination's "yes", or ended the connection in its place; or made a "yes" of its "no".
    WrongVerdict,
}

impl Word {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Arrived => "arrived whole",
            Self::NotReached => "not reached",
            Self::AtSource => "failed, guest at its source",
            Self::Unknown => "failed, owner unknown",
            Self::NotConfirmed => "sent, not confirmed, not arrived",
            Self::Unnoticed => "flipped bit not noticed",
            Self::WrongVerdict => "verdict falsified, two owners or none",
        }
    }
}

/// What is wrong with an error that has another cause than the one that was put in. On a machine that has no time to
/// spare a deadline may be that cause, so such a case is tried again by itself.
pub(crate) const LOST: &str = "the system's error is lost";

/// How long the waits of a case may be: short where something is waited for in vain, long where the guest must arrive.
pub(crate) fn patience(trouble: &Trouble, way: Way) -> Duration {
    match trouble.kind() {
        Kind::Reordered => Duration::from_secs(20 * SLOWNESS),
        Kind::Doubled => Duration::from_secs(3 * SLOWNESS),
        _ if way == Way::Exec || way.is_slow() => Duration::from_secs(3 * SLOWNESS),
        _ => Duration::from_millis(700 * SLOWNESS),
    }
}

/// Looks at both ends of a live migration.
pub(crate) fn live(
    trouble: &Trouble,
    mode: Mode,
    ended: &Ended,
    verge: u64,
) -> Result<Word, String> {
    let runs_here = !ended.source.stopped || ended.source.resumed;
    let runs_there = ended.destination.started;
    let told = format!(
        "source: {}; destination: {}",
        ended.sent.as_ref().map_or_else(chain, |_| "completed".into()),
        ended.received.as_ref().map_or_else(chain, |_| "completed".into()),
    );
    let flipped = trouble.kind() == Kind::Flipped;
    let check = |holds: bool, what: &str| {
        if holds { Ok(()) } else { Err(format!("{what} ({told})")) }
    };
    for outcome in [&ended.sent, &ended.received] {
        if let Err(error) = outcome {
            check(!error.to_string().trim().is_empty(), "an error without a word")?;
        }
    }
    if let Some((end, errno)) = trouble.errno() {
        let outcome = if end == End::Source { &ended.sent } else { &ended.received };
        // Under load a deadline of the other end may come first.
        let struck = ended.faults[usize::from(end == End::Destination)].struck();
        let reaches =
            !struck || outcome.as_ref().err().is_none_or(|error| names(error, trouble, errno));
        check(reaches || trouble.is_a_strangers(mode), LOST)?;
    }
    check(ended.received.is_ok() == runs_there, "the destination's word and its guest differ")?;
    let says_so = ended.sent.as_ref().is_ok_and(|outcome| outcome.confirmed);
    if says_so && !runs_there && flipped && trouble.end() == Some(End::Destination) {
        // The same the other way round.
        check(!mode.has_tls(), "confirmed, and it did not arrive")?;
        return Ok(Word::WrongVerdict);
    }
    if runs_here && runs_there {
        // SHUT 0 has no checksum: the source read another number, or an orderly end in its place.
        let falsified = matches!(trouble.kind(), Kind::Flipped | Kind::Truncated);
        let falsified = falsified && trouble.end() == Some(End::Destination);
        check(falsified && !mode.has_tls(), "two owners")?;
        return Ok(Word::WrongVerdict);
    }
    match &ended.sent {
        Ok(outcome) => {
            check(!runs_here, "completed, and the guest was not stopped")?;
            check(outcome.confirmed == (mode != Mode::Plain), "confirmed by nobody")?;
            check(runs_there || !outcome.confirmed, "confirmed, and it did not arrive")?;
        }
        Err(error) if error.owner() == Owner::Source => {
            check(runs_here, "the source keeps a guest that stands still")?;
        }
        Err(_) => {
            check(!runs_here, "an unknown owner, and the guest runs here")?;
            let sent = ended.faults[0].written().get(&0).copied().unwrap_or(0);
            check(sent >= verge, &format!("unknown after {sent} of {verge} bytes"))?;
        }
    }
    if runs_there && !ended.same {
        check(flipped && !mode.has_tls(), "another guest arrived")?;
        return Ok(Word::Unnoticed);
    }
    Ok(match &ended.sent {
        Ok(_) if runs_there && trouble.missed(&ended.faults) => Word::NotReached,
        Ok(_) if runs_there => Word::Arrived,
        Ok(_) => Word::NotConfirmed,
        Err(_) if runs_here => Word::AtSource,
        Err(_) => Word::Unknown,
    })
}

/// The error and all its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = format!("{error} [owner {:?}]", error.owner());
    let mut cause = error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether the chain of causes has this error of the system. Where a data channel broke, the destination may be faster
/// to say that it gave up than the channel's thread.
pub(crate) fn names(error: &Error, trouble: &Trouble, errno: i32) -> bool {
    let chain = chain(error);
    chain.contains(&format!("(os error {errno})"))
        || (trouble.is_on_a_data_channel()
            && ["gave up (SHUT 1)", "without a verdict"].iter().any(|said| chain.contains(said)))
}
