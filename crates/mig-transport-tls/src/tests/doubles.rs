//! Channels and ends for the tests: real sockets without an address, and TLS between them.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use mig_transport::{
    Capabilities, Channel, ChannelParts, Connector, Endpoint, Error, FdIo, FdKind, Listener, Peer,
    Result,
};
use tokio::{io::Interest, sync::mpsc};

use crate::{
    Authorization, ClientCredentials, ExpectedName, ServerCredentials, TlsConnector, TlsListener,
    TlsOptions,
    session::{self, Link, Progress, Role, Terms},
    testing::Site,
};

/// The ends of a connected socket pair, the second one as a bare socket.
pub(crate) fn half_open() -> (Channel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    (socket_channel(ours), theirs)
}

pub(crate) fn socket_channel(socket: UnixStream) -> Channel {
    let io = FdIo::new(socket.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE);
    let endpoint = Endpoint { transport: "socket", local: "here".into(), peer: "there".into() };
    io.expect("inside a runtime").socket_channel(Capabilities::socket(), endpoint)
}

/// Two ends in memory; the second one knows where the first is. `several` is whether there could be more of them.
pub(crate) fn memory_pair_from(peer: Peer, several: bool) -> (Channel, Channel) {
    let (first, mut second) = mig_testkit::memory_pair(1 << 16);
    let endpoint = second.endpoint().clone();
    let halves = (second.take_receiver().ok(), second.take_sender().ok());
    let parts = ChannelParts {
        capabilities: second.capabilities().with(|can| {
            can.several_channels = several;
            can.relayed = true;
        }),
        peer,
        ..mig_testkit::stream_parts(halves.0, halves.1, endpoint)
    };
    (first, Channel::new(parts))
}

pub(crate) fn socket_pair() -> (Channel, Channel) {
    let (first, second) = half_open();
    (first, socket_channel(second))
}

/// Gives the channels it was given, in turn.
#[derive(Default)]
pub(crate) struct Ready(Mutex<Vec<Channel>>);

impl Ready {
    pub(crate) fn of<const N: usize>(mut channels: [Channel; N]) -> Box<Self> {
        channels.reverse();
        Box::new(Self(Mutex::new(channels.into())))
    }
}

#[async_trait]
impl Connector for Ready {
    async fn connect(&self) -> Result<Channel> {
        let next = self.0.lock().expect("no test panicked").pop();
        next.ok_or_else(|| Error::Misuse { what: "no channel is left".into() })
    }
}

/// Whoever is sent here has connected. Without a sender nobody comes any more.
pub(crate) struct Door(mpsc::UnboundedReceiver<Channel>);

impl Door {
    pub(crate) fn new() -> (mpsc::UnboundedSender<Channel>, Box<Self>) {
        let (knock, door) = mpsc::unbounded_channel();
        (knock, Box::new(Self(door)))
    }
}

#[async_trait]
impl Listener for Door {
    async fn accept(&mut self) -> Result<Channel> {
        let next = self.0.recv().await;
        next.ok_or_else(|| Error::Misuse { what: "nobody comes any more".into() })
    }

    fn local_addresses(&self) -> Vec<String> {
        vec!["door:1".into()]
    }
}

/// Both ends' credentials of one CA.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) site: Arc<Site>,
    pub(crate) options: TlsOptions,
}

impl Ends {
    pub(crate) fn new() -> Self {
        Self { site: Arc::new(Site::complete()), options: TlsOptions::default() }
    }

    /// Sources that fit the rule, and no other.
    pub(crate) fn authorizing(mut self, rule: &str) -> Self {
        self.options.authorization = Some(Authorization::parse([rule]).expect("a rule"));
        self
    }

    pub(crate) fn connector(&self, channel: Channel) -> TlsConnector {
        self.connector_to("localhost", [channel])
    }

    pub(crate) fn connector_to<const N: usize>(
        &self,
        host: &str,
        channels: [Channel; N],
    ) -> TlsConnector {
        let credentials = ClientCredentials::x509(self.site.path()).expect("sound credentials");
        let name = self.name(host);
        TlsConnector::new(Ready::of(channels), credentials, name, self.options.clone())
            .expect("two ways, no hooks")
    }

    pub(crate) fn listener(&self, inner: Box<dyn Listener>) -> TlsListener {
        let credentials =
            ServerCredentials::x509(self.site.path(), true).expect("sound credentials");
        TlsListener::new(inner, credentials, self.options.clone())
    }

    /// A listener to which `channel` has just connected.
    pub(crate) fn listener_of(&self, channel: Channel) -> TlsListener {
        let (knock, door) = Door::new();
        knock.send(channel).expect("the door is there");
        self.listener(door)
    }

    /// Source and destination, agreed, each with the means to change its keys.
    pub(crate) async fn links(
        &self,
        (ours, theirs): (Channel, Channel),
    ) -> ((Channel, Arc<Link>), (Channel, Arc<Link>)) {
        let credentials = ClientCredentials::x509(self.site.path()).expect("sound credentials");
        let name = self.name("localhost");
        let begin = |endpoint: &_| session::source(&credentials, &name, endpoint);
        let source = session::negotiate_link(ours, begin, self.terms(Role::Source));
        let credentials =
            ServerCredentials::x509(self.site.path(), true).expect("sound credentials");
        let begin = |endpoint: &_| session::destination(&credentials, endpoint);
        let destination = session::negotiate_link(theirs, begin, self.terms(Role::Destination));
        let (source, destination) = tokio::join!(source, destination);
        (source.expect("connects"), destination.expect("accepts"))
    }

    pub(crate) fn terms(&self, role: Role) -> Terms {
        Terms {
            role,
            deadline: self.options.handshake,
            admit: self.options.admit(),
            heard: Arc::default(),
            progress: Progress::default(),
            key_update_after: self.options.key_update_after,
        }
    }

    pub(crate) fn name(&self, host: &str) -> ExpectedName {
        let address = mig_transport::MigrationAddress::parse("unix:/x").expect("an address");
        ExpectedName::of(&address.into_address(), Some(host)).expect("a name")
    }

    /// Source and destination, agreed.
    pub(crate) async fn pair(&self, (ours, theirs): (Channel, Channel)) -> (Channel, Channel) {
        let connector = self.connector(ours);
        let mut listener = self.listener_of(theirs);
        let (source, destination) = tokio::join!(connector.connect(), listener.accept());
        (source.expect("connects"), destination.expect("accepts"))
    }
}
