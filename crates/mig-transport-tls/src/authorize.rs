//! Which sources may migrate to here: rules over the client's verified certificate (`--tls-authz`, QEMU's `tls-authz`;
//! docs/wire/transports.md §5.1), written as [`Authorization`] says.

mod pattern;

use std::{fmt, path::Path, str::FromStr};

use mig_transport::{Error, Result};
use rustls::pki_types::CertificateDer;

use self::pattern::{Shown, Source, What};
use crate::{
    credentials::{
        CertificateFacts, ServerCredentials, ServerKind, misuse, read_bounded,
        warn_if_others_may_write,
    },
    session::engine::Peer,
};

/// Rules in all: each that comes to the handshake's end is held against them.
const MAX_RULES: usize = 10_000;
/// Of all rules together, wherever they are written, and of one file of them with its remarks. In memory they are about
/// thrice that.
const MAX_BYTES: usize = 1 << 20;

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
/// A rule that denies a distinguished name fits it in either order: certtool prints the other one.
///
/// At most 10 000 rules, and 1 MiB of them, files included; they are taken apart once, here. A certificate with SANs that
/// cannot be read is refused whatever the rules are: what they deny may be among them.
///
/// DNS names and the domain of an e-mail address fit in either case, and a dot at the end of a DNS name is none of it. A
/// pattern for e-mail addresses that has no `@` fits in either case throughout.
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
        let mut parsed = Rules::default();
        for text in rules {
            let text = trimmed(text.as_ref());
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
                None => parsed.push(text, |why| why)?,
            }
        }
        let parsed = Self { rules: parsed.rules };
        if parsed.allowing().next().is_none() {
            return Err(misuse(
                "no authorisation rule allows anybody, so every source would be refused; after rules that deny, end with \
                 \"allow any\""
                    .into(),
            ));
        }
        Ok(parsed)
    }

    /// Refuses rules that can let in nobody who proves to be somebody with these `credentials`: they are a mistake, and only
    /// every source would notice.
    ///
    /// # Errors
    ///
    /// [`Misuse`](Error::Misuse), with the rules that would.
    pub fn check_against(&self, credentials: &ServerCredentials) -> Result<()> {
        if !credentials.verifies_peer() {
            return Err(misuse(
                "rules about which sources may come (tls-authz), and no source is asked who it is: nobody could come; ask for \
                 certificates (verify-peer), or leave the rules out"
                    .into(),
            ));
        }
        match credentials.kind() {
            ServerKind::X509(_) if self.allowing().all(|rule| rule.what.is_about_keys()) => {
                Err(misuse(
                    "the authorisation rules allow users of keys.psk (psk:) and nobody else, and sources show certificates \
                     here: nobody could come; write dn:NAME, san:dns:HOST or any, or take keys in place of certificates \
                     (--tls-psk)"
                        .into(),
                ))
            }
            ServerKind::X509(_) => Ok(()),
            #[cfg(feature = "tls-psk")]
            ServerKind::Psk(keys) => {
                let may_come = |user: &str| self.decides(&Source::User(user)).is_some_and(|rule| rule.allows);
                if keys.users().any(may_come) {
                    return Ok(());
                }
                Err(misuse(format!(
                    "the authorisation rules allow none of the users that {} has: nobody could come; with keys in place of \
                     certificates write psk:USER, with one of its users, or any",
                    credentials.directory().join("keys.psk").display()
                )))
            }
        }
    }

    /// Those that can let somebody in; what stands behind one that denies everybody is never reached.
    fn allowing(&self) -> impl Iterator<Item = &Rule> {
        let reached = self.rules.iter().take_while(|rule| rule.allows || !rule.what.is_any());
        reached.filter(|rule| rule.allows)
    }

    fn decides(&self, source: &Source<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(source))
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
                    // What a rule denies may be among them.
                    Some(facts) if facts.has_unreadable_names => {
                        return refused(format!(
                            "{facts}: its certificate has subject alternative names that cannot be read, so no rule can be held \
                             against them; the source needs a certificate without them"
                        ));
                    }
                    Some(facts) => Source::Certificate(Shown::new(facts)),
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
        match self.decides(&source) {
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

/// Splits off the verdict.
fn verdict(text: &str) -> (bool, &str) {
    let word = |word| text.strip_prefix(word).filter(|rest| rest.starts_with([' ', '\t']));
    match (word("allow"), word("deny")) {
        (Some(rest), _) => (true, rest.trim_start()),
        (_, Some(rest)) => (false, rest.trim_start()),
        _ => (true, text),
    }
}

/// Those read so far.
#[derive(Default)]
struct Rules {
    rules: Vec<Rule>,
    bytes: usize,
}

impl Rules {
    fn push(&mut self, text: &str, wrong: impl FnOnce(String) -> String) -> Result<()> {
        self.bytes += text.len();
        if self.rules.len() == MAX_RULES || self.bytes > MAX_BYTES {
            return Err(misuse(wrong(format!(
                "more authorisation rules than {MAX_RULES}, or than {} KiB: that is the most; patterns with * make one of many",
                MAX_BYTES >> 10
            ))));
        }
        self.rules.push(text.parse().map_err(|why| misuse(wrong(why)))?);
        Ok(())
    }
}

fn read_file(path: &Path, rules: &mut Rules) -> Result<()> {
    let bytes = read_bounded(path, MAX_BYTES as u64)?.ok_or_else(|| {
        misuse(format!(
            "{}: no such file; it must have one authorisation rule a line",
            path.display()
        ))
    })?;
    warn_if_others_may_write(path, "let in whom they like");
    let text = String::from_utf8(bytes).map_err(|_| {
        misuse(format!("{}: not UTF-8; write names beyond ASCII in UTF-8", path.display()))
    })?;
    for (at, line) in text.lines().enumerate() {
        let line = trimmed(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        rules.push(line, |why| format!("{}: line {}: {why}", path.display(), at + 1))?;
    }
    Ok(())
}

/// Without the space around it, unless that is part of a name.
fn trimmed(text: &str) -> &str {
    let bare = text.trim();
    let begin = text.len() - text.trim_start().len();
    let is_escaped = bare.len() - bare.trim_end_matches('\\').len();
    if is_escaped % 2 == 1 && text[begin + bare.len()..].starts_with(' ') {
        return &text[begin..=begin + bare.len()];
    }
    bare
}

impl Rule {
    /// Who turns a name round to deny it wants it denied all the same.
    fn fits(&self, source: &Source<'_>) -> bool {
        self.what.fits(source) || (!self.allows && self.what.fits_reversed(source))
    }
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
