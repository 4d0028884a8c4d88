//! The backend as far as this machine's kernel goes: the shared promises need `vsock_loopback`, names and errors do not.

use mig_testkit::{conformance, not_applicable};
use mig_transport::{Blame, Channel, Connector, Listener, MigrationAddress, address::VsockAddress};
use mig_transport_vsock::{
    VsockConnector, VsockListener, VsockOptions, availability, loopback_availability,
};

const ANY: u32 = VsockAddress::ANY;

fn listen(cid: u32, port: u32) -> mig_transport::Result<VsockListener> {
    VsockListener::bind(VsockAddress::new(cid, port), VsockOptions::default())
}

fn connector(cid: u32, port: u32) -> VsockConnector {
    VsockConnector::new(VsockAddress::new(cid, port), VsockOptions::default())
}

/// Whether the kernel has the address family; if not, says so.
fn has_vsock() -> bool {
    match availability() {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.blame(), Blame::Unavailable);
            not_applicable("vsock-loopback", &error.to_string());
            false
        }
    }
}

fn has_loopback() -> bool {
    match loopback_availability() {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.blame(), Blame::Unavailable);
            not_applicable("vsock-loopback", &error.to_string());
            false
        }
    }
}

async fn pair() -> (Channel, Channel) {
    let mut listener = listen(VsockAddress::CID_LOCAL, ANY).expect("loopback can be bound");
    let connector = connector(VsockAddress::CID_LOCAL, listener.local_address().port);
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    (ours.expect("connects"), theirs.expect("accepts"))
}

#[tokio::test]
async fn every_promise_holds_over_loopback() {
    if has_loopback() {
        conformance::two_way(pair).await;
    }
}

#[tokio::test]
async fn connecting_to_nobody_says_so() {
    if has_loopback() {
        let listener = listen(VsockAddress::CID_LOCAL, ANY).unwrap();
        let port = listener.local_address().port;
        drop(listener);
        let error = connector(VsockAddress::CID_LOCAL, port).connect().await.unwrap_err();
        assert_eq!(error.blame(), Blame::Io);
        assert!(error.to_string().contains("nobody listens"), "{error}");
    }
}

/// Without the kernel's loopback, context id 1 is refused here and never sent to the host.
#[tokio::test]
async fn missing_loopback_is_named_with_its_remedy() {
    if !has_vsock() || loopback_availability().is_ok() {
        return;
    }
    for error in [
        listen(VsockAddress::CID_LOCAL, ANY).unwrap_err(),
        connector(VsockAddress::CID_LOCAL, 1234).connect().await.unwrap_err(),
    ] {
        assert_eq!(error.blame(), Blame::Unavailable);
        assert!(error.to_string().contains("modprobe vsock_loopback"), "{error}");
    }
}

#[tokio::test]
async fn a_free_port_is_found_and_published() {
    if !has_vsock() {
        return;
    }
    let listener = listen(ANY, ANY).unwrap();
    let local = listener.local_address();
    assert_ne!(local.port, ANY);
    let [uri] = &listener.local_addresses()[..] else { panic!("one address") };
    assert_eq!(*MigrationAddress::parse(uri).unwrap().address(), local.into());

    let error = listen(ANY, local.port).unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("takes a free one"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_reason() {
    if !has_vsock() {
        return;
    }
    // No machine has the hypervisor's context id.
    let error = listen(VsockAddress::CID_HYPERVISOR, ANY).unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("does not have that context id"), "{error}");
    for (cid, port) in [(ANY, 1234), (2, ANY)] {
        let error = connector(cid, port).connect().await.unwrap_err();
        assert_eq!(error.blame(), Blame::Misuse);
        assert!(error.to_string().contains("for listening"), "{error}");
    }
}

/// A dropped accept leaves the listener usable.
#[tokio::test]
async fn accepting_can_be_dropped() {
    if !has_vsock() {
        return;
    }
    let mut listener = listen(ANY, ANY).unwrap();
    for _ in 0..3 {
        let waits = std::future::poll_fn(|cx| {
            let mut accept = std::pin::pin!(listener.accept());
            std::task::Poll::Ready(accept.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(waits, "nobody came");
    }
}
