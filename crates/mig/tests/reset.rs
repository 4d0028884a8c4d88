//! A source whose connection is reset, by real sockets, while it writes the last bytes and the destination has already
//! started the guest: never two guests. The network is one of its own, where little fits between the ends.
//!
//! ```text
//!   source ── everything but the end of the description ──▶ man in the middle ──▶ destination
//!          ◀── all but the verdict ──────────────────────                     ◀── SHUT 0: it runs
//!          ◀── RST
//! ```

#![cfg(all(feature = "tcp", feature = "tls", feature = "bench"))]
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mig::{
    ConnectOptions, ConnectTls, ListenOptions, ListenTls, connector,
    engine::{
        Capabilities, Destination, DeviceSection, Error, Guest, GuestError, Owner, Parameters,
        Source,
    },
    listener,
    proto::globalstate::RunState,
    ram::{PAGE_SIZE, RamBlock, RamBlocks},
    tls::{ClientCredentials, ServerCredentials, trial},
    transport::MigrationAddress,
};
use mig_testkit::runs_inside;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

/// Pages of guest memory.
const PAGES: u64 = 32;
/// Devices with long names: their description is longer than all that TLS and two kernels hold.
const DEVICES: usize = 4000;
/// As much of it never arrives.
const WITHHELD_BYTES: u64 = 1_000_000;
/// No wait of a test takes longer on any machine.
const LONG: Duration = Duration::from_secs(60);

/// Packets and send buffers as small as between two hosts, so that the writer is still at it when the rest is decided.
const SMALL: &str = "ip link set lo mtu 1500 up && echo 4096 16384 65536 > /proc/sys/net/ipv4/tcp_wmem && exec \"$0\" \"$@\"";

const NETWORK: [&str; 7] = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", SMALL];

/// A guest of which one thing matters.
struct TestGuest {
    runs: Arc<AtomicBool>,
    devices: usize,
}

impl Guest for TestGuest {
    fn machine_type(&self) -> String {
        "test-1.0".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.runs.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        let device = |number| DeviceSection {
            idstr: format!("{number:0>250}"),
            instance_id: 0,
            version_id: 1,
            payload: vec![1; 8],
        };
        Ok((0..self.devices).map(device).collect())
    }

    fn load_device(&mut self, _section: &DeviceSection) -> Result<(), GuestError> {
        Ok(())
    }

    fn start(&mut self, _state: RunState) -> Result<(), GuestError> {
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    /// The man in the middle is a proxy that ends its connection in order, though somebody is still writing.
    Proxy,
    Multifd,
    Tls,
}

/// The man in the middle: carries every connection, and of the first one, which is main, `most` bytes.
struct Middle {
    listener: TcpListener,
    to: String,
    most: u64,
    /// How main ends then: with a FIN before the reset.
    in_order: bool,
    /// What main has brought so far.
    forward: Arc<AtomicU64>,
    /// Main is reset once this is so.
    there: Arc<AtomicBool>,
}

impl Middle {
    fn bind(to: String, most: u64, mode: Mode, there: Arc<AtomicBool>) -> (Self, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(8).unwrap();
        let at = listener.local_addr().unwrap();
        (
            Self {
                listener,
                to,
                most,
                in_order: mode == Mode::Proxy,
                forward: Arc::default(),
                there,
            },
            at,
        )
    }

