//! TLS with keys that both ends know, by OpenSSL (feature `tls-psk`; docs/wire/transports.md §5.2): rustls has none.
//!
//! ```text
//!   record ─▶ Pipe.incoming ─▶ SSL ─▶ plaintext ─▶ back into the record's bytes
//!                               │
//!   Records ◀─ Pipe.outgoing ◀──┘◀── plaintext to seal
//! ```
//! OpenSSL has one state for both directions, so the opening and the sealing half share it behind a lock that is held for a
//! call only; it never sees the channel, only the pipe.
//!
//! TLS 1.3: an external key with ECDHE, SHA-256 suites (that is what a key without a hash of its own is for; RFC 8446
//! §4.2.11), AES-GCM first. TLS 1.2: ECDHE-PSK and DHE-PSK with AEAD; a destination has ECDHE only. A certificate that the
//! destination shows in place of a key is refused, whoever issued it: it proves nothing to who trusts no CA. No tickets, no resumption, no renegotiation. A key update that the other end asks for is answered with the next data sent,
//! as RFC 8446 §4.6.3 wants it.
//!
//! This end cannot change its own keys: OpenSSL does not do it by itself. AES-GCM wears out after 2²⁴ records (256 GiB, RFC 8446
//! §5.5), and sending fails then with a text that says so; ChaCha20-Poly1305 does not wear out.

