//! What must hold when `mig send` or `mig recv --save` was killed.

use std::{
    fs::{self, File},
    process::ExitStatus,
};

use mig_tests::process::Process;
use rustix::fs::FlockOperation;
use serde_json::Value;

use super::{BOUND, Kill, WAITED, joint::Joint, strangers};
use crate::{cases::End, judge::Word, stored::check_kept, way::Way};

/// How one end ended.
struct Told {
    status: ExitStatus,
    text: String,
    /// Its last word, if it came to that.
    last: Value,
}

impl Told {
    /// Bounded, and with a word if it failed.
    fn by(process: &mut Process) -> Result<Self, String> {
        let status = ends(process)?;
        let text = process.stderr().all(BOUND);
        let mut objects = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let last = objects.next_back().unwrap_or_default();
        Ok(Self { status, text, last })
    }

    fn confirmed(&self) -> bool {
        self.last["confirmed"] == true
    }

    /// What it waited for until a deadline ended it.
    fn waited(&self) -> Option<&str> {
        let message = self.last["error"]["message"].as_str().unwrap_or_default();
        (self.status.code() == Some(5) || message.contains("(deadline ")).then_some(message)
    }
}

/// `mig send` and `mig recv --save`, which have both ended.
pub(super) fn judge(
    joint: &Joint<'_>,
    [send, recv]: [&mut Process; 2],
    killed: Option<End>,
) -> Result<Word, String> {
    let dead = recv.id();
    let sent = (killed != Some(End::Source)).then(|| Told::by(send)).transpose()?;
    let kept = (killed != Some(End::Destination)).then(|| Told::by(recv)).transpose()?;
    let words = format!("{} / {}", send.stderr().text(), recv.stderr().text());
    let check = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{what}: {words}; files: {:?}", joint.scratch.names())),
    };
    let whole = whole(joint)?;
    if let Some(kept) = &kept {
        // The one exception: it has everything, and could not say so.
        let untold = words.contains("is kept and complete, but the source could not be told");
        check(kept.status.success() == (whole && !untold), "recv's word and its file differ")?;
    }
    if let Some(sent) = &sent {
        check(!sent.confirmed() || whole, "send was told that it is kept, and it is not")?;
        let sure = sent.confirmed() || !joint.mode.has_return_path();
        check(!sent.status.success() || sure, "send took it for kept without having been told")?;
    }
    let waited = [&sent, &kept].into_iter().flatten().find_map(Told::waited);
    if let Some(message) = waited {
        let for_a_source = message.contains("waiting for a source to connect");
        check(joint.may_wait(killed, for_a_source), WAITED)?;
    }
    let kills_recv = killed == Some(End::Destination);
    let left = strangers(joint, |name| {
        name == "FILE" || (kills_recv && (name == "s" || is_leftover(name)))
    });
    check(left.is_empty(), &format!("{left:?} is left"))?;
    if kills_recv {
        next_run(joint, dead).map_err(|why| format!("the next run: {why}"))?;
    }
    let unknown = words.contains("ask the destination before starting the guest");
    let success = sent.as_ref().map(|sent| sent.status.success());
    Ok(match waited.is_some() {
        _ if whole && success != Some(false) => Word::Arrived,
        true if unknown => Word::WaitedUnknown,
        false if unknown => Word::Unknown,
        _ if success == Some(true) => Word::NotConfirmed,
        // Also if there is a FILE: its receiver was killed before it could vouch for it.
        true => Word::WaitedAtSource,
        false => Word::AtSource,
    })
}

