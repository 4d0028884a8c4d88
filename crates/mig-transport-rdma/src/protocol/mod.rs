//! The protocol of docs/wire/rdma.md without a device: bytes in and out, decisions, no I/O.
