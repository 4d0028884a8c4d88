//! Flags of TLS, at each end.

use std::path::PathBuf;

use clap::Args;

/// At a source, the client of TLS.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TlsSourceFlags {
    /// TLS on every channel, with the files in DIR, laid out as for QEMU's `tls-creds-x509`; `mig certs DIR` makes a
    /// trial set
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_creds: Option<PathBuf>,

    /// The name that the destination's certificate must have; default: the host of the address, and needed where
    /// there is none (unix, vsock, fd, exec)
    #[arg(long, value_name = "NAME", requires = "tls_creds")]
    pub(crate) tls_hostname: Option<String>,

    /// A key that both ends have instead of certificates (QEMU's `tls-creds-psk`): DIR/keys.psk has it, in a line
    /// USERNAME:HEXKEY; default: qemu
    #[arg(
        long,
        value_name = "USERNAME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "qemu",
        requires = "tls_creds",
        conflicts_with = "tls_hostname"
    )]
    pub(crate) tls_psk: Option<String>,
}

/// At a destination, the server of TLS.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TlsDestinationFlags {
    /// TLS on every channel, with the files in DIR, laid out as for QEMU's `tls-creds-x509`; `mig certs DIR` makes a
    /// trial set. A source must have a certificate of the same authority
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_creds: Option<PathBuf>,

    /// Of these sources, only take who fits RULE: dn:NAME, san:dns:HOST, san:ip:ADDRESS[/BITS], san:uri:URI, psk:USER,
    /// any, or file:PATH with one of these a line; `deny` and a space before it turn it round, * stands for any part.
    /// May be repeated: the first that fits decides, and nobody else may come
    #[arg(long, value_name = "RULE", requires = "tls_creds")]
    pub(crate) tls_authz: Vec<String>,

    /// Keys that both ends have instead of certificates (QEMU's `tls-creds-psk`): DIR/keys.psk has them, in lines
    /// USERNAME:HEXKEY
    #[arg(long, requires = "tls_creds")]
    pub(crate) tls_psk: bool,
}
