//! The backend over loopback: the shared promises, and what only tcp has.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use mig_testkit::conformance;
use mig_transport::{
    Address, Blame, Channel, Connector, Listener, MigrationAddress, address::InetAddress,
};
use mig_transport_tcp::{TcpConnector, TcpListener, TcpOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn inet(uri: &str) -> InetAddress {
    match MigrationAddress::parse(uri).expect("a good address").into_address() {
        Address::Inet(inet) => inet,
        other => panic!("{other:?}"),
    }
}

async fn listen(uri: &str) -> TcpListener {
    TcpListener::bind(&inet(uri), TcpOptions::default()).await.expect("loopback can be bound")
}

fn connector(uri: &str) -> TcpConnector {
    TcpConnector::new(inet(uri), TcpOptions::default())
}

async fn pair(uri: &str) -> (Channel, Channel) {
    let mut listener = listen(uri).await;
    let connector = connector(&listener.local_addresses()[0]);
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    (ours.expect("connects"), theirs.expect("accepts"))
}

async fn say(channel: &mut Channel, text: &str) {
    let mut sender = channel.take_sender().expect("a fresh channel");
    sender.write_all(text.as_bytes()).await.expect("the peer is there");
}

async fn hear(channel: &mut Channel) -> String {
    let mut heard = String::new();
    let mut receiver = channel.take_receiver().expect("a fresh channel");
    receiver.read_to_string(&mut heard).await.expect("the peer ends in order");
    heard
}

#[tokio::test]
async fn every_promise_holds_over_ipv4() {
    conformance::two_way(|| pair("tcp:127.0.0.1:0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_holds_over_ipv6_on_several_threads() {
    conformance::two_way(|| pair("tcp:[::1]:0")).await;
}

#[tokio::test]
async fn ends_are_named_and_ports_are_real() {
    let mut listener = listen("tcp:127.0.0.1:0").await;
    let [uri] = &listener.local_addresses()[..] else { panic!("one socket") };
    assert!(uri.starts_with("tcp:127.0.0.1:") && !uri.ends_with(":0"), "{uri}");
    let connector = connector(uri);
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    assert_eq!(ours.endpoint().peer, uri["tcp:".len()..]);
    assert_eq!(ours.endpoint().local, theirs.endpoint().peer);
    assert_eq!(ours.endpoint().transport, "tcp");
    let capabilities = ours.capabilities();
    assert!(capabilities.return_path && capabilities.forced_shutdown);
    assert!(capabilities.several_channels && !capabilities.fd_passing && !capabilities.storage);
}

#[tokio::test]
async fn the_wildcard_takes_both_families_on_one_port() {
    for uri in ["tcp::0", "tcp::0,ipv4,ipv6"] {
        let mut listener = listen(uri).await;
        let ports: Vec<_> = listener.local_socket_addresses().iter().map(|a| a.port()).collect();
        assert!(ports.windows(2).all(|two| two[0] == two[1]), "{ports:?}");
        for host in ["127.0.0.1", "[::1]"] {
            let connector = connector(&format!("tcp:{host}:{}", ports[0]));
            let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
            ours.unwrap_or_else(|error| panic!("{uri}, {host}: {error}"));
            theirs.unwrap();
        }
    }
}

#[tokio::test]
async fn families_are_kept_apart() {
    let v6 = listen("tcp::0,ipv6").await;
    let port = v6.local_socket_addresses()[0].port();
    let error = connector(&format!("tcp:127.0.0.1:{port}")).connect().await.unwrap_err();
    assert_eq!(error.blame(), Blame::Io);
    let v4 = listen("tcp::0,ipv4").await;
    let port = v4.local_socket_addresses()[0].port();
    connector(&format!("tcp:[::1]:{port}")).connect().await.unwrap_err();
    let error = connector("tcp:127.0.0.1:9,ipv6").connect().await.unwrap_err();
    assert!(error.to_string().contains("no IPv6 address"), "{error}");
}

/// The IPv4 side is taken by somebody else: the dual-stack socket becomes an IPv6 one.
#[tokio::test]
async fn a_taken_ipv4_side_leaves_the_ipv6_side() {
    let taken = listen("tcp::0,ipv4").await;
    let port = taken.local_socket_addresses()[0].port();
    let listener = listen(&format!("tcp::{port},ipv4,ipv6")).await;
    assert_eq!(listener.local_addresses(), [format!("tcp:[::]:{port}")]);
    // Without a family both sides are wanted, and one is still better than none.
    drop(listener);
    let listener = listen(&format!("tcp::{port}")).await;
    assert_eq!(listener.local_addresses(), [format!("tcp:[::]:{port}")]);
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_a_range_goes_on() {
    let taken = listen("tcp:127.0.0.1:0").await;
    let port = taken.local_socket_addresses()[0].port();
    let uri = format!("tcp:127.0.0.1:{port}");
    let error = TcpListener::bind(&inet(&uri), TcpOptions::default()).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    let text = error.to_string();
    assert!(text.contains(&uri) && text.contains("in use") && text.contains("port 0"), "{text}");

    let end = port.checked_add(50).expect("the kernel picks ports below the last fifty");
    let next = listen(&format!("{uri},to={end}")).await;
    let found = next.local_socket_addresses()[0].port();
    assert!(found > port && found <= end, "{found} is in the range");
    let error = TcpListener::bind(&inet(&format!("{uri},to={port}")), TcpOptions::default()).await;
    assert_eq!(error.unwrap_err().blame(), Blame::Misuse);
}

#[tokio::test]
async fn an_address_of_another_machine_cannot_be_bound() {
    // TEST-NET-3; only bound to, so nothing leaves the machine.
    let address = inet("tcp:203.0.113.7:0");
    let error = TcpListener::bind(&address, TcpOptions::default()).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("no interface"), "{error}");
    let error = TcpListener::bind(&inet("tcp:[::1]:0,bind=::1"), TcpOptions::default()).await;
    assert!(error.unwrap_err().to_string().contains("for connecting"));
}

#[tokio::test]
async fn connecting_to_nobody_is_refused_with_the_address() {
    let listener = listen("tcp:[::1]:0").await;
    let uri = listener.local_addresses()[0].clone();
    drop(listener);
    let error = connector(&uri).connect().await.unwrap_err();
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains(&uri), "{error}");
    let source = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<io::Error>());
    assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn the_source_can_choose_where_it_comes_from() {
    let mut listener = listen("tcp:127.0.0.1:0").await;
    let uri = listener.local_addresses()[0].clone();
    let from = connector(&format!("{uri},bind=127.0.0.9"));
    let (ours, theirs) = tokio::join!(from.connect(), listener.accept());
    assert!(ours.unwrap().endpoint().local.starts_with("127.0.0.9:"));
    assert!(theirs.unwrap().endpoint().peer.starts_with("127.0.0.9:"));
    let error = connector(&format!("{uri},bind=203.0.113.7")).connect().await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
    let error = connector(&format!("{uri},bind=::1")).connect().await.unwrap_err();
    assert!(error.to_string().contains("other family"), "{error}");
}

#[tokio::test]
async fn a_congestion_control_is_used_or_named_as_missing() {
    let listener = listen("tcp:127.0.0.1:0").await;
    let uri = listener.local_addresses()[0].clone();
    connector(&format!("{uri},congestion=reno")).connect().await.unwrap();
    let error = connector(&format!("{uri},congestion=nosuch")).connect().await.unwrap_err();
    assert_eq!(error.blame(), Blame::Unavailable);
    assert!(error.to_string().contains("there are: "), "{error}");
    let options = TcpOptions::with(|options| options.congestion = Some("nosuch".into()));
    let error = TcpListener::bind(&inet("tcp:127.0.0.1:0"), options).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Unavailable);
}

#[tokio::test]
async fn multipath_works_or_is_named_as_missing() {
    match TcpListener::bind(&inet("tcp:127.0.0.1:0,mptcp"), TcpOptions::default()).await {
        Ok(mut listener) => {
            let uri = format!("{},mptcp", listener.local_addresses()[0]);
            let connector = connector(&uri);
            let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
            let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
            tokio::join!(say(&mut ours, "over mptcp"), async {
                assert_eq!(hear(&mut theirs).await, "over mptcp");
            });
        }
        Err(error) => {
            assert_eq!(error.blame(), Blame::Unavailable);
            assert!(error.to_string().contains("net.mptcp.enabled"), "{error}");
        }
    }
}

#[tokio::test]
async fn names_are_looked_up_and_bad_ones_are_named() {
    let mut listener = listen("tcp:localhost:0").await;
    let port = listener.local_socket_addresses()[0].port();
    let connector = connector(&format!("tcp:localhost:{port}"));
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    ours.unwrap();
    theirs.unwrap();
    // A name that is too long for the resolver, so that nobody outside is asked.
    let host = "x".repeat(300);
    let error = TcpConnector::new(InetAddress::new(host, 1), TcpOptions::default()).connect().await;
    let error = error.unwrap_err();
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains("looking up the host"), "{error}");
}

