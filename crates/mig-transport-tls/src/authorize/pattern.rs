//! What a rule is about, and whether somebody fits.

use std::{fmt, net::IpAddr};

use crate::credentials::{
    AlternativeName, CertificateFacts, DistinguishedName, attributes, printable,
};

/// Who came.
pub(super) enum Source<'a> {
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

/// One pattern.
#[derive(Clone, Debug)]
pub(super) enum What {
    Any,
    Dn(DistinguishedName),
    Dns(Vec<String>),
    Ip(IpAddr, u8),
    Uri(String),
    Email(String),
    Psk(String),
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

    pub(super) fn fits(&self, source: &Source<'_>) -> bool {
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
    pub(super) fn fits_reversed(&self, source: &Source<'_>) -> bool {
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

#[cfg(test)]
mod tests {
    use super::fits;

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
                    fits(&written, &over),
                    by_definition(&pattern, &text),
                    "{written} {over}"
                );
            }
        }
    }

    /// A certificate may have a name that is made to take long.
    #[test]
    fn no_name_makes_a_pattern_slow() {
        let pattern = "*a".repeat(1000);
        let text = "a".repeat(20_000);
        assert!(fits(&pattern, &text));
        assert!(!fits(&format!("{pattern}b"), &text));
    }
}
