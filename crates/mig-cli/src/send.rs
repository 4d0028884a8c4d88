//! `mig send`: be a migration source.

use std::{
    cell::OnceCell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mig::{
    ConnectOptions, ConnectTls,
    engine::{
        MigrationHandle, Piece, ReplayOptions, Replayed, Replayer, ReturnPathWish, StoredStream,
        StreamWalk, Wait, walk_stored,
    },
    proto::DecodeError,
    transport::{Blame, MigrationAddress},
};

use crate::{
    failure::{Failure, Outcome},
    flags::SendFlags,
    multifd, pinning,
    recv::parse,
    result,
    standard::{self, Wanted},
    supervise::{Limit, Signals, block_on, prepare_blocking, supervise},
    talk::Talk,
    tls,
};

/// What both ends of a migration over data channels are told.
const ALIKE: &str = "look at the destination's log; multifd, multifd-channels (--multifd), multifd-compression (--compression) \
                     and the guest's UUID (--uuid) must be the same at both ends, and the network must let all channels \
                     through";

/// The same for a single stream that ends where it begins.
const ALIKE_OR_TLS: &str = "look at the destination's log; it must let this end in (--allow), and machine type, capabilities and \
                            version of both ends must agree; if it wants TLS (tls-creds), give --tls-creds DIR";

/// A command that does not carry a stream.
const RUN_BY_HAND: &str = "run the command by hand: it must read the stream from its stdin and not end before, and with TLS or a \
                           return path write the destination's answers to its stdout";

/// Whoever wants TLS looks at the first bytes, but the sockets between take some MiB before that is known here.
const FIRST: u64 = 16 << 20;

/// What will be done.
struct Plan {
    from: From,
    address: MigrationAddress,
    options: ReplayOptions,
    connect: ConnectOptions,
    timeout: Option<Duration>,
}

enum From {
    Stdin,
    File(PathBuf),
}

/// Runs the command.
pub(crate) fn run(flags: &SendFlags) -> Outcome {
    let talk = Talk::new(flags.quiet, flags.json);
    let begun = OnceCell::new();
    let outcome = plan(flags).and_then(|plan| block_on(replay(plan, &talk, &begun)));
    if let Err(failure) = &outcome {
        talk.object(&result::failed(failure, begun.get()));
    }
    outcome
}

fn plan(flags: &SendFlags) -> Outcome<Plan> {
    let address = parse(&flags.uri)?;
    let from = match &flags.file {
        path if path == Path::new("-") => From::Stdin,
        path => From::File(path.clone()),
    };
    let stdin = matches!(from, From::Stdin);
    standard::check(&address, Wanted { stdin, stdout: flags.json.then_some("--json") })?;
    let pinning = pinning::check(
        address.address().scheme() == "rdma",
        flags.rdma_pin_all,
        flags.rdma_pinned_memory,
    )?;
    let mut options = ReplayOptions::default();
    options.multifd = multifd::plan(&flags.multifd, &address, &mut options.parameters)?;
    multifd::limit(flags.cpu_budget, &mut options.parameters)?;
    options.uuid = flags.uuid.map(|uuid| uuid.0);
    if stdin && (options.multifd || address.address().scheme() == "rdma") {
        return Err(Failure::misuse(format!(
            "over rdma: and with --multifd the guest's memory is brought together before the rest is sent to {address}: the \
             stream is read twice, and stdin can be read only once"
        ))
        .next("store the stream in a file and send that, or use a single channel of a transport that carries the stream alone (tcp:, unix:)"));
    }
    options.return_path = match (flags.return_path, flags.no_return_path) {
        (true, _) => ReturnPathWish::Always,
        (_, true) => ReturnPathWish::Never,
        _ => ReturnPathWish::Sockets,
    };
    if let Some(rate) = flags.max_bandwidth {
        options.parameters.max_bandwidth = rate.0;
    }
    flags.deadlines.apply(&mut options.deadlines)?;
    let mut connect = ConnectOptions::default();
    connect.return_path = flags.return_path;
    connect.tls = tls::source(&flags.tls)?;
    connect.answer_on_stdin = (flags.return_path || connect.tls.is_some()) && !stdin;
    connect.rdma_pin_all = pinning.all;
    connect.rdma_pinned_memory = pinning.at_most;
    connect.set_deadlines(&options.deadlines);
    Ok(Plan { from, address, options, connect, timeout: flags.timeout.map(|limit| limit.0) })
}

async fn replay(plan: Plan, talk: &Talk, begun: &OnceCell<MigrationHandle>) -> Outcome {
    let mut signals = Signals::catch()?;
    let Plan { from, address, mut options, connect, timeout } = plan;
    let limit = Limit::from_now(timeout);
    // Before the file, which may take long to read: a transport that this machine does not have.
    let connector = mig::connector(&address, &connect)?;
    let checking = talk.progress("checking", None);
    let look = move |seen: &AtomicU64| open(&from, seen);
    let opened = prepare_blocking(&mut signals, limit, "the stored stream", checking, look).await?;
    options.stream = opened.stored.inform(options.stream);
    let multifd = options.multifd;
    let tls = connect.tls;
    let scheme = address.address().scheme();
    let mut replayer = Replayer::new(options);
    if let Some(mut again) = opened.again {
        replayer = replayer.with_second_reading(move || {
            io::Seek::rewind(&mut again)?;
            Ok(Box::new(again))
        });
    }
    let handle = begun.get_or_init(|| replayer.handle());
    let progress = talk.progress("sending", opened.len);
    let work = replayer.run(&*connector, opened.input, &opened.name);
    let replayed = supervise(talk, handle, &mut signals, limit, progress, work).await;
    let replayed = replayed.map_err(|failure| advised(failure, scheme, multifd, tls.as_ref()))?;
    tell(&replayed, &address, talk);
    Ok(())
}

/// A destination that was told something else ends channels, or waits for more of them, and says nothing: what to look at.
fn advised(failure: Failure, scheme: &str, multifd: bool, tls: Option<&ConnectTls>) -> Failure {
    if failure.says_it_all() {
        return failure;
    }
    match (failure.blame, tls) {
        (Blame::Deadline, _) if failure.opening().is_some() => failure,
        // Nobody was told anything yet.
        (Blame::Io, _) if failure.opening() == Some(Wait::Connect) => match scheme {
            "exec" => failure.next(RUN_BY_HAND),
            _ => failure.next(Wait::Connect.advice()),
        },
        (Blame::Io | Blame::Deadline | Blame::PeerIncompatible, _) if multifd => {
            failure.next(ALIKE)
        }
        (Blame::Io, Some(tls)) if !failure.is_past(0) => failure.next(tls::advice(tls)),
        (Blame::Io | Blame::PeerIncompatible, None) if !failure.is_past(FIRST) => {
            failure.next(ALIKE_OR_TLS)
        }
        _ => failure,
    }
}

fn tell(replayed: &Replayed, address: &MigrationAddress, talk: &Talk) {
    let verdict = match replayed.confirmed {
        true => "completed: the destination confirmed that it has everything",
        false => "sent, not confirmed: nobody can say here whether the destination loaded it",
    };
    talk.say(&format!("{verdict}; {} bytes to {address}", replayed.bytes));
    if let Some(multifd) = &replayed.info.multifd {
        if let Some(why) = &multifd.channels_chosen {
            talk.say(&format!("{} data channels: {why}", multifd.channels));
        }
        if let Some(done) = &multifd.compression {
            talk.say(&format!("{} level {}: {}", done.method, done.level, done.verdict));
        }
    }
    talk.object(&result::completed(
        replayed.confirmed,
        replayed.bytes,
        &replayed.pages,
        &replayed.info,
    ));
}

/// A stored stream, ready to be read from its beginning.
struct Opened {
    input: Box<dyn Read + Send>,
    /// The same, for transports that need it twice; a pipe can be read only once.
    again: Option<File>,
    name: String,
    len: Option<u64>,
    stored: StoredStream,
}

/// Opens the input, and finds out whether it can be sent; what is read for that is counted.
fn open(from: &From, seen: &AtomicU64) -> Outcome<Opened> {
    let path = match from {
        From::Stdin => {
            let input = Box::new(io::stdin());
            return Ok(Opened {
                input,
                again: None,
                name: "stdin".into(),
                len: None,
                stored: StoredStream::default(),
            });
        }
        From::File(path) => path,
    };
    let name = path.display().to_string();
    let cannot = |error: io::Error| {
        let blame = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Blame::Misuse,
            _ => Blame::Io,
        };
        Failure::new(blame, format!("opening {name}")).caused_by(&error)
    };
    let mut file = File::open(path).map_err(cannot)?;
    let kind = file.metadata().map_err(cannot)?;
    if kind.is_dir() {
        return Err(Failure::misuse(format!("{name} is a directory; name a stored stream")));
    }
    if !kind.is_file() {
        return Ok(Opened {
            input: Box::new(file),
            again: None,
            name,
            len: None,
            stored: StoredStream::default(),
        });
    }
    let stored = StoredStream::look(&mut file).map_err(cannot)?;
    if stored.description.is_none() {
        // Of an old machine type, or cut: find out before a destination is bothered.
        verify(&file, seen).map_err(|refused| match refused {
            Refused::Stream(error) => {
                Failure::new(Blame::PeerMisbehaved, format!("{name} cannot be sent: {error}"))
                    .at(Some(error.position))
                    .next("nothing was sent; `mig inspect` lists what the file has, a truncated one must be captured again")
            }
            Refused::Input(error) => cannot(error),
        })?;
        io::Seek::rewind(&mut file).map_err(cannot)?;
    }
    let again = Some(file.try_clone().map_err(cannot)?);
    Ok(Opened { input: Box::new(file), again, name, len: Some(stored.len), stored })
}

enum Refused {
    Stream(DecodeError),
    Input(io::Error),
}

impl std::convert::From<DecodeError> for Refused {
    fn from(error: DecodeError) -> Self {
        Self::Stream(error)
    }
}

impl std::convert::From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Input(error)
    }
}

fn verify(file: &File, seen: &AtomicU64) -> Result<(), Refused> {
    let mut walk = StreamWalk::new(ReplayOptions::default().stream);
    walk_stored(&mut walk, Counted { file, seen }, |_piece: Piece<'_>| Ok(()))
}

/// A file, and how much of it was read.
struct Counted<'a> {
    file: &'a File,
    seen: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let came = self.file.read(into)?;
        self.seen.fetch_add(came as u64, Ordering::Relaxed);
        Ok(came)
    }
}
