//! Addresses in both of QEMU's forms: the URI string and the JSON channel object.

/// Placeholder until the parser lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address;
/// Placeholder until the parser lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationAddress;
/// Placeholder until the parser lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError;
