//! A link's resets are the kernel's: who was writing through one that is reset is told so (ECONNRESET), over TCP, over unix
//! sockets and over a pair of them. Without an unread byte a unix socket would end in order, which is another fault.

use std::{io::ErrorKind, os::unix::net, sync::Mutex, time::Duration};

use async_trait::async_trait;
use mig_testkit::{
    faults::{ByteAct, Fault, Faults, FaultyConnector, Link, LinkAddress, LinkFault},
    stream_channel,
};
use mig_transport::{Channel, Connector, Endpoint, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

/// A hang guard.
const BOUND: Duration = Duration::from_secs(30);
/// Where the reset strikes, within the second write.
const POSITION: u64 = 7;

/// Hands out one channel that is there already.
struct Given(Mutex<Option<Channel>>);

#[async_trait]
impl Connector for Given {
    async fn connect(&self) -> Result<Channel> {
        Ok(self.0.lock().expect("nobody panics").take().expect("one channel"))
    }
}

fn given<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Box<dyn Connector> {
    let (reader, writer) = tokio::io::split(stream);
    let endpoint = Endpoint { transport: "test", local: String::new(), peer: String::new() };
    let channel = stream_channel(Some(reader), Some(writer), endpoint);
    Box::new(Given(Mutex::new(Some(channel))))
}

/// Writes until the fault strikes, and looks what the kernel says then.
async fn is_reset(inner: Box<dyn Connector>, link: &Link, mut far: impl AsyncRead + Unpin) {
    let act = ByteAct::Reset;
    let faults = Faults::with(Fault::Byte { channel: 0, position: POSITION, act }).with_link(link);
    let connector = FaultyConnector::new(inner, &faults);
    let mut channel = connector.connect().await.expect("it is given");
    let mut sender = channel.take_sender().expect("a way out");
    let mut receiver = channel.take_receiver().expect("a way back");
    let told = tokio::time::timeout(BOUND, async {
        sender.write_all(b"first").await.expect("nothing happened yet");
        let mut heard = [0; 5];
        far.read_exact(&mut heard).await.expect("the link carries");
        assert_eq!(&heard, b"first");
        // Two bytes are before the fault's; the rest is under way when the link is reset.
        assert_eq!(sender.write(b"second").await.expect("before it"), 2);
        assert!(!faults.struck(), "before it");
        assert_eq!(sender.write(b"cond").await.expect("it leaves"), 4);
        assert!(faults.struck(), "the byte was its turn");
        receiver.read(&mut [0; 16]).await
    });
    let error = told.await.expect("no hang").expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let lost = far.read(&mut [0; 16]).await;
    assert!(!matches!(lost, Ok(3..)), "what was under way is lost: {lost:?}");
}

#[tokio::test]
async fn a_reset_over_tcp_is_told_to_who_writes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = LinkAddress::Tcp(listener.local_addr().expect("bound"));
    let (link, address) =
        Link::start(to, "unused".into(), LinkFault::OnDemand).await.expect("it listens");
    let LinkAddress::Tcp(address) = address else { panic!("a port is wanted") };
    let near = TcpStream::connect(address).await.expect("the link listens");
    let (far, _) = listener.accept().await.expect("the link connects");
    is_reset(given(near), &link, far).await;
}

#[tokio::test]
async fn a_reset_between_a_pair_of_sockets_is_told_to_who_writes() {
    let (near, link_near) = net::UnixStream::pair().expect("a pair");
    let (link_far, far) = net::UnixStream::pair().expect("a pair");
    let link = Link::between(link_near, link_far, LinkFault::OnDemand).expect("a runtime");
    let [near, far] = [near, far].map(|socket| {
        socket.set_nonblocking(true).expect("open");
        UnixStream::from_std(socket).expect("a runtime")
    });
    is_reset(given(near), &link, far).await;
}

#[tokio::test]
async fn a_reset_after_so_many_bytes_waits_for_one_that_is_lost() {
    let (mut near, link_near) = net::UnixStream::pair().expect("a pair");
    let (link_far, far) = net::UnixStream::pair().expect("a pair");
    let fault = LinkFault::Reset { connection: 0, after: 5 };
    let link = Link::between(link_near, link_far, fault).expect("a runtime");
    let faults = Faults::counting().with_link(&link);
    far.set_nonblocking(true).expect("open");
    let mut far = UnixStream::from_std(far).expect("a runtime");
    std::io::Write::write_all(&mut near, b"first").expect("room");
    let mut heard = [0; 5];
    far.read_exact(&mut heard).await.expect("the link carries");
    assert!(!faults.link_struck(), "nothing is lost yet");
    std::io::Write::write_all(&mut near, b"second").expect("room");
    near.set_nonblocking(true).expect("open");
    let mut near = UnixStream::from_std(near).expect("a runtime");
    let told = tokio::time::timeout(BOUND, near.read(&mut [0; 1])).await.expect("no hang");
    assert_eq!(told.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert!(faults.link_struck());
}
