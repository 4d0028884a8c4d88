//! TLS around what an address stands for: which transports can have it, and what each end is told.
//!
//! ```text
//!   tcp, unix, vsock, exec, fd of both directions ──▶ TLS around every channel
//!   file, rdma, fd of one direction ──▶ Misuse, with the reason, before anything is opened
//! ```

use mig_transport::{Address, Connector, Error, Listener, Result};
use mig_transport_tls::{
    ClientCredentials, ServerCredentials, TlsConnector, TlsListener, TlsOptions,
};

/// TLS at a source, which is its client (docs/wire/transports.md §5.1). Start from [`ConnectTls::new`] and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectTls {
    /// Whom the source trusts, and what it shows of itself.
    pub credentials: ClientCredentials,
    /// The name that the destination's certificate must have (QEMU's `tls-hostname`). Default: the host of the address;
    /// needed where there is none.
    pub hostname: Option<String>,
    /// What is rarely changed.
    pub options: TlsOptions,
}

/// TLS at a destination, which is its server. Start from [`ListenTls::new`] and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenTls {
    /// What the destination shows of itself, and whose certificates it takes.
    pub credentials: ServerCredentials,
    /// Of the sources with such a certificate, who may come (`authorization`, QEMU's `tls-authz`), and what is rarely
    /// changed.
    pub options: TlsOptions,
}

impl ConnectTls {
    /// With these credentials, everything else at its default.
    pub fn new(credentials: ClientCredentials) -> Self {
        Self { credentials, hostname: None, options: TlsOptions::default() }
    }

    /// TLS around the channels that `bare` opens.
    pub(crate) fn around(
        &self,
        address: &Address,
        bare: impl FnOnce() -> Result<Box<dyn Connector>>,
    ) -> Result<Box<dyn Connector>> {
        possible(address)?;
        let name = self.credentials.expected_name(address, self.hostname.as_deref())?;
        let (credentials, options) = (self.credentials.clone(), self.options.clone());
        Ok(Box::new(TlsConnector::new(bare()?, credentials, name, options)?))
    }
}

impl ListenTls {
    /// With these credentials, everything else at its default.
    pub fn new(credentials: ServerCredentials) -> Self {
        Self { credentials, options: TlsOptions::default() }
    }

    /// TLS around the channels that come to `bare`.
    ///
    /// # Cancel safety
    ///
    /// That of `bare`.
    pub(crate) async fn around(
        &self,
        address: &Address,
        bare: impl Future<Output = Result<Box<dyn Listener>>>,
    ) -> Result<Box<dyn Listener>> {
        possible(address)?;
        if let Some(rules) = &self.options.authorization {
            rules.check_against(&self.credentials)?;
        }
        let (credentials, options) = (self.credentials.clone(), self.options.clone());
        Ok(Box::new(TlsListener::new(bare.await?, credentials, options)))
    }
}

/// Refuses TLS where it cannot be, before anything is opened.
fn possible(address: &Address) -> Result<()> {
    let why = match address {
        Address::Rdma(_) => {
            "RDMA writes the guest's memory past everything that could encrypt it; use tcp: with TLS, or rdma: without, on \
             a network that is trusted"
        }
        Address::File(_) => {
            "it would be pointless, as a file has no other end to agree with; to keep a stream secret encrypt the file, or \
             the disk it is on"
        }
        _ => return Ok(()),
    };
    Err(Error::Misuse { what: format!("no TLS over {}: {why}", address.scheme()) })
}

#[cfg(test)]
mod tests {
    use mig_transport::MigrationAddress;

    use super::possible;

    #[test]
    fn only_what_has_another_end_and_one_stream_can_have_tls() {
        for (uri, can) in [
            ("tcp:[::1]:1", true),
            ("unix:/x", true),
            ("vsock:2:1", true),
            ("fd:3", true),
            ("exec:cat", true),
            ("file:/x", false),
            ("rdma:192.0.2.1:1", false),
        ] {
            let address = MigrationAddress::parse(uri).unwrap_or_else(|_| panic!("{uri}"));
            assert_eq!(possible(address.address()).is_ok(), can, "{uri}");
        }
    }

    /// They would let nobody in, and only every source would notice.
    #[cfg(feature = "bench")]
    #[tokio::test]
    async fn rules_want_sources_that_are_asked_who_they_are() {
        use mig_transport_tls::{Authorization, ServerCredentials, trial};

        use super::ListenTls;

        let dir = tempfile::tempdir().expect("a directory");
        trial::make(dir.path(), &[], false).expect("a set");
        let address = MigrationAddress::parse("tcp:127.0.0.1:0").expect("an address");
        for verify_peer in [true, false] {
            let credentials = ServerCredentials::x509(dir.path(), verify_peer).expect("a server's");
            let mut tls = ListenTls::new(credentials);
            tls.options.authorization = Some(Authorization::parse(["any"]).expect("a rule"));
            let bare = async { Err(mig_transport::Error::Misuse { what: "bare".into() }) };
            let error = tls.around(address.address(), bare).await.err().expect("refused");
            assert_eq!(error.to_string() == "bare", verify_peer, "{error}");
        }
    }
}
