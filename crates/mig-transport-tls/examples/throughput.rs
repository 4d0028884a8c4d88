//! How fast pages go through a channel, plain and under TLS, from one thread to another over loopback tcp, and what that
//! costs each end; and how fast one core encrypts and decrypts records, which is the least it can cost.
//!
//! `cargo run --release -p mig-transport-tls --example throughput [GiB [rounds]]`

use std::{
    error::Error,
    future::poll_fn,
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use mig_transport::{
    Capabilities, Channel, Connector, Endpoint, FdIo, FdKind, Gather, Listener, MigrationAddress,
    Region, RegionSlice, VecRegion,
};
use mig_transport_tls::{
    ClientCredentials, ExpectedName, ServerCredentials, TlsConnector, TlsListener, TlsOptions,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

const PAGE: usize = 4096;
/// Guest memory that is sent over and over, and the place where it lands: both larger than the caches.
const MEMORY: usize = 256 << 20;
const STAGING: usize = 1 << 20;

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Done {
    let mut arguments = std::env::args().skip(1);
    let gib: f64 = arguments.next().map_or(Ok(4.0), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let bytes = (gib * f64::from(1 << 30)) as usize / STAGING * STAGING;
    let folder = certificates()?;
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (took, tls) in took.iter_mut().zip([None, Some(folder.path())]) {
            took.push(transfer(bytes, tls)?);
        }
    }
    for (name, took) in ["plain", "TLS"].iter().zip(&mut took) {
        let mut median = |of: fn(&Took) -> Duration| {
            took.sort_by_key(of);
            bytes as f64 / of(&took[rounds / 2]).as_secs_f64() / 1e9
        };
        println!(
            "{name:>6}: {:.2} GB/s; a core of the source sends {:.2}, of the destination receives {:.2} GB/s",
            median(|took| took.clock),
            median(|took| took.source),
            median(|took| took.destination),
        );
    }
    one_core();
    Ok(())
}

/// Time on the clock, and time of a processor at each end.
struct Took {
    clock: Duration,
    source: Duration,
    destination: Duration,
}

fn processor_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec as u32)
}

/// What the ciphers alone take, on records that stay in the cache.
fn one_core() {
    for algorithm in [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305] {
        const RECORD: usize = 1 << 14;
        const TIMES: u32 = 100_000;
        let key = vec![1; algorithm.key_len()];
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &key).expect("a key"));
        // The same one each time: nothing of this is a secret.
        let nonce = || Nonce::assume_unique_for_key([2; 12]);
        let mut record = vec![3; RECORD];
        let seal = |record: &mut [u8]| {
            key.seal_in_place_separate_tag(nonce(), Aad::empty(), record).expect("sealed")
        };
        let start = processor_time();
        for _ in 0..TIMES {
            let _tag = seal(&mut record);
        }
        let sealing = processor_time() - start;
        let mut sealed = record.clone();
        let tag = seal(&mut sealed);
        sealed.extend_from_slice(tag.as_ref());
        let mut record = sealed.clone();
        let start = processor_time();
        for _ in 0..TIMES {
            // It can be opened in place once only.
            record.copy_from_slice(&sealed);
            key.open_in_place(nonce(), Aad::empty(), &mut record).expect("opened");
        }
        let opening = processor_time() - start;
        let rate = |took: Duration| f64::from(TIMES) * RECORD as f64 / took.as_secs_f64() / 1e9;
        println!(
            "{algorithm:?}, one core: opens {:.2}, seals {:.2} GB/s",
            rate(opening),
            rate(sealing)
        );
    }
}

/// From the first byte sent to the last one in place; a destination answers with one byte then.
fn transfer(bytes: usize, tls: Option<&Path>) -> Done<Took> {
    let listening = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listening.local_addr()?)?;
    let (theirs, _) = listening.accept()?;
    let folder = tls.map(Path::to_owned);
    let destination = {
        let folder = folder.clone();
        thread::spawn(move || -> Done<Duration> { here(receive(theirs, bytes, folder.as_deref())) })
    };
    let (clock, source) = here(send(ours, bytes, folder.as_deref()))?;
    let destination = destination.join().expect("the destination does not panic")?;
    Ok(Took { clock, source, destination })
}

