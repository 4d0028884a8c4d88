//! Ratios from one run.
fn main() {}
