//! What is wrong with credentials is said when they are read: with the file, what is wrong with it, and what to do.

use super::{ClientCredentials, ServerCredentials};
use crate::testing::Site;

#[test]
fn a_complete_set_loads_at_both_ends() {
    let site = Site::complete();
    let server = ServerCredentials::x509(site.path(), true).expect("a server");
    assert!(server.verifies_peer());
    assert_eq!(server.directory(), site.path());
    assert!(!ServerCredentials::x509(site.path(), false).expect("a server").verifies_peer());
    let client = ClientCredentials::x509(site.path()).expect("a client");
    assert!(client.has_certificate());
}

#[test]
fn a_source_may_have_no_certificate() {
    let site = Site::new();
    assert!(!ClientCredentials::x509(site.path()).expect("a client").has_certificate());
}
