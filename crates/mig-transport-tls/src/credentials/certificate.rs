//! What a certificate says of itself, for messages and for authorisation. Reading it proves nothing.

use std::{fmt, net::IpAddr};

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName,
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME, prelude::FromDer,
};

use super::{distinguished_name::DistinguishedName, time::utc};

/// One of a certificate's subject alternative names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AlternativeName {
    Dns(String),
    Ip(IpAddr),
    Uri(String),
    Email(String),
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Email(address) => write!(f, "email:{address}"),
        }
    }
}

/// The parts of a certificate that people recognise it by.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFacts {
    pub(crate) subject: DistinguishedName,
    pub(crate) issuer: DistinguishedName,
    /// In hexadecimal, bytes apart by colons.
    pub(crate) serial: String,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) names: Vec<AlternativeName>,
    /// It is to have alternative names, and not all can be read: what they are is not known.
    pub(crate) has_unreadable_names: bool,
    pub(crate) is_ca: bool,
}

impl CertificateFacts {
    /// `None` if it is no certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_rest, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self::of_parsed(&parsed))
    }

    pub(super) fn of_parsed(parsed: &X509Certificate<'_>) -> Self {
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let is_readable = alternative.is_some();
        let general = alternative.map_or(&[][..], |extension| &extension.value.general_names);
        let has_extension = parsed
            .extensions()
            .iter()
            .any(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
        Self {
            subject: DistinguishedName::of(parsed.subject()),
            issuer: DistinguishedName::of(parsed.issuer()),
            serial: parsed.raw_serial_as_string(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            names: general.iter().filter_map(known).collect(),
            has_unreadable_names: has_extension
                && (!is_readable || general.iter().any(is_unreadable)),
            is_ca: parsed.is_ca(),
        }
    }

    /// `it is valid from … to …`
    pub(crate) fn validity(&self) -> String {
        format!("valid from {} to {}", utc(self.not_before), utc(self.not_after))
    }

    /// The names a host can be checked against, as a list for people.
    pub(crate) fn host_names(&self) -> String {
        let of_hosts = |name: &&AlternativeName| {
            matches!(name, AlternativeName::Dns(_) | AlternativeName::Ip(_))
        };
        let names: Vec<_> = self.names.iter().filter(of_hosts).map(ToString::to_string).collect();
        names.join(", ")
    }

    /// What it has not, if [there are none](Self::host_names).
    pub(crate) fn lack_of_host_names(&self) -> &'static str {
        match self.names.is_empty() && !self.has_unreadable_names {
            true => "no subject alternative name",
            false => "no DNS name and no IP address among its subject alternative names",
        }
    }
}

/// The subject, and the names if there are any: untrusted text, escaped where it could deceive.
impl fmt::Display for CertificateFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject.to_string();
        f.write_str(if subject.is_empty() { "(empty subject)" } else { "" })?;
        f.write_str(&printable(&subject))?;
        for (at, name) in self.names.iter().take(MAX_SHOWN).enumerate() {
            f.write_str(if at == 0 { " (" } else { ", " })?;
            f.write_str(&printable(&name.to_string()))?;
        }
        match self.names.len() {
            0 => Ok(()),
            many if many > MAX_SHOWN => write!(f, " and {} more)", many - MAX_SHOWN),
            _ => f.write_str(")"),
        }
    }
}

/// Names in one message: a certificate may have thousands.
const MAX_SHOWN: usize = 20;
/// Of one name or subject in a message.
const MAX_CHARACTERS: usize = 400;

/// What a stranger wrote, fit for a terminal and a line of a log.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (at, character) in text.chars().enumerate() {
        if at == MAX_CHARACTERS {
            out.push('…');
            break;
        }
        if character.is_control() || deceives(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Begins a new line, turns the direction of what follows, or cannot be seen, without being a control character (Unicode:
/// Zl, Zp, and those of Cf that matter to text or to a terminal).
fn deceives(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Of a kind that rules are about, and not one.
fn is_unreadable(name: &GeneralName<'_>) -> bool {
    match name {
        GeneralName::Invalid(..) => true,
        GeneralName::IPAddress(_) => known(name).is_none(),
        _ => false,
    }
}

fn known(name: &GeneralName<'_>) -> Option<AlternativeName> {
    match name {
        GeneralName::DNSName(name) => Some(AlternativeName::Dns((*name).to_owned())),
        GeneralName::URI(uri) => Some(AlternativeName::Uri((*uri).to_owned())),
        GeneralName::RFC822Name(address) => Some(AlternativeName::Email((*address).to_owned())),
        GeneralName::IPAddress(bytes) => match *bytes {
            four if four.len() == 4 => <[u8; 4]>::try_from(four).ok().map(IpAddr::from),
            sixteen => <[u8; 16]>::try_from(sixteen).ok().map(IpAddr::from),
        }
        .map(AlternativeName::Ip),
        _ => None,
    }
}
