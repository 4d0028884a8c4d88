//! A source that breaks each rule of docs/wire/rdma.md, against our destination.

use std::sync::Arc;

use mig_transport::{Blame, Error, Listener, RegionSlice, VecRegion};
use mig_transport_rdma::{
    protocol::{
        blocks::DestinationBlocks,
        header::Kind,
        message::{Outgoing, Register},
    },
    verbs::{Access, MemoryRegion, RemoteMemory, WorkStatus},
};

use crate::{
    actor::Actor,
    guarded,
    migration::{Ends, Guest, MIB, listener, migrate, options},
    on_a_device,
    protocol::malformed::{Malformed, Moment, malformed},
};

/// Our destination, and a QEMU source in front of it.
struct Scene {
    destination: Ends,
    source: Actor,
    guest: Guest,
}

async fn scene(
    listener: &mut mig_transport_rdma::RdmaListener,
    address: &mig_transport::address::InetAddress,
) -> Scene {
    let at = format!("{}:{}", address.host, address.port).parse().unwrap();
    let (source, destination) = guarded("connecting", async {
        tokio::join!(Actor::connect(at), async { listener.accept().await.unwrap() })
    })
    .await;
    Scene { destination: Ends::of(destination), source, guest: Guest::empty() }
}

impl Scene {
    /// What our destination says of the stream when the source does this.
    async fn reads(&mut self, source: impl AsyncFnOnce(&mut Actor)) -> Error {
        let mut bytes = [0; 64];
        let both =
            async { tokio::join!(self.destination.read(&mut bytes), source(&mut self.source)).0 };
        guarded("reading", both).await.expect_err("stream bytes")
    }

    /// What our destination makes of a window.
    async fn serves(&mut self) -> Result<(), Error> {
        self.destination.register_blocks(&self.guest).await.unwrap();
        guarded("serving", self.destination.hooks.load_hook()).await
    }

    /// Everything ends: the source is told, no memory stays with the device.
    async fn ends(self, name: &str) {
        let Self { destination, mut source, guest } = self;
        drop(destination);
        assert!(source.told_of_failure().await, "{name}: no ERROR");
        guarded("letting go of the memory", async {
            while !guest.is_free() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn list() -> Vec<Malformed> {
    let mut blocks = DestinationBlocks::new();
    for block in Guest::empty().blocks() {
        blocks.register(&block.idstr, block.used_length, 1 << 40).unwrap();
    }
    malformed(blocks.blocks())
}

#[test]
fn each_malformed_message_is_refused_for_its_reason_and_the_listener_goes_on() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        for bad in list() {
            let mut scene = scene(&mut listener, &address).await;
            let error = match bad.moment {
                Moment::Stream => {
                    scene.reads(async |source| source.expect_and_send(&bad.bytes).await).await
                }
                Moment::BeforeExchange | Moment::Window => {
                    let Scene { destination, source, guest } = &mut scene;
                    destination.register_blocks(guest).await.unwrap();
                    let (served, ()) = guarded(bad.name, async {
                        tokio::join!(destination.hooks.load_hook(), async {
                            if bad.moment == Moment::Window {
                                source.exchange().await;
                            }
                            source.expect_and_send(&bad.bytes).await;
                        })
                    })
                    .await;
                    served.expect_err(bad.name)
                }
            };
            let text = error.to_string();
            assert!(text.contains(bad.error), "{}: {text}", bad.name);
            assert_eq!(error.blame(), Blame::PeerMisbehaved, "{}: {text}", bad.name);
            scene.ends(bad.name).await;
        }
        migrate(&mut listener, &address, options()).await;
    });
}

#[test]
fn more_messages_than_ready_allows() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        // Two for one READY, and more than anybody has posted RECVs for. Those that come one by one, each after a READY that
        // was on its way, cannot be told from sound ones; no more than that is believed.
        for count in [2, 8] {
            let Scene { mut destination, mut source, .. } = scene(&mut listener, &address).await;
            let mut bytes = [0; 64];
            let reading = async {
                let read = guarded("reading", destination.read(&mut bytes)).await;
                drop(destination);
                read
            };
            let (read, ()) = tokio::join!(reading, async {
                source.expect(Kind::Ready).await;
                for _ in 0..count {
                    source.say(&Outgoing::QemuFile(&[7; 3])).await;
                }
                // As many READYs, or an early end.
                for _ in 0..count {
                    source.message().await;
                }
                drop(source);
            });
            let error = read.expect_err("too few bytes");
            println!("{count} messages: {error}");
            if error.blame() == Blame::PeerMisbehaved {
                assert!(error.to_string().contains("without having been told READY"), "{error}");
            }
        }
        // A flood of what takes no READY, at each moment.
        for in_window in [false, true] {
            let mut scene = scene(&mut listener, &address).await;
            for _ in 0..8 {
                scene.source.say(&Outgoing::Ready).await;
            }
            let error = if in_window {
                scene.serves().await.expect_err("a flood")
            } else {
                scene.reads(async |_| {}).await
            };
            assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
            assert!(error.to_string().contains("never gets one"), "{error}");
            scene.ends("a flood").await;
        }
        migrate(&mut listener, &address, options()).await;
    });
}

