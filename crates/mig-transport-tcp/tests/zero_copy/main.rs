//! Sends without a copy: that not one byte changes whatever the kernel does, that memory is kept for as long as it reads
//! it, that its answers are all taken in, and that what is told of it is true. On loopback the kernel always copies; where
//! it does not is in `uncopied`.

#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

mod limits;
mod loopback;
mod support;
mod uncopied;
