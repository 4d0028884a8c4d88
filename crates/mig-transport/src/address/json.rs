//! The JSON channel object (docs/wire/transports.md §2.10).
//!
//! Strict as QEMU's own visitor: unknown keys, duplicate keys and values of another type are errors. Ports and context
//! ids are strings, an offset is an integer.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{
    Address, ChannelType, ExecAddress, FdAddress, FileAddress, InetAddress, UnixAddress,
    VsockAddress, error::AddressError,
};

const INET: &str = r#"{"channel-type":"main","addr":{"transport":"socket","type":"inet","host":"192.0.2.7","port":"4444"}}"#;
const UNIX: &str =
    r#"{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":"/run/vm.sock"}}"#;
const VSOCK: &str = r#"{"channel-type":"main","addr":{"transport":"socket","type":"vsock","cid":"3","port":"1234"}}"#;
const FD: &str =
    r#"{"channel-type":"main","addr":{"transport":"socket","type":"fd","str":"mig0"}}"#;
const EXEC: &str =
    r#"{"channel-type":"main","addr":{"transport":"exec","args":["/usr/bin/ncat","-l","4444"]}}"#;
const RDMA: &str =
    r#"{"channel-type":"main","addr":{"transport":"rdma","host":"192.0.2.7","port":"4444"}}"#;
const FILE: &str =
    r#"{"channel-type":"main","addr":{"transport":"file","filename":"/var/s.mig","offset":4096}}"#;

pub(super) fn parse(text: &str) -> Result<(ChannelType, Address), AddressError> {
    let node: Node = serde_json::from_str(text).map_err(|error| {
        let what = format!("not a JSON channel object: {error}");
        AddressError::new(what, INET).at(position(text, error.line(), error.column()))
    })?;
    let mut channel = Fields::of(node, "", INET)?;
    let channel_type = channel.string("channel-type")?;
    match channel_type.as_str() {
        "main" => {}
        "cpr" => {
            let what = "a cpr channel restarts a VMM on the same host with its descriptors; only main is migrated";
            return Err(AddressError::new(what, INET).in_key("channel-type"));
        }
        other => {
            let what = format!("there is no channel type {other:?}; it is \"main\"");
            return Err(AddressError::new(what, INET).in_key("channel-type"));
        }
    }
    let mut addr = Fields::of(channel.required("addr")?, "addr", INET)?;
    channel.done()?;
    let address = match addr.string("transport")?.as_str() {
        "socket" => socket(&mut addr)?,
        "exec" => exec(&mut addr)?,
        "rdma" => {
            let inet = inet(&mut addr, RDMA)?;
            inet.check_rdma().map_err(|error| error.in_key("addr"))?;
            Address::Rdma(inet)
        }
        "file" => file(&mut addr)?,
        other => {
            let what =
                format!("there is no transport {other:?}; there are socket, exec, rdma and file");
            return Err(AddressError::new(what, INET).in_key("addr.transport"));
        }
    };
    addr.done()?;
    Ok((ChannelType::Main, address))
}

fn socket(addr: &mut Fields) -> Result<Address, AddressError> {
    match addr.string("type")?.as_str() {
        "inet" => inet(addr, INET).map(Address::Inet),
        "unix" => {
            addr.example = UNIX;
            let unix = UnixAddress {
                path: addr.string("path")?,
                is_abstract: addr.boolean("abstract")?.unwrap_or(false),
                tight: addr.boolean("tight")?.unwrap_or(true),
            };
            unix.check().map_err(|error| error.in_key("addr.path"))?;
            Ok(Address::Unix(unix))
        }
        "vsock" => {
            addr.example = VSOCK;
            let mut number = |key: &str, what: &str| {
                let text = addr.string(key)?;
                VsockAddress::parse_number(what, &text)
                    .map_err(|error| error.in_key(&addr.path(key)))
            };
            Ok(Address::Vsock(VsockAddress {
                cid: number("cid", "context id")?,
                port: number("port", "port")?,
            }))
        }
        "fd" => {
            addr.example = FD;
            let text = addr.string("str")?;
            FdAddress::parse_uri(&text).map(Address::Fd).map_err(|error| error.in_key("addr.str"))
        }
        other => {
            let what =
                format!("there is no socket type {other:?}; there are inet, unix, vsock and fd");
            Err(AddressError::new(what, INET).in_key("addr.type"))
        }
    }
}

fn inet(addr: &mut Fields, example: &'static str) -> Result<InetAddress, AddressError> {
    addr.example = example;
    let inet = InetAddress {
        host: addr.string("host")?,
        port: addr.string("port")?,
        to: addr.integer("to", u16::MAX.into())?.map(|number| number as u16),
        ipv4: addr.boolean("ipv4")?,
        ipv6: addr.boolean("ipv6")?,
        numeric: addr.boolean("numeric")?,
        keep_alive: addr.boolean("keep-alive")?,
        keep_alive_count: addr.integer32("keep-alive-count")?,
        keep_alive_idle_seconds: addr.integer32("keep-alive-idle")?,
        keep_alive_interval_seconds: addr.integer32("keep-alive-interval")?,
        mptcp: addr.boolean("mptcp")?,
        bind: addr.optional_string("bind")?,
        user_timeout_ms: addr.integer32("user-timeout")?,
        congestion: addr.optional_string("congestion")?,
    };
    inet.check().map_err(|error| error.in_key("addr"))?;
    Ok(inet)
}