    async fn carry(self) {
        let (main, _from) = self.listener.accept().await.unwrap();
        let main = tokio::spawn(main_channel(
            main,
            TcpStream::connect(&self.to).await.unwrap(),
            self.most,
            self.in_order,
            Arc::clone(&self.forward),
            self.there,
        ));
        let data = async {
            loop {
                let (mut near, _from) = self.listener.accept().await.unwrap();
                let mut far = TcpStream::connect(&self.to).await.unwrap();
                tokio::spawn(async move {
                    // However it ends.
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        };
        tokio::select! {
            ended = main => ended.unwrap(),
            () = data => {}
        }
    }
}

async fn main_channel(
    near: TcpStream,
    far: TcpStream,
    most: u64,
    in_order: bool,
    forward: Arc<AtomicU64>,
    there: Arc<AtomicBool>,
) {
    // Dropped, it is reset.
    near.set_zero_linger().unwrap();
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let (mut out, mut home) = ([0; 1024], [0; 256]);
    while forward.load(Ordering::SeqCst) < most {
        let room = usize::try_from(most - forward.load(Ordering::SeqCst)).unwrap_or(usize::MAX);
        let room = room.min(out.len());
        tokio::select! {
            got = near_in.read(&mut out[..room]) => {
                let got = got.unwrap();
                if got == 0 {
                    far_out.shutdown().await.unwrap();
                    break;
                }
                far_out.write_all(&out[..got]).await.unwrap();
                forward.fetch_add(got as u64, Ordering::SeqCst);
            }
            got = far_in.read(&mut home) => near_out.write_all(&home[..got.unwrap()]).await.unwrap(),
        }
    }
    if most == u64::MAX {
        // Nothing is wrong: the last words pass.
        let _ended = tokio::io::copy(&mut far_in, &mut near_out).await;
        return;
    }
    // What the destination says now, its verdict, is not passed on.
    while !there.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if in_order {
        near_out.shutdown().await.unwrap();
    }
    // Dropped one by one they would end it in order first.
    drop(near_in.reunite(near_out).unwrap());
    // Until the destination has hung up.
    let _ended = tokio::io::copy(&mut far_in, &mut tokio::io::sink()).await;
}

struct Ended {
    sent: Result<bool, Error>,
    received: Result<(), Error>,
    runs_here: bool,
    runs_there: bool,
    /// Bytes of main that passed.
    forward: u64,
}

async fn migrate(mode: Mode, most: u64) -> Ended {
    let address = |text: &str| MigrationAddress::parse(text).unwrap();
    let memory = || {
        Arc::new(RamBlocks::new([RamBlock::new("r", PAGES * PAGE_SIZE as u64).unwrap()]).unwrap())
    };
    let folder = std::env::temp_dir().join(format!("mig-reset-{}", std::process::id()));
    let (mut connect, mut listen) = (ConnectOptions::default(), ListenOptions::default());
    let mut capabilities = Capabilities::default();
    let mut parameters = Parameters::default();
    capabilities.return_path = true;
    match mode {
        Mode::Plain | Mode::Proxy => {}
        Mode::Multifd => {
            capabilities.multifd = true;
            parameters.multifd_channels = 2;
        }
        Mode::Tls => {
            trial::make(&folder, &[], true).unwrap();
            listen.tls = Some(ListenTls::new(ServerCredentials::x509(&folder, true).unwrap()));
            let mut tls = ConnectTls::new(ClientCredentials::x509(&folder).unwrap());
            tls.hostname = Some("localhost".into());
            connect.tls = Some(tls);
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
    let (here, there) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicBool>::default());
    let guest =
        |runs: &Arc<AtomicBool>, devices| Box::new(TestGuest { runs: Arc::clone(runs), devices });
    let mut source = Source::new(memory(), guest(&here, DEVICES))
        .with_capabilities(capabilities)
        .with_parameters(parameters.clone());
    let mut destination = Destination::new(memory(), guest(&there, 0))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    let mut into = listener(&address("tcp:127.0.0.1:0"), &listen).await.unwrap();
    let to = into.local_addresses()[0].trim_start_matches("tcp:").to_owned();
    let (middle, at) = Middle::bind(to, most, mode, Arc::clone(&there));
    let forward = Arc::clone(&middle.forward);
    let out = connector(&address(&format!("tcp:{at}")), &connect).unwrap();
    let carrying = tokio::spawn(middle.carry());
    let both = async { tokio::join!(source.run(&*out), destination.run(&mut *into)) };
    let (sent, received) = tokio::time::timeout(LONG, both).await.expect("no end");
    carrying.abort();
    Ended {
        sent: sent.map(|outcome| outcome.confirmed),
        received: received.map(drop),
        runs_here: here.load(Ordering::SeqCst),
        runs_there: there.load(Ordering::SeqCst),
        forward: forward.load(Ordering::SeqCst),
    }
}

#[tokio::main(worker_threads = 2)]
async fn reset_behind_the_end(mode: Mode) {
    let whole = migrate(mode, u64::MAX).await;
    assert!(whole.sent.unwrap() && whole.runs_there && !whole.runs_here);
    let cut = migrate(mode, whole.forward - WITHHELD_BYTES).await;
    cut.received.unwrap();
    let error = cut.sent.unwrap_err();
    assert!(cut.runs_there);
    assert!(!cut.runs_here, "two guests: {error}");
    assert_eq!(error.owner(), Owner::Unknown, "{error}");
}

#[test]
fn a_reset_that_takes_the_verdict_along() {
    if runs_inside("a_reset_that_takes_the_verdict_along", &NETWORK) {
        reset_behind_the_end(Mode::Plain);
    }
}

#[test]
fn the_same_where_a_proxy_ends_it_in_order() {
    if runs_inside("the_same_where_a_proxy_ends_it_in_order", &NETWORK) {
        reset_behind_the_end(Mode::Proxy);
    }
}

#[test]
fn the_same_of_main_beside_data_channels() {
    if runs_inside("the_same_of_main_beside_data_channels", &NETWORK) {
        reset_behind_the_end(Mode::Multifd);
    }
}

#[test]
fn the_same_around_tls() {
    if runs_inside("the_same_around_tls", &NETWORK) {
        reset_behind_the_end(Mode::Tls);
    }
}
