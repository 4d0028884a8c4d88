//! TLS.
pub(crate) mod between_qemus;
