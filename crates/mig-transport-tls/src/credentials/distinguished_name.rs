//! Distinguished names, written as QEMU hands them to `tls-authz`, so that a rule of a QEMU set-up works here unchanged.
//!
//! The parts in the order of the certificate, which mostly has the most general one first, joined by `,` without a space;
//! attributes of one multi-valued part joined by `+`:
//!
//! ```text
//!   C=GB,ST=London,L=London,O=Example Home,CN=laptop.example.com
//! ```
//!
//! That is the reverse of what certtool prints and of RFC 4514's order (CN first). A QEMU whose rules deny a certificate
//! logs the name in its order, and so do we. `,` `+` `"` `\` `<` `>` `;`, a `#` or space at the beginning and a space at
//! the end of a value have a `\` before them. An attribute that GnuTLS has no name for is its object identifier and `#`
//! with the value's DER in hexadecimal.

use std::fmt::{self, Write};

use x509_parser::{
    asn1_rs::{Any, Tag, ToDer},
    x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name},
};

/// Names of attributes as QEMU 7.2 and 10.0 log them; found with a certificate that has them all (`tests` below).
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionOfIncorporationCountryName"),
];

/// A name in parts, each already written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DistinguishedName {
    parts: Vec<String>,
}

impl DistinguishedName {
    pub(crate) fn of(name: &X509Name<'_>) -> Self {
        let part = |rdn: &RelativeDistinguishedName<'_>| {
            rdn.iter().map(attribute).collect::<Vec<_>>().join("+")
        };
        Self { parts: name.iter_rdn().map(part).collect() }
    }

    /// From what was printed.
    pub(crate) fn parse(text: &str) -> Self {
        Self { parts: split(text, ',') }
    }

    pub(crate) fn parts(&self) -> &[String] {
        &self.parts
    }
}

impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join(","))
    }
}

/// The attributes of one part.
pub(crate) fn attributes(part: &str) -> Vec<String> {
    split(part, '+')
}

/// At each `separator` without a `\` before it.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        if character == separator && !escaped {
            pieces.push(String::new());
            continue;
        }
        escaped = character == '\\' && !escaped;
        pieces.last_mut().expect("it began with one and never lost it").push(character);
    }
    pieces
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let name = NAMES.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name);
    match (name, text(attribute.attr_value())) {
        (Some(name), Some(value)) => format!("{name}={value}"),
        _ => {
            let der = attribute.attr_value().to_der_vec().unwrap_or_default();
            format!("{oid}=#{}", hexadecimal(&der))
        }
    }
}

/// A value that is a string of some kind. What is not in the character set that it should be in, GnuTLS writes as `\#` and
/// its bytes.
fn text(value: &Any<'_>) -> Option<String> {
    let bytes = value.data;
    let text = match value.tag() {
        Tag::Utf8String
        | Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::VisibleString => std::str::from_utf8(bytes).ok().map(str::to_owned),
        Tag::BmpString if bytes.len().is_multiple_of(2) => {
            let units = bytes.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::BmpString => None,
        _ => return None,
    };
    Some(text.map_or_else(|| format!("\\#{}", hexadecimal(bytes)), |text| escape(&text)))
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let special = matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (at == 0 && matches!(character, '#' | ' '))
            || (at == last && character == ' ');
        if special {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a String takes everything");
        out
    })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use crate::credentials::{CertificateFacts, DistinguishedName};

    /// `(certificate, what QEMU 7.2.22 and 10.0.13 said of it)`: "TLS x509 authz check for … is denied". Made with OpenSSL,
    /// the first one with every attribute that GnuTLS might know and every character that might need a `\`.
    const SEEN: [(&str, &str); 4] = [
        (include_str!("testdata/every-attribute.pem"), include_str!("testdata/every-attribute.dn")),
        (include_str!("testdata/multi-valued.pem"), include_str!("testdata/multi-valued.dn")),
        (include_str!("testdata/bmp-string.pem"), include_str!("testdata/bmp-string.dn")),
        (include_str!("testdata/t61-string.pem"), include_str!("testdata/t61-string.dn")),
    ];

    #[test]
    fn names_are_written_as_qemu_writes_them() {
        for (pem, wanted) in SEEN {
            let certificate =
                CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
            let facts = CertificateFacts::of(&certificate).expect("a certificate");
            let wanted = wanted.trim_end_matches('\n');
            assert_eq!(facts.subject.to_string(), wanted);
            assert_eq!(DistinguishedName::parse(wanted), facts.subject);
        }
    }

    #[test]
    fn an_escaped_comma_separates_nothing() {
        let name = DistinguishedName::parse(r"CN=a\,b,O=c\\,OU=d");
        assert_eq!(name.parts(), [r"CN=a\,b", r"O=c\\", "OU=d"]);
    }
}
