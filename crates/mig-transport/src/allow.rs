//! Who may connect: a list of addresses, users and virtual machines, looked at before a byte is read.
//!
//! ```text
//!   Listener ──▶ Peer ──in the list──▶ given out
//!                  └────in no rule───▶ closed, with a log line (a few, then a number)
//! ```
//!
//! It is no authentication: whoever can take an allowed address, or is an allowed user, gets in. TLS says more.

use std::{fmt, net::IpAddr, str::FromStr};

use async_trait::async_trait;

use crate::{
    channel::Channel,
    connect::Listener,
    error::{Error, Result},
    log_limit::LogLimit,
    peer::Peer,
};

/// Refusals in a row after which others of the same task get a turn.
const REFUSALS_AT_ONCE: u32 = 16;

/// One rule: whom it lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllowRule {
    /// The addresses that begin with the first `bits` of this one.
    Network {
        /// Any address of the network.
        address: IpAddr,
        /// How many bits of it count.
        bits: u8,
    },
    /// Processes of one user, over a unix socket.
    User(u32),
    /// One context id, over vsock.
    Context(u32),
}

impl AllowRule {
    /// Whether the rule lets `peer` in.
    pub fn permits(&self, peer: Peer) -> bool {
        match (*self, peer) {
            (Self::Network { address, bits }, Peer::Address(of)) => {
                in_network(address, bits, of.to_canonical())
            }
            (Self::User(uid), Peer::User(of)) => uid == of,
            (Self::Context(cid), Peer::Context(of)) => cid == of,
            _ => false,
        }
    }

    /// Whether anybody who connects over the transport of this scheme can be meant.
    pub fn suits(&self, scheme: &str) -> bool {
        match self {
            Self::Network { .. } => matches!(scheme, "tcp" | "rdma"),
            Self::User(_) => scheme == "unix",
            Self::Context(_) => scheme == "vsock",
        }
    }
}

fn in_network(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    // A shift by all bits is no shift: of the whole address none counts.
    let same = |differing: u128, all: u32| {
        differing.checked_shr(all.saturating_sub(u32::from(bits))).unwrap_or(0) == 0
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same(u128::from(network.to_bits() ^ address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same(network.to_bits() ^ address.to_bits(), 128)
        }
        _ => false,
    }
}

/// `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`, `uid:1000`, `cid:3`
impl FromStr for AllowRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::Misuse {
            what: format!(
                "{text:?} does not say who may connect: {why}; write an address (192.0.2.7), a network (192.0.2.0/24, \
                 2001:db8::/32), a user of a unix socket (uid:1000) or a context id of vsock (cid:3)"
            ),
        };
        let number = |digits: &str, what: &str| {
            digits.parse::<u32>().map_err(|_| bad(&format!("{digits:?} is no {what}")))
        };
        if let Some(uid) = text.strip_prefix("uid:") {
            return number(uid, "user id").map(Self::User);
        }
        if let Some(cid) = text.strip_prefix("cid:") {
            return number(cid, "context id").map(Self::Context);
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let parsed: IpAddr =
            address.parse().map_err(|_| bad(&format!("{address:?} is no address")))?;
        let all = if parsed.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) => number(bits, "number of bits")?,
        };
        if bits > all {
            return Err(bad(&format!("an address like this has {all} bits, not {bits}")));
        }
        let rule = match (parsed, parsed.to_canonical()) {
            // ::ffff:192.0.2.0/120 is 192.0.2.0/24.
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if bits >= 96 => (v4, bits - 96),
            _ => (parsed, bits),
        };
        // At most 128.
        Ok(Self::Network { address: rule.0, bits: rule.1 as u8 })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { address, bits } => write!(f, "{address}/{bits}"),
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Context(cid) => write!(f, "cid:{cid}"),
        }
    }
}

/// Rules of which one is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<AllowRule>);

impl AllowList {
    /// Lets in whom one of `rules` lets in; without any, nobody.
    pub fn new(rules: impl IntoIterator<Item = AllowRule>) -> Self {
        Self(rules.into_iter().collect())
    }

    /// Whether `peer` may connect.
    pub fn permits(&self, peer: Peer) -> bool {
        self.0.iter().any(|rule| rule.permits(peer))
    }

    /// Refuses a list that cannot let in anybody who connects by this scheme: it is a mistake.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`], with the rules that would.
    pub fn check(&self, scheme: &str) -> Result<()> {
        if self.0.iter().any(|rule| rule.suits(scheme)) {
            return Ok(());
        }
        let advice = match scheme {
            "tcp" | "rdma" => "name addresses, like 192.0.2.0/24",
            "unix" => "name users, like uid:1000",
            "vsock" => "name context ids, like cid:3",
            _ => "nobody connects there whom one could tell apart: leave the list out",
        };
        let rules: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        Err(Error::Misuse {
            what: format!(
                "nobody may connect by {scheme}: under the rules {:?}; {advice}",
                rules.join(", ")
            ),
        })
    }
}