use std::{
    io::{self, Read, Write},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use mig_transport::{Error, Result};
use openssl::{
    error::ErrorStack,
    ex_data::Index,
    ssl::{
        ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode,
        SslStream, SslVerifyMode, SslVersion,
    },
};
use rustls::AlertDescription;

use super::engine::{
    Content, Established, Fill, Handshake, MAX_PLAINTEXT_BYTES, Open, Opened, Peer, Records, Seal,
    Step,
};
use crate::{
    credentials::{Keys, User, printable},
    explain::Explainer,
};

/// For a key without a hash of its own.
const SUITES_1_3: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// With forward secrecy and AEAD; OpenSSL has no ECDHE-PSK with AES-GCM.
const SUITES_1_2: &str = "DHE-PSK-AES128-GCM-SHA256:DHE-PSK-AES256-GCM-SHA384:ECDHE-PSK-CHACHA20-POLY1305:\
                          DHE-PSK-CHACHA20-POLY1305";
/// OpenSSL numbers an alert that came by this and the alert's own number (`SSL_AD_REASON_OFFSET`).
const ALERT_REASONS: std::ops::Range<i32> = 1000..1256;

/// Records that one key of AES-GCM may protect, less a few for what TLS itself says.
const AES_GCM_RECORDS: u64 = (1 << 24) - 16;

/// The handshake of the end that connects.
pub(crate) fn client(user: &User, words: Arc<Explainer>) -> Result<Box<dyn Handshake>> {
    client_up_to(SslVersion::TLS1_3, user, words)
}

/// QEMU's `priority` may leave the newest version out.
fn client_up_to(
    newest: SslVersion,
    user: &User,
    words: Arc<Explainer>,
) -> Result<Box<dyn Handshake>> {
    let make = || -> std::result::Result<_, ErrorStack> {
        let mut context = context()?;
        context.set_max_proto_version(Some(newest))?;
        // A destination may decline the key and show a certificate instead. Nobody is trusted to issue one, so none is good.
        context.set_verify(SslVerifyMode::PEER);
        let user = user.clone();
        context.set_psk_client_callback(move |_, _hint, name, key| {
            let fits = name.len() > user.name().len() && key.len() >= user.key().len();
            if !fits {
                return Ok(0);
            }
            name[..user.name().len()].copy_from_slice(user.name().as_bytes());
            name[user.name().len()] = 0;
            key[..user.key().len()].copy_from_slice(user.key());
            Ok(user.key().len())
        });
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_connect_state();
        SslStream::new(ssl, Pipe::default())
    };
    let stream = make().map_err(|error| unusable(&error))?;
    Ok(Box::new(Agreeing { stream, words, asked: None }))
}

/// The handshake of the end that listens.
pub(crate) fn server(keys: &Keys, words: Arc<Explainer>) -> Result<Box<dyn Handshake>> {
    let make = || -> std::result::Result<_, ErrorStack> {
        let index = asked_index()?;
        let mut context = context()?;
        let keys = keys.clone();
        context.set_psk_server_callback(move |ssl, name, key| {
            let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
            let known = keys.of(&name).filter(|known| known.len() <= key.len());
            let len = known.map_or(0, |known| {
                key[..known.len()].copy_from_slice(known);
                known.len()
            });
            ssl.set_ex_data(index, Asked { name, known: len > 0 });
            Ok(len)
        });
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_accept_state();
        SslStream::new(ssl, Pipe::default()).map(|stream| (stream, index))
    };
    let (stream, index) = make().map_err(|error| unusable(&error))?;
    Ok(Box::new(Agreeing { stream, words, asked: Some(index) }))
}

fn context() -> std::result::Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_ciphersuites(SUITES_1_3)?;
    context.set_cipher_list(SUITES_1_2)?;
    context.set_options(
        SslOptions::NO_RENEGOTIATION | SslOptions::NO_TICKET | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    Ok(context)
}

fn unusable(error: &ErrorStack) -> Error {
    Error::Unavailable {
        what: format!("OpenSSL cannot do TLS-PSK here: {error}"),
        remedy: "use certificates, or an OpenSSL that allows it".into(),
    }
}

/// Who a source said to be.
struct Asked {
    name: String,
    known: bool,
}

/// Where OpenSSL keeps that for each connection.
fn asked_index() -> std::result::Result<Index<Ssl, Asked>, ErrorStack> {
    static INDEX: OnceLock<std::result::Result<Index<Ssl, Asked>, ErrorStack>> = OnceLock::new();
    INDEX.get_or_init(Ssl::new_ex_index).clone()
}

/// Bytes between OpenSSL and us.
#[derive(Debug, Default)]
struct Pipe {
    incoming: Vec<u8>,
    /// Bytes of it that OpenSSL has read.
    read: usize,
    outgoing: Vec<u8>,
}

impl Pipe {
    /// The next record; what was read of the last one is forgotten.
    fn put(&mut self, record: &[u8]) {
        self.incoming.drain(..self.read);
        self.read = 0;
        self.incoming.extend_from_slice(record);
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (&self.incoming[self.read..]).read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => {
                self.read += n;
                Ok(n)
            }
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Agreeing {
    stream: SslStream<Pipe>,
    words: Arc<Explainer>,
    /// At a destination: where the source's user is noted.
    asked: Option<Index<Ssl, Asked>>,
}

impl Agreeing {
    fn user(&self) -> Option<&Asked> {
        self.asked.and_then(|index| self.stream.ssl().ex_data(index))
    }

    fn failed(&self, error: &openssl::ssl::Error) -> Error {
        if let Some(alert) = alert(error) {
            return self.words.failed(&rustls::Error::AlertReceived(alert));
        }
        let why = reason(error);
        let who = self.user().map(|user| (printable(&user.name), user.known));
        match (who, self.asked) {
            (Some((name, false)), _) => self.words.refused_key(&format!(
                "the source says to be the user {name:?}, of whom keys.psk has no key; add a line {name}:HEXKEY, or set its \
                 username"
            )),
            (Some((name, true)), _) => self.words.refused_key(&format!(
                "the source says to be the user {name:?}, and does not know the key that keys.psk has ({why})"
            )),
            (None, Some(_)) => self.words.refused_key(&format!(
                "the source offers no key: it is set to certificates, or to no credentials of the kind psk ({why})"
            )),
            (None, None) => self.words.refused_key(&format!(
                "the destination does not agree to a key: it is set to certificates, or breaks the rules of TLS ({why})"
            )),
        }
    }
}

impl Handshake for Agreeing {
    fn advance(&mut self, record: Option<&mut [u8]>, out: &mut Vec<u8>) -> Result<Step> {
        if let Some(record) = record {
            self.stream.get_mut().put(record);
        }
        let outcome = self.stream.do_handshake();
        out.append(&mut self.stream.get_mut().outgoing);
        match outcome {
            Ok(()) => Ok(Step::Done),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(Step::More),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn finish(self: Box<Self>) -> Result<Established> {
        // OpenSSL counts a key that both ends had as a resumed session; TLS 1.2 has suites of keys only.
        let is_1_3 = self.stream.ssl().version2() == Some(SslVersion::TLS1_3);
        if self.stream.ssl().peer_certificate().is_some()
            || (is_1_3 && !self.stream.ssl().session_reused())
        {
            return Err(self.words.refused_key("the other end agreed to TLS without the key"));
        }
        let peer = match (self.user(), self.asked) {
            (Some(user), _) if user.known => Peer::Key(user.name.clone()),
            (_, Some(_)) => {
                return Err(self
                    .words
                    .refused_key("the source agreed to TLS without naming a user"));
            }
            // The destination has proven that it knows our key.
            (_, None) => Peer::Key(self.words.user().unwrap_or_default().to_owned()),
        };
        let ssl = self.stream.ssl();
        let version =
            if ssl.version2() == Some(SslVersion::TLS1_3) { "TLS 1.3" } else { "TLS 1.2" };
        let suite = ssl.current_cipher().and_then(|cipher| cipher.standard_name()).unwrap_or("?");
        let agreed = format!("{version}, {}, pre-shared key", suite.trim_start_matches("TLS_"));
        let may_seal = if suite.contains("GCM") { AES_GCM_RECORDS } else { u64::MAX };
        let shared = Shared { stream: Arc::new(Mutex::new(self.stream)), words: self.words };
        Ok(Established {
            open: Box::new(Opener {
                shared: shared.clone(),
                plaintext: vec![0; MAX_PLAINTEXT_BYTES],
            }),
            seal: Box::new(Sealer {
                shared,
                plaintext: vec![0; MAX_PLAINTEXT_BYTES],
                may_seal,
                sealed: 0,
            }),
            peer,
            agreed,
            most_bytes: may_seal.checked_mul(MAX_PLAINTEXT_BYTES as u64),
        })
    }
}

#[derive(Clone)]
struct Shared {
    stream: Arc<Mutex<SslStream<Pipe>>>,
    words: Arc<Explainer>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SslStream<Pipe>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &openssl::ssl::Error) -> io::Error {
        let error = match alert(error) {
            Some(AlertDescription::BadRecordMac) => damaged(
                "sending over TLS",
                "what this end sent was damaged or altered on the way, says the peer (TLS alert bad_record_mac)".into(),
            ),
            Some(alert) => self.words.failed(&rustls::Error::AlertReceived(alert)),
            // OpenSSL does not tell a forged record from one that breaks a rule.
            None => {
                let why = format!("{}: it was damaged or altered on the way", reason(error));
                damaged("TLS record after the handshake", why)
            }
        };
        error.into_io()
    }
}

struct Opener {
    shared: Shared,
    /// OpenSSL does not decrypt in place.
    plaintext: Vec<u8>,
}

impl Open for Opener {
    fn open(&mut self, record: &mut [u8]) -> io::Result<Opened> {
        let mut stream = self.shared.lock();
        stream.get_mut().put(record);
        let what = match stream.ssl_read(&mut self.plaintext) {
            Ok(n) => {
                // The plaintext of a record is shorter than the record.
                record[..n].copy_from_slice(&self.plaintext[..n]);
                Content::Data(0..n)
            }
            Err(error) => match error.code() {
                ErrorCode::WANT_READ => Content::Internal,
                ErrorCode::ZERO_RETURN => Content::Closed,
                _ => return Err(self.shared.failed(&error)),
            },
        };
        let owes = !stream.get_ref().outgoing.is_empty();
        Ok(Opened { what, owes })
    }
}

/// Seals, and counts what it sealed.
struct Sealer {
    shared: Shared,
    /// OpenSSL does not encrypt in place.
    plaintext: Vec<u8>,
    /// Records that the keys may protect.
    may_seal: u64,
    sealed: u64,
}

impl Seal for Sealer {
    fn seal(&mut self, fill: Fill<'_>, out: &mut Records) -> io::Result<usize> {
        let filled = fill(&mut self.plaintext);
        let mut stream = self.shared.lock();
        let mut rest = &self.plaintext[..filled];
        while !rest.is_empty() {
            if self.sealed >= self.may_seal {
                return Err(worn_out(self.sealed).into_io());
            }
            let sent = stream.ssl_write(rest).map_err(|error| self.shared.failed(&error))?;
            self.sealed += 1;
            rest = &rest[sent..];
        }
        take(&mut stream, out);
        Ok(filled)
    }

    fn settle(&mut self, out: &mut Records) -> io::Result<()> {
        take(&mut self.shared.lock(), out);
        Ok(())
    }

    fn close(&mut self, out: &mut Records) -> io::Result<()> {
        let mut stream = self.shared.lock();
        // Its error says that there is nobody to say goodbye to any more.
        let said = stream.shutdown();
        take(&mut stream, out);
        match said {
            Err(error) if error.code() == ErrorCode::SYSCALL => Err(self.shared.failed(&error)),
            _ => Ok(()),
        }
    }

    /// OpenSSL sends no alert of one's own choice; the connection is closed in order.
    fn refuse(&mut self, out: &mut Records) -> io::Result<()> {
        self.close(out)
    }

    #[cfg(test)]
    fn wear_out_after(&mut self, records: u64) {
        self.may_seal = self.may_seal.min(records);
    }
}

fn worn_out(records: u64) -> Error {
    let what = format!(
        "the keys of this TLS connection with a pre-shared key are used up after {records} records, and cannot be changed; use \
         certificates with TLS 1.3, or more channels"
    );
    Error::PeerIncompatible { what }
}

fn damaged(doing: &str, why: String) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, why);
    Error::Io { doing: doing.to_owned(), source }
}

fn take(stream: &mut SslStream<Pipe>, out: &mut Records) {
    out.push(&stream.get_ref().outgoing);
    stream.get_mut().outgoing.clear();
}

/// The alert that the other end sent, if that is what happened.
fn alert(error: &openssl::ssl::Error) -> Option<AlertDescription> {
    let code = error.ssl_error()?.errors().first()?.reason_code();
    let number = ALERT_REASONS.contains(&code).then(|| code - ALERT_REASONS.start)?;
    u8::try_from(number).ok().map(AlertDescription::from)
}

fn reason(error: &openssl::ssl::Error) -> String {
    let first = error.ssl_error().and_then(|stack| stack.errors().first());
    match first.and_then(openssl::error::Error::reason) {
        Some(reason) => reason.to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
