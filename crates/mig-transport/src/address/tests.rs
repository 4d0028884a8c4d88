//! Every row of docs/wire/transports.md §2, both forms: what is accepted, what it means, what is refused and how.

use super::*;

fn parse(text: &str) -> Address {
    match MigrationAddress::parse(text) {
        Ok(parsed) => {
            assert_eq!(parsed.to_string(), text, "prints back unchanged");
            parsed.into_address()
        }
        Err(error) => panic!("{text}: {error}"),
    }
}

fn inet(text: &str) -> InetAddress {
    match parse(text) {
        Address::Inet(inet) | Address::Rdma(inet) => inet,
        other => panic!("{text} is {other:?}"),
    }
}

fn refused(text: &str) -> AddressError {
    match MigrationAddress::parse(text) {
        Ok(parsed) => panic!("{text} was taken for {:?}", parsed.address()),
        Err(error) => {
            assert_eq!(error.blame(), crate::Blame::Misuse);
            assert!(!error.example().is_empty(), "{error}");
            error
        }
    }
}

/// Each refused text, a word of the reason, and where.
fn refuse_all(rows: &[(&str, &str, Option<usize>)]) {
    for &(text, reason, position) in rows {
        let error = refused(text);
        assert!(error.to_string().contains(reason), "{text}: {reason:?} is not in: {error}");
        assert_eq!(error.position(), position, "{error}");
    }
}

