//! The promises of every channel, kept by adopted sockets and pipes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use mig_testkit::conformance;
use mig_transport::{Channel, Connector, Listener};
use mig_transport_fd::{Descriptor, FdConnector, FdEnds, FdListener};

fn descriptor(fd: impl Into<OwnedFd>) -> Descriptor {
    Descriptor::from_owned(fd.into(), "fd:test").unwrap()
}

fn one(fd: impl Into<OwnedFd>) -> FdEnds {
    FdEnds::One(descriptor(fd))
}

async fn channels(source: FdEnds, destination: FdEnds) -> (Channel, Channel) {
    (
        FdConnector::new(source).unwrap().connect().await.unwrap(),
        FdListener::new(destination).unwrap().accept().await.unwrap(),
    )
}

#[tokio::test]
async fn unix_sockets() {
    conformance::two_way(async || {
        let (first, second) = UnixStream::pair().unwrap();
        channels(one(first), one(second)).await
    })
    .await;
}

#[tokio::test]
async fn tcp_sockets() {
    conformance::two_way(async || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        channels(one(first), one(listener.accept().unwrap().0)).await
    })
    .await;
}

#[tokio::test]
async fn one_pipe() {
    conformance::one_way(async || {
        let (reader, writer) = std::io::pipe().unwrap();
        channels(one(writer), one(reader)).await
    })
    .await;
}

#[tokio::test]
async fn two_pipes() {
    conformance::two_way(async || {
        let (there_in, here_out) = std::io::pipe().unwrap();
        let (here_in, there_out) = std::io::pipe().unwrap();
        let pair = |input, output| FdEnds::pair(descriptor(input), descriptor(output)).unwrap();
        channels(pair(here_in, here_out), pair(there_in, there_out)).await
    })
    .await;
}