/// A dropped accept loses nobody: the connection waits for the next one.
#[tokio::test]
async fn a_dropped_accept_loses_no_channel() {
    let mut listener = listen("tcp::0").await;
    let port = listener.local_socket_addresses()[0].port();
    for round in 0..20 {
        let host = if round % 2 == 0 { "127.0.0.1" } else { "[::1]" };
        let waits = std::future::poll_fn(|cx| {
            let mut accept = std::pin::pin!(listener.accept());
            std::task::Poll::Ready(accept.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(waits, "nobody came yet");
        let mut ours = connector(&format!("tcp:{host}:{port}")).connect().await.unwrap();
        say(&mut ours, host).await;
        let mut theirs = listener.accept().await.unwrap();
        assert_eq!(hear(&mut theirs).await, host);
    }
}

/// One busy address does not starve another.
#[tokio::test]
async fn sockets_are_accepted_from_in_turn() {
    let mut listener = listen("tcp::0").await;
    let port = listener.local_socket_addresses()[0].port();
    let v4 = connector(&format!("tcp:{}:{port}", Ipv4Addr::LOCALHOST));
    let v6 = connector(&format!("tcp:[{}]:{port}", Ipv6Addr::LOCALHOST));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(v4.connect().await.unwrap());
    }
    held.push(v6.connect().await.unwrap());
    let mut families = Vec::new();
    for _ in 0..4 {
        let channel = listener.accept().await.unwrap();
        families.push(channel.endpoint().peer.starts_with("[::1]"));
    }
    assert!(families[..2].contains(&true), "the IPv6 client was among the first two: {families:?}");
}

/// A client that is gone before it is accepted costs nothing.
#[tokio::test]
async fn a_stranger_that_resets_does_not_end_the_listener() {
    let mut listener = listen("tcp:127.0.0.1:0").await;
    let address = listener.local_socket_addresses()[0];
    for _ in 0..5 {
        let stranger = std::net::TcpStream::connect(address).unwrap();
        drop(stranger);
    }
    let mut ours = connector(&listener.local_addresses()[0]).connect().await.unwrap();
    say(&mut ours, "the right one").await;
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(hear(&mut listener.accept().await.unwrap()).await);
    }
    assert!(heard.contains(&"the right one".to_owned()), "{heard:?}");
}
