//! Encrypting the records of one direction, each with the next number.
//!
//! ```text
//!                       header │ plaintext │ type │ tag
//!   TLS 1.3              5     │ filled in, encrypted where it lies: the cipher itself, with rustls's key and nonces
//!   TLS 1.2 (seldom)           │ by rustls, from a buffer of ours and with a copy
//! ```
//! rustls encrypts into a buffer of its own and copies what it is given there. A migration copies every page out of the guest
//! anyway, as nobody may encrypt a guest's memory in place: straight into the record, that is the only copy of it.

use std::io;

use aws_lc_rs::{
    aead::{
        AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce as Unique,
        TlsProtocolId, TlsRecordSealingKey, UnboundKey,
    },
    error::Unspecified,
};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite,
    crypto::cipher::{
        AeadKey, Iv, MessageEncrypter, Nonce, OutboundChunks, OutboundPlainMessage, make_tls13_aad,
    },
};

use super::{
    engine::{Fill, HEADER_BYTES, MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES, Records},
    records::key_and_iv,
};

/// What TLS 1.3 has behind the plaintext: the record's real type, encrypted too, and the tag of every cipher it has
/// (RFC 8446 §5.2).
const TYPE_BYTES: usize = 1;
const TAG_BYTES: usize = 16;

/// Encrypts the records of one direction.
pub(super) struct Cipher {
    how: How,
    /// Of the next record under these keys.
    sequence: u64,
}

enum How {
    InPlace { key: Key, iv: Iv },
    Library { encrypter: Box<dyn MessageEncrypter>, plaintext: Vec<u8> },
}

impl Cipher {
    /// For records from number `sequence` on: those before it were the handshake's.
    pub(super) fn new(
        suite: SupportedCipherSuite,
        secrets: ConnectionTrafficSecrets,
        sequence: u64,
    ) -> Result<Self, Error> {
        let how = match suite {
            SupportedCipherSuite::Tls13(_) => {
                let (key, iv) = Key::new(secrets).ok_or(Error::EncryptError)?;
                How::InPlace { key, iv }
            }
            SupportedCipherSuite::Tls12(suite) => {
                let (key, iv) = key_and_iv(secrets)?;
                let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
                let (iv, explicit) = iv.as_ref().split_at(fixed);
                let encrypter = suite.aead_alg.encrypter(key, iv, explicit);
                How::Library { encrypter, plaintext: vec![0; MAX_PLAINTEXT_BYTES] }
            }
        };
        let mut cipher = Self { how, sequence: 0 };
        // aws-lc holds every nonce against the first one it saw, which must be that of record 0: with TLS 1.2 that was the
        // handshake's last message, sealed elsewhere. What is sealed here under its nonce leaves this function for nowhere.
        while cipher.sequence < sequence {
            cipher.finish(ContentType::ApplicationData, 0, &mut Records::default())?;
        }
        Ok(cipher)
    }

    /// The number of the next record under these keys.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Adds one record of what `fill` puts into [`MAX_PLAINTEXT_BYTES`], if that is something; answers how much it was.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        fill: Fill<'_>,
        out: &mut Records,
    ) -> io::Result<usize> {
        let filled = match &mut self.how {
            How::InPlace { .. } => {
                fill(&mut out.room(MAX_RECORD_BYTES)[HEADER_BYTES..][..MAX_PLAINTEXT_BYTES])
            }
            How::Library { plaintext, .. } => fill(plaintext),
        };
        if filled > 0 {
            let sealed = self.finish(kind, filled, out);
            sealed.map_err(|error| io::Error::other(format!("TLS: {error}")))?;
        }
        Ok(filled)
    }

    /// Makes a record of the `filled` bytes of plaintext that are in their place.
    fn finish(&mut self, kind: ContentType, filled: usize, out: &mut Records) -> Result<(), Error> {
        match &mut self.how {
            How::InPlace { key, iv } => {
                let len = HEADER_BYTES + filled + TYPE_BYTES + TAG_BYTES;
                let nonce = Nonce::new(iv, self.sequence);
                // The room is where the plaintext is: nothing was added since.
                let record = &mut out.room(MAX_RECORD_BYTES)[..len];
                seal_in_place(key, nonce, kind, record).map_err(|_| Error::EncryptError)?;
                out.add(len);
            }
            How::Library { encrypter, plaintext } => {
                let message = OutboundPlainMessage {
                    typ: kind,
                    version: ProtocolVersion::TLSv1_2,
                    payload: OutboundChunks::Single(&plaintext[..filled]),
                };
                out.push(&encrypter.encrypt(message, self.sequence)?.encode());
            }
        }
        self.sequence += 1;
        Ok(())
    }
}

/// `record` is as long as it will be, and has the plaintext.
fn seal_in_place(
    key: &mut Key,
    nonce: Nonce,
    kind: ContentType,
    record: &mut [u8],
) -> Result<(), Unspecified> {
    let (header, body) = record.split_at_mut(HEADER_BYTES);
    // They are the record's head (RFC 8446 §5.2).
    let authenticated = make_tls13_aad(body.len());
    header.copy_from_slice(&authenticated);
    let (inner, tag) = body.split_at_mut(body.len() - TAG_BYTES);
    inner[inner.len() - TYPE_BYTES] = kind.into();
    let (nonce, aad) = (Unique::assume_unique_for_key(nonce.0), Aad::from(authenticated));
    let made = match key {
        Key::AesGcm(key) => key.seal_in_place_separate_tag(nonce, aad, inner),
        Key::Other(key) => key.seal_in_place_separate_tag(nonce, aad, inner),
    };
    tag.copy_from_slice(made?.as_ref());
    Ok(())
}

enum Key {
    /// Refuses a nonce that does not go up.
    AesGcm(TlsRecordSealingKey),
    Other(LessSafeKey),
}

impl Key {
    /// Of TLS 1.3.
    fn new(secrets: ConnectionTrafficSecrets) -> Option<(Self, Iv)> {
        let gcm = |algorithm, key: AeadKey| {
            let key = TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key.as_ref());
            key.ok().map(Self::AesGcm)
        };
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (gcm(&AES_128_GCM, key), iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (gcm(&AES_256_GCM, key), iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref());
                (key.ok().map(|key| Self::Other(LessSafeKey::new(key))), iv)
            }
            _ => return None,
        };
        Some((key?, iv))
    }
}
