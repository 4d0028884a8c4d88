//! One migration of each kind, from nothing to nothing.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use mig::{
    ConnectOptions, ConnectTls, ListenOptions, ListenTls, connector,
    engine::{
        Capabilities, Destination, Discard, Error, MultifdCompression, Outcome, Owner, Parameters,
        RecordOptions, Recorder, ReplayOptions, Replayer, Source, WriteSink,
    },
    listener,
    tls::{ClientCredentials, ServerCredentials, trial},
    transport::{Blame, Connector, Listener, MigrationAddress},
};
use mig_tests::scratch::Scratch;
use mig_transport_fd::{Descriptor, FdConnector, FdEnds, FdListener};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::guest::{Runs, SmallGuest, check, memory};

/// How a migration goes and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tcp,
    TcpOneWay,
    Unix,
    Fd,
    /// The source is done before the destination begins.
    File,
    /// Into a command, which nobody confirms.
    Exec,
    Multifd,
    MultifdZstd,
    /// At a moment that moves through the migration.
    CancelledBySource,
    CancelledByDestination,
    /// The destination takes some of the stream and closes its socket.
    DestinationGone,
    /// The source sends some of a stream and closes its socket.
    SourceGone,
    NobodyListens,
    Recorded,
    Replayed,
    /// Certificates at both ends.
    Tls,
    TlsMultifd,
    /// Of a client that nobody knows, at each end of the handshake.
    TlsRefused,
}

/// In this order, over and over.
const ORDER: &[Kind] = &[
    Kind::Tcp,
    Kind::Unix,
    Kind::Multifd,
    Kind::CancelledBySource,
    Kind::DestinationGone,
    Kind::TcpOneWay,
    Kind::Recorded,
    Kind::SourceGone,
    Kind::Fd,
    Kind::CancelledByDestination,
    Kind::MultifdZstd,
    Kind::Replayed,
    Kind::NobodyListens,
    Kind::Tls,
    Kind::TlsMultifd,
    Kind::TlsRefused,
];

/// One in so many goes through a command or a file instead: those cost a process and a disk.
const DEAR: usize = 50;

/// What all migrations share.
pub(crate) struct World {
    scratch: Scratch,
    /// A whole stream.
    stream: Arc<[u8]>,
    /// Certificates that fit each other.
    tls: (ConnectTls, ListenTls),
    /// A client's of another authority, which trusts the first one.
    strange: ConnectTls,
    tally: Mutex<BTreeMap<Kind, (usize, usize)>>,
}

type Ends = (Box<dyn Connector>, Box<dyn Listener>);

impl World {
    pub(crate) async fn new() -> Self {
        let scratch = Scratch::new();
        let kept = Kept::default();
        let (out, mut into) = meet("tcp:127.0.0.1:0", None).await;
        let (mut source, runs) = source(Capabilities::default(), Parameters::default());
        let recorder = Recorder::new(RecordOptions::default());
        let sink = WriteSink::new(kept.clone(), "memory");
        let (sent, recorded) =
            tokio::join!(source.run(&*out), recorder.run(&mut *into, Box::new(sink), None));
        sent.unwrap();
        recorded.unwrap();
        assert!(!runs.here());
        let stream = kept.0.lock().unwrap().as_slice().into();
        let set = |name: &str| {
            let dir = scratch.path(name);
            trial::make(&dir, &["127.0.0.1".into()], false).unwrap();
            dir
        };
        let (ours, theirs) = (set("ours"), set("theirs"));
        let tls = (
            ConnectTls::new(ClientCredentials::x509(&ours).unwrap()),
            ListenTls::new(ServerCredentials::x509(&ours, true).unwrap()),
        );
        // They trust us, and we do not know them.
        let trusted = ["ours", "theirs"]
            .map(|name| std::fs::read_to_string(scratch.path(name).join("ca-cert.pem")).unwrap());
        std::fs::write(theirs.join("ca-cert.pem"), trusted.concat()).unwrap();
        let strange = ConnectTls::new(ClientCredentials::x509(&theirs).unwrap());
        Self { scratch, stream, tls, strange, tally: Mutex::default() }
    }

