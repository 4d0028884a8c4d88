//! Which engine a connection gets, by its credentials.

use std::sync::Arc;

use mig_transport::{Endpoint, Error, Result};

#[cfg(feature = "tls-psk")]
use super::psk;
use super::{agree, engine::Words, negotiate::Beginning};
use crate::{
    credentials::{ClientCredentials, ClientKind, ExpectedName, ServerCredentials, ServerKind},
    explain::Explainer,
};

/// For the source's end of `endpoint`.
pub(crate) fn source(
    credentials: &ClientCredentials,
    expected: &ExpectedName,
    endpoint: &Endpoint,
) -> Result<Beginning> {
    let words = Arc::new(Explainer::source(credentials, expected, endpoint.to_string()));
    let handshake = match credentials.kind() {
        ClientKind::X509(x509) => {
            let config = agree::client_config(&x509.rustls(words.witness()));
            agree::client(config, expected.rustls()?, Arc::clone(&words) as _)?
        }
        #[cfg(feature = "tls-psk")]
        ClientKind::Psk(user) => psk::client(user, Arc::clone(&words))?,
    };
    Ok(Beginning { handshake, words })
}

/// For the destination's end of `endpoint`.
pub(crate) fn destination(
    credentials: &ServerCredentials,
    endpoint: &Endpoint,
) -> Result<Beginning> {
    let words = Arc::new(Explainer::destination(credentials, endpoint.to_string()));
    let handshake = match credentials.kind() {
        ServerKind::X509(x509) => {
            let config = agree::server_config(&x509.rustls(words.witness()));
            agree::server(config, Arc::clone(&words) as _)?
        }
        #[cfg(feature = "tls-psk")]
        ServerKind::Psk(keys) => psk::server(keys, Arc::clone(&words))?,
    };
    Ok(Beginning { handshake, words })
}

impl Words for Explainer {
    fn failed(&self, error: &rustls::Error) -> Error {
        self.failed(error)
    }

    fn ended(&self, spoke: bool) -> Error {
        self.ended(spoke)
    }

    fn not_tls(&self, first_bytes: &[u8]) -> Option<Error> {
        self.not_tls(first_bytes)
    }

    fn hung_up_hint(&self) -> &'static str {
        self.hung_up_hint()
    }
}
