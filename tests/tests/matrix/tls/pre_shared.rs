//! TLS by a key that both ends have, with the `mig` that was built for it.

use serde_json::Value;

use mig_tests::guest::Image;
use mig_tests::mig::{self, Mig};
use mig_tests::process::STEP;
use mig_tests::qemu::{
    LostTrack, Qemu, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use mig_tests::tls::{self, Endpoint};

use crate::cell::{loads_without_us, nothing_temporary_left};

/// Out of QEMU, from mig to mig, and into QEMU.
pub(crate) fn works(release: Release) {
    let (Some(binary), Some(mig)) = (release.or_skip(), mig::with_keys_or_skip()) else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS with a pre-shared key");
    let start = |name: &str, words: &[&str]| Mig::of(&mig, name, words);
    with_a_source_that_keeps_track(|| {
        let scratch = Scratch::new();
        let (machine, image) = ("pc", Image::Dirty);
        let setup = Setup { binary: &binary, machine, scratch: &scratch, image };
        let dir = scratch.path("keys");
        tls::pre_shared(&dir, tls::USERNAME, tls::KEY);
        let (saved, again) = (scratch.path("saved"), scratch.path("again"));
        let user = format!("--tls-psk={}", tls::USERNAME);
        let recv = |file| {
            let words = ["recv", "tcp:127.0.0.1:0", "--save", text(file), "--json"];
            start("mig recv", &[&words[..], &["--tls-creds", text(&dir), "--tls-psk"]].concat())
        };
        let send = |file, uri: &str| {
            let words = ["send", text(file), uri, "--json", "--tls-creds", text(&dir), &user];
            start("mig send", &words)
        };

        let mut source = setup.source("source");
        source.set_capability("return-path", true);
        source.tls_psk(&dir, Endpoint::Client, Some(tls::USERNAME));
        let mut from_qemu = recv(&saved);
        source.migrate(&from_qemu.listening());
        source.completed();
        confirmed(&mut from_qemu);
        source.reaches("postmigrate");
        source.kept_track()?;
        let seen = Seen::of(&mut source, &scratch);
        loads_without_us(&setup, &seen, "without", &format!("exec:cat {}", text(&saved)));

        let mut from_mig = recv(&again);
        confirmed(&mut send(&saved, &from_mig.listening()));
        confirmed(&mut from_mig);
        nothing_temporary_left(&scratch, &again);

        let mut destination = setup.destination("destination");
        destination.tls_psk(&dir, Endpoint::Server, None);
        destination.incoming("tcp:127.0.0.1:0");
        let mut into_qemu = send(&again, &format!("tcp:{}", destination.listening_address()));
        destination.completed();
        confirmed(&mut into_qemu);
        seen.lives_on_in(&mut destination, &scratch);
        Ok::<(), LostTrack>(())
    });
    cell.passed("works");
}

#[track_caller]
fn confirmed(mig: &mut Mig) {
    mig.succeeds();
    let told: Value = mig.last_json();
    assert_eq!(told["confirmed"], true, "{told}");
}

/// Another key under the same name, and a name that nobody has: refused at either end; then the right one works.
pub(crate) fn refused(release: Release) {
    let (Some(binary), Some(mig)) = (release.or_skip(), mig::with_keys_or_skip()) else { return };
    let feature = "TLS with a pre-shared key, strangers";
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", feature);
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Idle };
    let (right, wrong) = (scratch.path("right"), scratch.path("wrong"));
    tls::pre_shared(&right, tls::USERNAME, tls::KEY);
    tls::pre_shared(&wrong, tls::USERNAME, &tls::KEY.replace('5', "6"));
    let saved = scratch.path("saved");
    let words = ["recv", "tcp:127.0.0.1:0", "--save", text(&saved), "--json"];
    let tls_words = ["--tls-creds", text(&right), "--tls-psk"];
    let mut recv = Mig::of(&mig, "mig recv", &[&words[..], &tls_words].concat());
    let uri = recv.listening();
    let come = |name: &str, dir| {
        let mut source: Qemu = setup.source(name);
        source.set_capability("return-path", true);
        source.tls_psk(dir, Endpoint::Client, Some(tls::USERNAME));
        source.migrate(&uri);
        source
    };
    let mut stranger = come("stranger", &wrong);
    assert_eq!(stranger.ended(), "failed", "{}", stranger.query());
    stranger.reaches("running");
    let mut rightful = come("rightful", &right);
    rightful.completed();
    confirmed(&mut recv);

    let mut destination = setup.destination("destination");
    destination.tls_psk(&right, Endpoint::Server, None);
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let known = format!("--tls-psk={}", tls::USERNAME);
    let send = |words: &[&str]| {
        let all = [&["send", text(&saved), &uri, "--json"], words].concat();
        Mig::of(&mig, "mig send", &all)
    };
    let mut other_key = send(&["--tls-creds", text(&wrong), &known]);
    other_key.exits_with(1);
    let said = other_key.process.stderr().all(STEP);
    assert!(said.contains("key"), "{said}");
    // The directory has no such user, which is known before anything is connected.
    let mut nobody = send(&["--tls-creds", text(&right), "--tls-psk=nobody"]);
    nobody.exits_with(2);
    let said = nobody.process.stderr().all(STEP);
    assert!(said.contains("nobody"), "{said}");
    confirmed(&mut send(&["--tls-creds", text(&right), &known]));
    destination.completed();
    cell.passed("refused, and the rightful one works");
}
