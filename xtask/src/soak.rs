//! `cargo xtask soak`: the whole of the soak, of which `test` runs a little (docs/testing.md).

use crate::repository::Repository;

/// Migrations one after the other.
const ALL: &str = "10000";

/// Runs it with its numbers shown.
pub(crate) fn run(repository: &Repository) -> Result<(), String> {
    let arguments = ["test", "--quiet", "-p", "mig-tests", "--test", "soak", "--", "--nocapture"];
    repository.cargo(&arguments, &[("MIG_SOAK", ALL.as_ref())])
}
