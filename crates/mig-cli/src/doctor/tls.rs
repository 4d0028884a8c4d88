//! TLS, tried with certificates that are forgotten right away, and what makes it fast.

use std::path::Path;

use mig::{
    ConnectOptions, ConnectTls, ListenOptions, ListenTls,
    tls::{ClientCredentials, ServerCredentials, trial},
    transport::Result,
};

use crate::doctor::{
    report::{Check, Group},
    transports,
};

/// Over tcp, both ends with a certificate.
pub(super) async fn x509(dir: &Path) -> Result<String> {
    trial::make(dir, &[], true)?;
    let (mut listen, mut connect) = (ListenOptions::default(), ConnectOptions::default());
    listen.tls = Some(ListenTls::new(ServerCredentials::x509(dir, true)?));
    connect.tls = Some(ConnectTls::new(ClientCredentials::x509(dir)?));
    transports::connected("tcp:127.0.0.1:0", &listen, &connect).await
}

/// What the provider finds to work with.
pub(super) fn checks() -> Vec<Check> {
    vec![instructions(), keys()]
}

fn instructions() -> Check {
    const NAME: &str = "AES instructions";
    match has_aes() {
        Some(true) => Check::works(
            Group::System,
            NAME,
            "the processor encrypts for TLS by itself (provider aws-lc-rs, AES-GCM)",
        ),
        Some(false) => Check::limited(
            Group::System,
            NAME,
            "none: TLS (provider aws-lc-rs) will take several times the processor time",
            "a processor that has them, or a hypervisor that shows them (QEMU: -cpu host)",
        ),
        None => Check::works(
            Group::System,
            NAME,
            "not known for this architecture; TLS (provider aws-lc-rs) works either way",
        ),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> Option<bool> {
    Some(is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq"))
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> Option<bool> {
    Some(std::arch::is_aarch64_feature_detected!("aes"))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> Option<bool> {
    None
}

fn keys() -> Check {
    const NAME: &str = "TLS with pre-shared keys";
    match cfg!(feature = "tls-psk") {
        true => Check::works(Group::System, NAME, "built in (--tls-psk), by OpenSSL"),
        false => Check::limited(
            Group::System,
            NAME,
            "not built in; certificates need nothing more",
            "build mig-cli with the cargo feature tls-psk; that needs OpenSSL's headers (libssl-dev, pkg-config)",
        ),
    }
}
