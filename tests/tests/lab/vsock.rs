//! vsock between two processes of one machine (context id 1), with the real binary and with QEMU at either end.
//!
//! The backend's own tests, the shared conformance suite among them, are run in the lab by `cargo xtask test` too:
//! those that said on the host that its kernel has no vsock loopback.

use mig_tests::guest::{Image, unpack};
use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::qemu::{Binary, Release, Seen, Setup, text};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use mig_tests::stream;
use mig_tests::tls::{Authority, Endpoint};

use crate::in_the_lab;

fn uri() -> String {
    format!("vsock:1:{}", lab::port())
}

#[test]
fn a_saved_stream_goes_from_mig_to_mig() {
    in_the_lab(|| {
        let scratch = Scratch::new();
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data/pc-10.0.2-dirty-plain.bin.zst");
        let stream = unpack(data.as_ref());
        let (file, saved) = (scratch.path("stream"), scratch.path("saved"));
        std::fs::write(&file, &stream).expect("the scratch directory can be written");
        for flag in ["--no-return-path", "--return-path"] {
            let mut recv = Mig::start("recv", &["recv", &uri(), "--save", text(&saved), "--json"]);
            let mut send =
                Mig::start("send", &["send", text(&file), &recv.listening(), flag, "--json"]);
            send.succeeds();
            recv.succeeds();
            assert_eq!(send.last_json()["confirmed"], flag == "--return-path");
            let received = std::fs::read(&saved).expect("recv has said that it is there");
            assert!(received == stream, "{flag}: what was saved is not what was sent");
        }
    });
}

#[test]
fn data_channels_go_from_mig_to_mig() {
    in_the_lab(|| {
        let scratch = Scratch::new();
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data/pc-10.0.2-dirty-plain.bin.zst");
        let stored = unpack(data.as_ref());
        let (file, saved) = (scratch.path("stream"), scratch.path("saved"));
        std::fs::write(&file, &stored).expect("the scratch directory can be written");
        let flags = ["--multifd", "3", "--compression", "zstd", "--json"];
        let address = uri();
        let words = ["recv", &address, "--save", text(&saved)];
        let mut recv = Mig::start("recv", &[&words[..], &flags].concat());
        let words = ["send", text(&file), &recv.listening()];
        let mut send = Mig::start("send", &[&words[..], &flags].concat());
        send.succeeds();
        recv.succeeds();
        assert_eq!(send.last_json()["confirmed"], true);
        let received = std::fs::read(&saved).expect("recv has said that it is there");
        let brought = |stream: &[u8]| stream::brought("a stored stream", stream);
        stream::assert_brings_the_same("over vsock", &brought(&stored), &brought(&received));
    });
}

/// How a cell goes over vsock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    ReturnPath,
    /// With an answer, too.
    DataChannels,
    /// The same.
    Tls,
}

/// A context id is no name: what the destination's certificate must have is said beside the address.
const NAME: &str = "localhost";

/// The feature's name in docs/interop.md.
fn feature(how: How) -> &'static str {
    match how {
        How::Plain => "plain",
        How::ReturnPath => "return path",
        How::DataChannels => "multifd, 2 channels, return path",
        How::Tls => "TLS, return path",
    }
}

fn qemu_and_mig(release: Release, how: How) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "vsock", feature(how));
    arrives(&binary, how);
    cell.passed("works");
}

fn arrives(binary: &Binary, how: How) {
    let scratch = Scratch::new();
    let setup = Setup { binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let saved = scratch.path("saved");
    let return_path = how != How::Plain;
    let multifd: &[&str] = match how {
        How::DataChannels => &["--multifd", "2"],
        How::Plain | How::ReturnPath | How::Tls => &[],
    };
    let certificates = (how == How::Tls).then(|| Authority::new("lab").both(scratch.path("tls")));
    let tls = certificates.as_deref().map(|dir| ["--tls-creds", text(dir)]);
    let tls = tls.as_ref().map_or(&[][..], <[_; 2]>::as_slice);
    let named: &[&str] = if tls.is_empty() { &[] } else { &["--tls-hostname", NAME] };
    let mut source = setup.source("source");
    // Stopped: emulated twice over, a running guest would not let its memory go within any downtime. Nor can QEMU 7.2 lose
    // track of what a guest writes that does not run.
    source.stop();
    source.set_capability("return-path", return_path);
    source.set_capability("multifd", how == How::DataChannels);
    if let Some(dir) = &certificates {
        source.tls_x509(dir, Endpoint::Client);
        source.tls_hostname(NAME);
    }
    let address = uri();
    let words = ["recv", &address, "--save", text(&saved), "--json"];
    let mut recv = Mig::start("recv", &[&words[..], multifd, tls].concat());
    source.migrate(&recv.listening());
    source.completed();
    recv.succeeds();
    let seen = Seen::of(&mut source, &scratch);

    let mut destination = setup.destination("destination");
    destination.set_capability("multifd", how == How::DataChannels);
    if let Some(dir) = &certificates {
        destination.tls_x509(dir, Endpoint::Server);
    }
    let uri = uri();
    destination.incoming(&uri);
    let flag = if return_path { "--return-path" } else { "--no-return-path" };
    let words = ["send", text(&saved), &uri, flag, "--json"];
    let mut send = Mig::start("send", &[&words[..], multifd, tls, named].concat());
    destination.completed();
    send.succeeds();
    assert_eq!(send.last_json()["confirmed"], return_path);
    seen.lives_on_in(&mut destination, &scratch);
}

#[test]
fn installed_plain() {
    in_the_lab(|| qemu_and_mig(Release::Installed, How::Plain));
}

#[test]
fn installed_return_path() {
    in_the_lab(|| qemu_and_mig(Release::Installed, How::ReturnPath));
}

#[test]
fn installed_data_channels() {
    in_the_lab(|| qemu_and_mig(Release::Installed, How::DataChannels));
}

#[test]
fn installed_tls() {
    in_the_lab(|| qemu_and_mig(Release::Installed, How::Tls));
}

#[test]
fn unpacked_tls() {
    in_the_lab(|| qemu_and_mig(Release::Unpacked, How::Tls));
}

#[test]
fn unpacked_plain() {
    in_the_lab(|| qemu_and_mig(Release::Unpacked, How::Plain));
}

#[test]
fn unpacked_return_path() {
    in_the_lab(|| qemu_and_mig(Release::Unpacked, How::ReturnPath));
}

#[test]
fn unpacked_data_channels() {
    in_the_lab(|| qemu_and_mig(Release::Unpacked, How::DataChannels));
}
