//! How much a source may say before a destination knows who it is.
//!
//! ```text
//!   hello │ answer │ chain of certificates, signature, finished │ verified
//!     HELLO_BYTES            FLIGHT_BYTES        each in at most FLIGHT_RECORDS records
//! ```
//! TLS itself allows messages of 16 MiB in records of one byte. What is incomplete is held, and each record costs the processor
//! something; a source needs neither.

use mig_transport::{Error, Result};

use super::engine::MAX_RECORD_BYTES;

/// Of a source's hello: as much as one record takes. The largest ones, with keys for post-quantum cryptography, have 2 KiB.
const HELLO_BYTES: usize = MAX_RECORD_BYTES;
/// Of what a source says between two answers of this end: a dozen certificates of RSA-4096, or four of ML-DSA.
const FLIGHT_BYTES: usize = 32 * 1024;
/// Records for either: a hello in the smallest pieces that an end may ask for (64 bytes, RFC 8449 §4) has less.
const FLIGHT_RECORDS: usize = 128;

/// Counts what came since this end last said something.
#[derive(Debug)]
pub(super) struct Allowance {
    bytes: usize,
    records: usize,
    most_bytes: usize,
}

impl Allowance {
    /// For somebody who has said nothing yet.
    pub(super) fn new() -> Self {
        Self { bytes: 0, records: 0, most_bytes: HELLO_BYTES }
    }

    /// This end has answered: what comes next is the next flight.
    pub(super) fn answered(&mut self) {
        *self = Self { bytes: 0, records: 0, most_bytes: FLIGHT_BYTES };
    }

    /// One more record, of so many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::PeerMisbehaved`] beyond what a source needs.
    pub(super) fn take(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes;
        self.records += 1;
        let beyond = if self.bytes > self.most_bytes {
            format!("{} bytes", self.most_bytes)
        } else if self.records > FLIGHT_RECORDS {
            format!("{FLIGHT_RECORDS} records")
        } else {
            return Ok(());
        };
        Err(Error::PeerMisbehaved {
            what: format!(
                "the source says more than {beyond} in a row in a TLS handshake, before it is known who it is"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_one_record_and_a_flight_more() {
        let mut allowance = Allowance::new();
        allowance.take(HELLO_BYTES).expect("one whole record");
        let error = allowance.take(6).expect_err("more than a hello needs").to_string();
        assert!(error.contains("more than 18437 bytes"), "{error}");
        allowance.answered();
        allowance.take(FLIGHT_BYTES).expect("a long chain");
        allowance.take(6).expect_err("more than a chain needs");
        let mut allowance = Allowance::new();
        for _ in 0..FLIGHT_RECORDS {
            allowance.take(6).expect("small pieces");
        }
        let error = allowance.take(6).expect_err("too small pieces").to_string();
        assert!(error.contains("more than 128 records"), "{error}");
    }
}
