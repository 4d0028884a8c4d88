//! Ends that die without a word, and connections that nobody answers: found out in bounded time.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mig_transport::{
    Blame, Connector, Error, Listener, VecRegion, WindowReason, address::InetAddress,
};
use mig_transport_rdma::{
    RdmaConnector, RdmaOptions,
    protocol::{header::Kind, message::Outgoing},
};

use crate::{
    actor::{Actor, Listening, QEMU},
    guarded,
    migration::{Ends, Guest, HEAD, listener, migrate, options},
    on_a_device,
    strangers::socket,
};

/// Longer than the device tries before it calls a link dead: some seconds for each of 7 times.
const DEVICE_GIVES_UP: Duration = Duration::from_secs(90);

fn impatient() -> RdmaOptions {
    let mut options = options();
    options.keepalive = Duration::from_millis(200);
    options
}

async fn found_out(what: &str, future: impl Future<Output = Result<(), Error>>) {
    let began = Instant::now();
    let ended = tokio::time::timeout(DEVICE_GIVES_UP, future).await;
    let error = ended.unwrap_or_else(|_| panic!("{what} hangs")).expect_err(what);
    println!("{what}: {error}, after {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(error.blame(), Blame::Io, "{error}");
    assert!(error.to_string().contains("is dead"), "{error}");
}

/// A queue pair in the error state drops what comes, as a machine without power does.
fn dies(actor: &Actor) {
    actor.queue_pair.set_error().unwrap();
}

#[test]
fn a_dead_peer_is_found_while_nothing_is_sent() {
    on_a_device(|| async {
        let (mut listener, address) = listener(impatient()).await;
        // Our destinations: one that waits for stream bytes, one in a window. Our source, which waits for READY, and in the
        // middle of a window. All at once, since the device takes its time.
        let reading = async {
            let (actor, channel) = tokio::join!(Actor::connect(socket(&address)), async {
                listener.accept().await.unwrap()
            });
            let (serving_actor, serving) = tokio::join!(Actor::connect(socket(&address)), async {
                listener.accept().await.unwrap()
            });
            let (mut destination, mut serving) = (Ends::of(channel), Ends::of(serving));
            dies(&actor);
            dies(&serving_actor);
            let guest = Guest::empty();
            serving.register_blocks(&guest).await.unwrap();
            let mut bytes = [0; 1];
            tokio::join!(
                found_out("a destination that reads", destination.read(&mut bytes)),
                found_out("a destination in a window", serving.hooks.load_hook()),
            );
        };
        let sending = async {
            let mut listening = Listening::new();
            let (mut source, actor) = channel_to(&mut listening, impatient()).await;
            let (mut in_window, mut second) = channel_to(&mut listening, impatient()).await;
            dies(&actor);
            let guest = Guest::empty();
            tokio::join!(
                found_out("a source that waits for READY", source.write(b"some")),
                found_out("a source in a window", async {
                    let outcome = async {
                        in_window.write(b"some").await?;
                        in_window.register_blocks(&guest).await?;
                        in_window.hooks.before_iterate(WindowReason::Setup).await?;
                        in_window.hooks.after_iterate(WindowReason::Setup).await
                    };
                    let play = async {
                        second.say(&Outgoing::Ready).await;
                        second.expect(Kind::QemuFile).await;
                        second.say(&Outgoing::Ready).await;
                        second.expect(Kind::RamBlocksRequest).await;
                        dies(&second);
                    };
                    tokio::join!(outcome, play).0
                }),
            );
        };
        tokio::join!(reading, sending);
        migrate(&mut listener, &address, options()).await;
    });
}

async fn channel_to(listening: &mut Listening, options: RdmaOptions) -> (Ends, Actor) {
    let address = InetAddress::new(listening.at.ip().to_string(), listening.at.port());
    let connector = RdmaConnector::new(address, options);
    guarded("connecting", async {
        let (channel, actor) = tokio::join!(connector.connect(), Actor::accept(listening, QEMU));
        (Ends::of(channel.unwrap()), actor)
    })
    .await
}

#[test]
fn stopping_a_channel_to_a_dead_peer_unblocks_whoever_waits() {
    on_a_device(|| async {
        let mut listening = Listening::new();
        let address = InetAddress::new(listening.at.ip().to_string(), listening.at.port());
        let connector = RdmaConnector::new(address, options());
        let (channel, actor) =
            tokio::join!(connector.connect(), Actor::accept(&mut listening, QEMU));
        let channel = channel.unwrap();
        let stop = channel.shutdown_handle();
        let mut source = Ends::of(channel);
        dies(&actor);
        let guest = Guest::empty();
        source.register_blocks(&guest).await.unwrap();
        source.hooks.before_iterate(WindowReason::Setup).await.unwrap();
        let began = Instant::now();
        let ((), window) = tokio::join!(
            async { stop.shutdown() },
            guarded("a window", source.hooks.after_iterate(WindowReason::Setup))
        );
        println!("the window, after {:?}: {}", began.elapsed(), window.expect_err("stopped"));
        let written = guarded("writing", source.write(b"some")).await;
        assert_eq!(written.expect_err("stopped").blame(), Blame::Cancelled);
        let began = Instant::now();
        drop(source);
        println!("dropped after {:?}", began.elapsed());
    });
}

#[test]
fn ends_that_outlive_their_runtime_hang_up() {
    on_a_device(|| async {
        let mut listening = Listening::new();
        let address = InetAddress::new(listening.at.ip().to_string(), listening.at.port());
        let (send, receive) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let connector = RdmaConnector::new(address, options());
            let channel = runtime.block_on(connector.connect()).unwrap();
            // Both orders.
            let stop = channel.shutdown_handle();
            drop(runtime);
            stop.shutdown();
            send.send(channel).unwrap();
        });
        let mut actor = Actor::accept(&mut listening, QEMU).await;
        assert!(actor.message().await.is_none_or(|message| message[7] == Kind::Error as u8));
        while actor.message().await.is_some() {}
        drop(receive.recv().unwrap());
        other.join().unwrap();
    });
}

