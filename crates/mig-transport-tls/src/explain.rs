//! Why a handshake failed, in words that say who has to do what.
//!
//! ```text
//!   rustls says "invalid peer certificate: UnknownIssuer"
//!   we say      "the destination's certificate (CN=b) was issued by CN=other CA, which /etc/mig/ca-cert.pem does not
//!                lead to: …"
//! ```
//!
//! | what happened | blame |
//! |---|---|
//! | a certificate that does not fit, either way; a plain stream where TLS is wanted; no common version | `PeerIncompatible` |
//! | the other end wants a certificate and we have none to show | `Misuse` |
//! | the other end breaks TLS | `PeerMisbehaved` |
//!
//! What comes from the other end's certificate is text of a stranger: shortened, and escaped where it could deceive.

use mig_transport::Error;
use rustls::{AlertDescription, CertificateError};

use crate::credentials::{
    CertificateFacts, ClientCredentials, ExpectedName, ServerCredentials, Witness, now, printable,
    utc,
};

/// What is known about one connection, whatever becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct Explainer {
    end: End,
    witness: Witness,
    /// The connection, as the channel names it.
    endpoint: String,
}

/// Which end we are.
#[derive(Clone, Debug)]
enum End {
    Source { credentials: ClientCredentials, expected: ExpectedName },
    Destination { credentials: ServerCredentials },
}

impl Explainer {
    /// For the source's end of `endpoint`.
    pub(crate) fn source(
        credentials: &ClientCredentials,
        expected: &ExpectedName,
        endpoint: impl Into<String>,
    ) -> Self {
        let end = End::Source { credentials: credentials.clone(), expected: expected.clone() };
        Self { end, witness: Witness::default(), endpoint: endpoint.into() }
    }

    /// For the destination's end of `endpoint`.
    pub(crate) fn destination(
        credentials: &ServerCredentials,
        endpoint: impl Into<String>,
    ) -> Self {
        let end = End::Destination { credentials: credentials.clone() };
        Self { end, witness: Witness::default(), endpoint: endpoint.into() }
    }

    /// To be given to the credentials' `rustls`.
    pub(crate) fn witness(&self) -> &Witness {
        &self.witness
    }

    /// rustls ended the connection, during the handshake or after it: a TLS 1.3 destination's objections to the source's
    /// certificate come when the source's handshake is over.
    pub(crate) fn failed(&self, error: &rustls::Error) -> Error {
        match error {
            rustls::Error::InvalidCertificate(why) => self.certificate_refused(why),
            rustls::Error::AlertReceived(alert) => self.alert(*alert),
            rustls::Error::NoCertificatesPresented => self.incompatible(format!(
                "{} shows no certificate, and one is wanted here; {}",
                self.other(),
                match &self.end {
                    End::Source { .. } => "give it server-cert.pem and server-key.pem",
                    End::Destination { .. } =>
                        "give it client-cert.pem and client-key.pem of a CA in this end's ca-cert.pem",
                }
            )),
            rustls::Error::PeerIncompatible(why) => self.incompatible(format!(
                "{} and this end have no way to speak TLS in common: {why:?} (TLS 1.3 and 1.2 are taken, with AES-GCM or \
                 ChaCha20); see the priority of its credentials",
                self.other()
            )),
            rustls::Error::InvalidCertRevocationList(_) => self.incompatible(format!(
                "{}'s certificate cannot be held against {}: {error}; fetch the CA's list anew",
                self.other(),
                self.file("ca-crl.pem")
            )),
            rustls::Error::FailedToGetRandomBytes | rustls::Error::FailedToGetCurrentTime => {
                Error::Unavailable {
                    what: format!("TLS with {}: {error}", self.endpoint),
                    remedy: "this machine must have a source of random numbers and a clock".into(),
                }
            }
            other => Error::PeerMisbehaved {
                what: format!("{}: {} breaks the rules of TLS: {other}", self.endpoint, self.other()),
            },
        }
    }

