#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mig_fuzz::tls_stranger(data));
