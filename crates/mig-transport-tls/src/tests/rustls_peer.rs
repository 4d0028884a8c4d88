//! Against rustls with its own record layer at the other end: every version and cipher, both roles, and keys that it changes.

use std::{
    io::{Read, Write},
    net::Shutdown,
    ops::DerefMut,
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::Duration,
};

use mig_testkit::pattern;
use mig_transport::{Blame, Channel, Connector, Listener};
use rustls::{
    CipherSuiteCommon, ClientConfig, ClientConnection, ConnectionCommon, RootCertStore,
    ServerConfig, ServerConnection, SideData, Stream, SupportedCipherSuite,
    SupportedProtocolVersion, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::doubles::{Ends, half_open};
use crate::{
    ClientCredentials,
    explain::Explainer,
    session::{self, Beginning, Link, Role, agree},
};

const ALL: usize = 3 << 20;
const HANG_GUARD: Duration = Duration::from_secs(60);

/// What rustls is restricted to.
#[derive(Clone, Copy)]
struct Peer {
    version: &'static SupportedProtocolVersion,
    suite: SupportedCipherSuite,
}

impl Peer {
    fn all() -> impl Iterator<Item = Self> {
        aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(|&suite| {
            // The key of the tests' certificates.
            let fits = !format!("{:?}", suite.suite()).contains("_RSA_");
            let version = if suite.tls13().is_some() { &TLS13 } else { &TLS12 };
            fits.then_some(Self { version, suite })
        })
    }

    fn provider(self) -> Arc<CryptoProvider> {
        let cipher_suites = vec![self.suite];
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    }

    fn client(self, ends: &Ends) -> ClientConnection {
        self.client_in_pieces(ends, None)
    }

    /// Whose records have at most so many bytes, head included.
    fn client_in_pieces(self, ends: &Ends, most: Option<usize>) -> ClientConnection {
        let (chain, key) = pair(ends, "client");
        let mut config = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .expect("they fit")
            .with_root_certificates(roots(ends))
            .with_client_auth_cert(chain, key)
            .expect("a pair");
        config.max_fragment_size = most;
        let name = "localhost".try_into().expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client")
    }

    fn server(self, ends: &Ends) -> ServerConnection {
        let (chain, key) = pair(ends, "server");
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots(ends).into(), self.provider())
                .build()
                .expect("a verifier");
        let config = ServerConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .expect("they fit")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("a pair");
        ServerConnection::new(Arc::new(config)).expect("a server")
    }
}

fn roots(ends: &Ends) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(ends, "ca")).expect("a CA");
    roots
}

fn certificate(ends: &Ends, name: &str) -> CertificateDer<'static> {
    let file = ends.site.path().join(format!("{name}-cert.pem"));
    CertificateDer::from_pem_file(file).expect("a certificate")
}

fn pair(ends: &Ends, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let file = ends.site.path().join(format!("{name}-key.pem"));
    (vec![certificate(ends, name)], PrivateKeyDer::from_pem_file(file).expect("a key"))
}

/// Reads a pattern and writes it back, changing its keys now and then, to the announced end.
fn echo<C, S>(mut connection: C, mut socket: UnixStream)
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    let mut buffer = vec![0; 100_000];
    let mut rounds = 0u32;
    loop {
        let got = Stream::new(&mut connection, &mut socket).read(&mut buffer).expect("announced");
        if got == 0 {
            break;
        }
        if rounds.is_multiple_of(5)
            && connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
        {
            connection.refresh_traffic_keys().expect("they can change");
        }
        rounds += 1;
        Stream::new(&mut connection, &mut socket).write_all(&buffer[..got]).expect("it is read");
    }
    connection.send_close_notify();
    while connection.wants_write() {
        connection.write_tls(&mut socket).expect("it is read");
    }
    socket.shutdown(Shutdown::Write).expect("a socket");
    // The other end closes.
    let _end = socket.read(&mut buffer);
}

async fn to_and_fro(mut channel: Channel) {
    let mut sender = channel.take_sender().expect("fresh");
    let mut receiver = channel.take_receiver().expect("fresh");
    let all = pattern::bytes(5, 0, ALL);
    let writing = async {
        for piece in all.chunks(70_000) {
            sender.write_all(piece).await.expect("it is read");
        }
        sender.shutdown().await.expect("it is read");
    };
    let reading = async {
        let mut heard = Vec::new();
        receiver.read_to_end(&mut heard).await.expect("an announced end");
        heard
    };
    let both = async { tokio::join!(writing, reading) };
    let ((), heard) = tokio::time::timeout(HANG_GUARD, both).await.expect("nobody waits for ever");
    pattern::compare(5, 0, &heard).expect("it comes back as it went");
    assert_eq!(heard.len(), ALL);
}

