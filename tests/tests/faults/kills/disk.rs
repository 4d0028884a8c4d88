//! `recv --save` and `send` to `file:` where the disk has no room: a tmpfs of some pages, in a namespace of its own.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use mig_tests::{
    mig::{Mig, command},
    process::Process,
    scratch::Scratch,
};

use super::{BOUND, tool::ends};
use crate::{cases::Kind, judge::Word, live, mode::Mode, table::Tally, way::Way};

/// Who meets a full disk.
pub(crate) const FULL_DISKS: [(Way, Mode); 2] =
    [(Way::Unix, Mode::Stored), (Way::File, Mode::StoredPlain)];

/// A disk of some pages, in a namespace of its own.
pub(crate) fn a_full_disk() {
    let kept = Scratch::new();
    let stored = kept.path("stored");
    let stream = live::small_stream();
    fs::write(&stored, &stream).expect("a file");
    let may = Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "none", &kept.root().display().to_string()])
        .output();
    if !may.as_ref().is_ok_and(|tried| tried.status.success()) {
        let why = may.map_or_else(
            |error| error.to_string(),
            |tried| String::from_utf8_lossy(&tried.stderr).into_owned(),
        );
        return mig_tests::report::not_applicable("network-namespace", &why);
    }
    Tally::conclude(FULL_DISKS.map(|(way, mode)| {
        let mut tally = Tally::new(way, mode);
        for kib in [4, 16, 64, 100, 120] {
            let word = match way {
                Way::File => full_file(&stored, kib),
                _ => full_recv(&stored, kib),
            };
            tally.add_word(Kind::FullDisk, word);
        }
        tally
    }));
}

/// Mounts a disk of `kib` KiB on DISK and runs `words` there; what is in the disk then is on stdout.
fn on_a_disk(disk: &Path, kib: u32, words: &[&str]) -> Process {
    let script = "mount -t tmpfs -o size=\"$1\"k none \"$2\" || exit 99; disk=$2; shift 2; \
                  \"$@\"; code=$?; ls -A \"$disk\"; \
                  if [ -e \"$disk/out\" ]; then \"$1\" inspect \"$disk/out\" >/dev/null 2>&1; \
                  echo \"inspect $?\"; fi; exit $code";
    let tool = command(&[]);
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c", script, "sh", &kib.to_string()])
        .arg(disk)
        .arg(tool.get_program())
        .args(words)
        .stdin(Stdio::null());
    Process::start("on a small disk", command, true)
}

fn full_recv(stored: &Path, kib: u32) -> Result<Word, String> {
    let scratch = Scratch::new();
    let disk = scratch.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let uri = format!("unix:{}", scratch.path("s").display());
    let file = disk.join("FILE").display().to_string();
    let mut recv = on_a_disk(&disk, kib, &["recv", &uri, "--save", &file]);
    recv.stderr().wait_for("`listening on`", BOUND, mig_tests::mig::listening_in);
    let mut send = Mig::start("send", &["send", &stored.display().to_string(), &uri]);
    let (sent, kept) = (ends(&mut send.process)?, ends(&mut recv)?);
    let (words, left) = (recv.stderr().text(), recv.stdout().text());
    if kept.code() != Some(1) || !words.contains("(os error 28)") {
        return Err(format!("{kib} KiB: recv ended with {kept}: {words}"));
    }
    if sent.success() {
        return Err(format!("{kib} KiB: send was told that it is kept"));
    }
    if !left.trim().is_empty() {
        return Err(format!("{kib} KiB: left on the disk: {left}"));
    }
    Ok(Word::AtSource)
}

fn full_file(stored: &Path, kib: u32) -> Result<Word, String> {
    let scratch = Scratch::new();
    let disk = scratch.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let uri = format!("file:{}", disk.join("out").display());
    let stored = stored.display().to_string();
    let mut send = on_a_disk(&disk, kib, &["send", &stored, &uri]);
    let sent = ends(&mut send)?;
    let (words, left) = (send.stderr().text(), send.stdout().text());
    if sent.code() != Some(1) || !words.contains("(os error 28)") {
        return Err(format!("{kib} KiB: send ended with {sent}: {words}"));
    }
    // A part of it stays, as with QEMU, and does not pass for the whole.
    if left.contains("inspect 0") {
        return Err(format!("{kib} KiB: what is left looks complete: {left}"));
    }
    Ok(Word::AtSource)
}
