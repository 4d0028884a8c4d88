//! TLS between the engine and the disturbed channels, with a trial set of certificates made once.

use std::{sync::OnceLock, time::Duration};

use mig::transport::{Connector, Listener, MigrationAddress};
use mig_testkit::faults::Link;
use mig_tests::scratch::Scratch;
use mig_transport_tls::{
    ClientCredentials, ExpectedName, ServerCredentials, TlsConnector, TlsListener, TlsOptions,
    trial,
};

use crate::way::Ends;

pub(crate) fn credentials() -> &'static (ClientCredentials, ServerCredentials) {
    static MADE: OnceLock<(ClientCredentials, ServerCredentials)> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::new();
        trial::make(&scratch.path("set"), &[], false).expect("a set of certificates");
        let client = ClientCredentials::x509(&scratch.path("set")).expect("a client");
        let server = ServerCredentials::x509(&scratch.path("set"), true).expect("a server");
        (client, server)
    })
}

/// The same ends with TLS around them.
pub(crate) fn around(
    connector: Box<dyn Connector>,
    listener: Box<dyn Listener>,
    patience: Duration,
    link: Option<Link>,
) -> Ends {
    let (client, server) = credentials().clone();
    let options = TlsOptions::default().with(|options| options.handshake = patience);
    // Most addresses have no host.
    let address: MigrationAddress = "fd:0".parse().expect("an address");
    let name = ExpectedName::of(address.address(), Some("localhost")).expect("a name");
    let connector = TlsConnector::new(connector, client, name, options.clone());
    Ends {
        connector: Box::new(connector.expect("two ways")),
        listener: Box::new(TlsListener::new(listener, server, options)),
        link,
    }
}
