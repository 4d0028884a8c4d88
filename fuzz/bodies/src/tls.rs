//! TLS at the door: what an operator writes (rules, names, files), and what a stranger says to a listener.

use std::{cell::OnceCell, fs, time::Duration};

use mig_testkit::memory_pair;
use mig_transport::{Blame, Listener, MigrationAddress};
use mig_transport_tls::{
    Authorization, ClientCredentials, ExpectedName, ServerCredentials, TlsListener, TlsOptions,
    trial,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{cuts::Cuts, engine::Arriving, told::told};

thread_local! {
    /// A set of certificates, and what a destination makes of it.
    static SET: OnceCell<(TempDir, ServerCredentials)> = const { OnceCell::new() };
    /// Where files of an input lie.
    static SCRATCH: OnceCell<TempDir> = const { OnceCell::new() };
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a place for files")
}

/// The target for rules, names and files.
///
/// ```text
///   0 what │ lines of rules, or a host name, or the content of a file in the place of a good one
/// ```
pub fn tls_credentials(data: &[u8]) {
    let Some((&what, bytes)) = data.split_first() else { return };
    match what % 8 {
        0 | 1 => rules(bytes),
        2 => {
            let Ok(name) = std::str::from_utf8(bytes) else { return };
            let address = MigrationAddress::parse("unix:/x").expect("an address").into_address();
            match ExpectedName::of(&address, Some(name)) {
                Ok(expected) => {
                    let text = expected.to_string();
                    let again = ExpectedName::of(&address, Some(&text)).expect("it was printed");
                    assert_eq!(again, expected);
                }
                Err(error) => told(&error, bytes),
            }
        }
        which => file(which, bytes),
    }
}

fn rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Not the files of whoever runs this.
    if text.contains("file:") {
        return;
    }
    match Authorization::parse(text.lines()) {
        Ok(rules) => {
            // In which order they stand changes who may come, and never whether they are rules.
            assert!(Authorization::parse(text.lines().rev()).is_ok(), "{rules:?}");
        }
        Err(error) => {
            assert_eq!(error.blame(), Blame::Misuse);
            told(&error, bytes);
        }
    }
}

/// A good set, and one file of it that is not.
fn file(which: u8, bytes: &[u8]) {
    SCRATCH.with(|scratch| {
        let scratch = scratch.get_or_init(|| {
            let scratch = directory();
            trial::make(scratch.path(), &[], false).expect("a set of certificates");
            scratch
        });
        let names =
            ["ca-cert.pem", "server-cert.pem", "server-key.pem", "ca-crl.pem", "client-cert.pem"];
        let path = scratch.path().join(names[usize::from(which - 3) % names.len()]);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).expect("a file of the set");
        let server = ServerCredentials::x509(scratch.path(), true).map(drop);
        let client = ClientCredentials::x509(scratch.path()).map(drop);
        for error in [server, client].into_iter().filter_map(Result::err) {
            assert_eq!(error.blame(), Blame::Misuse, "{error}");
            told(&error, bytes);
        }
        match before {
            Some(before) => fs::write(&path, before).expect("a file of the set"),
            None => fs::remove_file(&path).expect("it was just written"),
        }
    });
}

/// The target for strangers at a listener: none gets in, and each is gone after the deadline.
///
/// ```text
///   0 seed of the cuts; highest bit: it hangs up │ what it says
/// ```
pub fn tls_stranger(data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first() else { return };
    let credentials = SET.with(|set| {
        let (_directory, credentials) = set.get_or_init(|| {
            let directory = directory();
            trial::make(directory.path(), &[], false).expect("a set of certificates");
            let credentials = ServerCredentials::x509(directory.path(), true);
            (directory, credentials.expect("a good set"))
        });
        credentials.clone()
    });
    let (inner, door) = Arriving::new();
    let mut listener = TlsListener::new(Box::new(inner), credentials, TlsOptions::default());
    let (mut ours, theirs) = memory_pair(4096);
    door.send(theirs).expect("the listener is there");
    let ended = crate::engine::paused(async {
        let mut sender = ours.take_sender().expect("both halves");
        let mut receiver = ours.take_receiver().expect("both halves");
        let stranger = async {
            let (mut cuts, mut rest) = (Cuts::new(seed | 1), bytes);
            while !rest.is_empty() {
                let piece;
                (piece, rest) = rest.split_at(cuts.next().min(rest.len()));
                if sender.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _open = (seed & 0x80 == 0).then_some(sender);
            let mut said = Vec::new();
            let _ = receiver.read_to_end(&mut said).await;
        };
        tokio::select! {
            came = listener.accept() => panic!("a stranger got in: {came:?}"),
            () = stranger => true,
            () = tokio::time::sleep(Duration::from_secs(60)) => false,
        }
    });
    assert!(ended, "a stranger is still there after a minute");
}
