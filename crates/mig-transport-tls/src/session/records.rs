//! The record layer after a handshake of rustls: its AEAD, its key schedule, our buffers.
//!
//! ```text
//!   reading task: RecordOpener ── decrypts in place
//!                      │ key update of the peer ─▶ KeyUpdates (new keys; "an answer is due"; an alert)
//!   writing task: RecordSealer ◀─────────────────────┘
//! ```
//! rustls did the handshake, makes every key and opens every record; what seals them is in [`cipher`](super::cipher). Here is
//! only what stands around that (RFC 8446 §5 and §4.6, RFC 5246 §6.2): sequence numbers, content types, close_notify, key
//! updates. Each direction has its own object, so reading and writing never wait for each other but while a key changes.
//!
//! Keys wear out after 2²⁴ records of AES-GCM (256 GiB): with TLS 1.3 the sender changes them before, without asking the
//! peer to change its own, because QEMU's GnuTLS must not be made to write by a reader (docs/wire/transports.md §5.3). With
//! TLS 1.2 nothing can be done, and sending fails with a text that says so.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mig_transport::Error;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, ExtractedSecrets, PeerMisbehaved,
    ProtocolVersion, SupportedCipherSuite,
    client::ClientConnectionData,
    crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter},
    kernel::KernelConnection,
    server::ServerConnectionData,
};

use super::{
    cipher::Cipher,
    engine::{
        Content, Fill, HEADER_BYTES, MAX_PLAINTEXT_BYTES, Open, Opened, Records, Seal, Words,
    },
};

/// Messages between the two TLS ends, and empty records, that may come with no byte of data between them. A peer that
/// changes its keys every few records stays far below.
const MAX_CONSECUTIVE_INTERNAL: u32 = 1000;
/// The longest message after the handshake that is put together from several records: a ticket.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// A TLS 1.2 record of AES-GCM starts with as much of its nonce.
const TLS12_EXPLICIT_NONCE_BYTES: usize = 8;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;

/// What rustls keeps after the handshake: the secrets that new keys are made of.
pub(crate) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Kernel {
    fn new_sending_secrets(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(match self {
            Self::Client(kernel) => kernel.update_tx_secret()?.1,
            Self::Server(kernel) => kernel.update_tx_secret()?.1,
        })
    }

    fn new_receiving_secrets(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(match self {
            Self::Client(kernel) => kernel.update_rx_secret()?.1,
            Self::Server(kernel) => kernel.update_rx_secret()?.1,
        })
    }

    fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// What both directions share.
struct Common {
    kernel: Mutex<Kernel>,
    /// The peer asked that our sending keys change too.
    update_due: AtomicBool,
    /// Why reading failed, for the peer.
    alert_due: Mutex<Option<AlertDescription>>,
}

/// Both directions of a connection that rustls has agreed on.
pub(crate) fn records(
    suite: SupportedCipherSuite,
    secrets: ExtractedSecrets,
    kernel: Kernel,
    words: Arc<dyn Words>,
) -> Result<(RecordOpener, RecordSealer), rustls::Error> {
    let limit = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
    };
    let is_client = kernel.is_client();
    let shared = Arc::new(Common {
        kernel: Mutex::new(kernel),
        update_due: AtomicBool::new(false),
        alert_due: Mutex::new(None),
    });
    let (receive_sequence, receive_secrets) = secrets.rx;
    let (send_sequence, send_secrets) = secrets.tx;
    let opener = RecordOpener {
        suite,
        is_client,
        decrypter: decrypter(suite, receive_secrets)?,
        sequence: receive_sequence,
        opened: 0,
        joining: Vec::new(),
        internal: 0,
        common: Arc::clone(&shared),
        words,
    };
    let sealer = RecordSealer {
        suite,
        cipher: Cipher::new(suite, send_secrets, send_sequence)?,
        limit,
        asks: false,
        key_changes: 0,
        ended: false,
        common: shared,
    };
    Ok((opener, sealer))
}

pub(super) fn key_and_iv(
    secrets: ConnectionTrafficSecrets,
) -> Result<(AeadKey, Iv), rustls::Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(rustls::Error::General("an unknown cipher".into())),
    }
}

fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, rustls::Error> {
    let (key, iv) = key_and_iv(secrets)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}