/// A listener that closes whoever is not in the list, without reading a byte.
pub struct AllowingListener {
    inner: Box<dyn Listener>,
    allow: AllowList,
    log: LogLimit,
    last_dropped: Option<Error>,
}

impl AllowingListener {
    /// Gives out those channels of `inner` that `allow` permits.
    pub fn new(inner: Box<dyn Listener>, allow: AllowList) -> Self {
        Self { inner, allow, log: LogLimit::default(), last_dropped: None }
    }
}

#[async_trait]
impl Listener for AllowingListener {
    async fn accept(&mut self) -> Result<Channel> {
        let mut refused = 0;
        loop {
            let channel = self.inner.accept().await?;
            if self.allow.permits(channel.peer()) {
                return Ok(channel);
            }
            let peer = channel.peer();
            if let Some(unsaid) = self.log.say() {
                tracing::warn!(channel = %channel.endpoint(), unsaid, "{peer} is not allowed to connect: closed");
            }
            let what = format!(
                "{}: {peer} is not allowed to connect; allow it (--allow) if it is the source",
                channel.endpoint()
            );
            self.last_dropped = Some(Error::PeerIncompatible { what });
            drop(channel);
            refused += 1;
            if refused % REFUSALS_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        self.inner.local_addresses()
    }

    fn nobody_is_missing(&mut self, nobody: bool) {
        self.inner.nobody_is_missing(nobody);
    }

    fn last_dropped(&mut self) -> Option<Error> {
        self.last_dropped.take().or_else(|| self.inner.last_dropped())
    }
}

impl fmt::Debug for AllowingListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowingListener").field("allow", &self.allow).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> AllowRule {
        text.parse().unwrap()
    }

    fn peer(address: &str) -> Peer {
        Peer::address(address.parse().unwrap())
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_other() {
        for (network, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::ffff:192.0.2.0/120", "192.0.2.9", "192.0.3.9"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
        ] {
            assert!(rule(network).permits(peer(inside)), "{inside} in {network}");
            assert!(!rule(network).permits(peer(outside)), "{outside} in {network}");
        }
        assert!(rule("192.0.2.0/24").permits(peer("::ffff:192.0.2.1")), "mapped");
    }

    #[test]
    fn users_and_contexts_are_told_apart() {
        assert!(rule("uid:1000").permits(Peer::User(1000)));
        assert!(!rule("uid:1000").permits(Peer::User(0)));
        assert!(!rule("uid:3").permits(Peer::Context(3)));
        assert!(rule("cid:3").permits(Peer::Context(3)));
        assert!(!rule("0.0.0.0/0").permits(Peer::Unknown));
        assert!(!AllowList::default().permits(Peer::Unknown));
    }

    #[test]
    fn a_bad_rule_says_what_one_looks_like() {
        for text in
            ["", "example.org", "192.0.2.0/33", "::/129", "uid:root", "cid:", "10.0.0.0/-1", "/8"]
        {
            let error = text.parse::<AllowRule>().unwrap_err();
            assert_eq!(error.blame(), crate::Blame::Misuse);
            assert!(error.to_string().contains("192.0.2.0/24"), "{error}");
        }
    }

    #[test]
    fn a_list_that_lets_nobody_in_is_a_mistake() {
        let list = AllowList::new([rule("uid:0")]);
        assert!(list.check("unix").is_ok());
        for scheme in ["tcp", "vsock", "fd", "exec", "file", "rdma"] {
            let error = list.check(scheme).unwrap_err().to_string();
            assert!(error.contains(scheme) && error.contains("uid:0"), "{error}");
        }
    }

    /// One connection, and then nobody.
    struct One(Option<Channel>);

    #[async_trait]
    impl Listener for One {
        async fn accept(&mut self) -> Result<Channel> {
            self.0.take().ok_or_else(|| Error::Misuse { what: "nobody".into() })
        }

        fn local_addresses(&self) -> Vec<String> {
            Vec::new()
        }
    }

    /// The only sign of it is a line in the log, and who waits for that source sees an error alone.
    #[tokio::test]
    async fn who_was_turned_away_is_remembered_once() {
        let channel = Channel::new(crate::ChannelParts {
            peer: Peer::User(7),
            ..crate::ChannelParts::default()
        });
        let list = AllowList::new([rule("uid:0")]);
        let mut listener = AllowingListener::new(Box::new(One(Some(channel))), list);
        assert!(listener.last_dropped().is_none());
        assert_eq!(listener.accept().await.unwrap_err().to_string(), "nobody");
        let told = listener.last_dropped().expect("it was turned away").to_string();
        assert!(told.contains("uid:7 is not allowed to connect"), "{told}");
        assert!(listener.last_dropped().is_none());
    }

    proptest! {
        #[test]
        fn a_rule_reads_as_it_prints(address: IpAddr, bits in 0_u8..=32) {
            let address = address.to_canonical();
            let rule = AllowRule::Network { address, bits };
            prop_assert_eq!(rule.to_string().parse::<AllowRule>().unwrap(), rule);
            prop_assert!(rule.permits(Peer::address(address)));
        }
    }
}