#[test]
fn an_error_message_at_each_moment_is_the_others_failure() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        for moment in 0..5 {
            let mut scene = scene(&mut listener, &address).await;
            let error = match moment {
                // Before anything, and after stream bytes.
                0 | 1 => {
                    let source = async |source: &mut Actor| {
                        if moment == 1 {
                            source.expect(Kind::Ready).await;
                            source.say(&Outgoing::QemuFile(b"some")).await;
                        }
                        source.say(&Outgoing::Error).await;
                    };
                    scene.reads(source).await
                }
                // In a window, after the exchange, after a registration.
                _ => {
                    let Scene { destination, source, guest } = &mut scene;
                    destination.register_blocks(guest).await.unwrap();
                    let (served, ()) = tokio::join!(destination.hooks.load_hook(), async {
                        if moment > 2 {
                            let blocks = source.exchange().await;
                            if moment > 3 {
                                let key = blocks[0].ram_offset;
                                source.register(Register { key, block: 0, chunks: 0 }).await;
                            }
                        }
                        source.say(&Outgoing::Error).await;
                    });
                    served.expect_err("ERROR")
                }
            };
            assert_eq!(error.blame(), Blame::Io, "{moment}: {error}");
            assert!(error.to_string().contains("ERROR message"), "{moment}: {error}");
            let Scene { destination, mut source, guest } = scene;
            drop(destination);
            assert!(!source.told_of_failure().await, "who says ERROR gets none back");
            guarded("letting go of the memory", async {
                while !guest.is_free() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        migrate(&mut listener, &address, options()).await;
    });
}

#[test]
fn hanging_up_at_each_moment_is_told_from_the_end() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        for moment in 0..5 {
            let scene = scene(&mut listener, &address).await;
            let Scene { mut destination, mut source, guest } = scene;
            let error = match moment {
                0 | 1 => {
                    let mut bytes = [0; 64];
                    let reading = guarded("reading", destination.read(&mut bytes));
                    let (read, ()) = tokio::join!(reading, async {
                        if moment == 1 {
                            source.expect(Kind::Ready).await;
                            source.say(&Outgoing::QemuFile(b"some")).await;
                            source.completion().await;
                        }
                        drop(source);
                    });
                    read.expect_err("an end")
                }
                _ => {
                    destination.register_blocks(&guest).await.unwrap();
                    let (served, ()) =
                        tokio::join!(guarded("serving", destination.hooks.load_hook()), async {
                            if moment > 2 {
                                let blocks = source.exchange().await;
                                if moment > 3 {
                                    let key = blocks[0].ram_offset;
                                    source.register(Register { key, block: 0, chunks: 0 }).await;
                                }
                            }
                            drop(source);
                        });
                    let error = served.expect_err("an end");
                    assert!(error.to_string().contains("hung up inside"), "{moment}: {error}");
                    error
                }
            };
            println!("{moment}: {error}");
            drop(destination);
            guarded("letting go of the memory", async {
                while !guest.is_free() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        migrate(&mut listener, &address, options()).await;
    });
}

/// What one WRITE of a source does to memory that it was not let into.
#[derive(Clone, Copy, Debug)]
enum Stray {
    WrongKey,
    BeforeTheWindow,
    PastTheWindow,
    AfterRelease,
}

#[test]
fn writes_outside_of_what_was_opened_do_not_land() {
    on_a_device(|| async {
        let (mut listener, address) = listener(options()).await;
        for stray in
            [Stray::WrongKey, Stray::BeforeTheWindow, Stray::PastTheWindow, Stray::AfterRelease]
        {
            let Scene { mut destination, mut source, guest } = scene(&mut listener, &address).await;
            destination.register_blocks(&guest).await.unwrap();
            let page = RegionSlice::whole(VecRegion::zeroed(4096));
            page.region().copy_in_at(0, &[0xee; 4096]).unwrap();
            let local = MemoryRegion::register(&source.domain, page, Access::LocalRead);
            let local = local.await.unwrap();
            // The second mebibyte of the first block is opened.
            let (served, (base, key)) =
                tokio::join!(guarded("serving", destination.hooks.load_hook()), async {
                    let blocks = source.exchange().await;
                    let key = blocks[0].ram_offset + MIB as u64;
                    let answer = source.register(Register { key, block: 0, chunks: 0 }).await;
                    let opened =
                        RemoteMemory { address: answer.host_addr + MIB as u64, key: answer.rkey };
                    source.queue_pair.post_write(&local, 0, 4096, opened, 1).unwrap();
                    assert!(source.write_completion().await.is_success(), "within the window");
                    source.expect(Kind::Ready).await;
                    source.say(&Outgoing::RegisterFinished).await;
                    (answer.host_addr, answer.rkey)
                });
            served.unwrap();
            let before = guest.bytes();
            assert_eq!(before[0][MIB], 0xee);
            if matches!(stray, Stray::AfterRelease) {
                destination.hooks.release().await.unwrap();
                assert!(guest.memory.iter().all(|region| Arc::strong_count(region) == 2));
            }
            let at = |offset: usize| RemoteMemory { address: base + offset as u64, key };
            let to = match stray {
                Stray::WrongKey => RemoteMemory { key: key ^ 0x5a00, ..at(MIB) },
                Stray::BeforeTheWindow => at(MIB - 4096),
                Stray::PastTheWindow => at(2 * MIB - 2048),
                Stray::AfterRelease => at(MIB + 8192),
            };
            source.queue_pair.post_write(&local, 0, 4096, to, 2).unwrap();
            let status = source.write_completion().await;
            assert_eq!(status, WorkStatus::RemoteAccess, "{stray:?}");
            assert!(guest.bytes() == before, "{stray:?} landed");
            // Our end's device saw it too: the connection is over, though the source holds on to it.
            let mut bytes = [0; 8];
            let read = guarded("reading", destination.read(&mut bytes)).await;
            let error = read.expect_err("an end");
            println!("{stray:?}: {error}");
            if !matches!(stray, Stray::AfterRelease) {
                assert!(error.to_string().contains("wrote where it may not"), "{error}");
            }
            drop(source);
        }
        migrate(&mut listener, &address, options()).await;
    });
}
