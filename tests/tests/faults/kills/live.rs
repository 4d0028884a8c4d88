//! What must hold when an end of a live migration was killed.

use std::fs;

use mig_tests::process::Process;

use super::{BOUND, BYTES_PER_SEC, Kill, WAITED, child::NEVER_STOPPED, joint::Joint, strangers};
use crate::{cases::End, judge::Word, stored::check_kept, way::Way};

/// What one end has said, all of it.
struct Said {
    text: String,
    survived: bool,
}

impl Said {
    fn by(process: &mut Process, survived: bool) -> Result<Self, String> {
        let text = process.stderr().all(BOUND);
        let (name, status) = (process.name().to_owned(), process.try_wait());
        let sound = status.is_some_and(|status| status.success()) && text.contains("ended: ");
        if (survived && !sound) || text.contains("wrong: ") {
            return Err(format!("{name} ended with {status:?}: {text}"));
        }
        Ok(Self { text, survived })
    }

    fn has(&self, words: &str) -> bool {
        self.text.contains(words)
    }

    fn started(&self) -> bool {
        self.has("guest started")
    }

    /// Which deadline ended it, if one did.
    fn wait(&self) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix("waited: "))
    }
}

/// The source and the destination of one migration, which have both ended.
pub(super) fn judge(
    joint: &Joint<'_>,
    [source, destination]: [&mut Process; 2],
    killed: Option<End>,
) -> Result<Word, String> {
    let source = Said::by(source, killed != Some(End::Source))?;
    let destination = Said::by(destination, killed != Some(End::Destination))?;
    let check = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{what}: {:?} / {:?}", source.text, destination.text)),
    };
    let started = destination.started();
    let keeps = source.has("ended: owner Source");
    let confirmed = source.has("ended: completed");
    let unconfirmed = source.has("ended: sent, not confirmed");
    check(!(started && keeps), "two owners")?;
    // The end of the stream leaves behind a stopped guest only.
    check(keeps || !source.has(NEVER_STOPPED), "a guest that ran on is not its source's")?;
    check(!confirmed || joint.mode.has_return_path(), "confirmed by nobody")?;
    check(!unconfirmed || !joint.mode.has_return_path(), "not confirmed, and it was to be")?;
    if destination.survived {
        // One that was killed may have said yes a moment before it would have started its guest.
        check(!confirmed || started, "confirmed, and it was not started")?;
        check(destination.has("ended: completed") == started, "its word and its guest differ")?;
    }
    let waited = source.wait().or(destination.wait());
    if let Some(wait) = waited {
        let for_a_source = ["accept", "first-byte", "handshake"].contains(&wait);
        let may = joint.may_wait(killed, for_a_source && source.wait().is_none());
        check(may, WAITED)?;
    }
    let killed_listener = killed == Some(End::Destination);
    let left = strangers(joint, |name| killed_listener && name == "s");
    check(left.is_empty(), &format!("files are left: {left:?}"))?;
    if killed_listener && joint.way == Way::Unix {
        // A killed listener's socket is stale: the next one takes its place.
        let [_, plug] = joint.plugs();
        drop(joint.listening(&joint.start(End::Destination, plug, None)));
    }
    Ok(match waited.is_some() {
        _ if started => Word::Arrived,
        // Of a killed source nobody knows but the destination: it has nothing.
        true if keeps || killed == Some(End::Source) => Word::WaitedAtSource,
        false if keeps || killed == Some(End::Source) => Word::AtSource,
        _ if unconfirmed => Word::NotConfirmed,
        true => Word::WaitedUnknown,
        false => Word::Unknown,
    })
}

/// The source that wrote a file, or the destination that read it.
pub(super) fn judge_alone(
    joint: &Joint<'_>,
    mut process: Process,
    end: End,
    kill: Option<Kill>,
) -> Result<Word, String> {
    let killed = kill.is_some_and(|kill| kill.end == end);
    let said = Said::by(&mut process, !killed)?;
    if let Some(wait) = said.wait() {
        return Err(format!("{WAITED}: {wait}: {}", said.text));
    }
    let file = joint.scratch.path("f");
    let kept = fs::read(&file).unwrap_or_default();
    let whole = check_kept(&kept, &joint.kit.stream, false);
    let left = strangers(joint, |_| false);
    if !left.is_empty() {
        return Err(format!("files are left: {left:?}"));
    }
    match end {
        End::Source => {
            if said.has("ended: sent, not confirmed") != whole.is_ok() && !killed {
                return Err(format!("its word and its file differ: {whole:?}: {}", said.text));
            }
            if said.has("ended: ") && whole.is_err() {
                return Err(format!("it ended, and the file is not whole: {whole:?}"));
            }
            if killed {
                // The next one writes the whole of it, and who reads that has it.
                load_again(joint, true)?;
            }
            Ok(if whole.is_ok() { Word::Arrived } else { Word::AtSource })
        }
        End::Destination => {
            if !killed && !said.started() {
                return Err(format!("nothing arrived: {}", said.text));
            }
            whole.map_err(|why| format!("a reader has changed the file: {why}"))?;
            if killed {
                load_again(joint, false)?;
            }
            // Where it was not, it still lies in the file.
            Ok(if said.started() { Word::Arrived } else { Word::NotConfirmed })
        }
    }
}

fn load_again(joint: &Joint<'_>, write: bool) -> Result<(), String> {
    let ends = [End::Source, End::Destination];
    for end in ends.into_iter().skip(usize::from(!write)) {
        let [from, to] = joint.plugs();
        let plug = if end == End::Source { from } else { to };
        let mut process = joint.start(end, plug, Some(8 * BYTES_PER_SEC));
        process.ends_within(BOUND).ok_or("the next run: no end")?;
        let said = Said::by(&mut process, true).map_err(|why| format!("the next run: {why}"))?;
        if end == End::Destination && !said.started() {
            return Err(format!("the next run: nothing arrived: {}", said.text));
        }
    }
    Ok(())
}
