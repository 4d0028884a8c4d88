//! A replayer with any file, against any destination: a broken file never looks complete.
//!
//! ```text
//!   0 options │ 1 length of the answers │ answers │ then pieces of a stream, as for a recorder
//! ```

use std::io::Cursor;

use mig_engine::{Owner, ReplayOptions, Replayer, ReturnPathWish};
use mig_proto::{Decoder, Options, Step, UnknownIterables};
use mig_testkit::memory_pair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Clock, meeting::Ready, next, pieces, record, take};

/// The target.
pub fn replayer(data: &[u8]) {
    let Some((&[flags, len], mut script)) = data.split_first_chunk() else { return };
    let answers = answers(take(&mut script, usize::from(len % 32)));
    let file = record::stream(script);
    let mut options = ReplayOptions::default();
    options.return_path =
        if flags & 1 == 0 { ReturnPathWish::Always } else { ReturnPathWish::Never };
    options.deadlines = Clock::Real.deadlines();
    let wanted = options.return_path == ReturnPathWish::Always;
    let replayer = Replayer::new(options);
    let handle = replayer.handle();
    let (mut ours, theirs) = memory_pair(64 * 1024);
    let connector = Ready::new(vec![theirs]);
    let input = Box::new(Cursor::new(file.clone()));
    let (outcome, heard) = Clock::Real.run(async {
        let playing = async {
            let mut sender = ours.take_sender().expect("both halves");
            let mut receiver = ours.take_receiver().expect("both halves");
            let early = flags & 2 != 0;
            if early {
                let _ = sender.write_all(&answers).await;
            }
            if flags & 4 != 0 {
                handle.cancel();
            }
            let mut heard = Vec::new();
            let mut buffer = [0; 4096];
            let mut answered = early;
            while let Ok(len @ 1..) = receiver.read(&mut buffer).await {
                heard.extend_from_slice(&buffer[..len]);
                if !answered && is_complete(&heard) {
                    answered = true;
                    let _ = sender.write_all(&answers).await;
                }
            }
            heard
        };
        tokio::join!(replayer.run(&connector, input, "fuzz"), playing)
    });
    match outcome {
        Ok(replayed) => {
            assert!(is_complete(&heard), "a success, and the destination has no whole stream");
            assert_eq!(replayed.confirmed, wanted);
            assert_eq!(replayed.bytes, heard.len() as u64);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if is_complete(&heard) {
                assert!(
                    error.owner() != Owner::Source
                        || answers_no(&answers)
                        || flags & 6 != 0
                        || !is_complete(&file),
                    "all was sent, and the file calls itself the owner: {error}"
                );
            }
        }
    }
}

fn answers(mut script: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    while let Some(which) = next(&mut script) {
        pieces::answer(&mut answers, which, next(&mut script).unwrap_or(0));
    }
    answers
}

/// Whether some answer can end the migration badly.
fn answers_no(answers: &[u8]) -> bool {
    answers.is_empty() || answers != [0, 1, 0, 4, 0, 0, 0, 0]
}

/// Whether a destination would take these bytes for a stream that is complete, as far as its final EOF.
fn is_complete(bytes: &[u8]) -> bool {
    let mut options = Options::default();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    let mut decoder = Decoder::new(options);
    let mut at = 0;
    loop {
        match decoder.finish(&bytes[at..]) {
            Ok(Step::Event { consumed, .. }) => at += consumed,
            Ok(Step::Finished) => return true,
            Ok(Step::NeedMore { .. }) => unreachable!("finish never asks"),
            Err(_) => return false,
        }
    }
}
