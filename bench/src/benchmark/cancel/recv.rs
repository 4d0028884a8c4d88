//! `mig recv`, in each of its waits.

use std::{io::Write, net::TcpStream, os::unix::net::UnixStream, rc::Rc};

use super::{
    far::{self, Writer},
    namespace::{Doing, strand},
    scene::{Scene, Stage},
    situation::Situation,
};
use crate::{child::STEP, failure::Result, watch::Watch};

pub(super) fn situations(stage: &Rc<Stage>) -> Vec<Situation> {
    vec![
        stage
            .situation("recv: a name server does not answer", "", |stage, scene| {
                let arguments = ["recv", "tcp:far.example:4444", "--json"];
                strand(scene, &stage.program, &arguments, Doing::Resolving)
            })
            .where_possible(),
        stage.situation("recv: nobody comes", "", |stage, scene| {
            scene.start(&stage.program, &["recv", "tcp:127.0.0.1:0", "--json"])?;
            scene.listening()?;
            Ok(())
        }),
        stage.situation("recv: whoever came says nothing", "a socket", |stage, scene| {
            scene.start(&stage.program, &["recv", "tcp:127.0.0.1:0", "--json"])?;
            connected(scene)
        }),
        stage.situation(
            "recv: whoever came begins no TLS handshake",
            "a socket",
            |stage, scene| {
                let tls = stage.certificates().display().to_string();
                let arguments = ["recv", "tcp:127.0.0.1:0", "--json", "--tls-creds", &tls];
                scene.start(&stage.program, &arguments)?;
                connected(scene)
            },
        ),
        stage.situation("recv: exec: that says nothing and ignores SIGTERM", "", |stage, scene| {
            let ready = scene.prop("ready");
            let uri = format!(
                "exec:trap '' TERM INT HUP PIPE; echo > '{}'; while :; do sleep 1000; done",
                ready.display()
            );
            scene.start(&stage.program, &["recv", &uri, "--json"])?;
            scene.until(|_| ready.exists())
        }),
        stage.situation("recv: the rest of a stream does not come", "a socket", |stage, scene| {
            scene.start(&stage.program, &["recv", "tcp:127.0.0.1:0", "--json"])?;
            let mut source = connect(scene)?;
            let round = Stage::SHORT.round(1);
            // Up to the middle of a page.
            let begun = [Stage::SHORT.head(), round[..round.len() / 2].to_vec()].concat();
            source.write_all(&begun)?;
            scene.watched(Watch::hang_up(&source)?);
            scene.keep(source);
            Ok(())
        }),
        stage.situation("recv: saving to a disk at full speed", "a socket", |stage, scene| {
            let stored = scene.path("stored").display().to_string();
            let arguments = ["recv", "tcp:127.0.0.1:0", "--json", "--save", &stored];
            scene.start(&stage.program, &arguments)?;
            let source = connect(scene)?;
            let writer = Writer::start(source, Stage::LONG.head(), Stage::LONG.round(5))?;
            writer.is_under_way()?;
            scene.watched(writer.refused());
            Ok(())
        }),
        stage.situation("recv: saving to a pipe that nobody reads", "a socket", |stage, scene| {
            let (pipe, socket) = (scene.prop("pipe"), scene.path("socket"));
            let kept = far::clogged(&pipe)?;
            let uri = format!("unix:{}", socket.display());
            let program = stage.program.display().to_string();
            let script = "exec \"$0\" recv \"$1\" --save - > \"$2\"";
            let pipe = pipe.display().to_string();
            scene.start_as("sh", &["-c", script, &program, &uri, &pipe])?;
            // stdout is the pipe.
            scene.tells = false;
            let mut source = None;
            scene.until(|_| {
                source = UnixStream::connect(&socket).ok();
                source.is_some()
            })?;
            let source = source.ok_or("it listened a moment ago")?;
            source.set_write_timeout(Some(STEP))?;
            let writer = Writer::start(source, Stage::LONG.head(), Stage::LONG.round(7))?;
            writer.is_stuck()?;
            scene.watched(writer.refused());
            scene.keep(kept);
            Ok(())
        }),
    ]
}

fn connect(scene: &mut Scene) -> Result<TcpStream> {
    let uri = scene.listening()?;
    let there = uri.strip_prefix("tcp:").ok_or("it listens on tcp")?;
    let source = TcpStream::connect(there)?;
    source.set_write_timeout(Some(STEP))?;
    Ok(source)
}

/// Somebody who is connected and silent.
fn connected(scene: &mut Scene) -> Result<()> {
    let stranger = connect(scene)?;
    scene.watched(Watch::hang_up(&stranger)?);
    scene.keep(stranger);
    Ok(())
}
