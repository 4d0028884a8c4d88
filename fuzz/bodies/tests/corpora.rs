//! Every checked-in input of every fuzz target, as an ordinary test: what was found once stays found, also where libFuzzer
//! cannot be built.

use std::fs;
use std::path::{Path, PathBuf};

fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("a file of the corpus").path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{target} has a corpus of {}", files.len());
    for file in files {
        let bytes = fs::read(&file).expect("a file of the corpus");
        let run = std::panic::catch_unwind(|| body(&bytes));
        assert!(run.is_ok(), "{}", file.display());
    }
}

macro_rules! targets {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target), mig_fuzz::$target);
        })*

        const TARGETS: &[&str] = &[$(stringify!($target)),*];
    };
}

targets! {
    address decompress destination inflate multifd pair rdma_message rdma_protocol recorder replayer return_path source
    states stream tls_credentials tls_stranger values vmdesc xbzrle
}

/// A target that only libFuzzer knows would have no regression test, and a body without a target would never be fuzzed.
#[test]
fn each_target_has_a_body_and_a_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (directory, ending) in [("fuzz_targets", ".rs"), ("corpus", "")] {
        let mut there: Vec<String> = fs::read_dir(root.join(directory))
            .expect("a directory of fuzz/")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .map(|name| name.trim_end_matches(ending).to_owned())
            .collect();
        there.sort();
        assert_eq!(there, TARGETS, "{directory}");
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is in no [[bin]]");
    }
}
