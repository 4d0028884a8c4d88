//! Where ends meet: the backends a contest needs, by URI.

use std::{path::Path, time::Duration};

use mig_transport::{Address, Connector, Listener, MigrationAddress};
use mig_transport_rdma::{RdmaConnector, RdmaListener, RdmaOptions};
use mig_transport_tcp::{TcpConnector, TcpListener, TcpOptions};
use mig_transport_tls::{
    ClientCredentials, ExpectedName, ServerCredentials, TlsConnector, TlsListener, TlsOptions,
};
use mig_transport_unix::{UnixConnector, UnixListener, UnixOptions};

use crate::{certificates::Certificates, failure::Result};

/// How long blocking sockets wait for the other end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// `rdma_pin_all` matters to `rdma:` only; `tls` is a directory of certificates.
pub(crate) fn connector(
    uri: &str,
    rdma_pin_all: bool,
    tls: Option<&Path>,
) -> Result<Box<dyn Connector>> {
    let bare = bare_connector(uri, rdma_pin_all)?;
    let Some(dir) = tls else { return Ok(bare) };
    let address = MigrationAddress::parse(uri)?.into_address();
    let name = ExpectedName::of(&address, Some(Certificates::NAME))?;
    let credentials = ClientCredentials::x509(dir)?;
    Ok(Box::new(TlsConnector::new(bare, credentials, name, TlsOptions::default())?))
}

pub(crate) async fn listener(uri: &str, tls: Option<&Path>) -> Result<Box<dyn Listener>> {
    let bare = bare_listener(uri).await?;
    let Some(dir) = tls else { return Ok(bare) };
    let credentials = ServerCredentials::x509(dir, true)?;
    Ok(Box::new(TlsListener::new(bare, credentials, TlsOptions::default())))
}

fn bare_connector(uri: &str, rdma_pin_all: bool) -> Result<Box<dyn Connector>> {
    match MigrationAddress::parse(uri)?.into_address() {
        Address::Inet(inet) => Ok(Box::new(TcpConnector::new(inet, TcpOptions::default()))),
        Address::Unix(unix) => Ok(Box::new(UnixConnector::new(unix, UnixOptions::default()))),
        Address::Rdma(inet) => {
            let options = RdmaOptions::with(|options| options.pin_all = rdma_pin_all);
            Ok(Box::new(RdmaConnector::new(inet, options)))
        }
        other => Err(format!("no contest runs over {}", other.scheme()).into()),
    }
}

async fn bare_listener(uri: &str) -> Result<Box<dyn Listener>> {
    match MigrationAddress::parse(uri)?.into_address() {
        Address::Inet(inet) => Ok(Box::new(TcpListener::bind(&inet, TcpOptions::default()).await?)),
        Address::Unix(unix) => Ok(Box::new(UnixListener::bind(&unix, UnixOptions::default())?)),
        Address::Rdma(inet) => {
            Ok(Box::new(RdmaListener::bind(&inet, RdmaOptions::default()).await?))
        }
        other => Err(format!("no contest runs over {}", other.scheme()).into()),
    }
}
