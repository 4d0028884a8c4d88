//! Writes the seeds of the corpora: `cargo run -p mig-fuzz --example seeds -- fuzz/corpus`.
//!
//! Each is made by our own encoders, or is a stream that the tests of `mig-proto` build. What libFuzzer found from them
//! and `cargo xtask fuzz --minimize` kept is added to the same directories.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use mig_compress::{Compressor, Level, Method as Compression};
use mig_proto::globalstate::{GlobalState, RunState};
use mig_proto::multifd::{
    self, Hello, Method, PacketPages,
    encode::{RamHead, device_state_packet, ram_packet, sync_packet},
};
use mig_proto::return_path::{Bitmap, BlockName, Message};
use mig_proto::{Name, xbzrle};

#[path = "../../../crates/mig-proto/tests/stream/small.rs"]
mod small;

fn main() {
    let Some(root) = std::env::args_os().nth(1) else {
        eprintln!("usage: seeds DIRECTORY");
        std::process::exit(2);
    };
    let seeds = Seeds { root: root.into() };
    seeds.streams();
    seeds.return_path();
    seeds.multifd();
    seeds.xbzrle();
    seeds.vmdesc();
    seeds.addresses();
    seeds.rdma();
    seeds.compressed();
    seeds.values();
    seeds.scripts();
    seeds.tls();
}

struct Seeds {
    root: PathBuf,
}

impl Seeds {
    fn put(&self, target: &str, name: &str, head: &[u8], bytes: &[u8]) {
        let directory = Path::new(&self.root).join(target);
        fs::create_dir_all(&directory).expect("a directory for the corpus");
        fs::write(directory.join(name), [head, bytes].concat()).expect("a file of the corpus");
    }

    fn streams(&self) {
        for (name, stream) in [("precopy", small::precopy()), ("postcopy", small::postcopy())] {
            self.put("stream", name, &[0, 7], &stream);
            // Without its pages, which the driver lands: see PAGES_LANDED.
            let landed = without_pages(&stream);
            for flags in [0x80, 0x84, 0x90, 0xa0, 0xc0, 0x88] {
                self.put("stream", &format!("{name}-landed-{flags:02x}"), &[flags, 3], &landed);
            }
        }
        let mut package = small::preamble();
        small::start(&mut package);
        small::package(&mut package, false, b"behind");
        package.push(0);
        self.put("stream", "package", &[0x80, 5], &package);
        self.put("stream", "header", &[1, 1], b"QEVM\0\0\0\x03\0");
    }

    fn return_path(&self) {
        let block = || BlockName::new("pc.ram").expect("short");
        let bitmap = Bitmap::new(100);
        let all = [
            Message::Pong { value: 1 },
            Message::SwitchoverAck,
            Message::ReqPagesId { block: block(), start: 4096, length: 8192 },
            Message::ReqPages { start: 0, length: 4096 },
            Message::ResumeAck { value: 1 },
            Message::RecvBitmap { block: block(), bitmap },
            Message::Shut { status: 0 },
        ];
        let mut stream = Vec::new();
        for message in &all {
            let name = format!("{:?}", message.message_type());
            self.put("return_path", &name, &[0x83], &message.to_bytes());
            message.encode(&mut stream);
        }
        self.put("return_path", "all", &[0x87], &stream);
        self.put("return_path", "all-out-of-recovery", &[3], &stream);
    }

    fn multifd(&self) {
        let hello = |id| Hello { uuid: [7; 16], id }.encode();
        self.put("multifd", "hellos", &[15], &[hello(1), hello(0), hello(2)].concat());
        let block = Name::new(b"pc.ram").expect("short");
        for (name, method) in [("raw", Method::None), ("zstd", Method::Zstd)] {
            let mut pages = PacketPages::new();
            for page in 0..3 {
                pages.push_normal(page * 8192).expect("there is room");
                pages.push_zero(page * 8192 + 4096).expect("there is room");
            }
            let mut packet = Vec::new();
            let head = RamHead { packet_num: 3, block, method, compressed_len: 5000 };
            ram_packet(&mut packet, &head, &pages);
            packet.truncate(320 + 8 * 6);
            self.put("multifd", name, &[1], &packet);
        }
        let mut sync = Vec::new();
        sync_packet(&mut sync, 4);
        sync.truncate(40);
        self.put("multifd", "sync", &[1], &sync);
        let mut device = Vec::new();
        device_state_packet(&mut device, block, 2, NonZeroU32::MIN);
        self.put("multifd", "device", &[1], &device);
        assert_eq!(device.len(), multifd::DEVICE_STATE_HEADER_LEN);
        self.put("multifd", "patched", &[2], &[0, 11, 5, 1, 70, 0]);
        self.put("multifd", "patched-device", &[3], &[0, 12, b'a', 1, 19, 0]);
        self.put("multifd", "classified", &[4], b"QEVM");
    }

