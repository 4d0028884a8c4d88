//! Live migration's transport layer: QEMU's wire format over any transport, by URI
