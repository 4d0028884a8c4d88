//! `mig inspect`: a stream, record by record.
//!
//! ```text
//!   FILE ──▶ VMDESC from its end ──▶ lengths ─┐
//!   stdin, URI ───────────────────────────────┴▶ StreamWalk ──▶ Collector ──▶ Report ──▶ JSON or listing
//! ```
//!
//! Pages are counted, never kept, so memory depends on the number of sections and not on the length of the stream. A
//! stream that breaks off is reported as far as it could be read; the exit code is then 3.

mod collect;
mod listing;
mod report;

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use mig::{
    engine::{StoredStream, StreamWalk, walk_stored},
    proto::{DecodeError, Fault, Options, Presence, UnknownIterables},
    transport::Blame,
};

use crate::{
    exit,
    failure::{Failure, Outcome},
    flags::InspectFlags,
    talk::Talk,
};

pub(crate) use self::{collect::Collector, report::Report};

/// Why a walk stopped.
#[derive(Debug)]
enum Stopped {
    Stream(DecodeError),
    Input(io::Error),
}

impl From<DecodeError> for Stopped {
    fn from(error: DecodeError) -> Self {
        Self::Stream(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Input(error)
    }
}

/// Runs the command.
pub(crate) fn run(flags: &InspectFlags) -> Outcome {
    // stdout has the report alone, so nothing of it is told while it is made.
    let talk = Talk::new(flags.quiet, false);
    let source = Source::of(&flags.source)?;
    if flags.tls.tls_creds.is_some() && !matches!(source, Source::Uri(_)) {
        return Err(Failure::misuse(format!(
            "--tls-creds: {} is read as it is; TLS is for an address on which to wait for a source",
            flags.source
        )));
    }
    if (flags.door.require_tls || !flags.door.allow.is_empty()) && !matches!(source, Source::Uri(_))
    {
        return Err(Failure::misuse(format!(
            "{}: nobody connects to what is read from there; --allow and --require-tls are for an address on which to wait for \
             a source",
            flags.source
        )));
    }
    let (report, outcome) = match source {
        Source::Stdin => walk(io::stdin().lock(), "stdin", &StoredStream::default()),
        Source::File(path) => file(path)?,
        Source::Uri(address) => {
            let plan = crate::recv::Looking {
                tls: &flags.tls,
                door: &flags.door,
                deadlines: &flags.deadlines,
                timeout: flags.timeout,
            };
            crate::recv::inspect(address, &plan, &talk)
        }
    };
    print(&report, flags.json)?;
    outcome
}

/// Where the stream comes from. What is there as a file is a file, whatever it looks like.
enum Source<'a> {
    Stdin,
    File(&'a Path),
    Uri(mig::transport::MigrationAddress),
}

impl<'a> Source<'a> {
    fn of(text: &'a str) -> Outcome<Self> {
        let path = Path::new(text);
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if path.exists() {
            return Ok(Self::File(path));
        }
        match mig::transport::MigrationAddress::parse(text) {
            Ok(address) => Ok(Self::Uri(address)),
            Err(error) if text.contains(':') && !text.contains('/') => {
                Err(Failure::misuse(format!("no such file, and no address: {error}")))
            }
            Err(_) => Ok(Self::File(path)),
        }
    }
}

fn file(path: &Path) -> Outcome<(Report, Outcome)> {
    let name = path.display().to_string();
    let cannot = |error: io::Error| {
        // A name that leads nowhere is the caller's; a disk that fails is not.
        let blame = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Blame::Misuse,
            _ => Blame::Io,
        };
        Failure::new(blame, format!("opening {name}")).caused_by(&error)
    };
    let mut file = File::open(path).map_err(cannot)?;
    let stored = match file.metadata().map_err(cannot)?.is_file() {
        true => StoredStream::look(&mut file).map_err(cannot)?,
        // A FIFO, a device: nothing to look at from its end.
        false => StoredStream::default(),
    };
    Ok(walk(file, &name, &stored))
}

/// What the decoder is told: whatever can be read shall be shown.
pub(crate) fn options() -> Options {
    let mut options = Options::default();
    options.configuration = Presence::IfPresent;
    options.unknown_iterables = UnknownIterables::KeepRaw;
    options
}

fn walk(input: impl Read, name: &str, stored: &StoredStream) -> (Report, Outcome) {
    let mut walk = StreamWalk::new(stored.inform(options()));
    let mut collector = Collector::new(stored.description.as_ref());
    let walked = walk_stored::<Stopped>(&mut walk, input, |piece| {
        collector.piece(&piece);
        Ok(())
    });
    finish(&walk, collector, walked, name)
}

fn finish(
    walk: &StreamWalk,
    collector: Collector,
    walked: Result<(), Stopped>,
    name: &str,
) -> (Report, Outcome) {
    let failure = match walked {
        Ok(()) => None,
        Err(Stopped::Stream(error)) => Some(bad_stream(&error, name)),
        Err(Stopped::Input(error)) => {
            Some(Failure::new(Blame::Io, format!("reading {name}")).caused_by(&error))
        }
    };
    let report = collector.finish(walk.decoder().position(), failure.as_ref());
    (report, failure.map_or(Ok(()), Err))
}

/// All of these are the stream's fault here: there is no local machine that it could fail to fit.
fn bad_stream(error: &DecodeError, name: &str) -> Failure {
    let failure =
        Failure::new(Blame::PeerMisbehaved, format!("{name}: {error}")).at(Some(error.position));
    match error.blame() {
        Fault::Unsupported => failure
            .next("this version of mig cannot read that part of the format; what came before it is listed"),
        _ if error.is_truncation() => {
            failure.next("the stream was cut there; what came before is listed, capture it again for the rest")
        }
        _ => failure.next("what came before that byte is listed; whoever wrote the stream is wrong, or it was damaged"),
    }
}

fn print(report: &Report, json: bool) -> Outcome {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match json {
        true => serde_json::to_writer_pretty(&mut out, report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => listing::write(&mut out, report),
    };
    match written.and_then(|()| out.flush()) {
        // `mig inspect … | head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Blame::Io, "writing to stdout").caused_by(&error)),
        Ok(()) => Ok(()),
    }
}

/// The kinds of `error` objects, so that scripts find one set of names everywhere.
pub(crate) fn error_kind(failure: &Failure) -> &'static str {
    exit::kind(failure.blame)
}
