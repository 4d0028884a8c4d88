//! Every end is a future that any thread may run, so `tokio::spawn` takes it. Nothing runs here: that it compiles is the test.

use std::io::Cursor;

use mig_engine::{Discard, RecordOptions, Recorder, ReplayOptions, Replayer};

use crate::support::{Arriving, Pair, Ready, channels};

fn any_thread_may_run<T: Send>(_end: T) {}

#[tokio::test]
async fn every_end_can_be_spawned() {
    let Pair { mut source, mut destination, .. } = Pair::new();
    let (out, into) = channels();
    let (out, mut into) = (Ready::new(out), Arriving::new([into]));
    any_thread_may_run(source.run(&out));
    any_thread_may_run(destination.run(&mut into));
    let input = Box::new(Cursor::new(Vec::new()));
    any_thread_may_run(Replayer::new(ReplayOptions::default()).run(&out, input, "nothing"));
    let recorder = Recorder::new(RecordOptions::default());
    any_thread_may_run(recorder.run(&mut into, Box::new(Discard), None));
}
