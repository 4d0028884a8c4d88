//! A stored stream is replayed into a recorder: no file that looks complete and is not, whatever fails, the disk included.

use std::{
    fs,
    io::{self, Cursor},
    sync::Arc,
    time::Duration,
};

use mig::engine::{
    Error, MultifdOptions, Owner, RecordOptions, Recorded, Recorder, ReplayOptions, Replayed,
    Replayer, ReturnPathWish, StreamSink, StreamWalk, walk_stored,
};
use mig::proto::{Options, Presence};
use mig_testkit::faults::{Faults, LinkFault, Operation};
use mig_tests::{scratch::Scratch, stream};

use crate::{
    cases::{End, Kind, Trouble},
    judge::{LOST, Word, chain, names},
    live::{self, PIECE},
    mode::Mode,
    way::Way,
};

/// The file that is recorded into.
pub(crate) const FILE: &str = "FILE";

/// What became of a replay.
pub(crate) struct Ended {
    pub(crate) sent: Result<Replayed, Error>,
    pub(crate) kept: Result<Recorded, Error>,
    pub(crate) faults: [Faults; 2],
}

/// One replay of `input` into a file.
pub(crate) async fn replay(
    way: Way,
    mode: Mode,
    patience: Duration,
    scratch: &Scratch,
    faults: [Faults; 2],
    link: LinkFault,
    input: Arc<Vec<u8>>,
) -> Ended {
    let (ends, faults) = way.faulty(scratch.root(), mode, patience, faults, &link).await;
    let (connector, mut listener) = (ends.connector, ends.listener);
    let mut options = ReplayOptions::default();
    options.deadlines = live::deadlines(patience);
    options.multifd = mode.has_data_channels();
    options.return_path = ReturnPathWish::Always;
    let again = Cursor::new(input.to_vec());
    let replayer = Replayer::new(options).with_second_reading(|| Ok(Box::new(again)));
    let mut options = RecordOptions::default();
    options.deadlines = live::deadlines(patience);
    options.multifd = mode.has_data_channels().then(|| MultifdOptions::new(2));
    let recorder = Recorder::new(options);
    let sink = FaultySink {
        inner: mig::file_sink(scratch.path(FILE)).expect("a file"),
        faults: faults[1].clone(),
    };
    let sending = async move {
        let sent = replayer.run(&*connector, Box::new(Cursor::new(input.to_vec())), "stored").await;
        drop(connector);
        sent
    };
    let keeping = async move {
        let kept = recorder.run(&mut *listener, Box::new(sink), None).await;
        drop(listener);
        kept
    };
    let released = Release(faults[1].clone());
    let (sent, kept) = tokio::join!(sending, keeping);
    drop(released);
    drop(ends.link);
    Ended { sent, kept, faults }
}

/// A disk that hangs comes back when nobody waits for it any more.
struct Release(Faults);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A disk that fails when it is told to.
struct FaultySink {
    inner: Box<dyn StreamSink>,
    faults: Faults,
}

impl StreamSink for FaultySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            self.faults.block(Operation::DiskWrite)?;
            self.inner.write(piece)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.faults.block(Operation::DiskSync)?;
        self.inner.sync()
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.faults.block(Operation::DiskCommit)?;
        self.inner.commit()
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

/// Looks at both ends of a replay, and at the file.
pub(crate) fn judge(
    trouble: &Trouble,
    mode: Mode,
    ended: &Ended,
    scratch: &Scratch,
    input: &[u8],
    verge: u64,
) -> Result<Word, String> {
    let told = format!(
        "source: {}; recorder: {}",
        ended.sent.as_ref().map_or_else(chain, |_| "completed".into()),
        ended.kept.as_ref().map_or_else(chain, |_| "completed".into()),
    );
    let check = |holds: bool, what: &str| {
        if holds { Ok(()) } else { Err(format!("{what} ({told})")) }
    };
    if let Some((end, errno)) = trouble.errno() {
        let (error, faults) = match end {
            End::Source => (ended.sent.as_ref().err(), &ended.faults[0]),
            End::Destination => (ended.kept.as_ref().err(), &ended.faults[1]),
        };
        let reaches = error.is_none_or(|error| names(error, trouble, errno));
        check(reaches || !faults.struck() || trouble.is_a_strangers(mode), LOST)?;
    }
    let file = scratch.path(FILE);
    let flipped = trouble.kind() == Kind::Flipped;
    let same = match fs::read(&file) {
        Ok(kept) => {
            Some(check_kept(&kept, input, flipped).map_err(|why| format!("{why} ({told})"))?)
        }
        Err(_) => None,
    };
    // A recorder that could not tell its source says that, and keeps what it has.
    let committed =
        |error: &Error| chain(error).contains("committed") || chain(error).contains("kept");
    check(
        same.is_some() == ended.kept.as_ref().err().is_none_or(committed),
        "the recorder's word and its file differ",
    )?;
    match &ended.sent {
        Ok(replayed) => {
            check(replayed.confirmed, "not confirmed")?;
            if same.is_none() && flipped && trouble.end() == Some(End::Destination) {
                return Ok(Word::WrongVerdict);
            }
            check(same.is_some(), "confirmed, and there is no file")?;
        }
        Err(error) if error.owner() == Owner::Source => {
            let falsified = matches!(trouble.kind(), Kind::Flipped | Kind::Truncated)
                && trouble.end() == Some(End::Destination);
            if same.is_some() && falsified {
                return Ok(Word::WrongVerdict);
            }
            // A recorder that could not tell its source has a file, and says itself that it may not be started.
            check(same.is_none() || ended.kept.is_err(), "two owners")?;
        }
        Err(_) => {
            let sent = ended.faults[0].written().get(&0).copied().unwrap_or(0);
            check(sent >= verge, &format!("unknown after {sent} of {verge} bytes"))?;
        }
    }
    Ok(match (&ended.sent, same) {
        (Ok(_), Some(false)) => Word::Unnoticed,
        (Ok(_), _) if trouble.missed(&ended.faults) => Word::NotReached,
        (Ok(_), _) => Word::Arrived,
        (Err(error), _) if error.owner() == Owner::Source => Word::AtSource,
        (Err(_), _) => Word::Unknown,
    })
}

/// A file that is there is whole; answers whether it brings what was sent.
pub(crate) fn check_kept(kept: &[u8], input: &[u8], flipped: bool) -> Result<bool, String> {
    let mut options = Options::default();
    options.configuration = Presence::IfPresent;
    let mut walk = StreamWalk::new(options);
    walk_stored::<Box<dyn std::error::Error>>(&mut walk, kept, |_| Ok(()))
        .map_err(|error| format!("a file that looks complete and is not: {error}"))?;
    let same = kept == input || stream::brought("kept", kept) == stream::brought("sent", input);
    if same || flipped { Ok(same) } else { Err("another stream was kept".into()) }
}
