//! What can be chosen about TLS beside the credentials.

use std::{sync::Arc, time::Duration};

use mig_transport::Result;
use rustls::pki_types::CertificateDer;

use crate::{
    authorize::Authorization,
    credentials::{CertificateFacts, printable},
    session::{Admit, engine::Peer},
};

/// How long the other end may take to agree, to the last byte of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes that may run at a time at one listener: all channels of a QEMU with multifd, which connect at once (255 and the
/// main one), and 64 of whoever else comes. Each holds a descriptor and at most 60 KiB (`session::allowance`), so all of them 19 MiB.
const MAX_HANDSHAKES: usize = 256 + 64;

/// See the fields; the default is right nearly always.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsOptions {
    /// How long a handshake may take; 10 seconds. It counts from the connection on; at a destination over a transport with one
    /// channel (fd, exec) from the source's first byte, as the channel is there before the source is.
    pub handshake: Duration,
    /// Handshakes that may run at a time beside accepting; 320, and no more than a third of the descriptors that this process may
    /// have. One more, and of the largest crowd, those from one neighbourhood who said as much, the one that got on longest ago
    /// is dropped, but nobody within 100 ms of connecting ([`NEWCOMER_GRACE`](mig_transport::NEWCOMER_GRACE)): who comes then
    /// waits until somebody may go. Whoever expects more channels at once than this needs more of them: a source does not try
    /// again.
    pub max_handshakes: usize,
    /// At a destination: which of the sources whose certificate was verified may come. `None` is all of them. Has no
    /// meaning at a source.
    pub authorization: Option<Authorization>,
    /// Records after which this end changes its sending keys and asks the other end to change its own (TLS 1.3 key
    /// update). `None`, the default, changes them before the cipher says that they wear out, and asks for nothing:
    /// with AES-GCM after 256 GiB. Less is for who wants it so, and for tests.
    pub key_update_after: Option<u64>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            handshake: HANDSHAKE,
            max_handshakes: MAX_HANDSHAKES,
            authorization: None,
            key_update_after: None,
        }
    }
}

impl TlsOptions {
    /// The same with something changed; for callers outside this crate.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Decides about who showed itself, and names it.
    pub(crate) fn admit(&self) -> Arc<Admit> {
        let authorization = self.authorization.clone();
        Arc::new(move |peer: &Peer| -> Result<Option<String>> {
            if let Some(authorization) = &authorization {
                authorization.check(peer)?;
            }
            Ok(match peer {
                Peer::Certificate(der) => CertificateFacts::of(&CertificateDer::from(&der[..]))
                    .map(|facts| printable(&facts.subject.to_string())),
                Peer::Key(user) => Some(printable(user)),
                Peer::Anonymous => None,
            })
        })
    }
}
