//! `--tls-creds` and what goes with it: credentials are read and judged before anything is connected.

use mig::{
    ConnectTls, ListenTls,
    tls::{Authorization, ClientCredentials, ServerCredentials},
};

use crate::{
    failure::{Failure, Outcome},
    flags::{TlsDestinationFlags, TlsSourceFlags},
};

/// What a source can do when the two ends do not come to terms.
pub(crate) fn advice(tls: &ConnectTls) -> &'static str {
    match (tls.credentials.user(), tls.credentials.has_certificate()) {
        (Some(_), _) => WITH_KEY,
        (None, true) => ADVICE,
        (None, false) => WITHOUT_CERTIFICATE,
    }
}

const WITH_KEY: &str = "look at the other end's log, which says why it refused if it did; both ends need keys (--tls-psk, \
                        tls-creds-psk), and the same key for the same user in their keys.psk, and the destination's rules \
                        (tls-authz) must let that user in";

const WITHOUT_CERTIFICATE: &str = "this end has no certificate, which most destinations want to see (verify-peer): put client-cert.pem \
                                   and client-key.pem of an authority that the destination knows beside ca-cert.pem";

const ADVICE: &str = "look at the other end's log, which says why it refused if it did; both ends need TLS, the same authority, and \
                      a name that is in the destination's certificate (`mig certs DIR` makes a set that fits), and the \
                      destination's rules (tls-authz) must let this end in";

/// What a source is told.
pub(crate) fn source(flags: &TlsSourceFlags) -> Outcome<Option<ConnectTls>> {
    let Some(dir) = &flags.tls_creds else { return Ok(None) };
    let credentials = match &flags.tls_psk {
        None => ClientCredentials::x509(dir).map_err(exact)?,
        Some(username) => keys::of_source(dir, username)?,
    };
    let mut tls = ConnectTls::new(credentials);
    tls.hostname.clone_from(&flags.tls_hostname);
    Ok(Some(tls))
}

/// What a destination is told.
pub(crate) fn destination(flags: &TlsDestinationFlags) -> Outcome<Option<ListenTls>> {
    let Some(dir) = &flags.tls_creds else { return Ok(None) };
    let credentials = match flags.tls_psk {
        false => ServerCredentials::x509(dir, true).map_err(exact)?,
        true => keys::of_destination(dir)?,
    };
    let mut tls = ListenTls::new(credentials);
    if !flags.tls_authz.is_empty() {
        let rules = Authorization::parse(&flags.tls_authz).map_err(exact)?;
        rules.check_against(&tls.credentials).map_err(exact)?;
        tls.options.authorization = Some(rules);
    }
    Ok(Some(tls))
}

/// What is wrong with a file or a rule says what to do with it.
fn exact(error: mig::transport::Error) -> Failure {
    Failure::from(error).that_says_it_all()
}

#[cfg(feature = "tls-psk")]
mod keys {
    use std::path::Path;

    use mig::tls::{ClientCredentials, ServerCredentials};

    use super::exact;
    use crate::failure::Outcome;

    pub(super) fn of_source(dir: &Path, username: &str) -> Outcome<ClientCredentials> {
        ClientCredentials::psk(dir, username).map_err(exact)
    }

    pub(super) fn of_destination(dir: &Path) -> Outcome<ServerCredentials> {
        ServerCredentials::psk(dir).map_err(exact)
    }
}

#[cfg(not(feature = "tls-psk"))]
mod keys {
    use std::path::Path;

    use mig::{
        tls::{ClientCredentials, ServerCredentials},
        transport::Blame,
    };

    use crate::failure::{Failure, Outcome};

    pub(super) fn of_source(_dir: &Path, _username: &str) -> Outcome<ClientCredentials> {
        Err(not_built_in())
    }

    pub(super) fn of_destination(_dir: &Path) -> Outcome<ServerCredentials> {
        Err(not_built_in())
    }

    fn not_built_in() -> Failure {
        let what = "--tls-psk: TLS with pre-shared keys is not built into this mig";
        Failure::new(Blame::Unavailable, what).next(
            "use certificates (`mig certs DIR` makes a trial set), or build mig with the cargo feature tls-psk (cargo build \
             --release -p mig-cli --features tls-psk), which needs OpenSSL's headers (libssl-dev, pkg-config)",
        )
    }
}
