//! Who calls our listener without meaning it, and whether the right source gets in.

use std::net::SocketAddr;

use mig_transport::{Listener, address::InetAddress};
use mig_transport_rdma::verbs::CmEventKind;

use crate::{
    actor::{Actor, QEMU, resolved},
    guarded,
    migration::{listener, migrate, options},
    on_a_device,
};

pub(crate) fn socket(address: &InetAddress) -> SocketAddr {
    format!("{}:{}", address.host, address.port).parse().unwrap()
}

#[test]
fn connection_data_of_another_version_is_rejected() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        let at = socket(&address);
        for (name, data) in [
            ("version 2", &[0, 0, 0, 2, 0, 0, 0, 0][..]),
            ("version 0", &[0; 8]),
            ("little-endian", &[1, 0, 0, 0, 0, 0, 0, 0]),
            ("nothing", &[]),
            ("seven bytes", &[0, 0, 0, 2, 0, 0, 0]),
        ] {
            // Only the answer ends this: the listener serves while it waits for a sound one.
            let refused = tokio::select! {
                refused = Actor::try_connect(at, data) => refused.err(),
                accepted = listener.accept() => panic!("{name}: accepted {accepted:?}"),
            };
            let event = refused.unwrap_or_else(|| panic!("{name}: accepted"));
            assert_eq!(event.kind, CmEventKind::Rejected, "{name}");
        }
        migrate(&mut listener, &address, options()).await;
    });
}

#[test]
fn a_flood_of_half_open_connections_does_not_keep_the_right_source_out() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        let at = socket(&address);
        let mut strangers = Vec::new();
        for _ in 0..50 {
            // Asking needs the listener to be served now and then: its backlog is short.
            let asking = async {
                let stranger = Actor::ask(at, QEMU).await;
                tokio::task::yield_now().await;
                stranger
            };
            tokio::select! {
                stranger = asking => strangers.push(stranger),
                accepted = listener.accept() => panic!("accepted {accepted:?}"),
            }
        }
        migrate(&mut listener, &address, options()).await;
        drop(strangers);
    });
}

#[test]
fn who_connects_and_leaves_or_says_nothing_is_no_trouble() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        let at = socket(&address);
        // Leaves at once: before the answer, and after it.
        drop(Actor::ask(at, QEMU).await);
        let (left, channel) = guarded("connecting", async {
            tokio::join!(Actor::connect(at), async { listener.accept().await.unwrap() })
        })
        .await;
        drop(left);
        drop(channel);
        // Only looks the address up.
        let looked = resolved(at).await;
        // Says nothing, for as long as it likes; nobody else waits for it.
        let (silent, channel) = guarded("connecting", async {
            tokio::join!(Actor::connect(at), async { listener.accept().await.unwrap() })
        })
        .await;
        migrate(&mut listener, &address, options()).await;
        drop((silent, channel, looked));
    });
}