    fn xbzrle(&self) {
        let (old, mut new, mut out) = ([0; 4096], [0; 4096], [0; 4096]);
        for at in [0, 16, 17, 300, 4095] {
            new[at] = 0x5a;
        }
        new[1000..1300].fill(7);
        let xbzrle::Encoded::Delta(len) = xbzrle::encode(&old, &new, &mut out) else {
            unreachable!("it is short");
        };
        self.put("xbzrle", "delta", &[0], &out[..len]);
        self.put("xbzrle", "delta-small", &[101], &[3, 1, 9, 20, 2, 8, 8]);
        self.put("xbzrle", "two-pages", &[2], b"0123456789abcdef01x3456789abcyyf");
        self.put("xbzrle", "changes", &[3], &[0, 0, 1, 1, 0x30, 2, 15, 0xff, 3]);
        self.put("xbzrle", "changes-tight", &[0x8b], &[0, 0, 1, 1, 0x30, 2, 15, 0xff, 3]);
    }

    fn vmdesc(&self) {
        for (name, json) in [
            ("empty", r#"{"page_size": 4096, "devices": []}"#),
            (
                "opaque",
                r#"{"configuration":{"vmsd_name":"configuration","version":1,"fields":[]},"devices":[{"name":"a","instance_id":1,"size":3}]}"#,
            ),
            (
                "fields",
                r#"{"devices":[{"name":"d","instance_id":0,"vmsd_name":"d","version":2,"fields":[{"name":"x","type":"uint32","size":4},{"name":"y","array_len":3,"type":"int16","size":2},{"name":"b","type":"bool","size":1},{"name":"z","type":"buffer","size":5}]}]}"#,
            ),
            (
                "nested",
                r#"{"devices":[{"name":"d","instance_id":0,"vmsd_name":"d","version":2,"fields":[{"name":"s","type":"struct","size":8,"struct":{"vmsd_name":"s","version":1,"fields":[{"name":"v","type":"uint64","size":8}]}}],"subsections":[{"vmsd_name":"d/sub","version":1,"fields":[{"name":"q","index":1,"type":"int64","size":8}]}]}]}"#,
            ),
        ] {
            self.put("vmdesc", name, json.as_bytes(), &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
            let len = (json.len() as u32).to_be_bytes();
            let tail = [&[1, 2, 0, 6], &len[..], json.as_bytes()].concat();
            self.put("vmdesc", &format!("{name}-tail"), &tail, &[]);
        }
    }

    fn addresses(&self) {
        for (at, text) in [
            "tcp:[fe80::1%eth0]:4444,keep-alive=on,to=4450,ipv6=on,ipv4=off",
            "tcp:host:port,numeric,mptcp,user-timeout=10,congestion=bbr,bind=::1",
            "tcp::0",
            "rdma:192.0.2.7:4444",
            "unix:/run/vm.sock",
            "vsock:2:1234",
            "fd:5",
            "fd:3,4",
            "exec:cat > file",
            "file:/var/s.mig,offset=0x1000",
            r#"{"channel-type":"main","addr":{"transport":"socket","type":"inet","host":"::1","port":"4444","to":5000,"keep-alive":true}}"#,
            r#"{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":"a","abstract":true,"tight":false}}"#,
            r#"{"channel-type":"main","addr":{"transport":"socket","type":"vsock","cid":"3","port":"9"}}"#,
            r#"{"channel-type":"main","addr":{"transport":"socket","type":"fd","str":"7"}}"#,
            r#"{"channel-type":"main","addr":{"transport":"exec","args":["/bin/cat","x"]}}"#,
            r#"{"channel-type":"main","addr":{"transport":"file","filename":"s","offset":12}}"#,
            r#"{"channel-type":"main","addr":{"transport":"rdma","host":"h","port":"1"}}"#,
        ]
        .into_iter()
        .enumerate()
        {
            self.put("address", &format!("{at:02}"), text.as_bytes(), &[]);
        }
    }

    fn rdma(&self) {
        let message = |kind: u32, payload: &[u8]| {
            let mut bytes = Vec::new();
            for word in [payload.len() as u32, kind, 1, 0] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend_from_slice(payload);
            bytes
        };
        for kind in 0..12_u32 {
            let payload = match kind {
                3 => 5,
                5 => 64,
                6 | 7 | 10 => 24,
                8 => 16,
                _ => 0,
            };
            let bytes = message(kind, &vec![1; payload]);
            self.put("rdma_message", &format!("{kind:02}"), &[1], &bytes);
        }
        let private = b"\0\0\0\x01\0\0\0\x01mig\x01\0\0\0\x01";
        self.put("rdma_message", "private", &[15], &[&private[..], private].concat());
        self.put(
            "rdma_protocol",
            "asks",
            &[0],
            &[4, 7, 0, 0, 0, 1, 10, 0, 0, 0, 0, 6, 0, 0, 0, 9, 9],
        );
        self.put("rdma_protocol", "asks-pinned", &[2], &[4, 7, 0, 0, 0, 1, 6, 0, 0, 64, 1, 9]);
        let moves = [0, 0, 0, 200, 0, 1, 2, 131, 1, 8, 1, 2, 131, 131, 2, 0, 1, 0, 9, 0xff, 131];
        for options in [1, 3, 5, 9] {
            self.put("rdma_protocol", &format!("moves-{options}"), &[options], &moves);
        }
    }

    fn compressed(&self) {
        let mut page = [0; 4096];
        page[100..200].fill(3);
        for (name, level) in [("stored", 0), ("fast", 1), ("best", 9)] {
            let zlib = zlib_page(&page, level);
            self.put("inflate", name, &[], &zlib);
        }
        for (flag, method) in [(0, Compression::Zlib), (1, Compression::Zstd)] {
            let level = Level::new(method, 1).expect("both have it");
            let mut compressor = Compressor::new(method, level).expect("there is memory");
            let (mut payloads, mut second) = (Vec::new(), Vec::new());
            for turn in 0..3 {
                let mut payload = Vec::new();
                page[turn] = 9;
                compressor.compress(&page, &mut payload).expect("a page");
                let head = [&4096_u16.to_be_bytes()[..], &(payload.len() as u16).to_be_bytes()];
                let packet = [head.concat(), payload].concat();
                payloads.extend_from_slice(&packet);
                if turn > 0 {
                    second.extend_from_slice(&packet);
                }
            }
            self.put("decompress", &format!("{}-stream", method.name()), &[flag], &payloads);
            self.put("decompress", &format!("{}-goes-on", method.name()), &[flag | 0x80], &second);
        }
    }

    /// Events for the state machines; what they mean is said at the head of each target.
    fn scripts(&self) {
        for (target, name, script) in [
            ("pair", "plain", &[1, 0][..]),
            ("pair", "one-way", &[0, 0]),
            ("pair", "writes", &[1, 3, 255, 15, 1]),
            ("pair", "xbzrle-slow", &[21, 3, 255, 15, 1]),
            ("pair", "refused", &[33, 0]),
            ("pair", "broken", &[1, 0, 0, 32, 0, 0]),
            ("pair", "verdict-broken", &[1, 0, 128, 0, 0, 0]),
            ("pair", "stalled", &[1, 0, 1, 16, 0, 12, 129, 0, 4, 9]),
            ("pair", "flipped", &[1, 0, 2, 1, 0, 1]),
            ("pair", "cancelled", &[1, 0, 3, 1, 0, 0]),
            ("pair", "cancelled-late", &[1, 0, 131, 0, 8, 0]),
            ("pair", "cancelled-there", &[129, 0, 4, 60, 0, 0]),
            ("pair", "data-channels", &[3, 2, 255, 15]),
            ("pair", "data-channel-broken", &[3, 0, 64, 1, 0, 0]),
            ("pair", "data-channel-flipped", &[3, 0, 66, 0, 90, 1]),
            ("destination", "whole", &[0, 1, 23, 1]),
            ("destination", "parts", &[0, 1, 22, 1, 12, 1, 13, 1, 14, 1, 15]),
            ("destination", "narrow", &[4, 1, 23]),
            ("destination", "refused", &[2, 1, 23]),
            ("destination", "silent", &[0, 1, 22, 6, 12]),
            ("destination", "cancelled", &[0, 1, 22, 8]),
            ("destination", "ended", &[0, 1, 22, 9]),
            ("destination", "data-channels", &[1, 1, 22, 7, 21, 0, 0, 7, 37, 0, 1]),
            ("destination", "main-twice", &[0, 1, 22, 7, 17, 22]),
            ("source", "confirmed", &[1, 0, 3, 255, 255, 1, 1, 0]),
            ("source", "one-way", &[0, 0]),
            ("source", "refused", &[1, 0, 3, 16, 0, 1, 2, 5]),
            ("source", "told-too-early", &[1, 0, 1, 1, 0]),
            ("source", "paused", &[35, 0, 3, 255, 255, 8, 1, 1, 0]),
            ("source", "hung-up-on", &[1, 0, 3, 4, 0, 7, 6]),
            ("source", "cancelled", &[1, 2, 255, 255, 5]),
            ("source", "slow", &[29, 3, 255, 255, 1, 9, 1, 0, 4, 4, 3, 255, 255, 1, 1, 0]),
            ("recorder", "whole", &[0, 23, 1]),
            ("recorder", "one-way", &[0, 23, 0]),
            ("recorder", "parts", &[2, 22, 0, 12, 0, 13, 0, 14, 0, 15, 0]),
            (
                "recorder",
                "advised",
                &[0, 0, 0, 1, 0, 17, 0, 3, 0, 5, 0, 21, 0, 10, 0, 14, 0, 15, 0],
            ),
            ("recorder", "postcopy", &[0, 22, 0, 18, 0]),
            ("recorder", "cut", &[0, 22, 0]),
            ("recorder", "cancelled", &[4, 23, 1]),
            ("replayer", "whole", &[0, 2, 1, 0, 23, 1]),
            ("replayer", "refused", &[0, 2, 2, 1, 23, 1]),
            ("replayer", "one-way", &[1, 0, 23, 0]),
            ("replayer", "broken-file", &[0, 2, 1, 0, 22, 0]),
            ("replayer", "told-too-early", &[2, 2, 1, 0, 23, 1]),
            ("replayer", "cancelled", &[4, 2, 1, 0, 23, 1]),
        ] {
            self.put(target, name, script, &[]);
        }
    }

    fn tls(&self) {
        for (name, what, text) in [
            ("dn", 0, "allow dn:O=Example,CN=*.example.com"),
            ("several", 0, "deny san:dns:*.rack7.example\nallow any"),
            (
                "address",
                0,
                "san:ip:192.0.2.0/24\ndeny san:ip:::1\nsan:email:a@b\nsan:uri:spiffe://e/mig/*",
            ),
            ("key", 0, "psk:qemu\ndn:*,CN=src\\*1"),
            ("host", 2, "host-1.example"),
            ("host-address", 2, "[fe80::1%eth0]"),
            ("ca", 3, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
            (
                "key-file",
                5,
                "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n",
            ),
            ("list", 6, "-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n"),
        ] {
            self.put("tls_credentials", name, &[what], text.as_bytes());
        }
        let hello: &[u8] = b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03\
            0123456789abcdef0123456789abcdef\0\0\x02\x13\x02\x01\0\0\0";
        for (name, said) in [
            ("hello", hello),
            ("plain", b"QEVM\0\0\0\x03\x07"),
            ("data-channel", b"\x11\x22\x33\x44\0\0\0\x01"),
            ("http", b"GET / HTTP/1.1\r\n\r\n"),
            ("silence", b""),
        ] {
            self.put("tls_stranger", name, &[3], said);
            self.put("tls_stranger", &format!("{name}-hangs-up"), &[0x85], said);
        }
    }

    fn values(&self) {
        for state in RunState::ALL.iter().take(4) {
            for suspended in [None, Some(true)] {
                let value = GlobalState { run_state: *state, vm_was_suspended: suspended };
                let name = format!("{}-{}", state.as_str(), u8::from(suspended.is_some()));
                self.put("values", &name, &[0], &value.encode());
            }
        }
        self.put("values", "machine", &[2], b"pc-q35-8.2");
        self.put("values", "channels", &[3], &mig_proto::peer::channels_from_here(4).to_be_bytes());
        self.put("states", "precopy", &[], &[0, 6, 12, 3, 9, 40, 1, 4, 7, 2, 5, 8, 11, 14]);
    }
}

/// A stream of [`small`] without the bytes of its pages.
fn without_pages(stream: &[u8]) -> Vec<u8> {
    use mig_proto::{Decoder, Event, Step, encode};
    let mut decoder = Decoder::new(small::options());
    let (mut out, mut at) = (Vec::new(), 0);
    while let Step::Event { consumed, event } = decoder.finish(&stream[at..]).expect("it is right")
    {
        if !matches!(event, Event::Payload(_)) {
            encode::event(&mut out, &event);
        }
        at += consumed;
    }
    out
}

/// A page as a zlib stream of its own: flate2 is not ours to call, so it is cut out of a channel's stream and closed.
fn zlib_page(page: &[u8; 4096], level: i32) -> Vec<u8> {
    let level = Level::new(Compression::Zlib, level).expect("0 to 9");
    let mut compressor = Compressor::new(Compression::Zlib, level).expect("there is memory");
    let mut stream = Vec::new();
    compressor.compress(page, &mut stream).expect("a page");
    // An empty last block, then the checksum.
    stream.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    let (a, b) = page.iter().fold((1_u32, 0_u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    stream.extend_from_slice(&(b << 16 | a).to_be_bytes());
    stream
}
