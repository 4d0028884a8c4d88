//! Pages as differences (`xbzrle`) and compressed pages (`compress`), between real QEMU and the library's own ends.
//!
//! ```text
//!   source QEMU ──exec:cat──▶ stream ──exec:cat──▶ another QEMU ──┐ the same memory
//!                                   └──file:────▶ Destination ────┘
//!   captured guest ─▶ Source, xbzrle on, the guest writing ──tcp──▶ QEMU    the same memory
//! ```
//! The first compares two readers of one stream, so it says as much with a source that loses writes (docs/wire/ram.md
//! §12). In the second the memory is ours and goes on being written round after round; the devices are those that were
//! captured, so that QEMU loads it.

use std::path::Path;

use serde_json::json;

use mig::ConnectOptions;
use mig_tests::guest::{Image, assert_same_memory};
use mig_tests::mig::Mig;
use mig_tests::qemu::{Qemu, RAM_MIB, Release, Setup, text};
use mig_tests::report::{self, Cell};
use mig_tests::scratch::Scratch;
use mig_tests::stream;

use crate::link;
use crate::live::{self, Captured};

/// How pages may be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Xbzrle,
    Compress,
}

impl Encoding {
    fn capability(self) -> &'static str {
        match self {
            Self::Xbzrle => "xbzrle",
            Self::Compress => "compress",
        }
    }
}

/// A stream of this QEMU with such pages means the same to a QEMU, to a live destination of ours and to `mig recv`.
pub(crate) fn from_qemu(release: Release, machine: &'static str, encoding: Encoding) {
    let Some(binary) = release.or_skip() else { return };
    if encoding == Encoding::Compress && binary.is_at_least(9, 1) {
        let reason = format!("QEMU {} has no capability compress", binary.version());
        return report::not_applicable("newer-qemu", &reason);
    }
    if encoding == Encoding::Xbzrle && !binary.is_at_least(10, 0) {
        // It would have to find a page dirty in three rounds.
        let reason = format!("QEMU {} under TCG loses writes after two rounds", binary.version());
        return report::not_applicable("source-loses-writes", &reason);
    }
    let transport = "file, into a live destination";
    let cell = Cell::new(binary.version(), machine, transport, encoding.capability());
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
    let file = scratch.path("stream");

    let mut source = setup.source("source");
    source.set_capability(encoding.capability(), true);
    // Rounds enough for the guest's pages to be in the cache and to be found there.
    source.set_parameters(json!({ "max-bandwidth": 2_000_000, "downtime-limit": 1 }));
    let bytes = stream_of(&mut source, &file);
    let tally = stream::tally("the source's stream", &bytes);
    let encoded = match encoding {
        Encoding::Xbzrle => tally.pages[2],
        Encoding::Compress => tally.compressed,
    };
    assert!(encoded > 0, "nothing to be learned from this: {tally:?}");
    if encoding == Encoding::Xbzrle {
        // What our own statistics count, too: pages that were found unchanged are pages without bytes.
        let told = source.query();
        let cache = &told["xbzrle-cache"];
        assert!(cache["pages"].as_u64() >= Some(encoded as u64), "{told}");
        assert_eq!(cache["bytes"], tally.delta_bytes + 3 * encoded, "{told}");
    }

    let mut reader = setup.destination("reader");
    // It refuses compressed pages otherwise; deltas it always takes.
    reader.set_capability(encoding.capability(), true);
    reader.incoming(&format!("exec:cat {}", text(&file)));
    reader.completed();
    let expected = reader.memory(&scratch);
    let uri = format!("file:{}", text(&file));
    let captured = Captured::of("the source's stream", &bytes);
    let arrived = live::receive(&captured, &uri);
    assert_same_ram("our destination", &expected, &arrived.block("pc.ram"));
    if encoding == Encoding::Compress {
        recv_takes(&setup, &scratch, encoding);
    }
    cell.passed("works");
}

/// `mig recv` without `--save` reads such a stream to its end and says yes.
fn recv_takes(setup: &Setup<'_>, scratch: &Scratch, encoding: Encoding) {
    let mut source = setup.source("another");
    source.set_capability(encoding.capability(), true);
    source.set_capability("return-path", true);
    let uri = format!("unix:{}", text(&scratch.path("recv.sock")));
    let mut mig = Mig::start("mig recv", &["recv", &uri, "--json"]);
    source.migrate(&mig.listening());
    source.completed();
    mig.succeeds();
    assert_eq!(mig.last_json()["status"], "completed");
}

/// A live source of ours, its guest writing round after round, into this QEMU.
pub(crate) fn into_qemu(release: Release, machine: &'static str) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), machine, "tcp, IPv4, from a live source", "xbzrle");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
    let captured = capture(&setup, &scratch.path("captured"));

    let mut destination = setup.destination("destination");
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let sent = live::send_with_xbzrle(&captured, &uri, &ConnectOptions::default());
    destination.completed();
    assert!(sent.confirmed, "the destination has said so");
    let cache = sent.info.xbzrle_cache.expect("the capability is on");
    assert!(cache.pages > 500 && cache.cache_miss > 0 && cache.overflow > 0, "{cache:?}");
    let there = destination.memory(&scratch);
    assert_eq!(there.len(), RAM_MIB << 20);
    assert_same_ram("QEMU", &there, &sent.ram.block("pc.ram"));
    cell.passed("works");
}

/// Compares what QEMU shows of its memory with a whole `pc.ram`: where ROMs hide it, they are what QEMU shows.
#[track_caller]
pub(crate) fn assert_same_ram(what: &str, shown: &[u8], ram: &[u8]) {
    const ROMS: std::ops::Range<usize> = 0xa_0000..0x10_0000;
    assert_eq!(shown.len(), ram.len(), "{what}: sizes differ");
    assert_same_memory(what, &shown[..ROMS.start], &ram[..ROMS.start]);
    assert_same_memory(what, &shown[ROMS.end..], &ram[ROMS.end..]);
}

pub(crate) fn capture(setup: &Setup<'_>, file: &Path) -> Captured {
    let mut source = setup.source("captured");
    source.stop();
    Captured::of("the captured stream", &stream_of(&mut source, file))
}

/// What this source says, also kept in `file`. QEMU is through before its child is.
fn stream_of(source: &mut Qemu, file: &Path) -> Vec<u8> {
    source.migrate(&link::telling_its_end(&format!("cat > {}", text(file))));
    source.completed();
    link::child_ended_well(source);
    std::fs::read(file).expect("the child has just written it")
}