#[tokio::test]
async fn rustls_as_the_destination() {
    let ends = Ends::new();
    for peer in Peer::all() {
        let (ours, theirs) = half_open();
        let connection = peer.server(&ends);
        let other = thread::spawn(move || echo(connection, theirs));
        let channel = ends.connector(ours).connect().await.expect("it agrees");
        let said = &channel.endpoint().peer;
        let suite = format!("{:?}", peer.suite.suite());
        assert!(said.contains(suite.split_once('_').expect("a name").1), "{said}, {suite}");
        to_and_fro(channel).await;
        other.join().expect("rustls is content");
    }
}

#[tokio::test]
async fn rustls_as_the_source() {
    let ends = Ends::new();
    for peer in Peer::all() {
        let (ours, theirs) = half_open();
        let connection = peer.client(&ends);
        let other = thread::spawn(move || echo(connection, theirs));
        let channel = ends.listener_of(ours).accept().await.expect("it agrees");
        to_and_fro(channel).await;
        other.join().expect("rustls is content");
    }
}

/// A destination lets a stranger say so much and no more before it is verified: a source with the smallest records that an end
/// may ask for (RFC 8449 §4) is none.
#[tokio::test]
async fn a_source_of_small_records_is_let_in() {
    let ends = Ends::new();
    for peer in Peer::all() {
        let (ours, mut theirs) = half_open();
        let mut connection = peer.client_in_pieces(&ends, Some(64));
        let other = thread::spawn(move || connection.complete_io(&mut theirs).map(|_| theirs));
        ends.listener_of(ours).accept().await.expect("it agrees");
        other.join().expect("no panic").expect("rustls is content");
    }
}

/// The cipher with keys that wear out after so many records.
fn short_lived(suite: SupportedCipherSuite, records: u64) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: records,
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => {
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: common(&suite.common),
                hkdf_provider: suite.hkdf_provider,
                aead_alg: suite.aead_alg,
                quic: None,
            })))
        }
        SupportedCipherSuite::Tls12(suite) => {
            SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                common: common(&suite.common),
                prf_provider: suite.prf_provider,
                kx: suite.kx,
                sign: suite.sign,
                aead_alg: suite.aead_alg,
            })))
        }
    }
}

/// Our source with such keys, and rustls with ordinary ones.
async fn with_short_lived_keys(peer: Peer) -> (Channel, Arc<Link>, thread::JoinHandle<()>) {
    let ends = Ends::new();
    let (ours, theirs) = half_open();
    let connection = peer.server(&ends);
    let other = thread::spawn(move || echo(connection, theirs));
    let (chain, key) = pair(&ends, "client");
    let peer = Peer { suite: short_lived(peer.suite, 10), ..peer };
    let config = ClientConfig::builder_with_provider(peer.provider())
        .with_protocol_versions(&[peer.version])
        .expect("they fit")
        .with_root_certificates(roots(&ends))
        .with_client_auth_cert(chain, key)
        .expect("a pair");
    let credentials = ClientCredentials::x509(ends.site.path()).expect("sound credentials");
    let expected = ends.name("localhost");
    let words = Arc::new(Explainer::source(&credentials, &expected, "a test"));
    let begin = |_: &_| {
        let config = agree::client_config(&config);
        let name = "localhost".try_into().expect("a name");
        let handshake = agree::client(config, name, Arc::clone(&words) as _)?;
        Ok(Beginning { handshake, words })
    };
    let agreed = session::negotiate_link(ours, begin, ends.terms(Role::Source)).await;
    let (channel, link) = agreed.expect("it agrees");
    (channel, link, other)
}

#[tokio::test]
async fn keys_change_before_they_wear_out() {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
    let (channel, link, other) = with_short_lived_keys(Peer { version: &TLS13, suite }).await;
    to_and_fro(channel).await;
    other.join().expect("rustls is content");
    let records = ALL as u64 / (1 << 14);
    assert!((records / 10..records).contains(&link.key_changes()), "{}", link.key_changes());
}

#[tokio::test]
async fn keys_that_cannot_change_are_not_worn_out() {
    let suite = aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
    let (mut channel, _link, other) = with_short_lived_keys(Peer { version: &TLS12, suite }).await;
    let mut sender = channel.take_sender().expect("fresh");
    let error = sender.write_all(&[0; 1 << 20]).await.expect_err("more than they may protect");
    let error = mig_transport::Error::io("writing", error);
    assert_eq!(error.blame(), Blame::PeerIncompatible);
    assert!(error.to_string().contains("use TLS 1.3"), "{error}");
    // What was sent before stays good, and so does the end.
    drop(sender);
    let mut heard = Vec::new();
    let mut receiver = channel.take_receiver().expect("fresh");
    receiver.read_to_end(&mut heard).await.expect("an announced end");
    assert_eq!(heard.len() % (1 << 14), 0);
    assert!(!heard.is_empty());
    drop((receiver, channel));
    other.join().expect("rustls is content");
}
