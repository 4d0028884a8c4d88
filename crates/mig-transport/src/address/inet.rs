//! `tcp:` and `rdma:` addresses (docs/wire/transports.md §2.1, §2.2).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use super::{
    error::AddressError,
    options::{Word, double_commas, parse_decimal, split_words},
};

const EXAMPLE: &str = "tcp:192.0.2.7:4444 or tcp:[2001:db8::7]:4444,keep-alive=on";
/// What the kernel takes for a congestion control's name (`TCP_CA_NAME_MAX` without its NUL).
const MAX_CONGESTION_BYTES: usize = 15;

/// A host and a port, with options. An option not given leaves the choice to the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InetAddress {
    /// A name, an IPv4 address, or an IPv6 address without brackets and with an optional `%scope`. Empty: the
    /// wildcard, for listening only.
    pub host: String,
    /// A number, or for tcp the name of a service. 0 when listening picks a free port.
    pub port: String,
    /// Listening: try each port from `port` to this one until one can be bound.
    pub to: Option<u16>,
    /// Family restriction; see [`InetAddress::family`].
    pub ipv4: Option<bool>,
    /// Family restriction; see [`InetAddress::family`].
    pub ipv6: Option<bool>,
    /// No name service is asked: host and port must be numeric.
    pub numeric: Option<bool>,
    /// SO_KEEPALIVE.
    pub keep_alive: Option<bool>,
    /// TCP_KEEPCNT, at most 127; 0 leaves it to the system.
    pub keep_alive_count: Option<u32>,
    /// TCP_KEEPIDLE in seconds, at most 32767; 0 leaves it to the system.
    pub keep_alive_idle_seconds: Option<u32>,
    /// TCP_KEEPINTVL in seconds, at most 32767; 0 leaves it to the system.
    pub keep_alive_interval_seconds: Option<u32>,
    /// Multipath TCP.
    pub mptcp: Option<bool>,
    /// Our own: connecting, the numeric local address to come from.
    pub bind: Option<String>,
    /// Our own: TCP_USER_TIMEOUT in milliseconds; 0 leaves it to the system.
    pub user_timeout_ms: Option<u32>,
    /// Our own: the congestion control to use (TCP_CONGESTION).
    pub congestion: Option<String>,
}

/// Which addresses a name may stand for (§2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Nothing was said: whatever the name resolves to.
    Any,
    /// Both were asked for: as `Any`, except that the wildcard is one IPv6 socket that takes IPv4 too.
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only; listening sockets take no IPv4.
    V6,
}