/// `mig send` to a file, or `mig recv --save` from it.
pub(super) fn judge_alone(
    joint: &Joint<'_>,
    mut process: Process,
    end: End,
    kill: Option<Kill>,
) -> Result<Word, String> {
    let killed = kill.is_some_and(|kill| kill.end == end);
    let dead = process.id();
    let told = if killed { None } else { Some(Told::by(&mut process)?) };
    if let Some(told) = &told
        && !told.status.success()
    {
        return Err(format!("it failed: {}: {}", told.status, told.text));
    }
    let arrived = match end {
        End::Source => is_whole(joint, "f")?,
        End::Destination => whole(joint)?,
    };
    if told.is_some() && !arrived {
        return Err("it ended well, and its file is not whole".to_owned());
    }
    let left = strangers(joint, |name| {
        end == End::Destination && (name == "FILE" || (killed && is_leftover(name)))
    });
    if !left.is_empty() {
        return Err(format!("{left:?} is left"));
    }
    if killed {
        next_run(joint, dead).map_err(|why| format!("the next run: {why}"))?;
    }
    Ok(if arrived { Word::Arrived } else { Word::AtSource })
}

/// Whether FILE is there; it is whole then.
fn whole(joint: &Joint<'_>) -> Result<bool, String> {
    match fs::read(joint.scratch.path("FILE")) {
        Err(_) => Ok(false),
        Ok(kept) => check_kept(&kept, &joint.kit.stream, false).map(|_same| true),
    }
}

/// Whether a file that is written in place can pass for the whole; if it does it is.
fn is_whole(joint: &Joint<'_>, name: &str) -> Result<bool, String> {
    let kept = fs::read(joint.scratch.path(name)).unwrap_or_default();
    match check_kept(&kept, &joint.kit.stream, false) {
        Ok(_same) => Ok(true),
        Err(why) if why.contains("looks complete and is not") => Ok(false),
        Err(why) => Err(why),
    }
}

/// What a killed receiver left is removed, what a living one has is not; what a killed writer left is written anew.
fn next_run(joint: &Joint<'_>, dead: u32) -> Result<(), String> {
    let stream = &joint.kit.stream;
    let left = joint.scratch.path(&format!(".FILE.{dead}.mig-partial"));
    fs::write(&left, &stream[..stream.len() / 2]).expect("a file");
    let alive = joint.scratch.path(&format!(".FILE.{}.mig-partial", std::process::id()));
    let held = File::create(&alive).expect("a file");
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    let [from, to] = joint.plugs();
    let (mut send, mut recv);
    if joint.way == Way::File {
        send = joint.start(End::Source, from, None);
        send.ends_within(BOUND).ok_or("send: no end")?;
        recv = joint.start(End::Destination, to, None);
    } else {
        recv = joint.start(End::Destination, to, None);
        let from = from.at(joint.listening(&recv));
        send = joint.start(End::Source, from, None);
    }
    let (sent, kept) = (ends(&mut send)?, ends(&mut recv)?);
    if !(sent.success() && kept.success()) {
        let words = [send.stderr().text(), recv.stderr().text()];
        return Err(format!("it failed: {sent}, {kept}: {words:?}"));
    }
    if !whole(joint)? {
        return Err("no file".into());
    }
    if left.exists() {
        return Err("a dead process's temporary is still there".into());
    }
    if !alive.exists() {
        return Err("a living process's temporary is gone".into());
    }
    fs::remove_file(&alive).expect("it is there");
    match strangers(joint, |name| name == "FILE") {
        names if names.is_empty() => Ok(()),
        names => Err(format!("files are left: {names:?}")),
    }
}

/// Bounded, and with a word if it failed.
pub(super) fn ends(process: &mut Process) -> Result<ExitStatus, String> {
    let name = process.name().to_owned();
    let status = process.ends_within(BOUND).ok_or_else(|| format!("{name}: no end"))?;
    let words = process.stderr().all(BOUND);
    match status.code() {
        Some(0) => Ok(status),
        Some(_) if !words.trim().is_empty() && !words.contains("panicked") => Ok(status),
        _ => Err(format!("{name} ended with {status}: {words:?}")),
    }
}

/// What a `recv` that was killed leaves beside FILE.
fn is_leftover(name: &str) -> bool {
    let middle = name.strip_prefix(".FILE.").and_then(|rest| rest.strip_suffix(".mig-partial"));
    middle.is_some_and(|middle| middle.split('.').all(|part| part.parse::<u32>().is_ok()))
}
