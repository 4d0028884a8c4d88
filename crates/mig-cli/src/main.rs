//! The `mig` tool.
fn main() {}
