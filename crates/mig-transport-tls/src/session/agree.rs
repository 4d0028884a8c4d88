//! The handshake with rustls, and what is taken over from it.
//!
//! ```text
//!   record ─▶ held ─▶ process_tls_records ─▶ EncodeTlsData ─▶ out
//!                        └─ keys on both sides: into a KernelConnection, which only makes new keys
//! ```
//! rustls gets one record at a time and nothing after the handshake's last one: what a hasty peer sends behind it is for the
//! record layer that follows ([`records`](super::records)), key updates included.

use std::sync::Arc;

use mig_transport::{Error, Result};
use rustls::{
    ClientConfig, CommonState, ServerConfig, SupportedCipherSuite,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};

use super::{
    engine::{Established, Handshake, MAX_PLAINTEXT_BYTES, Peer, Step, Words},
    records::{Kernel, records},
};

/// Bytes of handshake messages that may be held because one is incomplete: certificate chains are a few KiB. A destination holds
/// less of a source's ([`allowance`](super::allowance)).
const MAX_HELD_BYTES: usize = 128 * 1024;

/// The handshake of the end that connects. `config` must allow its secrets to be taken out and have no resumption (see
/// [`client_config`]).
pub(crate) fn client(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    words: Arc<dyn Words>,
) -> Result<Box<dyn Handshake>> {
    let connection =
        UnbufferedClientConnection::new(config, name).map_err(|error| words.failed(&error))?;
    Ok(Box::new(Agreeing { connection: Client(connection), held: Vec::new(), words }))
}

/// The handshake of the end that listens; see [`server_config`].
pub(crate) fn server(
    config: Arc<ServerConfig>,
    words: Arc<dyn Words>,
) -> Result<Box<dyn Handshake>> {
    let connection =
        UnbufferedServerConnection::new(config).map_err(|error| words.failed(&error))?;
    Ok(Box::new(Agreeing { connection: Server(connection), held: Vec::new(), words }))
}

/// `config` as a session needs it: its keys can be taken over, nothing is resumed, nothing is said early.
pub(crate) fn client_config(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.enable_secret_extraction = true;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// As [`client_config`]. No tickets: a channel is opened once, and a client that reads nothing would hold up a server that
/// has to say something after the handshake.
pub(crate) fn server_config(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// What client and server have in common.
trait Connection: Send {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), rustls::Error>;
}

struct Client(UnbufferedClientConnection);

impl Connection for Client {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.0.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        &self.0
    }

    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.0.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

struct Server(UnbufferedServerConnection);

impl Connection for Server {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.0.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        &self.0
    }

    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.0.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

struct Agreeing<C> {
    connection: C,
    /// Records that rustls has not used up: a message may need several.
    held: Vec<u8>,
    words: Arc<dyn Words>,
}

impl<C: Connection> Handshake for Agreeing<C> {
    fn advance(&mut self, record: Option<&mut [u8]>, out: &mut Vec<u8>) -> Result<Step> {
        if let Some(record) = record {
            if self.held.len() + record.len() > MAX_HELD_BYTES {
                let what = format!("a TLS handshake message is longer than {MAX_HELD_BYTES} bytes");
                return Err(Error::PeerMisbehaved { what });
            }
            self.held.reserve_exact(record.len());
            self.held.extend_from_slice(record);
        }
        let outcome = drive(&mut self.connection, &mut self.held, out);
        if self.held.is_empty() {
            // The next message may be long in coming.
            self.held = Vec::new();
        }
        if let Err(error) = outcome {
            self.last_words(out);
            return Err(self.words.failed(&error));
        }
        match self.connection.common().is_handshaking() {
            true => Ok(Step::More),
            false => Ok(Step::Done),
        }
    }

    fn finish(self: Box<Self>) -> Result<Established> {
        let Self { connection, held, words } = *self;
        let explain = |error: rustls::Error| words.failed(&error);
        if !held.is_empty() {
            let what = "something follows in the record that ends the TLS handshake".to_owned();
            return Err(Error::PeerMisbehaved { what });
        }
        let common = connection.common();
        let peer = match common.peer_certificates() {
            Some([first, ..]) => Peer::Certificate(first.to_vec()),
            _ => Peer::Anonymous,
        };
        let suite = common.negotiated_cipher_suite().ok_or(rustls::Error::HandshakeNotComplete);
        let suite = suite.map_err(explain)?;
        let (secrets, kernel) = connection.into_kernel().map_err(explain)?;
        let (open, seal) = records(suite, secrets, kernel, Arc::clone(&words)).map_err(explain)?;
        let version = if suite.tls13().is_some() { "TLS 1.3" } else { "TLS 1.2" };
        let name = format!("{:?}", suite.suite());
        let name = name.trim_start_matches("TLS13_").trim_start_matches("TLS_");
        let agreed = format!("{version}, {name}");
        // TLS 1.3 changes its keys in time.
        let most_bytes = match suite {
            SupportedCipherSuite::Tls12(suite) => {
                suite.common.confidentiality_limit.checked_mul(MAX_PLAINTEXT_BYTES as u64)
            }
            SupportedCipherSuite::Tls13(_) => None,
        };
        Ok(Established { open: Box::new(open), seal: Box::new(seal), peer, agreed, most_bytes })
    }
}

impl<C: Connection> Agreeing<C> {
    /// After a failure: the alert. Nothing more may be read then, and while there is something to send nothing is.
    fn last_words(&mut self, out: &mut Vec<u8>) {
        while self.connection.common().wants_write() {
            match self.connection.process(&mut self.held).state {
                Ok(ConnectionState::EncodeTlsData(data)) => append(data, out),
                _ => return,
            }
        }
    }
}

/// Lets rustls use `held` as far as it can, and appends what it wants to send.
fn drive<C: Connection>(
    connection: &mut C,
    held: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process(held);
        let waits = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                append(data, out);
                false
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                false
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => true,
            Ok(_) => {
                return Err(rustls::Error::General("data in the middle of a handshake".into()));
            }
            Err(error) => return Err(error),
        };
        held.drain(..discard);
        if waits {
            return Ok(());
        }
    }
}

fn append<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    // Too small a buffer is how one learns the size.
    let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) else { return };
    let at = out.len();
    out.resize(at + needed.required_size, 0);
    let written = data.encode(&mut out[at..]).unwrap_or_default();
    out.truncate(at + written);
}
