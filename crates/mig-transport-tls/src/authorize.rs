//! Which sources may migrate to here: rules over the client's verified certificate (`--tls-authz`, QEMU's `tls-authz`;
//! docs/wire/transports.md §5.1), written as [`Authorization`] says.

use std::{fmt, net::IpAddr, path::Path, str::FromStr};

use mig_transport::{Error, Result};
use rustls::pki_types::CertificateDer;

use crate::{
    credentials::{
        AlternativeName, CertificateFacts, DistinguishedName, attributes, misuse, printable,
        read_bounded,
    },
    session::engine::Peer,
};

/// Rules in all, so that a rejected stranger costs microseconds.
const MAX_RULES: usize = 10_000;
/// Of one file of rules.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Rules about which sources may come, in order.
///
/// ```text
///   rule    =  ["allow " | "deny "] what             without a verdict: allow
///   what    =  "dn:" PATTERN                         the distinguished name, as QEMU's rules have it
///           |  "san:dns:" | "san:uri:" | "san:email:" PATTERN
///           |  "san:ip:" ADDRESS ["/" BITS]
///           |  "psk:" PATTERN                        a user of keys.psk (TLS-PSK has no certificates)
///           |  "any"
///           |  "file:" PATH                          one rule a line, # comments; not in such a file itself
/// ```
///
/// The first rule that fits decides; where none fits, the answer is no. A certificate has one distinguished name and any
/// number of SANs; a `san:` rule fits if one of them does.
///
/// Without a `*`, a pattern is the whole name, nothing else. A `*` stands for any run of characters *within one part*, so
/// that whoever chooses a value cannot forge its neighbours: it does not cross a comma or plus of a distinguished
/// name, nor a dot of a DNS name. A part of a distinguished name that is only `*` stands for any number of parts. `\*` is the character.
///
/// ```text
///   dn:O=Example,CN=src1            that name, in the order of the certificate: the reverse of what certtool prints
///   dn:O=Example,CN=*.example.com   any such host; nothing before, between or after
///   dn:*,CN=src1                    whatever comes before
///   san:dns:*.rack7.example         a.rack7.example, not a.b.rack7.example; letters of either case
///   san:uri:spiffe://example/mig/*  anything after, slashes too: a URI is one part
///   san:ip:192.0.2.0/24             any address of that network
/// ```
///
/// A refused source is told no more than that it is (an alert), not why; the destination's log has the name and the SANs that
/// came, and the rule.
#[derive(Clone, Debug)]
pub struct Authorization {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    allows: bool,
    what: What,
    text: String,
}

#[derive(Clone, Debug)]
enum What {
    Any,
    Dn(DistinguishedName),
    Dns(Vec<String>),
    Ip(IpAddr, u8),
    Uri(String),
    Email(String),
    Psk(String),
}

impl Authorization {
    /// Reads rules, and the files that they name, once: a file that changes later changes nothing.
    ///
    /// # Errors
    ///
    /// [`Misuse`](Error::Misuse): a rule that is none, with the file and line; no rule that allows anybody.
    pub fn parse<I>(rules: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut parsed = Vec::new();
        for text in rules {
            let text = text.as_ref().trim();
            let (allows, what) = verdict(text);
            match what.strip_prefix("file:") {
                Some(path) if allows && !text.starts_with("allow") => {
                    read_file(Path::new(path), &mut parsed)?;
                }
                Some(_) => {
                    return Err(misuse(format!(
                        "authorisation rule {text:?}: a file says allow or deny in its own lines; write file:PATH alone"
                    )));
                }
                None => parsed.push(text.parse::<Rule>().map_err(misuse)?),
            }
        }
        if parsed.len() > MAX_RULES {
            return Err(misuse(format!(
                "{} authorisation rules, and {MAX_RULES} is the most; patterns with * make one of many",
                parsed.len()
            )));
        }
        if !parsed.iter().any(|rule| rule.allows) {
            return Err(misuse(
                "no authorisation rule allows anybody, so every source would be refused; after rules that deny, end with \
                 \"allow any\""
                    .into(),
            ));
        }
        Ok(Self { rules: parsed })
    }

