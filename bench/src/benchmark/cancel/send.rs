//! `mig send`, in each of its waits.

use std::{
    fs,
    io::{Read, Write},
    rc::Rc,
};

use rustix::{
    event::PollFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    far::{self, Silent, Writer},
    namespace::{Doing, strand},
    scene::{Scene, Stage},
    situation::Situation,
};
use crate::{
    child::STEP,
    failure::Result,
    watch::{Watch, until},
};

/// A command that reads nothing and answers nobody's wish to end but the kernel's.
const STUBBORN: &str = "trap '' TERM INT HUP PIPE; while :; do sleep 1000; done";
/// One that takes everything and does not end.
const LINGERING: &str = "cat > /dev/null; exec sleep 1000";

pub(super) fn situations(stage: &Rc<Stage>) -> Vec<Situation> {
    vec![
        stage
            .situation("send: a name server does not answer", "", |stage, scene| {
                let arguments = ["send", &stage.short(), "tcp:far.example:4444", "--json"];
                strand(scene, &stage.program, &arguments, Doing::Resolving)
            })
            .where_possible(),
        stage
            .situation("send: connecting to a host that is not there", "", |stage, scene| {
                let arguments = ["send", &stage.short(), "tcp:192.0.2.9:4444", "--json"];
                strand(scene, &stage.program, &arguments, Doing::Connecting)
            })
            .where_possible(),
        stage.situation("send: the queue of a unix socket is full", "", |stage, scene| {
            let socket = scene.prop("socket");
            let queue = far::full_queue(&socket)?;
            scene.keep(queue);
            let uri = format!("unix:{}", socket.display());
            scene.start(&stage.program, &["send", &stage.short(), &uri, "--json"])?;
            scene.until_it_listens_to_signals()
        }),
        stage.situation(
            "send: opening a stored stream that is a pipe without a writer",
            "",
            |stage, scene| {
                let (pipe, there) = (scene.prop("pipe"), Silent::new()?);
                far::fifo(&pipe)?;
                let pipe = pipe.display().to_string();
                scene.start(&stage.program, &["send", &pipe, &there.uri()?, "--json"])?;
                scene.keep(there);
                scene.until_it_listens_to_signals()
            },
        ),
        stage.situation(
            "send: a TLS handshake that is not answered",
            "a socket",
            |stage, scene| {
                let there = Silent::new()?;
                let (uri, tls) = (there.uri_by_name()?, stage.certificates().display().to_string());
                let arguments = ["send", &stage.short(), &uri, "--json", "--tls-creds", &tls];
                scene.start(&stage.program, &arguments)?;
                let mut channel = there.accept()?;
                // Its first word: the handshake is under way.
                channel.read_exact(&mut [0])?;
                scene.watched(Watch::hang_up(&channel)?);
                scene.keep(channel);
                Ok(())
            },
        ),
        stage.situation("send: a full socket", "a socket that is read again", |stage, scene| {
            let there = Silent::new()?;
            let uri = there.uri()?;
            scene.start(&stage.program, &["send", &stage.long(), &uri, "--json"])?;
            let channel = there.accept()?;
            far::fills(&channel)?;
            scene.is_read_again_afterwards(channel);
            Ok(())
        }),
        stage.situation(
            "send: exec: that reads nothing and ignores SIGTERM",
            "the command",
            |stage, scene| command(stage, scene, &stage.long(), STUBBORN),
        ),
        stage.situation("send: exec: that does not end", "the command", |stage, scene| {
            command(stage, scene, &stage.short(), LINGERING)
        }),
        stage.situation("send: 1 byte/s", "a socket", |stage, scene| {
            let there = Silent::new()?;
            let uri = there.uri()?;
            let slow = ["--max-bandwidth", "1"];
            let arguments = ["send", &stage.long(), &uri, "--json"];
            scene.start(&stage.program, &[&arguments[..], &slow].concat())?;
            // The first bytes may leave in half a minute.
            let channel = there.accept()?;
            scene.watched(Watch::hang_up(&channel)?);
            scene.keep(channel);
            Ok(())
        }),
        stage.situation("send: stdin gives nothing more", "a socket", |stage, scene| {
            let there = Silent::new()?;
            scene.start(&stage.program, &["send", "-", &there.uri()?, "--json"])?;
            let mut stdin = scene.stdin()?;
            stdin.write_all(&Stage::SHORT.head())?;
            scene.keep(stdin);
            let channel = there.accept()?;
            until(&channel, PollFlags::IN, STEP)?;
            scene.watched(Watch::hang_up(&channel)?);
            scene.keep(channel);
            Ok(())
        }),
        stage.situation("send: no verdict comes", "a socket", |stage, scene| {
            let there = Silent::new()?;
            scene.start(&stage.program, &["send", &stage.short(), &there.uri()?, "--json"])?;
            let channel = there.accept()?;
            // All of it: it is small.
            far::fills(&channel)?;
            scene.watched(Watch::hang_up(&channel)?);
            scene.keep(channel);
            Ok(())
        }),
        stage.situation(
            "send: to a file on disk, without end",
            "who writes its stdin",
            |stage, scene| {
                // Written in place, as by QEMU: what is there afterwards has no end, and is no stream.
                let uri = format!("file:{}", scene.prop("stored").display());
                scene.start(&stage.program, &["send", "-", &uri, "--json"])?;
                let stdin = scene.stdin()?;
                let writer = Writer::start(stdin, Stage::LONG.head(), Stage::LONG.round(3))?;
                writer.is_under_way()?;
                scene.watched(writer.refused());
                Ok(())
            },
        ),
    ]
}

fn command(stage: &Stage, scene: &mut Scene, file: &str, command: &str) -> Result<()> {
    let ready = scene.prop("ready");
    let uri = format!("exec:echo $$ > '{}'; {command}", ready.display());
    scene.start(&stage.program, &["send", file, &uri, "--json"])?;
    let mut pid = None;
    scene.until(|_| {
        let said = fs::read_to_string(&ready).unwrap_or_default();
        pid = said.strip_suffix('\n').and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        pid.is_some()
    })?;
    let pid = pid.ok_or("a command has a process id")?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    scene.watched(Watch::start(move || until(&ended, PollFlags::IN, 2 * STEP))?);
    Ok(())
}
