//! What the library remarks, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts it: warnings without `-v`, none with `--quiet`, then more; RUST_LOG overrides.
pub(crate) fn start(verbose: u8, quiet: bool) {
    let level = match verbose {
        0 if quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // The commands say that in words of their own.
    let usual = || EnvFilter::new(format!("{level},{}=off", mig::OPEN_DOOR));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| usual());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0)
        .without_time()
        .init();
}