impl InetAddress {
    /// An address without options.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port: port.to_string(), ..Self::default() }
    }

    /// What `ipv4` and `ipv6` allow, by the table of §2.2.
    pub fn family(&self) -> Result<Family, AddressError> {
        match (self.ipv4, self.ipv6) {
            (None, None) => Ok(Family::Any),
            (Some(true), Some(true)) => Ok(Family::Both),
            (Some(true), None | Some(false)) | (None, Some(false)) => Ok(Family::V4),
            (None | Some(false), Some(true)) | (Some(false), None) => Ok(Family::V6),
            (Some(false), Some(false)) => {
                Err(AddressError::new("ipv4=off with ipv6=off leaves no family", EXAMPLE))
            }
        }
    }

    /// The port, if it is a number.
    pub fn port_number(&self) -> Option<u16> {
        parse_decimal(&self.port, u64::from(u16::MAX)).map(|port| port as u16)
    }

    /// Host and port as they stand in a URI, the host in brackets if it is IPv6.
    pub fn host_port(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Whether the parts make sense, alone and together. A parsed address does; one built by hand may not.
    pub fn check(&self) -> Result<(), AddressError> {
        check_host(&self.host)?;
        check_port(&self.port)?;
        self.family()?;
        if self.numeric == Some(true) {
            self.check_numeric()?;
        }
        if let (Some(to), Some(port)) = (self.to, self.port_number())
            && to < port
        {
            let what = format!("to={to} ends the range of ports before its start, {port}");
            return Err(AddressError::new(what, "tcp::4444,to=4450"));
        }
        for (name, value, max) in [
            ("keep-alive-count", self.keep_alive_count, 127),
            ("keep-alive-idle", self.keep_alive_idle_seconds, 32767),
            ("keep-alive-interval", self.keep_alive_interval_seconds, 32767),
            ("user-timeout", self.user_timeout_ms, i32::MAX as u32),
        ] {
            if value.is_some_and(|value| value > max) {
                let what = format!("{name} is at most {max}");
                return Err(AddressError::new(what, EXAMPLE));
            }
        }
        if let Some(bind) = &self.bind
            && !is_ip(bind)
        {
            let what = format!("bind={bind} is not a numeric local address (no brackets, no port)");
            return Err(AddressError::new(what, "tcp:192.0.2.7:4444,bind=192.0.2.1"));
        }
        if let Some(name) = &self.congestion
            && (name.is_empty()
                || name.len() > MAX_CONGESTION_BYTES
                || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)))
        {
            let what = format!("{name:?} is not a name of a congestion control");
            return Err(AddressError::new(what, "tcp:192.0.2.7:4444,congestion=bbr"));
        }
        Ok(())
    }

    /// RDMA has no service names: QEMU reads other text as 0, we refuse it.
    pub fn check_rdma(&self) -> Result<(), AddressError> {
        self.check()?;
        match self.port_number() {
            Some(_) => Ok(()),
            None => {
                let what = format!(
                    "the port {:?} is not a number; rdma knows no service names",
                    self.port
                );
                Err(AddressError::new(what, "rdma:192.0.2.7:4444"))
            }
        }
    }

    fn check_numeric(&self) -> Result<(), AddressError> {
        if !self.host.is_empty() && !is_ip(&self.host) {
            let what = format!("numeric allows no name, and the host is {:?}", self.host);
            return Err(AddressError::new(what, "tcp:192.0.2.7:4444,numeric"));
        }
        if self.port_number().is_none() {
            let what = format!("numeric allows no service name, and the port is {:?}", self.port);
            return Err(AddressError::new(what, "tcp:192.0.2.7:4444,numeric"));
        }
        Ok(())
    }

    /// `rest` is what follows the scheme and its colon; positions count from its start.
    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        let words = split_words(rest);
        let (first, options) = words.split_first().expect("splitting gives at least one word");
        let (host, port) = split_host_port(&first.text)?;
        let mut address = Self { host, port, ..Self::default() };
        for option in options {
            address.set_option(option).map_err(|error| error.at(option.start))?;
        }
        address.check()?;
        Ok(address)
    }

    fn set_option(&mut self, option: &Word) -> Result<(), AddressError> {
        let (key, value) = match option.text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.text.as_str(), None),
        };
        let duplicate = match (key, self.flag(key)) {
            ("", _) => return Err(AddressError::new("an option is empty", EXAMPLE)),
            (_, Some(flag)) => flag.replace(on_off(key, value)?).is_some(),
            ("to", _) => set(&mut self.to, number(key, value, u16::MAX.into())? as u16),
            ("keep-alive-count", _) => set(&mut self.keep_alive_count, number32(key, value)?),
            ("keep-alive-idle", _) => set(&mut self.keep_alive_idle_seconds, number32(key, value)?),
            ("keep-alive-interval", _) => {
                set(&mut self.keep_alive_interval_seconds, number32(key, value)?)
            }
            ("user-timeout", _) => set(&mut self.user_timeout_ms, number32(key, value)?),
            ("bind", _) => set(&mut self.bind, required(key, value)?.to_owned()),
            ("congestion", _) => set(&mut self.congestion, required(key, value)?.to_owned()),
            (_, None) => return self.set_obsolete_off(key, value),
        };
        refuse_duplicate(key, duplicate)
    }

    /// `noX`, the old way to say `X=off`.
    fn set_obsolete_off(&mut self, key: &str, value: Option<&str>) -> Result<(), AddressError> {
        match (key.strip_prefix("no").and_then(|name| self.flag(name)), value) {
            (Some(flag), None) => refuse_duplicate(key, flag.replace(false).is_some()),
            (Some(_), Some(_)) => {
                let what = format!("{key} takes no value; {}=off says the same", &key[2..]);
                Err(AddressError::new(what, EXAMPLE))
            }
            (None, _) => {
                let what = format!(
                    "there is no option {key:?} (a literal comma is doubled); there are to, ipv4, ipv6, numeric, \
                     keep-alive, keep-alive-count, keep-alive-idle, keep-alive-interval, mptcp, bind, user-timeout, congestion"
                );
                Err(AddressError::new(what, EXAMPLE))
            }
        }
    }

    fn flag(&mut self, key: &str) -> Option<&mut Option<bool>> {
        match key {
            "ipv4" => Some(&mut self.ipv4),
            "ipv6" => Some(&mut self.ipv6),
            "numeric" => Some(&mut self.numeric),
            "keep-alive" => Some(&mut self.keep_alive),
            "mptcp" => Some(&mut self.mptcp),
            _ => None,
        }
    }

    pub(super) fn to_uri_rest(&self) -> Option<String> {
        self.check().ok()?;
        let mut uri = double_commas(&self.host_port());
        let mut option = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                uri.push_str(&format!(",{key}={}", double_commas(&value)));
            }
        };
        let flag = |value: Option<bool>| value.map(|on| if on { "on" } else { "off" }.to_owned());
        option("to", self.to.map(|to| to.to_string()));
        option("ipv4", flag(self.ipv4));
        option("ipv6", flag(self.ipv6));
        option("numeric", flag(self.numeric));
        option("keep-alive", flag(self.keep_alive));
        option("keep-alive-count", self.keep_alive_count.map(|n| n.to_string()));
        option("keep-alive-idle", self.keep_alive_idle_seconds.map(|n| n.to_string()));
        option("keep-alive-interval", self.keep_alive_interval_seconds.map(|n| n.to_string()));
        option("mptcp", flag(self.mptcp));
        option("bind", self.bind.clone());
        option("user-timeout", self.user_timeout_ms.map(|n| n.to_string()));
        option("congestion", self.congestion.clone());
        Some(uri)
    }
}

