//! `exec:` addresses (docs/wire/transports.md §2.6).

use super::error::AddressError;

const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A command whose standard input and output are the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecAddress {
    /// A command line for `/bin/sh -c`: the URI form.
    Shell(String),
    /// A program's path and its arguments, executed without a shell: the JSON form.
    Args(Vec<String>),
}

impl ExecAddress {
    /// The program and its arguments, whichever form it was. Never empty in a parsed address.
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Shell(command) => vec![SHELL[0], SHELL[1], command],
            Self::Args(args) => args.iter().map(String::as_str).collect(),
        }
    }

    /// Whether there is something to execute.
    pub fn check(&self) -> Result<(), AddressError> {
        const URI_EXAMPLE: &str = "exec:ncat 192.0.2.7 4444";
        const JSON_EXAMPLE: &str = r#"{"channel-type":"main","addr":{"transport":"exec","args":["/usr/bin/ncat","-l","4444"]}}"#;
        let (example, missing) = match self {
            Self::Shell(_) => (URI_EXAMPLE, "the command is missing"),
            Self::Args(_) => (JSON_EXAMPLE, "the program is missing: element 0 is its path"),
        };
        let empty = match self {
            Self::Shell(command) => command.is_empty(),
            Self::Args(args) => args.first().is_none_or(String::is_empty),
        };
        if empty {
            return Err(AddressError::new(missing, example));
        }
        if self.argv().iter().any(|arg| arg.contains('\0')) {
            return Err(AddressError::new("an argument cannot hold a NUL byte", example));
        }
        Ok(())
    }

    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        let address = Self::Shell(rest.to_owned());
        address.check()?;
        Ok(address)
    }

    pub(super) fn to_uri_rest(&self) -> Option<String> {
        match self {
            Self::Shell(command) => Some(command.clone()),
            Self::Args(_) => None,
        }
    }
}