/// Opens the records of one direction.
pub(crate) struct RecordOpener {
    suite: SupportedCipherSuite,
    is_client: bool,
    decrypter: Box<dyn MessageDecrypter>,
    /// Of the next record, since the keys changed last.
    sequence: u64,
    /// Records opened in all, for messages.
    opened: u64,
    /// The start of a handshake message that goes on in the next record.
    joining: Vec<u8>,
    /// How many came since the last byte of data.
    internal: u32,
    common: Arc<Common>,
    words: Arc<dyn Words>,
}

impl Open for RecordOpener {
    fn open(&mut self, record: &mut [u8]) -> io::Result<Opened> {
        let outer = ContentType::from(record[0]);
        let version = ProtocolVersion::from(u16::from_be_bytes([record[1], record[2]]));
        let body = &mut record[HEADER_BYTES..];
        if self.is_tls13() && outer != ContentType::ApplicationData {
            return Err(self.damaged(format!("it is of type {outer:?} and not encrypted")));
        }
        let message = InboundOpaqueMessage::new(outer, version, body);
        let (content, len) = match self.decrypter.decrypt(message, self.sequence) {
            Ok(message) => (message.typ, message.payload.len()),
            Err(error) => return Err(self.cannot_decrypt(error)),
        };
        self.sequence += 1;
        self.opened += 1;
        let start = HEADER_BYTES + self.explicit_nonce_bytes();
        let at = start..start + len;
        if !self.joining.is_empty() && content != ContentType::Handshake {
            let what = "a TLS message is interrupted by another one".to_owned();
            return Err(self.fail(AlertDescription::UnexpectedMessage, what));
        }
        if content == ContentType::ApplicationData && len > 0 {
            self.internal = 0;
            return Ok(Opened { what: Content::Data(at), owes: false });
        }
        self.internal += 1;
        if self.internal > MAX_CONSECUTIVE_INTERNAL {
            let what = format!("{} TLS messages without a byte of data", self.internal);
            return Err(self.fail(AlertDescription::UnexpectedMessage, what));
        }
        self.internal_record(content, &record[at.clone()], at)
    }
}

impl RecordOpener {
    fn is_tls13(&self) -> bool {
        self.suite.tls13().is_some()
    }

    /// Where plaintext starts in a body: AES-GCM of TLS 1.2 has part of the nonce before it.
    fn explicit_nonce_bytes(&self) -> usize {
        match self.suite {
            SupportedCipherSuite::Tls12(suite)
                if suite.aead_alg.key_block_shape().explicit_nonce_len > 0 =>
            {
                TLS12_EXPLICIT_NONCE_BYTES
            }
            _ => 0,
        }
    }

    fn internal_record(
        &mut self,
        content: ContentType,
        plaintext: &[u8],
        at: Range<usize>,
    ) -> io::Result<Opened> {
        match content {
            ContentType::ApplicationData => Ok(Opened { what: Content::Data(at), owes: false }),
            ContentType::Alert => self.alert(plaintext),
            ContentType::Handshake if self.is_tls13() => {
                let owes = self.messages(plaintext)?;
                Ok(Opened { what: Content::Internal, owes })
            }
            ContentType::Handshake => {
                let what = "the peer asks for a new TLS handshake, which is refused".to_owned();
                Err(self.fail(AlertDescription::HandshakeFailure, what))
            }
            other => {
                let what = format!("a TLS record of type {other:?} where data belongs");
                Err(self.fail(AlertDescription::UnexpectedMessage, what))
            }
        }
    }

    fn alert(&mut self, plaintext: &[u8]) -> io::Result<Opened> {
        let &[level, description] = plaintext else {
            let what = format!("a TLS alert of {} bytes", plaintext.len());
            return Err(self.fail(AlertDescription::DecodeError, what));
        };
        let description = AlertDescription::from(description);
        match description {
            AlertDescription::CloseNotify => Ok(Opened { what: Content::Closed, owes: false }),
            AlertDescription::UserCanceled => Ok(Opened { what: Content::Internal, owes: false }),
            _ if level == ALERT_WARNING && !self.is_tls13() => {
                tracing::debug!(?description, "the peer's TLS warns");
                Ok(Opened { what: Content::Internal, owes: false })
            }
            AlertDescription::BadRecordMac => {
                let source = io::Error::new(
                    io::ErrorKind::InvalidData,
                    "what this end sent was damaged or altered on the way, says the peer (TLS alert bad_record_mac)",
                );
                Err(Error::Io { doing: "sending over TLS".to_owned(), source }.into_io())
            }
            _ => {
                let error = rustls::Error::AlertReceived(description);
                Err(self.words.failed(&error).into_io())
            }
        }
    }

