//! A recorder against any source: what it keeps is a whole stream, and says what came.
//!
//! ```text
//!   0 options │ then pieces of a stream, as for a destination
//! ```

use std::{
    io,
    sync::{Arc, Mutex},
};

use mig_engine::{RecordOptions, Recorder, StreamSink};
use mig_proto::{Command, Decoder, Event, Options, Step, UnknownIterables, return_path::Message};
use mig_testkit::memory_pair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Clock, meeting::Arriving, next, pieces, take};

/// The target.
pub fn recorder(data: &[u8]) {
    let Some((&flags, script)) = data.split_first() else { return };
    let mut options = RecordOptions::default();
    options.return_path = flags & 1 == 0;
    options.switchover_ack = flags & 2 != 0;
    options.deadlines = Clock::Real.deadlines();
    let kept = Kept::default();
    let recorder = Recorder::new(options);
    let handle = recorder.handle();
    let (mut ours, theirs) = memory_pair(64 * 1024);
    let (mut listener, door) = Arriving::new();
    door.send(theirs).expect("the listener is there");
    let stream = stream(script);
    let cancel_at = (flags & 4 != 0).then_some(stream.len() / 2);
    let (outcome, said) = Clock::Real.run(async {
        let recording = async {
            let outcome = recorder.run(&mut listener, Box::new(kept.clone()), None).await;
            drop(listener);
            outcome
        };
        let playing = async {
            let mut sender = ours.take_sender().expect("both halves");
            let mut receiver = ours.take_receiver().expect("both halves");
            let (front, behind) = stream.split_at(cancel_at.unwrap_or(0));
            let (mut said, writing) = (Vec::new(), async {
                let _ = sender.write_all(front).await;
                if cancel_at.is_some() {
                    handle.cancel();
                }
                let _ = sender.write_all(behind).await;
                drop(sender);
            });
            let (_, _) = tokio::join!(receiver.read_to_end(&mut said), writing);
            said
        };
        tokio::join!(recording, playing)
    });
    let told = said.ends_with(&Message::Shut { status: 0 }.to_bytes());
    match (kept.committed(), outcome) {
        (Some(bytes), outcome) => {
            check(&bytes);
            if let Ok(recorded) = outcome {
                assert_eq!(recorded.bytes, bytes.len() as u64);
                assert_eq!(recorded.confirmed, told);
            }
        }
        (None, Ok(recorded)) => panic!("a success that kept nothing: {recorded:?}"),
        (None, Err(error)) => {
            assert!(!told, "the source was told yes: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Pieces that are known, and bytes as they are.
pub(super) fn stream(mut script: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some(which) = next(&mut script) {
        if which < 0xc0 {
            pieces::main_channel(&mut stream, which, next(&mut script).unwrap_or(0));
        } else {
            let bytes = take(&mut script, usize::from(which & 0x3f));
            stream.extend_from_slice(bytes);
        }
    }
    stream
}

/// What was kept can be decoded to its end, and speaks to nobody.
fn check(kept: &[u8]) {
    let mut options = Options::default();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    let mut decoder = Decoder::new(options);
    let mut at = 0;
    loop {
        let step = decoder.finish(&kept[at..]);
        match step.unwrap_or_else(|error| panic!("what was kept cannot be read: {error}")) {
            Step::Event { consumed, event } => {
                at += consumed;
                let speaks = matches!(
                    event,
                    Event::Command(
                        Command::OpenReturnPath | Command::Ping(_) | Command::PostcopyAdvise(_)
                    ) | Event::Hook(_)
                        | Event::MultifdFlush(_)
                );
                assert!(!speaks, "kept: {event:?}");
            }
            Step::Finished => break,
            Step::NeedMore { .. } => unreachable!("finish never asks"),
        }
    }
}

/// A sink in memory.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<u8>, bool)>>);

impl Kept {
    fn committed(&self) -> Option<Vec<u8>> {
        let state = self.0.lock().expect("nobody panics while holding it");
        state.1.then(|| state.0.clone())
    }
}

impl StreamSink for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().expect("nobody panics while holding it").0.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.0.lock().expect("nobody panics while holding it").1 = true;
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}