/// `host:port`, without the options.
impl fmt::Display for InetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host_port())
    }
}

fn set<T>(slot: &mut Option<T>, value: T) -> bool {
    slot.replace(value).is_some()
}

fn refuse_duplicate(key: &str, duplicate: bool) -> Result<(), AddressError> {
    match duplicate {
        false => Ok(()),
        true => Err(AddressError::new(format!("{key} was already given"), EXAMPLE)),
    }
}

fn required<'v>(key: &str, value: Option<&'v str>) -> Result<&'v str, AddressError> {
    value.ok_or_else(|| AddressError::new(format!("{key} needs a value: {key}=…"), EXAMPLE))
}

fn number(key: &str, value: Option<&str>, max: u64) -> Result<u64, AddressError> {
    let value = required(key, value)?;
    parse_decimal(value, max).ok_or_else(|| {
        let what = format!("{key}={value} is not a decimal number up to {max}");
        AddressError::new(what, EXAMPLE)
    })
}

fn number32(key: &str, value: Option<&str>) -> Result<u32, AddressError> {
    number(key, value, u32::MAX.into()).map(|number| number as u32)
}

fn on_off(key: &str, value: Option<&str>) -> Result<bool, AddressError> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => {
            let what = format!("{key} is on or off, not {other:?}");
            Err(AddressError::new(what, EXAMPLE))
        }
    }
}

fn split_host_port(text: &str) -> Result<(String, String), AddressError> {
    if let Some(inside) = text.strip_prefix('[') {
        let Some((host, after)) = inside.split_once(']') else {
            let what = "the bracket of the IPv6 address is not closed";
            return Err(AddressError::new(what, "tcp:[2001:db8::7]:4444").at(0));
        };
        let position = host.len() + 2;
        let Some(port) = after.strip_prefix(':') else {
            let what = "a colon and the port must follow the bracket";
            return Err(AddressError::new(what, format!("tcp:[{host}]:4444")).at(position));
        };
        if !is_ipv6(host) {
            let what = format!("{host:?} in brackets is not an IPv6 address");
            return Err(AddressError::new(what, "tcp:[2001:db8::7]:4444").at(1));
        }
        check_port(port).map_err(|error| error.at(position + 1))?;
        return Ok((host.to_owned(), port.to_owned()));
    }
    if text.starts_with("//") {
        let what = "no slashes stand before the host";
        return Err(AddressError::new(what, format!("tcp:{}", text.trim_matches('/'))).at(0));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(
            AddressError::new("the port is missing", format!("tcp:{text}:4444")).at(text.len())
        );
    };
    if host.contains(':') {
        let what = "an IPv6 address needs brackets";
        let example = match (is_ipv6(text), is_ipv6(host)) {
            // Either reading may be meant; the longer one lacks its port.
            (true, false) => format!("tcp:[{text}]:4444"),
            (_, true) => format!("tcp:[{host}]:{port}"),
            (false, false) => {
                let what = "more than one colon, and not an IPv6 address in brackets";
                return Err(AddressError::new(what, EXAMPLE).at(0));
            }
        };
        return Err(AddressError::new(what, example).at(0));
    }
    check_host(host).map_err(|error| error.at(0))?;
    check_port(port).map_err(|error| error.at(host.len() + 1))?;
    Ok((host.to_owned(), port.to_owned()))
}

fn check_host(host: &str) -> Result<(), AddressError> {
    if host.starts_with('[') {
        let what = "no brackets stand around a host that is a field of its own";
        return Err(AddressError::new(what, r#""host": "2001:db8::7""#));
    }
    if host.contains(':') && !is_ipv6(host) {
        return Err(AddressError::new(
            format!("the host {host:?} is not an IPv6 address"),
            EXAMPLE,
        ));
    }
    match host.chars().find(|c| c.is_whitespace() || c.is_control() || "/[]".contains(*c)) {
        None => Ok(()),
        Some(bad) => Err(AddressError::new(format!("a host cannot hold {bad:?}"), EXAMPLE)),
    }
}

fn check_port(port: &str) -> Result<(), AddressError> {
    if port.is_empty() {
        return Err(AddressError::new("the port is missing", EXAMPLE));
    }
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if digits && parse_decimal(port, u64::from(u16::MAX)).is_none() {
        return Err(AddressError::new(format!("the port {port} is above 65535"), EXAMPLE));
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+*".contains(&byte);
    if !digits && (!port.bytes().all(name) || port.starts_with(['-', '+'])) {
        let what = format!("the port {port:?} is neither a number nor the name of a service");
        return Err(AddressError::new(what, EXAMPLE));
    }
    Ok(())
}

fn is_ip(text: &str) -> bool {
    is_ipv6(text) || matches!(IpAddr::from_str(text), Ok(IpAddr::V4(_)))
}

/// An IPv6 address with an optional scope.
fn is_ipv6(text: &str) -> bool {
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (text, None),
    };
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"/[]%".contains(c);
    scope.is_none_or(|scope| !scope.is_empty() && scope.chars().all(plain))
        && Ipv6Addr::from_str(address).is_ok()
}
