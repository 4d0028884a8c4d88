//! The transports, each as a pair of ends that are made anew for every case.

use std::{
    io::{PipeReader, PipeWriter},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use mig::{
    ConnectOptions, ListenOptions,
    transport::{Connector, Listener, MigrationAddress},
};
use mig_testkit::faults::{Link, LinkAddress, LinkFault};
use mig_transport_fd::{Descriptor, FdConnector, FdEnds, FdListener};

/// How two ends meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp,
    Unix,
    FdSocket,
    FdPipe,
    FdPipes,
}

/// The two ends of one case, and what lies between them.
pub(crate) struct Ends {
    pub(crate) connector: Box<dyn Connector>,
    pub(crate) listener: Box<dyn Listener>,
    pub(crate) link: Option<Link>,
}

impl Way {
    /// As the table has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::FdSocket => "fd, a socket",
            Self::FdPipe => "fd, a pipe",
            Self::FdPipes => "fd, two pipes",
        }
    }

    /// Whether a link fits between the ends.
    pub(crate) fn has_link(self) -> bool {
        matches!(self, Self::Tcp | Self::Unix)
    }

    /// Fresh ends, in a directory of their own.
    pub(crate) async fn ends(self, dir: &Path, patience: Duration, fault: &LinkFault) -> Ends {
        let listen = ListenOptions::default();
        let mut connect = ConnectOptions::default();
        connect.deadline = patience;
        let here = match self {
            Self::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Self::Unix => format!("unix:{}", dir.join("s").display()),
            Self::FdSocket | Self::FdPipe | Self::FdPipes => return self.descriptors(),
        };
        let listener = mig::listener(&address(&here), &listen).await.expect("it listens");
        let mut there = listener.local_addresses().into_iter().next().expect("it says where");
        let mut link = None;
        if !matches!(fault, LinkFault::None) {
            let made = Link::start(self.linked(&there), dir.join("l"), fault.clone()).await;
            let made = made.expect("a link");
            there = match made.address() {
                LinkAddress::Tcp(address) => format!("tcp:{address}"),
                LinkAddress::Unix(path) => format!("unix:{}", path.display()),
            };
            link = Some(made);
        }
        let connector = mig::connector(&address(&there), &connect).expect("it can be connected to");
        Ends { connector, listener, link }
    }

    /// Descriptors that somebody opened for both ends.
    fn descriptors(self) -> Ends {
        let (source, destination) = match self {
            Self::FdSocket => {
                let (source, destination) = UnixStream::pair().expect("a pair of sockets");
                (FdEnds::One(descriptor(source)), FdEnds::One(descriptor(destination)))
            }
            Self::FdPipes => {
                let (there, out) = std::io::pipe().expect("a pipe");
                let (home, back) = std::io::pipe().expect("a pipe");
                let pair = |input: PipeReader, output: PipeWriter| {
                    FdEnds::pair(descriptor(input), descriptor(output)).expect("two pipes")
                };
                (pair(home, out), pair(there, back))
            }
            _ => {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                (FdEnds::One(descriptor(writer)), FdEnds::One(descriptor(reader)))
            }
        };
        Ends {
            connector: Box::new(FdConnector::new(source).expect("it can be connected to")),
            listener: Box::new(FdListener::new(destination).expect("it listens")),
            link: None,
        }
    }

    fn linked(self, uri: &str) -> LinkAddress {
        let (scheme, rest) = uri.split_once(':').expect("a URI");
        match scheme {
            "tcp" => LinkAddress::Tcp(rest.parse().expect("a socket's address")),
            _ => LinkAddress::Unix(rest.into()),
        }
    }
}

fn descriptor(fd: impl Into<OwnedFd>) -> Descriptor {
    Descriptor::from_owned(fd.into(), "fd:test").expect("a socket or a pipe")
}

fn address(uri: &str) -> MigrationAddress {
    uri.parse().unwrap_or_else(|error| panic!("{uri}: {error}"))
}
