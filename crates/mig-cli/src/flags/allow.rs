//! `--allow`: who may connect.

use std::str::FromStr;

use mig::transport::AllowRule;

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allow(pub(crate) AllowRule);

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: mig::transport::Error| error.to_string())
    }
}