    pub(crate) fn kind(&self, number: usize) -> Kind {
        match number % (2 * DEAR) {
            7 => Kind::File,
            57 => Kind::Exec,
            _ => ORDER[number % ORDER.len()],
        }
    }

    /// How many there were of each kind, and how many of those arrived.
    pub(crate) fn tally(&self) -> String {
        let mut lines = String::from("      kind                    migrations  arrived");
        for (kind, (all, arrived)) in &*self.tally.lock().unwrap() {
            lines.push_str(&format!("\n      {:<24}{all:>10}  {arrived:>7}", format!("{kind:?}")));
        }
        lines
    }

    /// Runs number `number`, both ends, and looks at what became of the guest.
    pub(crate) async fn live(&self, number: usize) {
        let kind = self.kind(number);
        let arrived = match kind {
            Kind::Tcp => completes("tcp:127.0.0.1:0", None, number, |_, _| {}).await,
            Kind::Unix => {
                let path = self.scratch.path(&format!("{number}.sock"));
                completes(&format!("unix:{}", path.display()), None, number, |_, _| {}).await
            }
            Kind::TcpOneWay => {
                completes("tcp:127.0.0.1:0", None, number, |capabilities, _| {
                    capabilities.return_path = false;
                })
                .await
            }
            Kind::Multifd | Kind::MultifdZstd => {
                completes("tcp:127.0.0.1:0", None, number, |capabilities, parameters| {
                    capabilities.multifd = true;
                    parameters.multifd_channels = 2;
                    if kind == Kind::MultifdZstd {
                        parameters.multifd_compression = MultifdCompression::Zstd;
                    }
                })
                .await
            }
            Kind::Tls | Kind::TlsMultifd => {
                completes("tcp:127.0.0.1:0", Some(&self.tls), number, |capabilities, _| {
                    capabilities.multifd = kind == Kind::TlsMultifd;
                })
                .await
            }
            Kind::TlsRefused => self.refused().await,
            Kind::Fd => over_fd().await,
            Kind::File => self.over_a_file(number).await,
            Kind::Exec => into_a_command().await,
            Kind::CancelledBySource | Kind::CancelledByDestination => cancelled(kind, number).await,
            Kind::DestinationGone => destination_gone(number).await,
            Kind::SourceGone => self.source_gone(number).await,
            Kind::NobodyListens => nobody_listens().await,
            Kind::Recorded => recorded().await,
            Kind::Replayed => self.replayed().await,
        };
        let mut tally = self.tally.lock().unwrap();
        let (all, whole) = tally.entry(kind).or_default();
        *all += 1;
        *whole += usize::from(arrived);
    }

    async fn over_a_file(&self, number: usize) -> bool {
        let path = self.scratch.path(&format!("{number}.stream"));
        let address = address(&format!("file:{}", path.display()));
        let one_way = Capabilities::default();
        let (mut source, runs) = source(one_way, Parameters::default());
        let out = connector(&address, &ConnectOptions::default()).unwrap();
        source.run(&*out).await.unwrap();
        let (mut destination, arrived, ram) = destination(one_way, Parameters::default());
        let mut from = listener(&address, &ListenOptions::default()).await.unwrap();
        destination.run(&mut *from).await.unwrap();
        check(&ram);
        assert!(arrived.here() && !runs.here());
        std::fs::remove_file(path).unwrap();
        true
    }

    async fn source_gone(&self, number: usize) -> bool {
        let (mut destination, arrived, _ram) =
            destination(Capabilities::default(), Parameters::default());
        let mut into = listen("tcp:127.0.0.1:0").await;
        let to = into.local_addresses()[0].trim_start_matches("tcp:").to_owned();
        // Past the magic, so that it is no stranger, and never to the end of the device: what follows nobody needs.
        let device = self.stream.windows(8).rposition(|bytes| bytes == [7; 8]).unwrap();
        let cut = 8 + number * 977 % (device - 8);
        let part = &self.stream[..cut];
        let sending = async {
            let mut socket = TcpStream::connect(to).await.unwrap();
            // The destination may have given up already.
            let _sent = socket.write_all(part).await;
        };
        let (outcome, ()) = tokio::join!(destination.run(&mut *into), sending);
        let error = outcome.unwrap_err();
        assert_ne!(error.blame(), Blame::Deadline, "{error}");
        assert!(!arrived.here(), "{cut} bytes are not the guest");
        false
    }