fn exec(addr: &mut Fields) -> Result<Address, AddressError> {
    addr.example = EXEC;
    let Node::List(items) = addr.required("args")? else {
        return Err(AddressError::new("args is a list of strings", EXEC).in_key("addr.args"));
    };
    let mut args = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Node::String(arg) => args.push(arg),
            other => {
                let what = format!("a string is needed, not {}", other.kind());
                let key = format!("addr.args[{index}]");
                return Err(AddressError::new(what, EXEC).in_key(&key));
            }
        }
    }
    let exec = ExecAddress::Args(args);
    exec.check().map_err(|error| error.in_key("addr.args"))?;
    Ok(Address::Exec(exec))
}

fn file(addr: &mut Fields) -> Result<Address, AddressError> {
    addr.example = FILE;
    let path = addr.string("filename")?;
    let offset = addr.integer("offset", i64::MAX as u64)?.unwrap_or(0);
    let file = FileAddress { path, offset };
    file.check().map_err(|error| error.in_key("addr.filename"))?;
    Ok(Address::File(file))
}

/// The byte position that a line and a column (both from 1, the column in bytes) name.
fn position(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// The keys of one object that nobody asked for yet.
struct Fields {
    prefix: &'static str,
    example: &'static str,
    left: Vec<(String, Node)>,
    known: Vec<String>,
}

impl Fields {
    fn of(node: Node, prefix: &'static str, example: &'static str) -> Result<Self, AddressError> {
        match node {
            Node::Object(left) => Ok(Self { prefix, example, left, known: Vec::new() }),
            other => {
                let what = format!("an object is needed, not {}", other.kind());
                Err(AddressError::new(what, example).in_key(prefix))
            }
        }
    }

    fn path(&self, key: &str) -> String {
        match self.prefix {
            "" => key.to_owned(),
            prefix => format!("{prefix}.{key}"),
        }
    }

    fn take(&mut self, key: &str) -> Option<Node> {
        self.known.push(key.to_owned());
        let index = self.left.iter().position(|(name, _)| name == key)?;
        Some(self.left.swap_remove(index).1)
    }

    fn required(&mut self, key: &str) -> Result<Node, AddressError> {
        match self.take(key) {
            Some(node) => Ok(node),
            None => Err(self.error(key, "the key is missing".to_owned())),
        }
    }

    fn string(&mut self, key: &str) -> Result<String, AddressError> {
        match self.required(key)? {
            Node::String(text) => Ok(text),
            other => Err(self.error(key, format!("a string is needed, not {}", other.kind()))),
        }
    }

    fn optional_string(&mut self, key: &str) -> Result<Option<String>, AddressError> {
        match self.take(key) {
            None => Ok(None),
            Some(Node::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(self.error(key, format!("a string is needed, not {}", other.kind())))
            }
        }
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, AddressError> {
        match self.take(key) {
            None => Ok(None),
            Some(Node::Bool(value)) => Ok(Some(value)),
            Some(other) => {
                Err(self.error(key, format!("true or false is needed, not {}", other.kind())))
            }
        }
    }

    fn integer(&mut self, key: &str, max: u64) -> Result<Option<u64>, AddressError> {
        match self.take(key) {
            None => Ok(None),
            Some(Node::Integer(number)) if number <= max => Ok(Some(number)),
            Some(other) => {
                let what = format!("an integer from 0 to {max} is needed, not {}", other.kind());
                Err(self.error(key, what))
            }
        }
    }

    fn integer32(&mut self, key: &str) -> Result<Option<u32>, AddressError> {
        Ok(self.integer(key, u32::MAX.into())?.map(|number| number as u32))
    }

    /// Refuses the keys that are left.
    fn done(&self) -> Result<(), AddressError> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => {
                let what =
                    format!("there is no such key here; there are {}", self.known.join(", "));
                Err(self.error(key, what))
            }
        }
    }

    fn error(&self, key: &str, what: String) -> AddressError {
        AddressError::new(what, self.example).in_key(&self.path(key))
    }
}

/// A JSON value that, unlike `serde_json::Value`, notices duplicate keys.
enum Node {
    Null,
    Bool(bool),
    Integer(u64),
    OtherNumber,
    String(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    fn kind(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => format!("the number {number}"),
            Self::OtherNumber => "a negative or fractional number".to_owned(),
            Self::String(text) => format!("the string {text:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Integer(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(u64::try_from(number).map_or(Node::OtherNumber, Node::Integer))
    }

    fn visit_f64<E>(self, _number: f64) -> Result<Node, E> {
        Ok(Node::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Node, E> {
        Ok(Node::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut object: Vec<(String, Node)> = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.iter().any(|(name, _)| *name == key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            object.push((key, entries.next_value()?));
        }
        Ok(Node::Object(object))
    }
}