fn socket(rest: &str) -> String {
    format!(r#"{{"channel-type":"main","addr":{{"transport":"socket",{rest}}}}}"#)
}

#[test]
fn hosts_and_ports() {
    for (text, host, port) in [
        ("tcp:192.0.2.7:4444", "192.0.2.7", "4444"),
        ("tcp::4444", "", "4444"),
        ("tcp:localhost:0", "localhost", "0"),
        ("tcp:a.example:ssh", "a.example", "ssh"),
        ("tcp:[2001:db8::7]:4444", "2001:db8::7", "4444"),
        ("tcp:[fe80::1%eth0]:4444", "fe80::1%eth0", "4444"),
        ("tcp:[::]:65535", "::", "65535"),
        ("rdma:192.0.2.7:4444", "192.0.2.7", "4444"),
        ("rdma:[2001:db8::7]:4444", "2001:db8::7", "4444"),
    ] {
        let address = inet(text);
        assert_eq!((address.host.as_str(), address.port.as_str()), (host, port), "{text}");
    }
    assert_eq!(parse("tcp:h:1").scheme(), "tcp");
    assert_eq!(parse("rdma:h:1").scheme(), "rdma");
}

#[test]
fn bad_hosts_and_ports_are_refused() {
    refuse_all(&[
        ("tcp:", "port is missing", Some(4)),
        ("tcp:host", "port is missing", Some(8)),
        ("tcp:host:", "port is missing", Some(9)),
        ("tcp:host:65536", "above 65535", Some(9)),
        ("tcp:host:99999999999999999999", "above 65535", Some(9)),
        ("tcp:host:-1", "neither a number", Some(9)),
        ("tcp:host:4444 ", "neither a number", Some(9)),
        ("tcp:ho st:4444", "cannot hold ' '", Some(4)),
        ("tcp://host:4444", "no slashes", Some(4)),
        ("tcp:::1:4444", "write for example tcp:[::1]:4444", Some(4)),
        ("tcp:2001:db8::7", "write for example tcp:[2001:db8::7]:4444", Some(4)),
        ("tcp:a:b:1", "more than one colon", Some(4)),
        ("tcp:[::1:4444", "not closed", Some(4)),
        ("tcp:[::1]4444", "colon and the port", Some(9)),
        ("tcp:[::1]", "colon and the port", Some(9)),
        ("tcp:[host]:4444", "not an IPv6 address", Some(5)),
        ("tcp:[192.0.2.7]:4444", "not an IPv6 address", Some(5)),
        ("tcp:[fe80::1%]:4444", "not an IPv6 address", Some(5)),
        ("tcp:[]:4444", "not an IPv6 address", Some(5)),
        ("rdma:host:ssh", "knows no service names", Some(5)),
    ]);
}

#[test]
fn options_of_inet() {
    let all = inet(
        "tcp:h:1,to=9,ipv4=on,ipv6=off,numeric=off,keep-alive,keep-alive-count=3,keep-alive-idle=30,\
         keep-alive-interval=5,mptcp=on,bind=192.0.2.1,user-timeout=20000,congestion=bbr",
    );
    assert_eq!(
        all,
        InetAddress {
            host: "h".into(),
            port: "1".into(),
            to: Some(9),
            ipv4: Some(true),
            ipv6: Some(false),
            numeric: Some(false),
            keep_alive: Some(true),
            keep_alive_count: Some(3),
            keep_alive_idle_seconds: Some(30),
            keep_alive_interval_seconds: Some(5),
            mptcp: Some(true),
            bind: Some("192.0.2.1".into()),
            user_timeout_ms: Some(20000),
            congestion: Some("bbr".into()),
        }
    );
    let old = inet("tcp:h:1,noipv6,nokeep-alive,nomptcp,nonumeric");
    assert_eq!((old.ipv6, old.keep_alive), (Some(false), Some(false)));
    assert_eq!((old.mptcp, old.numeric), (Some(false), Some(false)));
    assert_eq!(inet("tcp:192.0.2.7:1,numeric").numeric, Some(true));
    assert_eq!(inet("tcp::0,numeric").numeric, Some(true));
    assert_eq!(inet("tcp:h:1,bind=fe80::1%eth0").bind.as_deref(), Some("fe80::1%eth0"));
    // A doubled comma is a comma of the word: here of a scope's name.
    assert_eq!(inet("tcp:[fe80::1%a,,b]:1,ipv6").host, "fe80::1%a,b");
}

#[test]
fn bad_options_of_inet_are_refused() {
    refuse_all(&[
        ("tcp:h:1,", "option is empty", Some(8)),
        ("tcp:h:1,,ipv4", "neither a number", Some(6)),
        ("tcp:h:1,frob", "no option \"frob\"", Some(8)),
        ("tcp:h:1,ipv4,IPV6", "no option \"IPV6\"", Some(13)),
        ("tcp:h:1,noto", "no option \"noto\"", Some(8)),
        ("tcp:h:1,ipv4=yes", "on or off", Some(8)),
        ("tcp:h:1,ipv4=", "on or off", Some(8)),
        ("tcp:h:1,noipv4=on", "takes no value", Some(8)),
        ("tcp:h:1,ipv4,ipv4", "already given", Some(13)),
        ("tcp:h:1,ipv4,noipv4", "already given", Some(13)),
        ("tcp:h:1,to=2,to=3", "already given", Some(13)),
        ("tcp:h:1,bind=::1,bind=::1", "already given", Some(17)),
        ("tcp:h:1,to", "needs a value", Some(8)),
        ("tcp:h:1,to=65536", "decimal number", Some(8)),
        ("tcp:h:1,to=0x10", "decimal number", Some(8)),
        ("tcp:h:5,to=4", "before its start", Some(4)),
        ("tcp:h:1,ipv4=off,ipv6=off", "leaves no family", Some(4)),
        ("tcp:h:1,numeric", "allows no name", Some(4)),
        ("tcp:192.0.2.7:ssh,numeric", "no service name", Some(4)),
        ("tcp:h:1,keep-alive-count=128", "at most 127", Some(4)),
        ("tcp:h:1,keep-alive-idle=-1", "decimal number", Some(8)),
        ("tcp:h:1,user-timeout=4294967295", "at most", Some(4)),
        ("tcp:h:1,bind=name", "numeric local address", Some(4)),
        ("tcp:h:1,bind=[::1]", "numeric local address", Some(4)),
        ("tcp:h:1,congestion=", "congestion control", Some(4)),
        ("tcp:h:1,congestion=aaaaaaaaaaaaaaaa", "congestion control", Some(4)),
    ]);
}

#[test]
fn families_follow_the_table() {
    for (options, family) in [
        ("", Family::Any),
        (",ipv4", Family::V4),
        (",ipv4,ipv6=off", Family::V4),
        (",ipv6", Family::V6),
        (",ipv4=off,ipv6", Family::V6),
        (",ipv4,ipv6", Family::Both),
        (",ipv4=off", Family::V6),
        (",ipv6=off", Family::V4),
    ] {
        let address = inet(&format!("tcp:h:1{options}"));
        assert_eq!(address.family(), Ok(family), "{options}");
    }
}

#[test]
fn unix_sockets() {
    assert_eq!(parse("unix:/run/vm.sock"), UnixAddress::new("/run/vm.sock").into());
    // Commas belong to the path.
    assert_eq!(parse("unix:a,b=c"), UnixAddress::new("a,b=c").into());
    let longest = "p".repeat(107);
    assert_eq!(parse(&format!("unix:{longest}")), UnixAddress::new(longest).into());
    let abstract_name = socket(r#""type":"unix","path":"mig","abstract":true,"tight":false"#);
    let expected = UnixAddress { path: "mig".into(), is_abstract: true, tight: false };
    assert_eq!(parse(&abstract_name), expected.into());
    refuse_all(&[
        ("unix:", "path of the socket is missing", Some(5)),
        ("unix:a\0b", "NUL", Some(5)),
    ]);
    assert!(refused(&format!("unix:{}", "p".repeat(108))).what().contains("at most 107"));
    assert_eq!(refused(&socket(r#""type":"unix","path":"""#)).key(), Some("addr.path"));
}

#[test]
fn vsock_addresses() {
    assert_eq!(parse("vsock:2:1234"), VsockAddress::new(2, 1234).into());
    assert_eq!(parse("vsock:4294967295:0"), VsockAddress::new(VsockAddress::ANY, 0).into());
    assert_eq!(
        parse(&socket(r#""type":"vsock","cid":"3","port":"1234""#)),
        VsockAddress::new(3, 1234).into()
    );
    refuse_all(&[
        ("vsock:2", "context id and a port", Some(6)),
        ("vsock::1", "context id", Some(6)),
        ("vsock:2:", "port", Some(8)),
        ("vsock:4294967296:1", "context id", Some(6)),
        ("vsock:2:1,ipv4", "port", Some(8)),
        ("vsock:0x2:1", "context id", Some(6)),
    ]);
    let number = refused(&socket(r#""type":"vsock","cid":3,"port":"1234""#));
    assert_eq!(number.key(), Some("addr.cid"));
    assert!(number.what().contains("a string is needed"));
}

#[test]
fn descriptors() {
    assert_eq!(parse("fd:5"), FdAddress::Number(5).into());
    assert_eq!(parse("fd:0,1"), FdAddress::Pair { input: 0, output: 1 }.into());
    assert_eq!(parse("fd:mig0"), FdAddress::Name("mig0".into()).into());
    assert_eq!(
        parse(&socket(r#""type":"fd","str":"mig0""#)),
        FdAddress::Name("mig0".into()).into()
    );
    refuse_all(&[
        ("fd:", "descriptor is missing", Some(3)),
        ("fd:-1", "not negative", Some(3)),
        ("fd:5x", "cannot begin with a digit", Some(3)),
        ("fd:2147483648", "not a descriptor number", Some(3)),
        ("fd:0,", "not a descriptor number", Some(5)),
        ("fd:0,x", "not a descriptor number", Some(5)),
        ("fd:3,3", "same descriptor", Some(5)),
        ("fd:0,1,2", "not a descriptor number", Some(5)),
    ]);
}

#[test]
fn commands() {
    let shell = ExecAddress::Shell("nc -l 4444 | x, y".into());
    assert_eq!(shell.argv(), ["/bin/sh", "-c", "nc -l 4444 | x, y"]);
    assert_eq!(parse("exec:nc -l 4444 | x, y"), shell.into());
    let json = r#"{"channel-type":"main","addr":{"transport":"exec","args":["/usr/bin/ncat","-l","4444"]}}"#;
    let args = ExecAddress::Args(vec!["/usr/bin/ncat".into(), "-l".into(), "4444".into()]);
    assert_eq!(parse(json), args.into());
    refuse_all(&[("exec:", "command is missing", Some(5)), ("exec:a\0", "NUL", Some(5))]);
    for (args, key) in [("[]", "addr.args"), ("[1]", "addr.args[0]"), ("\"ls\"", "addr.args")] {
        let error = refused(&format!(
            r#"{{"channel-type":"main","addr":{{"transport":"exec","args":{args}}}}}"#
        ));
        assert_eq!(error.key(), Some(key), "{error}");
    }
}

#[test]
fn files() {
    for (text, path, offset) in [
        ("file:/var/s.mig", "/var/s.mig", 0),
        ("file:a,b", "a,b", 0),
        ("file:f,offset=4096", "f", 4096),
        ("file:f,offset=4k", "f", 4096),
        ("file:f,offset=1M", "f", 1 << 20),
        ("file:f,offset=2G", "f", 2 << 30),
        ("file:f,offset=1T", "f", 1 << 40),
        ("file:f,offset=0x1000", "f", 4096),
        ("file:f,offset=7b", "f", 7),
        ("file:/dev/fdset/3", "/dev/fdset/3", 0),
    ] {
        assert_eq!(parse(text), FileAddress { path: path.into(), offset }.into(), "{text}");
    }
    refuse_all(&[
        ("file:", "path is missing", Some(5)),
        ("file:,offset=1", "path is missing", Some(5)),
        ("file:f,offset=", "whole number", Some(14)),
        ("file:f,offset=k", "whole number", Some(14)),
        ("file:f,offset=1.5k", "whole number", Some(14)),
        ("file:f,offset=-1", "whole number", Some(14)),
        ("file:f,offset=1q", "unknown suffix", Some(14)),
        ("file:f,offset=1kk", "unknown suffix", Some(14)),
        ("file:f,offset=0x", "hexadecimal", Some(14)),
        ("file:f,offset=0x1k", "hexadecimal", Some(14)),
        ("file:f,offset=99999E", "beyond any file", Some(14)),
        ("file:f,offset=8E", "beyond any file", Some(5)),
        ("file:f,offset=1,offset=2", "whole number", Some(14)),
    ]);
    let json = |fields: &str| {
        format!(r#"{{"channel-type":"main","addr":{{"transport":"file",{fields}}}}}"#)
    };
    assert_eq!(
        parse(&json(r#""filename":"/var/s.mig","offset":4096"#)),
        FileAddress { path: "/var/s.mig".into(), offset: 4096 }.into()
    );
    // QEMU's manual shows a string here; QEMU rejects it, and so do we.
    let string = refused(&json(r#""filename":"f","offset":"4096""#));
    assert_eq!(string.key(), Some("addr.offset"));
    assert!(string.what().contains("an integer"));
    assert_eq!(refused(&json(r#""filename":"f","offset":-1"#)).key(), Some("addr.offset"));
    assert_eq!(refused(&json(r#""filename":"f","offset":1.5"#)).key(), Some("addr.offset"));
}

#[test]
fn what_is_neither_form_is_refused() {
    refuse_all(&[
        ("", "empty", Some(0)),
        ("defer", "command line", Some(0)),
        ("/var/s.mig", "file:/var/s.mig or unix:/var/s.mig", Some(0)),
        ("TCP:h:1", "write for example tcp:h:1", Some(0)),
        ("http://h", "unknown migration protocol \"http\"", Some(0)),
        ("host:4444", "write for example tcp:host:4444", Some(0)),
        (":4444", "neither a URI", Some(0)),
        (" tcp:h:1", "neither a URI", Some(0)),
        ("h2:x", "neither a URI", Some(0)),
        ("main,addr.transport=exec", "dotted keys", Some(0)),
        (r#"[{"channel-type":"main"}]"#, "list of channels", Some(0)),
    ]);
}

#[test]
fn json_is_strict() {
    let good = socket(r#""type":"inet","host":"192.0.2.7","port":"4444","keep-alive":true"#);
    assert_eq!(inet(&good).keep_alive, Some(true));
    let v6 = inet(&socket(r#""type":"inet","host":"2001:db8::7","port":"4444","to":5000"#));
    assert_eq!((v6.host_port().as_str(), v6.to), ("[2001:db8::7]:4444", Some(5000)));
    let spaced = "{ \"addr\": {\"transport\": \"rdma\", \"host\": \"h\",\n \"port\": \"1\"},\n \"channel-type\": \"main\" } ";
    assert_eq!(parse(spaced).scheme(), "rdma");

    for (rest, key) in [
        (r#""type":"inet","host":"h","port":4444"#, "addr.port"),
        (r#""type":"inet","host":"h""#, "addr.port"),
        (r#""type":"inet","port":"1""#, "addr.host"),
        (r#""type":"inet","host":"[::1]","port":"1""#, "addr"),
        (r#""type":"inet","host":"a:b","port":"1""#, "addr"),
        (r#""type":"inet","host":"h","port":"1","keep-alive":"on""#, "addr.keep-alive"),
        (r#""type":"inet","host":"h","port":"1","to":"5""#, "addr.to"),
        (r#""type":"inet","host":"h","port":"1","to":65536"#, "addr.to"),
        (r#""type":"inet","host":"h","port":"1","frob":1"#, "addr.frob"),
        (r#""type":"inet","host":"h","port":"1","keep-alive":null"#, "addr.keep-alive"),
        (r#""type":"unix","path":"p","cid":"3""#, "addr.cid"),
        (r#""type":"fd","str":5"#, "addr.str"),
        (r#""type":"tcp""#, "addr.type"),
        (r#""path":"p""#, "addr.type"),
    ] {
        let error = refused(&socket(rest));
        assert_eq!(error.key(), Some(key), "{error}");
    }
    for (text, key) in [
        (r#"{"addr":{}}"#, "channel-type"),
        (r#"{"channel-type":"main"}"#, "addr"),
        (r#"{"channel-type":"main","addr":[]}"#, "addr"),
        (r#"{"channel-type":"main","addr":{"transport":"tcp"}}"#, "addr.transport"),
        (r#"{"channel-type":"data","addr":{"transport":"exec","args":["x"]}}"#, "channel-type"),
        (r#"{"channel-type":"cpr","addr":{"transport":"exec","args":["x"]}}"#, "channel-type"),
        (r#"{"channel-type":"main","addr":{"transport":"exec","args":["x"]},"x":1}"#, "x"),
        (r#"{"channel-type":"main","addr":{"transport":"rdma","host":"h","port":"ssh"}}"#, "addr"),
    ] {
        let error = refused(text);
        assert_eq!(error.key(), Some(key), "{error}");
    }
    assert!(refused(r#"{"channel-type":"cpr","addr":{}}"#).what().contains("restarts a VMM"));
    let twice = refused(r#"{"channel-type":"main","channel-type":"main","addr":{}}"#);
    assert!(twice.what().contains("twice"), "{twice}");
    refuse_all(&[("{", "not a JSON", Some(0)), ("{\"a\":1}\nx", "not a JSON", Some(8))]);
    // Nesting cannot exhaust the stack.
    refused(&format!("{{\"a\":{}", "[".repeat(1 << 20)));
}

#[test]
fn errors_are_the_callers_and_are_cut_to_size() {
    let error = refused(&format!("tcp:{}", "a".repeat(10_000)));
    assert!(error.to_string().len() < 30_000);
    assert!(error.to_string().contains('…'));
    let error: crate::Error = error.into();
    assert_eq!(error.blame(), crate::Blame::Misuse);
}

#[test]
fn addresses_become_uris_again() {
    for text in [
        "tcp:192.0.2.7:4444",
        "tcp:[fe80::1%eth0]:4444,to=4450,ipv6=on,keep-alive=off,bind=::1",
        "rdma:h:1",
        "unix:/run/a,b",
        "vsock:2:1234",
        "fd:5",
        "fd:0,1",
        "fd:mig0",
        "exec:a | b",
        "file:f",
        "file:f,offset=4096",
    ] {
        let address = parse(text);
        assert_eq!(address.to_uri().as_deref(), Some(text));
        assert_eq!(address.to_string(), text);
    }
    for without in [
        UnixAddress::new_abstract("x").into(),
        ExecAddress::Args(vec!["/bin/true".into()]).into(),
        FileAddress::new("a,offset=1").into(),
        FdAddress::Name("5".into()).into(),
        Address::Inet(InetAddress::default()),
    ] {
        assert_eq!(without.to_uri(), None, "{without:?}");
        assert!(!without.to_string().is_empty());
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn flag() -> impl Strategy<Value = Option<bool>> {
        proptest::option::of(any::<bool>())
    }

    fn host() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            "[a-z][a-z0-9.=-]{0,20}",
            any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
            (any::<std::net::Ipv6Addr>(), "[a-z0-9,]{1,8}").prop_map(|(ip, s)| format!("{ip}%{s}")),
        ]
    }

    prop_compose! {
        fn inet()(
            host in host(),
            port in prop_oneof![any::<u16>().prop_map(|p| p.to_string()), "[a-z][a-z0-9-]{0,10}"],
            to in proptest::option::of(any::<u16>()),
            flags in (flag(), flag(), flag(), flag(), flag()),
            keep in proptest::option::of((0u32..128, 0u32..32768, 0u32..32768)),
            bind in proptest::option::of(any::<std::net::IpAddr>()),
            user_timeout_ms in proptest::option::of(0..i32::MAX as u32),
            congestion in proptest::option::of("[a-z_]{1,15}"),
        ) -> InetAddress {
            InetAddress {
                host, port, to,
                ipv4: flags.0, ipv6: flags.1, numeric: flags.2, keep_alive: flags.3, mptcp: flags.4,
                keep_alive_count: keep.map(|k| k.0),
                keep_alive_idle_seconds: keep.map(|k| k.1),
                keep_alive_interval_seconds: keep.map(|k| k.2),
                bind: bind.map(|ip| ip.to_string()),
                user_timeout_ms, congestion,
            }
        }
    }

    fn address() -> impl Strategy<Value = Address> {
        prop_oneof![
            inet().prop_map(Address::Inet),
            inet().prop_map(Address::Rdma),
            ".{1,40}".prop_map(|path| UnixAddress::new(path).into()),
            (any::<u32>(), any::<u32>()).prop_map(|(c, p)| VsockAddress::new(c, p).into()),
            any::<i32>().prop_map(|n| FdAddress::Number(n).into()),
            ".{0,20}".prop_map(|name| FdAddress::Name(name).into()),
            any::<(i32, i32)>()
                .prop_map(|(input, output)| FdAddress::Pair { input, output }.into()),
            ".{0,40}".prop_map(|command| ExecAddress::Shell(command).into()),
            (".{0,40}", any::<u64>())
                .prop_map(|(path, offset)| FileAddress { path, offset }.into()),
        ]
    }

    proptest! {
        #[test]
        fn a_uri_means_the_address_it_was_made_of(address in address()) {
            if let Some(uri) = address.to_uri() {
                let back = MigrationAddress::parse(&uri).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(back.address(), &address);
                prop_assert_eq!(back.to_string(), uri);
            }
        }

        #[test]
        fn a_sound_inet_address_has_a_uri(inet in inet()) {
            prop_assert_eq!(inet.check().is_ok(), Address::Inet(inet).to_uri().is_some());
        }

        #[test]
        fn nothing_panics_and_what_parses_prints_back(
            scheme in "(tcp:|rdma:|unix:|vsock:|fd:|exec:|file:|\\{)?",
            rest in prop_oneof![any::<String>(), "[a-z0-9:,=%\\[\\]./\\- ]{0,40}", "[{}\":,a-z0-9\\[\\]]{0,60}"],
        ) {
            let text = format!("{scheme}{rest}");
            match MigrationAddress::parse(&text) {
                Ok(parsed) => prop_assert_eq!(parsed.to_string(), text),
                Err(error) => {
                    prop_assert!(error.position().is_none_or(|at| at <= text.len()), "{}", error);
                    prop_assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}
