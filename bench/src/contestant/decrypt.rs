//! One thread that decrypts records and does nothing else: what no receiver of TLS can be faster than on one core.

use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{Contestant, Turn};
use crate::{contest::Sample, failure::Result};

/// Plaintext of a full record (RFC 8446 §5.1).
const RECORD: usize = 16 << 10;
/// A ring of records that fits no cache, as what comes from a socket does not stay in one either.
const RECORDS: usize = 1024;

/// AES-256-GCM, the suite that QEMU and mig agree on, over records of 16 KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decrypt {
    pub(crate) bytes: u64,
}

impl Contestant for Decrypt {
    fn name(&self) -> String {
        "decrypting alone, one core".into()
    }

    fn memory_bytes(&self) -> u64 {
        (RECORDS * RECORD) as u64
    }

    fn run(&mut self) -> Result<Turn> {
        let failed = |_| "the cipher refused its own work";
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?;
        let key = LessSafeKey::new(key);
        let nonce = |number: usize| {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
            Nonce::assume_unique_for_key(nonce)
        };
        let sealed: Vec<Vec<u8>> = (0..RECORDS)
            .map(|number| {
                let mut record = vec![number as u8; RECORD];
                key.seal_in_place_append_tag(nonce(number), Aad::from(&[23u8, 3, 3]), &mut record)
                    .map_err(failed)?;
                Ok(record)
            })
            .collect::<Result<_>>()?;
        let rounds = self.bytes.div_ceil((RECORDS * RECORD) as u64);
        let mut seconds = 0.0;
        for _ in 0..rounds {
            // What was decrypted in place must be put back, off the clock.
            let mut records = sealed.clone();
            let begun = Instant::now();
            for (number, record) in records.iter_mut().enumerate() {
                key.open_in_place(nonce(number), Aad::from(&[23u8, 3, 3]), record)
                    .map_err(failed)?;
            }
            seconds += begun.elapsed().as_secs_f64();
        }
        let bytes = rounds * (RECORDS * RECORD) as u64;
        let sample = Sample { seconds, cpu_seconds: Some(seconds), bytes, ..Sample::default() };
        Ok(Turn { sample, remark: None })
    }
}
