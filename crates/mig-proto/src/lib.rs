//! QEMU's migration wire format as values: decoder, encoder, state tables; no I/O