    async fn refused(&self) -> bool {
        let (_, server) = &self.tls;
        let ends = (self.strange.clone(), server.clone());
        let (out, mut into) = meet("tcp:127.0.0.1:0", Some(&ends)).await;
        let (mut source, runs) = source(with_answers(), Parameters::default());
        let (mut destination, arrived, _ram) = destination(with_answers(), Parameters::default());
        let waiting = destination.handle();
        let sending = async {
            let sent = source.run(&*out).await;
            // A stranger is turned away, and the rightful source still waited for.
            waiting.cancel();
            sent
        };
        let (sent, received) = tokio::join!(sending, destination.run(&mut *into));
        assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
        assert!(!arrived.here());
        keeps_its_guest(&sent.unwrap_err(), &runs);
        false
    }

    async fn replayed(&self) -> bool {
        let (out, mut into) = meet("tcp:127.0.0.1:0", None).await;
        let (mut destination, arrived, ram) =
            destination(Capabilities::default(), Parameters::default());
        let input = Box::new(Cursor::new(Arc::clone(&self.stream)));
        let replayer = Replayer::new(ReplayOptions::default());
        let (sent, received) =
            tokio::join!(replayer.run(&*out, input, "memory"), destination.run(&mut *into));
        assert!(sent.unwrap().confirmed);
        received.unwrap();
        check(&ram);
        arrived.here()
    }
}

/// Both ends, to a good end.
async fn completes(
    at: &str,
    tls: Option<&(ConnectTls, ListenTls)>,
    number: usize,
    change: impl FnOnce(&mut Capabilities, &mut Parameters),
) -> bool {
    let (mut capabilities, mut parameters) = (with_answers(), Parameters::default());
    change(&mut capabilities, &mut parameters);
    let (out, mut into) = meet(at, tls).await;
    let (mut source, runs) = source(capabilities, parameters.clone());
    let (mut destination, arrived, ram) = destination(capabilities, parameters);
    let (sent, received) = tokio::join!(source.run(&*out), destination.run(&mut *into));
    let sent = sent.unwrap_or_else(|error| panic!("migration {number}: {error}"));
    received.unwrap_or_else(|error| panic!("migration {number}: {error}"));
    assert_eq!(sent.confirmed, capabilities.return_path);
    check(&ram);
    assert!(arrived.here() && !runs.here());
    true
}

async fn over_fd() -> bool {
    let (one, other) = UnixStream::pair().unwrap();
    let end =
        |socket: UnixStream| FdEnds::One(Descriptor::from_owned(socket.into(), "soak").unwrap());
    let out = FdConnector::new(end(one)).unwrap();
    let mut into = FdListener::new(end(other)).unwrap();
    let (mut source, runs) = source(with_answers(), Parameters::default());
    let (mut destination, arrived, ram) = destination(with_answers(), Parameters::default());
    let (sent, received) = tokio::join!(source.run(&out), destination.run(&mut into));
    sent.unwrap();
    received.unwrap();
    check(&ram);
    assert!(arrived.here() && !runs.here());
    true
}

async fn into_a_command() -> bool {
    let out = connector(&address("exec:cat > /dev/null"), &ConnectOptions::default()).unwrap();
    let (mut source, runs) = source(Capabilities::default(), Parameters::default());
    assert!(!source.run(&*out).await.unwrap().confirmed);
    assert!(!runs.here());
    true
}

async fn cancelled(kind: Kind, number: usize) -> bool {
    let (out, mut into) = meet("tcp:127.0.0.1:0", None).await;
    let mut capabilities = with_answers();
    capabilities.multifd = number.is_multiple_of(2);
    let (mut source, runs) = source(capabilities, Parameters::default());
    let (mut destination, arrived, _ram) = destination(capabilities, Parameters::default());
    let handle = match kind {
        Kind::CancelledBySource => source.handle(),
        _ => destination.handle(),
    };
    let cancelling = async {
        for _ in 0..number % 97 {
            tokio::task::yield_now().await;
        }
        handle.cancel();
    };
    let waiting = destination.handle();
    let sending = async {
        let sent = source.run(&*out).await;
        if sent.is_err() {
            // It may not have come as far as connecting; whoever orders migrations tells the other end then.
            waiting.cancel();
        }
        sent
    };
    let receiving = async {
        let received = destination.run(&mut *into).await;
        // Who listens no more, refuses.
        drop(into);
        received
    };
    let (sent, received, ()) = tokio::join!(sending, receiving, cancelling);
    told(&sent);
    told(&received);
    assert!(!(arrived.here() && runs.here()), "two guests");
    // Whoever was told that it arrived may trust that.
    assert!(sent.is_err() || arrived.here());
    assert!(received.is_err() || !runs.here());
    arrived.here()
}

