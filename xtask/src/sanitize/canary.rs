//! Planted mistakes, built by `cargo xtask sanitize` alone: a sanitizer that does not see them sees nothing.

use std::hint::black_box;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("overflow") => {
            let bytes = black_box(vec![1u8; 64]);
            // Wrong on purpose: one past the end.
            println!("{}", unsafe { bytes.as_ptr().add(black_box(64)).read_volatile() });
        }
        Some("leak") => {
            std::mem::forget(black_box(vec![1u8; 4096]));
            // What may still point there is overwritten.
            black_box([0u8; 4096]);
        }
        other => panic!("overflow or leak, not {other:?}"),
    }
}