    /// Whether who is at the other end, by what the handshake has proven, may migrate to here.
    ///
    /// # Errors
    ///
    /// [`PeerIncompatible`](Error::PeerIncompatible), with who came and the rule that said no: for this end's log.
    pub(crate) fn check(&self, peer: &Peer) -> Result<()> {
        let refused =
            |why: String| Err(Error::PeerIncompatible { what: format!("not authorised: {why}") });
        let source = match peer {
            Peer::Certificate(der) => {
                match CertificateFacts::of(&CertificateDer::from(der.as_slice())) {
                    Some(facts) => Source::Certificate(facts),
                    None => return refused("the source's certificate cannot be read".into()),
                }
            }
            Peer::Key(user) => Source::User(user),
            Peer::Anonymous => {
                return refused(
                    "the source showed no certificate that the rules could be held against".into(),
                );
            }
        };
        match self.rules.iter().find(|rule| rule.what.fits(&source)) {
            Some(rule) if rule.allows => Ok(()),
            Some(rule) => refused(format!("{source}: the rule \"{}\" denies it", rule.text)),
            None => match self.rules.iter().find(|rule| rule.what.fits_reversed(&source)) {
                Some(rule) => refused(format!(
                    "{source}: no rule allows it; the rule \"{}\" has the parts in the reverse order, as certtool prints \
                     them",
                    rule.text
                )),
                None => refused(format!("{source}: no rule allows it")),
            },
        }
    }
}

/// Who came.
enum Source<'a> {
    Certificate(CertificateFacts),
    User(&'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(facts) => facts.fmt(f),
            Self::User(user) => write!(f, "the user {} of keys.psk", printable(user)),
        }
    }
}

/// Splits off the verdict.
fn verdict(text: &str) -> (bool, &str) {
    let word = |word| text.strip_prefix(word).filter(|rest| rest.starts_with([' ', '\t']));
    match (word("allow"), word("deny")) {
        (Some(rest), _) => (true, rest.trim_start()),
        (_, Some(rest)) => (false, rest.trim_start()),
        _ => (true, text),
    }
}

fn read_file(path: &Path, rules: &mut Vec<Rule>) -> Result<()> {
    let bytes = read_bounded(path, MAX_FILE_BYTES)?.ok_or_else(|| {
        misuse(format!(
            "{}: no such file; it must have one authorisation rule a line",
            path.display()
        ))
    })?;
    let text = String::from_utf8(bytes).map_err(|_| {
        misuse(format!("{}: not UTF-8; write names beyond ASCII in UTF-8", path.display()))
    })?;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let rule = line
            .parse()
            .map_err(|why| misuse(format!("{}: line {}: {why}", path.display(), at + 1)))?;
        rules.push(rule);
    }
    Ok(())
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (allows, what) = verdict(text);
        let what =
            What::parse(what).map_err(|why| format!("authorisation rule {text:?}: {why}"))?;
        Ok(Self { allows, what, text: text.to_owned() })
    }
}

