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
use mig_testkit::faults::{Faults, FaultyConnector, FaultyListener, Link, LinkAddress, LinkFault};
use mig_tests::{lab, report};
use mig_transport_fd::{Descriptor, FdConnector, FdEnds, FdListener};
use rustix::fs::Mode as Mode_;

use crate::{mode::Mode, tls};

/// A free port of this machine.
pub(crate) const VSOCK: &str = "vsock:1:4294967295";

/// How two ends meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Tcp,
    Unix,
    FdSocket,
    FdPipe,
    FdPipes,
    Exec,
    File,
    Vsock,
    Rdma,
}

/// The two ends of one case, and what lies between them.
pub(crate) struct Ends {
    pub(crate) connector: Box<dyn Connector>,
    pub(crate) listener: Box<dyn Listener>,
    pub(crate) link: Option<Link>,
}

impl Way {
    pub(crate) const ALL: [Self; 9] = [
        Self::Tcp,
        Self::Unix,
        Self::FdSocket,
        Self::FdPipe,
        Self::FdPipes,
        Self::Exec,
        Self::File,
        Self::Vsock,
        Self::Rdma,
    ];

    /// As the table has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::FdSocket => "fd, a socket",
            Self::FdPipe => "fd, a pipe",
            Self::FdPipes => "fd, two pipes",
            Self::Exec => "exec",
            Self::File => "file",
            Self::Vsock => "vsock",
            Self::Rdma => "rdma",
        }
    }

    /// Whether the destination can only begin when the source is done.
    pub(crate) fn is_stored(self) -> bool {
        self == Self::File
    }

    /// Whether it is there only where the processor is emulated.
    pub(crate) fn is_slow(self) -> bool {
        matches!(self, Self::Vsock | Self::Rdma)
    }

    /// How much the sample of cases is thinned out: children take their time, the lab is slow, and of TLS over
    /// something else only what that something does is new.
    pub(crate) fn thin(self, mode: Mode) -> u64 {
        let own = match self {
            Self::Exec | Self::Vsock => 5,
            Self::Rdma => 8,
            Self::FdSocket | Self::FdPipe | Self::FdPipes | Self::File => 2,
            Self::Tcp | Self::Unix => 1,
        };
        if mode.has_tls() && self != Self::Tcp { 4 * own } else { own }
    }

    /// Whether a destination waits there for somebody who may never come.
    pub(crate) fn listens(self) -> bool {
        matches!(self, Self::Tcp | Self::Unix | Self::Vsock | Self::Rdma)
    }

    /// What is on the way may be left in the directory: fifos and the file.
    pub(crate) fn leaves(self, name: &str) -> bool {
        match self {
            Self::Exec => ["there", "back"].contains(&name),
            Self::File => name == "f",
            _ => false,
        }
    }

    /// Whether this machine has it; if not, says so.
    pub(crate) fn is_here(self) -> bool {
        let (cause, uri) = match self {
            Self::Vsock => ("vsock-loopback", VSOCK.to_owned()),
            Self::Rdma => ("rdma-device", format!("rdma:{}:{}", lab::IPV4, lab::port())),
            _ => return true,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let bound = runtime.expect("a runtime").block_on(async {
            let bound = mig::listener(&address(&uri), &ListenOptions::default()).await;
            match (self, bound) {
                // Listening works without a loopback.
                (Self::Vsock, Ok(mut listener)) => {
                    let to = listener.local_addresses().into_iter().next().expect("a port");
                    let connector = mig::connector(&address(&to), &ConnectOptions::default())?;
                    let both = async { tokio::try_join!(connector.connect(), listener.accept()) };
                    both.await.map(drop)
                }
                (_, bound) => bound.map(drop),
            }
        });
        bound.map_err(|error| report::not_applicable(cause, &error.to_string())).is_ok()
    }

    /// Fresh ends, in a directory of their own, with the faults of both and TLS around those.
    pub(crate) async fn faulty(
        self,
        dir: &Path,
        mode: Mode,
        patience: Duration,
        mut faults: [Faults; 2],
        fault: &LinkFault,
    ) -> (Ends, [Faults; 2]) {
        let Ends { connector, listener, link } = self.ends(dir, mode, patience, fault).await;
        if let Some(link) = &link {
            faults = faults.map(|faults| faults.with_link(link));
        }
        let connector = Box::new(FaultyConnector::new(connector, &faults[0]));
        let listener = Box::new(FaultyListener::new(listener, &faults[1]));
        let ends = match mode.has_tls() {
            true => tls::around(connector, listener, patience, link),
            false => Ends { connector, listener, link },
        };
        (ends, faults)
    }

    /// Fresh ends as they are.
    async fn ends(self, dir: &Path, mode: Mode, patience: Duration, fault: &LinkFault) -> Ends {
        let mut listen = ListenOptions::default();
        let mut connect = ConnectOptions::default();
        connect.return_path = mode.has_return_path();
        listen.return_path = mode.has_return_path();
        connect.exit_deadline = patience;
        listen.exit_deadline = patience;
        connect.deadline = patience;
        let here = match self {
            Self::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Self::Unix => format!("unix:{}", dir.join("s").display()),
            Self::Vsock => VSOCK.to_owned(),
            Self::Rdma => format!("rdma:{}:{}", lab::IPV4, lab::port()),
            Self::File => format!("file:{}", dir.join("f").display()),
            Self::Exec => commands(dir, mode)[1].clone(),
            Self::FdSocket | Self::FdPipe | Self::FdPipes => return self.descriptors(fault),
        };
        let listener = mig::listener(&address(&here), &listen).await.expect("it listens");
        let mut there = match self {
            Self::Exec => commands(dir, mode)[0].clone(),
            Self::File | Self::Rdma => here,
            _ => listener.local_addresses().into_iter().next().expect("it says where"),
        };
        if self == Self::Exec {
            fifos(dir);
        }
        let mut link = None;
        if !matches!(fault, LinkFault::None) {
            let made = Link::start(self.linked(&there), dir.join("l"), fault.clone()).await;
            let (made, at) = made.expect("a link");
            there = match at {
                LinkAddress::Tcp(address) => format!("tcp:{address}"),
                LinkAddress::Unix(path) => format!("unix:{}", path.display()),
            };
            link = Some(made);
        }
        let connector = mig::connector(&address(&there), &connect).expect("it can be connected to");
        Ends { connector, listener, link }
    }

    /// Descriptors that somebody opened for both ends.
    fn descriptors(self, fault: &LinkFault) -> Ends {
        let mut link = None;
        let (source, destination) = match self {
            Self::FdSocket => {
                let (source, mut destination) = UnixStream::pair().expect("a pair of sockets");
                if !matches!(fault, LinkFault::None) {
                    let (far, near) = UnixStream::pair().expect("a pair of sockets");
                    let between = std::mem::replace(&mut destination, near);
                    link = Some(Link::between(between, far, fault.clone()).expect("a link"));
                }
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
            link,
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

/// What [`commands`] are joined by.
pub(crate) fn fifos(dir: &Path) {
    for name in ["there", "back"] {
        let made = rustix::fs::mkfifoat(rustix::fs::CWD, dir.join(name), Mode_::RWXU);
        made.expect("a fifo");
    }
}

/// The commands of a source and a destination that are joined by fifos.
pub(crate) fn commands(dir: &Path, mode: Mode) -> [String; 2] {
    let [there, back] = ["there", "back"].map(|name| dir.join(name).display().to_string());
    match mode.has_return_path() {
        false => [format!("exec:exec cat >{there}"), format!("exec:exec cat <{there}")],
        true => {
            let forward =
                "exec 3<&0; cat <&3 >&4 3<&- 4>&- 5<&- & exec 3<&- 4>&-; exec cat <&5 5<&-";
            [
                format!("exec:exec 4>{there} 5<{back}; {forward}"),
                format!("exec:exec 5<{there} 4>{back}; {forward}"),
            ]
        }
    }
}

fn descriptor(fd: impl Into<OwnedFd>) -> Descriptor {
    Descriptor::from_owned(fd.into(), "fd:test").expect("a socket or a pipe")
}

fn address(uri: &str) -> MigrationAddress {
    uri.parse().unwrap_or_else(|error| panic!("{uri}: {error}"))
}
