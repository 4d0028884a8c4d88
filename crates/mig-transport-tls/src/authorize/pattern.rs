//! What a rule is about, and whether somebody fits.
//!
//! ```text
//!   rule ──once──▶ What, its patterns in tokens ─┐
//!                                                ├─▶ fits? nothing is split or copied for a rule
//!   who came ──once──▶ Source, its names split ──┘
//! ```

use std::{fmt, net::IpAddr};

use crate::credentials::{
    AlternativeName, CertificateFacts, DistinguishedName, attributes, printable,
};

/// Who came.
pub(super) enum Source<'a> {
    Certificate(Shown),
    User(&'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(shown) => shown.facts.fmt(f),
            Self::User(user) => write!(f, "the user {} of keys.psk", printable(user)),
        }
    }
}

/// A certificate, its names in the pieces that patterns are held against.
pub(super) struct Shown {
    facts: CertificateFacts,
    /// The distinguished name: parts, and the attributes of each.
    parts: Vec<Vec<String>>,
    names: Vec<Name>,
}

impl Shown {
    pub(super) fn new(facts: CertificateFacts) -> Self {
        let parts = facts.subject.parts().iter().map(|part| attributes(part)).collect();
        let names = facts.names.iter().map(Name::of).collect();
        Self { facts, parts, names }
    }
}

/// A subject alternative name.
enum Name {
    Dns(Vec<String>),
    Ip(IpAddr),
    Uri(String),
    Email(String),
}

impl Name {
    fn of(name: &AlternativeName) -> Self {
        match name {
            AlternativeName::Dns(name) => Self::Dns(labels(name)),
            AlternativeName::Ip(address) => Self::Ip(*address),
            AlternativeName::Uri(uri) => Self::Uri(uri.clone()),
            AlternativeName::Email(email) => Self::Email(email_address(email)),
        }
    }
}

/// One pattern.
#[derive(Clone, Debug)]
pub(super) enum What {
    Any,
    Dn(Vec<Part>),
    Dns(Vec<Glob>),
    Ip(IpAddr, u8),
    Uri(Glob),
    Email(Email),
    Psk(Glob),
}

impl What {
    /// What follows the verdict.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
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
            "dns" => Ok(Self::Dns(labels(pattern).iter().map(|label| Glob::new(label)).collect())),
            "ip" => Self::ip(pattern),
            "uri" => Ok(Self::Uri(Glob::new(pattern))),
            "email" => Ok(Self::Email(Email::new(pattern))),
            "psk" => Ok(Self::Psk(Glob::new(pattern))),
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
                None => Ok(Self::Dn(name.parts().iter().map(|part| Part::new(part)).collect())),
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
        // ::ffff:192.0.2.0/120 is 192.0.2.0/24.
        Ok(match address.to_canonical() {
            v4 @ IpAddr::V4(_) if most == 128 && bits >= 96 => Self::Ip(v4, bits - 96),
            _ => Self::Ip(address, bits),
        })
    }

    pub(super) fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }

    /// Nobody with a certificate fits.
    pub(super) fn is_about_keys(&self) -> bool {
        matches!(self, Self::Psk(_))
    }

    pub(super) fn fits(&self, source: &Source<'_>) -> bool {
        match (self, source) {
            (Self::Any, _) => true,
            (Self::Psk(pattern), Source::User(user)) => pattern.fits(user),
            (Self::Psk(_), _) | (_, Source::User(_)) => false,
            (Self::Dn(pattern), Source::Certificate(shown)) => {
                fits_all(pattern, shown.parts.as_slice())
            }
            (_, Source::Certificate(shown)) => shown.names.iter().any(|name| self.fits_name(name)),
        }
    }

    /// A mistake that everybody makes once. The name is turned round here, which is the same and copies nothing.
    pub(super) fn fits_reversed(&self, source: &Source<'_>) -> bool {
        match (self, source) {
            (Self::Dn(pattern), Source::Certificate(shown)) => {
                fits_all(pattern, &Reversed(&shown.parts))
            }
            _ => false,
        }
    }

    fn fits_name(&self, name: &Name) -> bool {
        match (self, name) {
            (Self::Dns(patterns), Name::Dns(labels)) => {
                patterns.len() == labels.len()
                    && patterns.iter().zip(labels).all(|(pattern, label)| pattern.fits(label))
            }
            (Self::Ip(network, bits), Name::Ip(address)) => within(*address, *network, *bits),
            (Self::Uri(pattern), Name::Uri(uri)) => pattern.fits(uri),
            (Self::Email(pattern), Name::Email(email)) => pattern.fits(email),
            _ => false,
        }
    }
}

/// A DNS name in its labels, without regard to case; a dot at the end says only that it is complete.
fn labels(name: &str) -> Vec<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase().split('.').map(str::to_owned).collect()
}

/// With its domain in lower case: only what is before the `@` may be another mailbox in another case (RFC 5280 §7.5).
fn email_address(email: &str) -> String {
    match email.rsplit_once('@') {
        Some((mailbox, domain)) => format!("{mailbox}@{}", domain.to_ascii_lowercase()),
        None => email.to_owned(),
    }
}

/// A pattern for e-mail addresses. Without an `@` nobody knows where its domain begins: then case does not count at all.
#[derive(Clone, Debug)]
pub(super) enum Email {
    Address(Glob),
    AnyCase(Glob),
}

impl Email {
    fn new(pattern: &str) -> Self {
        match pattern.contains('@') {
            true => Self::Address(Glob::new(&email_address(pattern))),
            false => Self::AnyCase(Glob::new(&pattern.to_ascii_lowercase())),
        }
    }

