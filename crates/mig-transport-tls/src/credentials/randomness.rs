//! Random numbers that are there when they are needed.
//!
//! A library of cryptography seeds its generator with the first number that is drawn in the process, from the processor's own
//! jitter: some 30 ms without a pause. Drawn in a handshake they would lie between a source's connection and its first word, when
//! a listener under a flood takes it for one of the silent ones; so one is drawn when credentials load.

use mig_transport::{Error, Result};
use rustls::crypto::SecureRandom;

/// Draws a first one of the library that certificates are used with.
pub(super) fn ready(random: &dyn SecureRandom) -> Result<()> {
    random.fill(&mut [0; 1]).map_err(|_| missing("the library of cryptography has none"))
}

/// Of the one that keys in their place are used with.
#[cfg(feature = "tls-psk")]
pub(super) fn ready_for_keys() -> Result<()> {
    openssl::rand::rand_bytes(&mut [0; 1]).map_err(|error| missing(&error.to_string()))
}

fn missing(why: &str) -> Error {
    Error::Unavailable {
        what: format!("no TLS here: there are no random numbers ({why})"),
        remedy: "allow this process getrandom(2), or /dev/urandom".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use mig_transport::Blame;
    use rustls::crypto::GetRandomFailed;

    use super::*;

    #[derive(Debug, Default)]
    struct Counted {
        draws: AtomicU32,
        dry: bool,
    }

    impl SecureRandom for Counted {
        fn fill(&self, _buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
            self.draws.fetch_add(1, Ordering::Relaxed);
            if self.dry { Err(GetRandomFailed) } else { Ok(()) }
        }
    }

    #[test]
    fn one_number_is_drawn_before_any_is_needed() {
        let random = Counted::default();
        ready(&random).expect("there are some");
        assert_eq!(random.draws.load(Ordering::Relaxed), 1);
        let error = ready(&Counted { dry: true, ..random }).expect_err("there are none");
        assert_eq!(error.blame(), Blame::Unavailable, "{error}");
    }
}
