//! Addresses: URI and channel object, parsed, printed and parsed again.

use mig_transport::{Address, MigrationAddress};

use crate::told::told;

/// The target.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = match MigrationAddress::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.what().is_empty() && !error.example().is_empty());
            told(&error, data);
            assert!(error.position().is_none_or(|at| at <= text.len()), "{error:?}");
            return;
        }
    };
    assert_eq!(parsed.to_string(), text, "it prints back unchanged");
    let address = parsed.address();
    assert!(!address.to_string().is_empty());
    let uri = address.to_uri();
    if !text.starts_with('{') {
        assert!(uri.is_some(), "what was typed as a URI has one");
    }
    let Some(uri) = uri else { return };
    let again = MigrationAddress::parse(&uri).expect("a URI that was printed can be typed in");
    assert_eq!(again.address(), address, "{uri}");
    assert_eq!(again.address().to_uri(), Some(uri));
    if let Address::Inet(inet) | Address::Rdma(inet) = address {
        inet.check().expect("the parser has checked it");
        let _ = (inet.family(), inet.port_number(), inet.host_port());
    }
}
