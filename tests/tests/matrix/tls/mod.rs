//! TLS between real QEMU and `mig`: what works is rows of the matrix like any other ([`crate::secured`]); here is the rest.

pub(crate) mod between_qemus;
pub(crate) mod live;
pub(crate) mod pre_shared;
pub(crate) mod refused;
