//! What must hold after each case, and one word for what happened.

use std::{error, time::Duration};

use mig::{
    engine::{Error, Owner, Wait},
    transport::Blame,
};
use mig_testkit::faults::Faults;
use mig_tests::process::SLOWNESS;

use crate::{
    cases::{End, Kind, Trouble},
    live::Ended,
    mode::Mode,
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
    /// The same, and a deadline was needed to find out: what was turned or doubled makes an end wait for more.
    WaitedAtSource,
    /// Everything was sent and no verdict came: the guest runs nowhere until somebody has asked the destination.
    Unknown,
    /// The same, and a deadline was needed to find out.
    WaitedUnknown,
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
            Self::WaitedAtSource => "waited until its deadline, guest at its source",
            Self::Unknown => "failed, owner unknown",
            Self::WaitedUnknown => "waited until its deadline, owner unknown",
            Self::NotConfirmed => "sent, not confirmed, not arrived",
            Self::Unnoticed => "flipped bit not noticed",
            Self::WrongVerdict => "verdict falsified, two owners or none",
        }
    }

    /// The same, with a deadline in it that is the fault's doing.
    pub(crate) fn waited(self) -> Self {
        match self {
            Self::AtSource => Self::WaitedAtSource,
            Self::Unknown => Self::WaitedUnknown,
            other => other,
        }
    }
}

/// Why an end may have failed of something else than the fault, with what both ends told.
#[derive(Clone, Debug)]
pub(crate) enum Doubt {
    /// The fault's turn did not come.
    Early(String),
    /// A deadline ran out, and this fault is one that both ends hear of without.
    Waited(String),
    /// A deadline ran out, and this fault may make an end wait: a bit of a length was turned, a channel is there twice.
    Due,
}

/// Looks for a reason not to believe in how a case ended.
pub(crate) fn doubt(
    trouble: &Trouble,
    way: Way,
    mode: Mode,
    faults: &[Faults; 2],
    source: Option<&Error>,
    destination: Option<&Error>,
) -> Option<Doubt> {
    if source.is_none() && destination.is_none() {
        return None;
    }
    let told = || {
        let [source, destination] =
            [source, destination].map(|end| end.map_or_else(|| "completed".into(), chain));
        format!("source: {source}; destination: {destination}")
    };
    if trouble.missed(faults) {
        return Some(Doubt::Early(format!(
            "an end failed before the fault's turn came: {}",
            told()
        )));
    }
    let waited = |end: Option<&Error>| {
        end.is_some_and(|error| error.blame() == Blame::Deadline || error.wait().is_some())
    };
    // Whose connection broke before it said who it was may still come.
    let listens_on = destination
        .and_then(Error::wait)
        .is_some_and(|wait| matches!(wait, Wait::Accept | Wait::FirstByte | Wait::Handshake));
    if !waited(source) && (!waited(destination) || listens_on) {
        return None;
    }
    match trouble.kind() {
        Kind::Stalls => None,
        Kind::Flipped | Kind::Doubled => Some(Doubt::Due),
        // The destination drops what broke before its greeting and waits for the channel; the source need not notice.
        _ if trouble.hides_a_data_channel(mode) => Some(Doubt::Due),
        // Its connections end both ways at once, by hanging up, which is not what this does (docs/wire/rdma.md §12).
        Kind::Truncated | Kind::HalfClosed if way == Way::Rdma => Some(Doubt::Due),
        // A fifo that nobody opens at its other end is waited for.
        _ if way == Way::Exec && trouble.is_an_opening() => Some(Doubt::Due),
        _ => Some(Doubt::Waited(format!("a deadline was needed to end it: {}", told()))),
    }
}

/// What is wrong with an error that has another cause than the one that was put in. On a machine that has no time to
/// spare a deadline may be that cause, so such a case is tried again by itself.
pub(crate) const LOST: &str = "the system's error is lost";

/// How long the waits of a case may be: short where something is waited for in vain, long where the guest must arrive.
pub(crate) fn patience(trouble: &Trouble, way: Way, mode: Mode) -> Duration {
    match trouble.kind() {
        Kind::Reordered => Duration::from_secs(20 * SLOWNESS),
        Kind::Doubled => Duration::from_secs(3 * SLOWNESS),
        _ if way == Way::Exec || way.is_slow() => Duration::from_secs(3 * SLOWNESS),
        // Three handshakes of an unoptimised build, with others beside them.
        _ if mode.has_tls() => Duration::from_millis(2000 * SLOWNESS),
        // More than a failed destination waits for its source to hang up, which is a second.
        _ => Duration::from_millis(1500 * SLOWNESS),
    }
}

/// Looks at both ends of a live migration.
pub(crate) fn live(
    trouble: &Trouble,
    way: Way,
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
    check(reaches(trouble, mode, ended), LOST)?;
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
        let may = falsified || trouble.swallows_the_verdict(way);
        check(may && !mode.has_tls(), "two owners")?;
        return Ok(Word::WrongVerdict);
    }
    match &ended.sent {
        Ok(outcome) => {
            check(!runs_here, "completed, and the guest was not stopped")?;
            check(outcome.confirmed == mode.has_return_path(), "confirmed by nobody")?;
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

/// Whether the error that was put in is in the chain of what its end says.
fn reaches(trouble: &Trouble, mode: Mode, ended: &Ended) -> bool {
    let Some((end, errno)) = trouble.errno() else { return true };
    let outcome = if end == End::Source { &ended.sent } else { &ended.received };
    // Under load a deadline of the other end may come first.
    !ended.faults[usize::from(end == End::Destination)].struck()
        || outcome.as_ref().err().is_none_or(|error| names(error, trouble, errno))
        || trouble.is_a_strangers(mode)
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