/// An address of the device's network that nobody has, on a port nobody has.
fn nobody() -> InetAddress {
    let host = crate::address().to_string();
    let (network, _) = host.rsplit_once(['.', ':']).unwrap();
    InetAddress::new(format!("{network}{}", if host.contains(':') { ":77" } else { ".77" }), 4321)
}

/// Makes the address resolve to nobody's hardware, so that what is sent there vanishes; `None` without the right to.
struct BlackHole(InetAddress);

impl BlackHole {
    fn new() -> Option<Self> {
        let this = Self(nobody());
        this.neighbour("replace").then_some(this)
    }

    fn neighbour(&self, what: &str) -> bool {
        let device = std::env::var("MIG_RDMA_TEST_INTERFACE").unwrap_or_else(|_| "dummy0".into());
        let mut command = Command::new("ip");
        command.args(["neigh", what, &self.0.host, "dev", &device]);
        if what == "replace" {
            command.args(["lladdr", "02:00:00:00:00:77", "nud", "permanent"]);
        }
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.neighbour("del");
    }
}

/// What connecting runs into.
#[derive(Clone, Copy, Debug)]
enum Wall {
    /// Nobody has the address.
    Unresolved,
    /// What is sent there vanishes.
    BlackHole,
    /// The listener takes no request.
    Silent,
    /// It takes the first one, and no second for the return path.
    NoReturnPath,
}

const WALLS: [Wall; 4] = [Wall::Unresolved, Wall::BlackHole, Wall::Silent, Wall::NoReturnPath];

/// Connects in front of each wall, and lets go of the attempt, or not, after a while.
async fn run_into(wall: Wall, deadline: Duration, let_go: Option<Duration>) -> Option<Error> {
    let hole = matches!(wall, Wall::BlackHole).then(BlackHole::new);
    let mut listening = Listening::new();
    let address = match wall {
        Wall::Unresolved | Wall::BlackHole => nobody(),
        _ => InetAddress::new(listening.at.ip().to_string(), listening.at.port()),
    };
    let mut options = options();
    options.deadline = deadline;
    options.return_path = matches!(wall, Wall::NoReturnPath);
    let connector = RdmaConnector::new(address, options);
    let accepting = async {
        if matches!(wall, Wall::NoReturnPath) {
            let _actor = Actor::accept(&mut listening, QEMU).await;
            std::future::pending::<()>().await;
        }
        std::future::pending::<()>().await
    };
    let mut connecting = Box::pin(connector.connect());
    let outcome = {
        let connecting = async {
            match let_go {
                None => Some(guarded("connecting", connecting.as_mut()).await),
                Some(after) => tokio::time::timeout(after, connecting.as_mut()).await.ok(),
            }
        };
        tokio::select! { outcome = connecting => outcome, () = accepting => None }
    };
    let began = Instant::now();
    drop(connecting);
    println!("{wall:?}: let go of in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{wall:?}");
    drop(hole);
    outcome.map(|outcome| outcome.expect_err("a wall"))
}

#[test]
fn connecting_to_nobody_ends_by_its_deadline() {
    on_a_device(|| async {
        for wall in WALLS {
            let began = Instant::now();
            let error = run_into(wall, Duration::from_secs(2), None).await.expect("an error");
            println!("{wall:?}: {error}, after {:?}", began.elapsed());
            assert!(matches!(error.blame(), Blame::Deadline | Blame::Io), "{wall:?}: {error}");
        }
    });
}

#[test]
fn connecting_can_be_given_up_at_once() {
    on_a_device(|| async {
        for wall in WALLS {
            for after in [0, 20, 300, 900] {
                let after = Duration::from_millis(after);
                let early = run_into(wall, Duration::from_secs(30), Some(after)).await;
                if let Some(error) = early {
                    println!("{wall:?}: {error}, before {after:?}");
                }
            }
        }
    });
}

/// Of many blocks, so that messages and completions alone are fewer.
#[test]
fn registering_all_memory_is_life() {
    const BLOCKS: usize = 64;
    let guest = || Guest { memory: (0..BLOCKS).map(|_| VecRegion::zeroed(4096)).collect() };
    on_a_device(|| async {
        let mut options = options();
        options.pin_all = true;
        let (mut listener, address) = listener(options.clone()).await;
        let connector = RdmaConnector::new(address, options);
        let (source, destination) = tokio::join!(connector.connect(), listener.accept());
        let (mut source, mut destination) =
            (Ends::of(source.unwrap()), Ends::of(destination.unwrap()));
        let count = |ends: &mut Ends| {
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            ends.hooks.report_life(Arc::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
            }));
            count
        };
        let counts = [count(&mut source), count(&mut destination)];
        let (from, into) = (guest(), guest());
        guarded("the first window", async {
            let (set_up, served) = tokio::join!(source.set_up(&from), async {
                let mut head = [0; HEAD.len()];
                destination.read(&mut head).await?;
                destination.register_blocks(&into).await?;
                destination.hooks.load_hook().await
            });
            set_up.unwrap();
            served.unwrap();
        })
        .await;
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        assert!(counts.iter().all(|count| *count >= BLOCKS), "{counts:?}");
    });
}
