//! Migration over vsock