fn here<T>(work: impl Future<Output = Done<T>>) -> Done<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn send(socket: TcpStream, bytes: usize, tls: Option<&Path>) -> Done<(Duration, Duration)> {
    let mut channel = channel(socket)?;
    if let Some(folder) = tls {
        let address = MigrationAddress::parse("tcp:localhost:1")?.into_address();
        let name = ExpectedName::of(&address, None)?;
        let credentials = ClientCredentials::x509(folder)?;
        let inner = Box::new(Only(Mutex::new(Some(channel))));
        let options = TlsOptions::default();
        channel = TlsConnector::new(inner, credentials, name, options)?.connect().await?;
    }
    let (mut sender, mut receiver) = (channel.take_sender()?, channel.take_receiver()?);
    let memory: Arc<dyn Region> = VecRegion::zeroed(MEMORY);
    for page in 0..MEMORY / PAGE {
        memory.copy_in_at(page * PAGE, &page.to_le_bytes())?;
    }
    let (start, before) = (Instant::now(), processor_time());
    let mut gather = Gather::new();
    let (mut sent, mut page) = (0, 0);
    while sent < bytes {
        while sent < bytes && gather.has_room(8) && gather.remaining() < 1 << 20 {
            // As a migration sends it: eight bytes of head, then the page.
            gather.push_head(&(page as u64).to_be_bytes())?;
            gather.push_page(&memory, page * PAGE % MEMORY, PAGE - 8)??;
            page += 1;
            sent += PAGE;
        }
        while !gather.is_empty() {
            poll_fn(|cx| sender.poll_send(cx, &mut gather)).await?;
        }
        gather.clear();
    }
    sender.flush().await?;
    receiver.read_u8().await?;
    let took = (start.elapsed(), processor_time() - before);
    sender.shutdown().await?;
    Ok(took)
}

async fn receive(socket: TcpStream, bytes: usize, tls: Option<&Path>) -> Done<Duration> {
    let mut channel = channel(socket)?;
    if let Some(folder) = tls {
        let credentials = ServerCredentials::x509(folder, true)?;
        let inner = Box::new(Only(Mutex::new(Some(channel))));
        let mut listener = TlsListener::new(inner, credentials, TlsOptions::default());
        channel = listener.accept().await?;
    }
    let (mut sender, mut receiver) = (channel.take_sender()?, channel.take_receiver()?);
    // Warm: touched before the clock starts.
    let staging = RegionSlice::whole(VecRegion::zeroed(STAGING));
    staging.zero();
    let before = processor_time();
    let mut left = bytes;
    while left > 0 {
        let want = staging.sub(0, STAGING.min(left))?;
        let got = poll_fn(|cx| receiver.poll_receive(cx, std::slice::from_ref(&want))).await?;
        assert!(got > 0, "the source sends {left} bytes more");
        left -= got;
    }
    let took = processor_time() - before;
    sender.write_u8(1).await?;
    sender.flush().await?;
    // Until the source has gone.
    let _end = receiver.read(&mut [0; 1]).await?;
    Ok(took)
}

fn channel(socket: TcpStream) -> Done<Channel> {
    socket.set_nodelay(true)?;
    let io = FdIo::new(socket.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE)?;
    let endpoint = Endpoint { transport: "tcp", ..Endpoint::default() };
    Ok(io.socket_channel(Capabilities::socket(), endpoint))
}

/// The one channel there is, for either end.
struct Only(Mutex<Option<Channel>>);

impl Only {
    fn take(&self) -> mig_transport::Result<Channel> {
        let channel = self.0.lock().expect("nobody panics with it").take();
        channel.ok_or_else(|| mig_transport::Error::Misuse { what: "one channel only".into() })
    }
}

#[async_trait]
impl Connector for Only {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        self.take()
    }
}

#[async_trait]
impl Listener for Only {
    async fn accept(&mut self) -> mig_transport::Result<Channel> {
        self.take()
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}

fn certificates() -> Done<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    std::fs::write(folder.path().join("ca-cert.pem"), ca.pem())?;
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &ca)?;
        std::fs::write(folder.path().join(format!("{name}-cert.pem")), certificate.pem())?;
        std::fs::write(folder.path().join(format!("{name}-key.pem")), key.serialize_pem())?;
    }
    Ok(folder)
}