    /// Messages after the handshake (RFC 8446 §4.6); answers whether our keys have to change.
    fn messages(&mut self, plaintext: &[u8]) -> io::Result<bool> {
        if self.joining.len() + plaintext.len() > MAX_MESSAGE_BYTES {
            let what = format!("a TLS message after the handshake over {MAX_MESSAGE_BYTES} bytes");
            return Err(self.fail(AlertDescription::DecodeError, what));
        }
        let mut all = std::mem::take(&mut self.joining);
        all.extend_from_slice(plaintext);
        let mut rest = &all[..];
        let mut owes = false;
        while let Some((kind, body, after)) = first_message(rest) {
            rest = after;
            match kind {
                // Nothing is resumed here.
                NEW_SESSION_TICKET if self.is_client => {}
                KEY_UPDATE if rest.is_empty() => owes |= self.key_update(body)?,
                KEY_UPDATE => {
                    let what = "a TLS key update with something behind it".to_owned();
                    return Err(self.fail(AlertDescription::UnexpectedMessage, what));
                }
                other => {
                    let what = format!("a TLS handshake message of type {other} among data");
                    return Err(self.fail(AlertDescription::UnexpectedMessage, what));
                }
            }
        }
        self.joining = rest.to_vec();
        Ok(owes)
    }

    fn key_update(&mut self, body: &[u8]) -> io::Result<bool> {
        let asks = match body {
            [0] => false,
            [1] => true,
            _ => {
                let what = "a TLS key update that is neither asking nor not".to_owned();
                return Err(self.fail(AlertDescription::IllegalParameter, what));
            }
        };
        let fresh = lock(&self.common.kernel)
            .new_receiving_secrets()
            .and_then(|secrets| decrypter(self.suite, secrets));
        self.decrypter = fresh.map_err(|error| broken(&error))?;
        self.sequence = 0;
        tracing::debug!(asks, "the peer changed its TLS keys");
        if asks {
            self.common.update_due.store(true, Ordering::Release);
        }
        Ok(asks)
    }

    fn cannot_decrypt(&mut self, error: rustls::Error) -> io::Error {
        match error {
            rustls::Error::PeerSentOversizedRecord => {
                let what = format!("a TLS record with over {MAX_PLAINTEXT_BYTES} bytes in it");
                self.fail(AlertDescription::RecordOverflow, what)
            }
            rustls::Error::PeerMisbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec) => {
                let what = "an encrypted TLS change of cipher".to_owned();
                self.fail(AlertDescription::UnexpectedMessage, what)
            }
            rustls::Error::PeerMisbehaved(why) => {
                self.fail(AlertDescription::UnexpectedMessage, format!("a TLS record: {why:?}"))
            }
            _ => self.damaged("its authentication failed".to_owned()),
        }
    }

    /// Not the peer's fault as far as this end can tell: whoever sits between the two ends can do this.
    fn damaged(&mut self, how: String) -> io::Error {
        *lock(&self.common.alert_due) = Some(AlertDescription::BadRecordMac);
        let doing = format!("TLS record {} after the handshake", self.opened + 1);
        let source = io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{how}: it was damaged or altered on the way"),
        );
        Error::Io { doing, source }.into_io()
    }

    /// A rule the peer broke; it will be told.
    fn fail(&mut self, alert: AlertDescription, what: String) -> io::Error {
        *lock(&self.common.alert_due) = Some(alert);
        Error::PeerMisbehaved { what }.into_io()
    }
}

/// Type, body and what follows, of the first handshake message, if it is all there.
fn first_message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, a, b, c], rest) = bytes.split_first_chunk::<4>()?;
    let (body, after) = rest.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize)?;
    Some((kind, body, after))
}

