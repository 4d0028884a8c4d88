//! What a test tells beyond passed and failed, in the form that `cargo xtask test` collects.

use std::{fs::OpenOptions, io::Write};

/// Says that the running test does not apply to this machine, for the cause `id` of `tests/not-applicable.toml`. The
/// caller returns after it. The line `not-applicable<TAB>TEST<TAB>ID: REASON` goes to the end of the file that
/// `MIG_TEST_SKIPS` names, the same words to stderr.
///
/// # Panics
///
/// If that file cannot be written.
pub fn not_applicable(id: &str, reason: &str) {
    let thread = std::thread::current();
    let binary = std::env::current_exe().ok();
    let binary = binary.as_deref().and_then(|path| path.file_stem()).map(|s| s.to_string_lossy());
    // Cargo puts `-` and a hash after the target's name; libtest names a test's thread after the test.
    let target = binary.as_deref().map_or("?", |stem| stem.rsplit_once('-').map_or(stem, |s| s.0));
    let test = format!("{target}::{}", thread.name().unwrap_or("?"));
    eprintln!("not applicable here: {test}: {id}: {reason}");
    if let Some(file) = std::env::var_os("MIG_TEST_SKIPS") {
        let reason = reason.replace(['\t', '\n'], " ");
        let line = format!("not-applicable\t{test}\t{id}: {reason}\n");
        // One write in append mode, so that lines of tests that run beside each other do not mix.
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!("cannot write {}: {error}", file.display());
        }
    }
}