impl What {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, pattern) = match text.split_once(':') {
            None if text == "any" => return Ok(Self::Any),
            Some(("san", rest)) => rest.split_once(':').unwrap_or(("", "")),
            Some(("dn", pattern)) => return Self::dn(pattern),
            Some(("psk", pattern)) => ("psk", pattern),
            Some(("file", _)) => return Err("a file of rules cannot name another".into()),
            _ => ("", ""),
        };
        if !kind.is_empty() && pattern.is_empty() {
            return Err("nothing follows the colon".into());
        }
        match kind {
            "dns" => Ok(Self::Dns(pattern.to_ascii_lowercase().split('.').map(str::to_owned).collect())),
            "ip" => Self::ip(pattern),
            "uri" => Ok(Self::Uri(pattern.to_owned())),
            "email" => Ok(Self::Email(pattern.to_owned())),
            "psk" => Ok(Self::Psk(pattern.to_owned())),
            _ => Err("write dn:NAME, san:dns:HOST, san:ip:ADDRESS[/BITS], san:uri:URI, san:email:ADDRESS, psk:USER, \
                      any or file:PATH, with allow or deny and a space before it if need be"
                .into()),
        }
    }

    fn dn(pattern: &str) -> Result<Self, String> {
        let name = DistinguishedName::parse(pattern);
        match name.parts().iter().find(|part| *part != "*" && !part.contains('=')) {
            Some(part) if part.trim() != part || part.is_empty() => Err(format!(
                "a distinguished name is like O=Example,CN=src1, and {part:?} is no part of one; a comma in a value is \
                 written \\,"
            )),
            Some(part) => Err(format!(
                "a distinguished name is like O=Example,CN=src1, and {part:?} has no attribute before it (a comma in a value \
                 is written \\,)"
            )),
            None => match name.parts().iter().skip(1).find(|part| part.starts_with(' ')) {
                Some(part) => {
                    Err(format!("no space follows a comma: write {:?}", part.trim_start()))
                }
                None => Ok(Self::Dn(name)),
            },
        }
    }

    fn ip(pattern: &str) -> Result<Self, String> {
        let (address, bits) =
            pattern.split_once('/').map_or((pattern, None), |(a, b)| (a, Some(b)));
        let address: IpAddr =
            address.parse().map_err(|_| format!("{address:?} is no IPv4 or IPv6 address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|&bits| bits <= most)
                .ok_or_else(|| format!("{bits:?} is not a number of bits from 0 to {most}"))?,
        };
        Ok(Self::Ip(address, bits))
    }

    fn fits(&self, source: &Source<'_>) -> bool {
        match (self, source) {
            (Self::Any, _) => true,
            (Self::Psk(pattern), Source::User(user)) => fits(pattern, user),
            (Self::Psk(_), _) | (_, Source::User(_)) => false,
            (Self::Dn(pattern), Source::Certificate(facts)) => {
                fits_all(pattern.parts(), facts.subject.parts())
            }
            (_, Source::Certificate(facts)) => facts.names.iter().any(|name| self.fits_name(name)),
        }
    }

    /// A mistake that everybody makes once.
    fn fits_reversed(&self, source: &Source<'_>) -> bool {
        match (self, source) {
            (Self::Dn(pattern), Source::Certificate(facts)) => {
                fits_all(pattern.reversed().parts(), facts.subject.parts())
            }
            _ => false,
        }
    }

    fn fits_name(&self, name: &AlternativeName) -> bool {
        match (self, name) {
            (Self::Dns(labels), AlternativeName::Dns(name)) => {
                let name = name.to_ascii_lowercase();
                let parts: Vec<&str> = name.split('.').collect();
                labels.len() == parts.len()
                    && labels.iter().zip(parts).all(|(label, part)| fits(label, part))
            }
            (Self::Ip(network, bits), AlternativeName::Ip(address)) => {
                within(*address, *network, *bits)
            }
            (Self::Uri(pattern), AlternativeName::Uri(uri)) => fits(pattern, uri),
            (Self::Email(pattern), AlternativeName::Email(email)) => fits(pattern, email),
            _ => false,
        }
    }
}

/// Parts of a distinguished name against those of a pattern, in which a part `*` is any number of them. The last such part
/// that was met takes one more whenever the rest does not fit, so the time is the product of the lengths at most.
fn fits_all(pattern: &[String], parts: &[String]) -> bool {
    glob(pattern, parts, |wanted| wanted == "*", |wanted, part| fits_part(wanted, part))
}

/// Attribute by attribute, where a part has several.
fn fits_part(pattern: &str, part: &str) -> bool {
    let (wanted, there) = (attributes(pattern), attributes(part));
    wanted.len() == there.len()
        && wanted.iter().zip(&there).all(|(wanted, there)| fits(wanted, there))
}

/// One part against a pattern in which `*` is any run of characters and `\*` itself.
fn fits(pattern: &str, text: &str) -> bool {
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' if rest.next_if_eq(&'*').is_some() => tokens.push(Token::Is('*')),
            '\\' => {
                tokens.push(Token::Is('\\'));
                // An escaped backslash escapes no star; both are in the name as it is written.
                tokens.extend(rest.next_if_eq(&'\\').map(Token::Is));
            }
            '*' => tokens.push(Token::Run),
            other => tokens.push(Token::Is(other)),
        }
    }
    let characters: Vec<char> = text.chars().collect();
    glob(&tokens, &characters, |token| *token == Token::Run, |token, &is| *token == Token::Is(is))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Is(char),
    Run,
}

/// The usual backtracking to the last run: no stranger's name makes it slower than the product of both lengths.
fn glob<P, T>(
    pattern: &[P],
    text: &[T],
    is_run: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut last_run: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(wanted) if is_run(wanted) => {
                last_run = Some((at, seen));
                at += 1;
            }
            Some(wanted) if fits(wanted, &text[seen]) => {
                at += 1;
                seen += 1;
            }
            _ => match &mut last_run {
                Some((run, taken)) => {
                    *taken += 1;
                    (at, seen) = (*run + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(is_run)
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let top = |wide: u128, of: u32| {
        if bits == 0 { 0 } else { wide >> (of - u32::from(bits)) }
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            top(a.to_bits().into(), 32) == top(n.to_bits().into(), 32)
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => top(a.to_bits(), 128) == top(n.to_bits(), 128),
        _ => false,
    }
}

impl fmt::Display for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rules.len() {
            1 => write!(f, "{}", self.rules[0].text),
            many => write!(f, "{many} rules"),
        }
    }
}

#[cfg(test)]
mod tests;