    /// The other end closed the connection before the handshake was over; whether it had said anything, and what it said
    /// looked like TLS.
    pub(crate) fn ended(&self, spoke: bool) -> Error {
        if let Some(user) = self.user() {
            return self.incompatible(format!(
                "{} closed the connection during the handshake: it knows no user {user:?}, or another key than {} has, or is \
                 set to something else than keys (tls-creds-psk there); its log says which",
                self.other(),
                self.file("keys.psk")
            ));
        }
        let why = match (&self.end, spoke) {
            (End::Source { .. }, false) => {
                "without a word of TLS: it turned us away by our address, or it has no TLS (tls-creds, --tls-creds) or another kind of \
                 credentials, and both ends must have the same; see its log"
            }
            (End::Source { .. }, true) => "in the middle of the handshake; its log says why",
            (End::Destination { .. }, false) => {
                "before it said anything; see whether it is a migration source, with TLS (tls-creds, --tls-creds)"
            }
            (End::Destination { .. }, true) => {
                "in the middle of the handshake: it does not trust this end's certificate, or knows another key, perhaps; its \
                 error says why (QEMU: query-migrate)"
            }
        };
        self.incompatible(format!("{} closed the connection {why}", self.other()))
    }

    /// What an engine for keys says in its own words.
    #[cfg(feature = "tls-psk")]
    pub(crate) fn refused_key(&self, why: &str) -> Error {
        self.incompatible(why.to_owned())
    }

    /// At a source with keys in place of certificates: the user.
    pub(crate) fn user(&self) -> Option<&str> {
        match &self.end {
            End::Source { credentials, .. } => credentials.user(),
            End::Destination { .. } => None,
        }
    }