    fn fits(&self, email: &str) -> bool {
        match self {
            Self::Address(pattern) => pattern.fits(email),
            Self::AnyCase(pattern) => pattern.fits(&email.to_ascii_lowercase()),
        }
    }
}

/// A part of a pattern for distinguished names.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Any number of parts.
    Run,
    /// One part, attribute by attribute.
    Attributes(Vec<Glob>),
}

impl Part {
    fn new(part: &str) -> Self {
        match part {
            "*" => Self::Run,
            _ => Self::Attributes(attributes(part).iter().map(|one| Glob::new(one)).collect()),
        }
    }

    fn fits(&self, attributes: &[String]) -> bool {
        match self {
            Self::Run => false,
            Self::Attributes(patterns) => {
                patterns.len() == attributes.len()
                    && patterns.iter().zip(attributes).all(|(pattern, there)| pattern.fits(there))
            }
        }
    }
}

/// What a run of parts or bytes is read from.
trait Row {
    type Item: ?Sized;
    fn len(&self) -> usize;
    fn at(&self, at: usize) -> &Self::Item;
}

impl<T> Row for [T] {
    type Item = T;
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn at(&self, at: usize) -> &T {
        &self[at]
    }
}

/// The last one first.
struct Reversed<'a, T>(&'a [T]);

impl<T> Row for Reversed<'_, T> {
    type Item = T;
    fn len(&self) -> usize {
        self.0.len()
    }
    fn at(&self, at: usize) -> &T {
        &self.0[self.0.len() - 1 - at]
    }
}

/// Parts of a distinguished name against those of a pattern. The last run that was met takes one more part whenever the rest
/// does not fit, so the time is the product of the lengths at most.
fn fits_all(pattern: &[Part], parts: &(impl Row<Item = Vec<String>> + ?Sized)) -> bool {
    glob(pattern, parts, |wanted| matches!(wanted, Part::Run), |wanted, part| wanted.fits(part))
}

/// One name or attribute, in which `*` is any run of characters and `\*` itself. Bytes are as good as characters here: one
/// character's never begin in the middle of another's.
#[derive(Clone, Debug)]
pub(super) struct Glob(Vec<Token>);

impl Glob {
    fn new(pattern: &str) -> Self {
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut rest = pattern.bytes().peekable();
        while let Some(byte) = rest.next() {
            match byte {
                b'\\' if rest.next_if_eq(&b'*').is_some() => tokens.push(Token::Is(b'*')),
                b'\\' => {
                    tokens.push(Token::Is(b'\\'));
                    // An escaped backslash escapes no star; both are in the name as it is written.
                    tokens.extend(rest.next_if_eq(&b'\\').map(Token::Is));
                }
                b'*' => tokens.push(Token::Run),
                other => tokens.push(Token::Is(other)),
            }
        }
        Self(tokens)
    }

    fn fits(&self, text: &str) -> bool {
        let is_run = |token: &Token| *token == Token::Run;
        glob(&self.0, text.as_bytes(), is_run, |token, &is| *token == Token::Is(is))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Is(u8),
    Run,
}

/// The usual backtracking to the last run: no stranger's name makes it slower than the product of both lengths.
fn glob<P, R: Row + ?Sized>(
    pattern: &[P],
    text: &R,
    is_run: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &R::Item) -> bool,
) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut last_run: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(wanted) if is_run(wanted) => {
                last_run = Some((at, seen));
                at += 1;
            }
            Some(wanted) if fits(wanted, text.at(seen)) => {
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

/// An IPv4 address in its IPv6 form is the same machine: who has it in a certificate is in both kinds of networks.
fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    in_network(address, network, bits) || in_network(address.to_canonical(), network, bits)
}

fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
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

#[cfg(test)]
mod tests {
    use super::Glob;

    /// Every short pattern over every short text, against the definition.
    #[test]
    fn a_star_is_any_run_of_characters() {
        fn by_definition(pattern: &[char], text: &[char]) -> bool {
            match pattern {
                [] => text.is_empty(),
                ['*', rest @ ..] => {
                    (0..=text.len()).any(|taken| by_definition(rest, &text[taken..]))
                }
                [first, rest @ ..] => {
                    text.first() == Some(first) && by_definition(rest, &text[1..])
                }
            }
        }
        fn words(alphabet: &[char], longest: u32) -> Vec<Vec<char>> {
            let of = |len: u32| {
                (0..alphabet.len().pow(len)).map(move |number| {
                    (0..len)
                        .map(|at| alphabet[number / alphabet.len().pow(at) % alphabet.len()])
                        .collect()
                })
            };
            (0..=longest).flat_map(of).collect()
        }
        for pattern in words(&['a', 'b', '*'], 5) {
            for text in words(&['a', 'b'], 5) {
                let (written, over): (String, String) =
                    (pattern.iter().collect(), text.iter().collect());
                assert_eq!(
                    Glob::new(&written).fits(&over),
                    by_definition(&pattern, &text),
                    "{written} {over}"
                );
            }
        }
    }

    #[test]
    fn a_star_takes_whole_characters() {
        for (pattern, text, fits) in
            [("*ü*", "Müller", true), ("M*ller", "Müller", true), ("*\u{bc}*", "Müller", false)]
        {
            assert_eq!(Glob::new(pattern).fits(text), fits, "{pattern} {text}");
        }
    }

    /// A certificate may have a name that is made to take long.
    #[test]
    fn no_name_makes_a_pattern_slow() {
        let pattern = "*a".repeat(1000);
        let text = "a".repeat(20_000);
        assert!(Glob::new(&pattern).fits(&text));
        assert!(!Glob::new(&format!("{pattern}b")).fits(&text));
    }
}