/// Seals the records of one direction.
pub(crate) struct RecordSealer {
    suite: SupportedCipherSuite,
    cipher: Cipher,
    /// Records that one key may protect.
    limit: u64,
    /// A change of keys asks the peer for one.
    asks: bool,
    key_changes: u64,
    /// A close_notify or a fatal alert has gone.
    ended: bool,
    common: Arc<Common>,
}

impl Seal for RecordSealer {
    fn seal(&mut self, fill: Fill<'_>, out: &mut Records) -> io::Result<usize> {
        self.settle(out)?;
        self.before_worn_out(out)?;
        self.put(ContentType::ApplicationData, fill, out)
    }

    fn settle(&mut self, out: &mut Records) -> io::Result<()> {
        if self.common.update_due.swap(false, Ordering::AcqRel) && !self.ended {
            self.change_keys(false, out)?;
        }
        let alert = lock(&self.common.alert_due).take();
        if let (Some(alert), false) = (alert, self.ended) {
            self.say(ContentType::Alert, &[ALERT_FATAL, alert.into()], out)?;
            self.ended = true;
        }
        Ok(())
    }

    fn change_keys_after(&mut self, records: u64) {
        if self.suite.tls13().is_some() {
            // Room for the update itself.
            self.limit = self.limit.min(records.max(1).saturating_add(2));
            self.asks = true;
        }
    }

    fn close(&mut self, out: &mut Records) -> io::Result<()> {
        self.settle(out)?;
        if !self.ended {
            let close = AlertDescription::CloseNotify.into();
            self.say(ContentType::Alert, &[ALERT_WARNING, close], out)?;
            self.ended = true;
        }
        Ok(())
    }

    #[cfg(test)]
    fn refresh(&mut self, ask: bool, out: &mut Records) -> io::Result<()> {
        if self.ended || self.suite.tls13().is_none() {
            return Ok(());
        }
        // An answer that is due is this one.
        self.common.update_due.store(false, Ordering::Release);
        self.change_keys(ask, out)
    }

    #[cfg(test)]
    fn key_changes(&self) -> u64 {
        self.key_changes
    }

    fn refuse(&mut self, out: &mut Records) -> io::Result<()> {
        *lock(&self.common.alert_due) = Some(AlertDescription::AccessDenied);
        self.settle(out)
    }
}

impl RecordSealer {
    fn put(&mut self, kind: ContentType, fill: Fill<'_>, out: &mut Records) -> io::Result<usize> {
        if self.ended {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "this direction of the TLS connection has been ended",
            ));
        }
        self.cipher.seal(kind, fill, out)
    }

    /// A message of TLS itself.
    fn say(&mut self, kind: ContentType, message: &[u8], out: &mut Records) -> io::Result<()> {
        let mut fill = |into: &mut [u8]| {
            into[..message.len()].copy_from_slice(message);
            message.len()
        };
        self.put(kind, &mut fill, out).map(drop)
    }

    /// Leaves room for what ends the use of the keys: a key update, or with TLS 1.2 an alert.
    fn before_worn_out(&mut self, out: &mut Records) -> io::Result<()> {
        if self.cipher.sequence() + 2 < self.limit {
            return Ok(());
        }
        if self.suite.tls13().is_some() {
            return self.change_keys(self.asks, out);
        }
        let what = format!(
            "the keys of this TLS 1.2 connection are used up after {} records, and cannot be changed; use TLS 1.3 or \
             more channels",
            self.cipher.sequence()
        );
        Err(Error::PeerIncompatible { what }.into_io())
    }

    fn change_keys(&mut self, ask: bool, out: &mut Records) -> io::Result<()> {
        let message = [KEY_UPDATE, 0, 0, 1, u8::from(ask)];
        self.say(ContentType::Handshake, &message, out)?;
        let fresh = lock(&self.common.kernel)
            .new_sending_secrets()
            .and_then(|secrets| Cipher::new(self.suite, secrets, 0));
        self.cipher = fresh.map_err(|error| broken(&error))?;
        self.key_changes += 1;
        tracing::debug!(ask, times = self.key_changes, "changed the TLS keys for sending");
        Ok(())
    }
}

/// rustls failing at what cannot fail.
fn broken(error: &rustls::Error) -> io::Error {
    io::Error::other(format!("TLS: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