/// A cancel ends it soon, or came too late: a deadline is neither.
fn told(outcome: &Result<Outcome, Error>) {
    if let Err(error) = outcome {
        assert_ne!(error.blame(), Blame::Deadline, "{error}");
    }
}

async fn destination_gone(number: usize) -> bool {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = address(&format!("tcp:{}", socket.local_addr().unwrap()));
    let out = connector(&at, &ConnectOptions::default()).unwrap();
    let (mut source, runs) = source(with_answers(), Parameters::default());
    let taking = async {
        let (mut socket, _) = socket.accept().await.unwrap();
        let mut some = vec![0; 1 + number * 991 % 60_000];
        socket.read_exact(&mut some).await.unwrap();
    };
    let (sent, ()) = tokio::join!(source.run(&*out), taking);
    let error = sent.unwrap_err();
    keeps_its_guest(&error, &runs);
    false
}

/// A source that failed because of the other end. One whose small guest was in the socket's buffer as a whole cannot know
/// what became of it, and must not let it go on.
fn keeps_its_guest(error: &Error, runs: &Runs) {
    assert_ne!(error.blame(), Blame::Deadline, "{error}");
    assert_ne!(error.owner(), Owner::Destination, "{error}");
    assert_eq!(runs.here(), error.owner() == Owner::Source, "{error}");
}

async fn nobody_listens() -> bool {
    let at = {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        address(&format!("tcp:{}", socket.local_addr().unwrap()))
    };
    let out = connector(&at, &ConnectOptions::default()).unwrap();
    let (mut source, runs) = source(with_answers(), Parameters::default());
    assert_eq!(source.run(&*out).await.unwrap_err().blame(), Blame::Io);
    assert!(runs.here());
    false
}

async fn recorded() -> bool {
    let (out, mut into) = meet("tcp:127.0.0.1:0", None).await;
    let (mut source, runs) = source(with_answers(), Parameters::default());
    let recorder = Recorder::new(RecordOptions::default());
    let (sent, kept) =
        tokio::join!(source.run(&*out), recorder.run(&mut *into, Box::new(Discard), None));
    assert!(sent.unwrap().confirmed && kept.unwrap().confirmed);
    assert!(!runs.here());
    true
}

fn source(capabilities: Capabilities, parameters: Parameters) -> (Source, Runs) {
    let (guest, runs) = SmallGuest::at_source();
    let source = Source::new(memory(true), Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    (source, runs)
}

fn destination(
    capabilities: Capabilities,
    parameters: Parameters,
) -> (Destination, Runs, Arc<mig::ram::RamBlocks>) {
    let (guest, runs) = SmallGuest::at_destination();
    let ram = memory(false);
    let destination = Destination::new(Arc::clone(&ram) as _, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    (destination, runs, ram)
}

fn with_answers() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    capabilities
}

fn address(text: &str) -> MigrationAddress {
    MigrationAddress::parse(text).unwrap()
}

async fn listen(at: &str) -> Box<dyn Listener> {
    listener(&address(at), &ListenOptions::default()).await.unwrap()
}

/// A listener, and a connector to where it is.
async fn meet(at: &str, tls: Option<&(ConnectTls, ListenTls)>) -> Ends {
    let (mut connect, mut listen) = (ConnectOptions::default(), ListenOptions::default());
    if let Some((client, server)) = tls {
        (connect.tls, listen.tls) = (Some(client.clone()), Some(server.clone()));
    }
    let into = listener(&address(at), &listen).await.unwrap();
    let there = address(&into.local_addresses()[0]);
    (connector(&there, &connect).unwrap(), into)
}

/// A stream in memory.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