    /// What to add if the connection ends after the handshake and before anything was received over it.
    pub(crate) fn hung_up_hint(&self) -> &'static str {
        match &self.end {
            End::Source { .. } if self.user().is_some() => {
                "the connection ended right after the TLS handshake: most likely the rules of the destination (tls-authz) do \
                 not let our user in, which it says only in its own log"
            }
            End::Source { .. } => {
                "the connection ended right after the TLS handshake: most likely the destination refuses our certificate or its \
                 name (verify-peer, tls-authz), which it says only in its own log"
            }
            End::Destination { .. } => {
                "the connection ended right after the TLS handshake: most likely the source refuses this end's certificate, which \
                 it says only in its own error"
            }
        }
    }

    /// What to say if the first bytes of the other end cannot be the beginning of TLS. One is enough, eight say most.
    pub(crate) fn not_tls(&self, first_bytes: &[u8]) -> Option<Error> {
        // Record types of TLS: change_cipher_spec to application_data, heartbeat apart (RFC 8446 §B.1); an SSL 2 hello,
        // which nobody sends any more, is not among them.
        let first = *first_bytes.first()?;
        let is_version = first_bytes.get(1).is_none_or(|&major| major == 3);
        if (0x14..=0x17).contains(&first) && is_version {
            return None;
        }
        let what = match (&self.end, first_bytes) {
            (End::Destination { .. }, [b'Q', b'E', b'V', b'M', ..]) => {
                "the source sends a plain stream; turn TLS on there (tls-creds, --tls-creds), or off here".to_owned()
            }
            (End::Destination { .. }, [0x11, 0x22, 0x33, 0x44, ..]) => {
                "the source sends a plain multifd channel; turn TLS on there (tls-creds, --tls-creds), or off here"
                    .to_owned()
            }
            (_, bytes) => format!(
                "{} does not speak TLS: what it says begins with {:02x?}; see what it is, and turn TLS on there or off here \
                 (tls-creds, --tls-creds)",
                self.other(),
                &bytes[..bytes.len().min(8)]
            ),
        };
        Some(self.incompatible(what))
    }

    /// We refuse the certificate of the other end.
    fn certificate_refused(&self, why: &CertificateError) -> Error {
        let facts = self.witness.seen().and_then(CertificateFacts::of);
        let Some(facts) = facts else {
            return self.incompatible(format!(
                "{}'s certificate is none that can be read: {why}",
                self.other()
            ));
        };
        if let CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } =
            why
        {
            return self.incompatible(self.wrong_name(&facts));
        }
        let (what, next) = match Self::wrong_time(why, &facts) {
            Some(told) => told,
            None => self.wrong_certificate(why, &facts),
        };
        self.incompatible(format!("{}'s certificate ({facts}) {what}; {next}", self.other()))
    }

    /// What is wrong, and what to do.
    fn wrong_certificate(
        &self,
        why: &CertificateError,
        facts: &CertificateFacts,
    ) -> (String, String) {
        match why {
            CertificateError::UnknownIssuer if facts.is_ca => (
                "is that of a CA, and a CA may not answer itself".to_owned(),
                "have it issue a certificate without the CA flag".to_owned(),
            ),
            CertificateError::UnknownIssuer if facts.subject == facts.issuer => (
                format!("is signed by itself, and {} does not lead to it", self.file("ca-cert.pem")),
                "take a certificate of a CA whose certificate is there".to_owned(),
            ),
            CertificateError::UnknownIssuer => (
                format!(
                    "was issued by {}, which {} does not lead to",
                    printable(&facts.issuer.to_string()),
                    self.file("ca-cert.pem")
                ),
                "if you trust that CA, add its certificate to it; else take certificates of one that is there at both ends"
                    .to_owned(),
            ),
            CertificateError::BadSignature => (
                format!(
                    "was not signed by the {} that {} has",
                    printable(&facts.issuer.to_string()),
                    self.file("ca-cert.pem")
                ),
                "take certificates of the same CA at both ends; a CA made anew under its old name has another key".to_owned(),
            ),
            CertificateError::Revoked => (
                format!("is revoked: serial number {} is in {}", facts.serial, self.file("ca-crl.pem")),
                "have the CA issue a new one".to_owned(),
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => (
                format!("is not for a TLS {} (extended key usage)", self.other_role()),
                format!("have it issued with {0}Auth (certtool: tls_www_{0})", self.other_role()),
            ),
            other if facts.is_ca => (
                format!("is that of a CA ({other}), and a CA may not answer itself"),
                "have it issue a certificate without the CA flag".to_owned(),
            ),
            other => (format!("does not hold: {other}"), "have the CA issue it anew".to_owned()),
        }
    }

    /// The same where it is a matter of dates.
    fn wrong_time(why: &CertificateError, facts: &CertificateFacts) -> Option<(String, String)> {
        let today = utc(now());
        Some(match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. }
                if now() <= facts.not_after =>
            {
                (
                    format!("was issued by a CA whose certificate has expired, now is {today}"),
                    "renew the CA's certificate, or set this machine's clock".to_owned(),
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                format!("has expired: {}, and now is {today}", facts.validity()),
                "have the CA issue a new one, or set this machine's clock".to_owned(),
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                format!("is not valid yet: {}, and now is {today}", facts.validity()),
                "wait, have the CA issue a new one, or set this machine's clock".to_owned(),
            ),
            _ => return None,
        })
    }

    fn wrong_name(&self, facts: &CertificateFacts) -> String {
        let wanted = match &self.end {
            End::Source { expected, .. } => expected.to_string(),
            // Destinations check no names; authorisation has its own words.
            End::Destination { .. } => "a name".to_owned(),
        };
        let is_address = wanted.parse::<std::net::IpAddr>().is_ok();
        let field = if is_address { "ip_address" } else { "dns_name" };
        let names = facts.host_names();
        if names.is_empty() {
            let lacks = facts.lack_of_host_names();
            return format!(
                "the destination's certificate ({facts}) has {lacks}, and it must have {wanted:?}: the \
                 common name does not count (RFC 9525), though QEMU takes it; have it issued with one (certtool: {field} = \
                 \"{wanted}\"; openssl: subjectAltName; for a trial: `mig certs DIR --host {wanted}`)"
            );
        }
        format!(
            "the destination's certificate ({}) is for {}, and not for {wanted:?}, the name wanted; connect by a name that it \
             has, say which with --tls-hostname NAME (tls-hostname), or have it issued for {wanted:?} too (certtool: \
             {field})",
            printable(&facts.subject.to_string()),
            printable(&names)
        )
    }

    /// The other end refuses us.
    fn alert(&self, alert: AlertDescription) -> Error {
        use AlertDescription as A;

        let other = self.other();
        if let (Some(user), true) = (self.user(), Self::is_about_keys(alert)) {
            return self.incompatible(format!(
                "{other} does not take the user {user:?} with the key that {} has: it knows no such user, or another key, or \
                 is set to certificates; its log says which (alert {})",
                self.file("keys.psk"),
                name(alert)
            ));
        }
        let refused = format!("{other} refused our certificate ({})", self.own_certificate());
        let what = match alert {
            A::CertificateRequired | A::NoCertificate if self.shows_nothing() => {
                let files = "client-cert.pem and client-key.pem";
                let what = format!(
                    "{}: {other} wants a certificate, and {} has no client-cert.pem; put {files} there, of a CA that the \
                     destination trusts (alert {})",
                    self.endpoint,
                    self.file(""),
                    name(alert)
                );
                return Error::Misuse { what };
            }
            A::UnknownCA => {
                format!("{refused}: it does not know the CA; add the CA to its ca-cert.pem")
            }
            A::CertificateExpired => {
                format!(
                    "{refused}: by its clock it has expired or is not valid yet; compare both ends' clocks"
                )
            }
            A::CertificateRevoked => {
                format!("{refused}: it is revoked there; have the CA issue a new one")
            }
            A::UnsupportedCertificate => {
                format!(
                    "{refused}: it is of a kind or for a purpose that it does not take (key usage)"
                )
            }
            A::BadCertificate => match &self.end {
                End::Source { .. } => {
                    format!("{refused}: something in it is wrong to it; its log says what")
                }
                End::Destination { .. } => format!(
                    "{refused}: the certificate lacks the name by which the source wants this end (its --tls-hostname, \
                     or the host it connects to), or something else in it is wrong to it; its error says what"
                ),
            },
            A::CertificateUnknown | A::AccessDenied | A::DecryptError | A::CertificateRequired => {
                format!("{refused}; its log says why")
            }
            A::ProtocolVersion => {
                format!(
                    "{other} takes neither TLS 1.3 nor TLS 1.2; see the priority of its credentials"
                )
            }
            A::HandshakeFailure | A::InsufficientSecurity => format!(
                "{other} found no cipher or key exchange in common{}: is it set to the same kind of credentials (x509, psk, \
                 anon)? See the priority of its credentials",
                match self.shows_nothing() {
                    true => format!(
                        ", or it wants a certificate, and {} has no client-cert.pem",
                        self.file("")
                    ),
                    false => String::new(),
                }
            ),
            A::UnrecognisedName => format!("{other} has no certificate for the name we asked for"),
            A::UnknownPSKIdentity => format!("{other} does not know our user name in its keys.psk"),
            A::UserCanceled | A::CloseNotify => {
                format!("{other} ended the handshake; its log says why")
            }
            _ => {
                let what =
                    format!("{}: {other} ended TLS with the alert {}", self.endpoint, name(alert));
                return Error::PeerMisbehaved { what };
            }
        };
        self.incompatible(format!("{what} (alert {})", name(alert)))
    }

    /// What the libraries say to an unknown user or a wrong key: GnuTLS and OpenSSL, TLS 1.2 and 1.3, each something else.
    fn is_about_keys(alert: AlertDescription) -> bool {
        use AlertDescription as A;

        matches!(
            alert,
            A::UnknownPSKIdentity
                | A::HandshakeFailure
                | A::DecryptError
                | A::IllegalParameter
                | A::BadRecordMac
                | A::AccessDenied
                | A::InsufficientSecurity
                | A::InternalError
        )
    }

    fn incompatible(&self, what: String) -> Error {
        Error::PeerIncompatible { what: format!("{}: {what}", self.endpoint) }
    }

    fn other(&self) -> &'static str {
        match &self.end {
            End::Source { .. } => "the destination",
            End::Destination { .. } => "the source",
        }
    }

    fn other_role(&self) -> &'static str {
        match &self.end {
            End::Source { .. } => "server",
            End::Destination { .. } => "client",
        }
    }

    fn shows_nothing(&self) -> bool {
        matches!(&self.end, End::Source { credentials, .. } if !credentials.has_certificate())
    }

    fn own_certificate(&self) -> String {
        match &self.end {
            End::Source { credentials, .. } if !credentials.has_certificate() => {
                "none was shown".into()
            }
            End::Source { .. } => self.file("client-cert.pem"),
            End::Destination { .. } => self.file("server-cert.pem"),
        }
    }

    fn file(&self, name: &str) -> String {
        let directory = match &self.end {
            End::Source { credentials, .. } => credentials.directory(),
            End::Destination { credentials } => credentials.directory(),
        };
        if name.is_empty() {
            directory.display().to_string()
        } else {
            directory.join(name).display().to_string()
        }
    }
}

/// The alert's name in RFC 8446 §6, near enough to be searched for; the number of one without.
fn name(alert: AlertDescription) -> String {
    if let AlertDescription::Unknown(number) = alert {
        return number.to_string();
    }
    let words: Vec<char> = format!("{alert:?}").chars().collect();
    let mut out = String::with_capacity(words.len() + 4);
    for (at, character) in words.iter().enumerate() {
        let follows_lower = at > 0 && words[at - 1].is_ascii_lowercase();
        let begins_word = at > 0 && words.get(at + 1).is_some_and(char::is_ascii_lowercase);
        if character.is_ascii_uppercase() && (follows_lower || begins_word) {
            out.push('_');
        }
        out.push(character.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests;
