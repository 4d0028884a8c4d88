//! `mig` to `mig` over `rdma:`: what arrives is what arrives over tcp, however memory is pinned.

use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::paused::{Paused, with_zero_pages};
use mig_tests::qemu::{Release, text};
use mig_tests::scratch::Scratch;
use mig_tests::stream::{Brought, assert_brings_the_same, brought};

use crate::in_the_lab_without_a_trace;

/// A third of the memory, with zero pages among the rest; not a whole number of windows.
const FILLED: usize = (20 << 20) + 4096;

/// A migration of a stored guest of a real QEMU.
struct Stored {
    scratch: Scratch,
    sent: Brought,
}

/// How it went.
struct Went {
    source: String,
    confirmed: bool,
}

impl Stored {
    fn new(release: Release) -> Option<Self> {
        let binary = release.or_skip()?;
        let scratch = Scratch::new();
        let paused = Paused { machine: "pc", ram_mib: 64, scratch: &scratch };
        let mut source = paused.source(&binary, "source", &with_zero_pages(FILLED, 5, 8, 3));
        source.migrate(&format!("exec:cat > {}", text(&scratch.path("stored"))));
        source.completed();
        drop(source);
        let stored = std::fs::read(scratch.path("stored")).expect("QEMU says that it is there");
        let sent = brought("the stored guest", &stored);
        Some(Self { scratch, sent })
    }

    /// From file to file, which must bring the same.
    fn goes(&self, uri: &str, both: &[&str], only_source: &[&str]) -> Went {
        let stored = self.scratch.path("stored");
        let saved = self.scratch.path("saved");
        let mut recv = vec!["recv", uri, "--save", text(&saved), "--json"];
        recv.extend(both);
        let mut recv = Mig::traced("mig recv", "mig_transport_rdma=debug", &recv);
        let at = recv.listening();
        let mut send = vec!["send", text(&stored), &at, "--json"];
        send.extend(both.iter().chain(only_source));
        let mut send = Mig::traced("mig send", "mig_transport_rdma=trace", &send);
        send.succeeds();
        recv.succeeds();
        let confirmed = send.last_json()["confirmed"].as_bool();
        assert_eq!(recv.last_json()["confirmed"].as_bool(), confirmed);
        let bytes = std::fs::read(&saved).expect("recv says that it is there");
        let what = format!("{at} {both:?} {only_source:?}");
        assert_brings_the_same(&what, &self.sent, &brought(&what, &bytes));
        let _ = std::fs::remove_file(saved);
        let source = send.process.stderr().text();
        Went { source, confirmed: confirmed.expect("`confirmed` is true or false") }
    }

    /// Over rdma, to an address.
    fn over_rdma(&self, host: &str, both: &[&str], only_source: &[&str]) -> Went {
        let went = self.goes(&format!("rdma:{host}:{}", lab::port()), both, only_source);
        let return_path = both.contains(&"--return-path");
        assert_eq!(went.confirmed, return_path);
        let connections = went.source.matches("connected").count();
        assert_eq!(connections, 1 + usize::from(return_path), "{}", went.source);
        went
    }
}

impl Went {
    /// How many messages or other events the source has traced in whose line all these words are.
    fn traced(&self, words: &[&str]) -> usize {
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        self.source.lines().filter(has_all).count()
    }
}

fn arrives_like_over_tcp(release: Release) {
    let Some(stored) = Stored::new(release) else { return };
    let ipv6 = format!("[{}]", lab::IPV6);

    assert!(stored.goes("tcp:127.0.0.1:0", &[], &[]).confirmed);

    let chunked = stored.over_rdma(lab::IPV4, &[], &[]);
    assert!(chunked.traced(&["sending", "Compress"]) > 0);
    // One window for all RAM, not one for each MiB.
    assert_eq!(chunked.traced(&["sending", "Register(", "block: 0"]), 1, "{}", chunked.source);
    assert_eq!(chunked.traced(&["sending", "Unregister("]), 0);

    let pinned = stored.over_rdma(lab::IPV4, &[], &["--rdma-pin-all"]);
    assert_eq!(pinned.traced(&["sending", "Register("]), 0, "{}", pinned.source);

    // Far less than the guest: windows must be given back.
    let small = stored.over_rdma(lab::IPV4, &["--rdma-pinned-memory", "4MiB"], &[]);
    assert!(small.traced(&["sending", "Unregister("]) > 4, "{}", small.source);

    stored.over_rdma(lab::IPV4, &["--return-path"], &[]);
    stored.over_rdma(&ipv6, &["--return-path"], &["--rdma-pin-all"]);
    stored.over_rdma(&ipv6, &["--rdma-pinned-memory", "4MiB", "--return-path"], &[]);
    stored.over_rdma(&ipv6, &[], &[]);
}

#[test]
fn installed() {
    in_the_lab_without_a_trace(|| arrives_like_over_tcp(Release::Installed));
}

#[test]
fn unpacked() {
    in_the_lab_without_a_trace(|| arrives_like_over_tcp(Release::Unpacked));
}
