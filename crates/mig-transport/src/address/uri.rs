//! The URI form (docs/wire/transports.md §2).

use super::{
    Address, ExecAddress, FdAddress, FileAddress, InetAddress, UnixAddress, VsockAddress,
    error::AddressError,
};

const EXAMPLE: &str =
    "tcp:192.0.2.7:4444, unix:/run/vm.sock, vsock:2:1234, fd:5, exec:COMMAND or file:/var/s.mig";

pub(super) fn parse(text: &str) -> Result<Address, AddressError> {
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest))
            if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) =>
        {
            (scheme, rest)
        }
        _ => return Err(not_a_uri(text)),
    };
    let parsed = match scheme {
        "tcp" => InetAddress::parse_uri(rest).map(Address::Inet),
        "rdma" => InetAddress::parse_uri(rest).and_then(|inet| {
            inet.check_rdma()?;
            Ok(Address::Rdma(inet))
        }),
        "unix" => UnixAddress::parse_uri(rest).map(Address::Unix),
        "vsock" => VsockAddress::parse_uri(rest).map(Address::Vsock),
        "fd" => FdAddress::parse_uri(rest).map(Address::Fd),
        "exec" => ExecAddress::parse_uri(rest).map(Address::Exec),
        "file" => FileAddress::parse_uri(rest).map(Address::File),
        _ => return Err(unknown_scheme(scheme, rest)),
    };
    // Parsers of a scheme count from behind its colon.
    parsed.map_err(|error| error.at(0).moved(scheme.len() + 1))
}

fn unknown_scheme(scheme: &str, rest: &str) -> AddressError {
    let lower = scheme.to_ascii_lowercase();
    if ["tcp", "rdma", "unix", "vsock", "fd", "exec", "file"].contains(&lower.as_str()) {
        let what =
            format!("unknown migration protocol {scheme:?}: the prefix is written in lower case");
        return AddressError::new(what, format!("{lower}:{rest}")).at(0);
    }
    let example = match rest.split(',').next().unwrap_or_default().parse::<u16>() {
        Ok(_) => format!("tcp:{scheme}:{rest}"),
        Err(_) => EXAMPLE.to_owned(),
    };
    AddressError::new(format!("unknown migration protocol {scheme:?}"), example).at(0)
}

fn not_a_uri(text: &str) -> AddressError {
    let (what, example) = if text.is_empty() {
        ("the address is empty", EXAMPLE.to_owned())
    } else if text == "defer" {
        ("\"defer\" belongs to QEMU's command line; here an address is given", EXAMPLE.to_owned())
    } else if text.starts_with('[') && text.contains('{') {
        let what = "a list of channels: give the one channel object, without the brackets";
        (what, r#"{"channel-type":"main","addr":{…}}"#.to_owned())
    } else if text.contains("addr.transport=") {
        let what = "dotted keys belong to QEMU's command line; here the object is JSON";
        (what, r#"{"channel-type":"main","addr":{"transport":"socket",…}}"#.to_owned())
    } else if text.starts_with(['/', '.', '~']) {
        ("a path alone does not say what it is", format!("file:{text} or unix:{text}"))
    } else {
        let what = "neither a URI (letters, then a colon) nor a JSON channel object (a brace)";
        (what, EXAMPLE.to_owned())
    };
    AddressError::new(what, example).at(0)
}
