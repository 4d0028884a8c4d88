//! `fd:` addresses (docs/wire/transports.md §2.5).

use super::{error::AddressError, options::parse_decimal};

const EXAMPLE: &str = "fd:5, fd:0,1 or fd:mig0";

/// A descriptor that somebody else opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdAddress {
    /// A descriptor this process was started with.
    Number(i32),
    /// Two one-way descriptors that make one two-way channel. Our extension: QEMU has no such form.
    Pair {
        /// What is read.
        input: i32,
        /// What is written.
        output: i32,
    },
    /// A name under which a descriptor was handed over (QEMU's `getfd`). Never begins with a digit.
    Name(String),
}

impl FdAddress {
    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        if rest.is_empty() {
            return Err(AddressError::new("the descriptor is missing", EXAMPLE));
        }
        if let Some(negative) = rest.strip_prefix('-')
            && negative.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Err(AddressError::new("a descriptor is not negative", EXAMPLE));
        }
        if !rest.starts_with(|first: char| first.is_ascii_digit()) {
            if rest.contains('\0') {
                return Err(AddressError::new("a name cannot hold a NUL byte", EXAMPLE));
            }
            return Ok(Self::Name(rest.to_owned()));
        }
        match rest.split_once(',') {
            None => Ok(Self::Number(number(rest)?)),
            Some((input, output)) => {
                let input_number = number(input)?;
                let output_number = number(output).map_err(|error| error.at(input.len() + 1))?;
                if input_number == output_number {
                    let what = "both directions name the same descriptor; a socket is named once";
                    return Err(AddressError::new(what, EXAMPLE).at(input.len() + 1));
                }
                Ok(Self::Pair { input: input_number, output: output_number })
            }
        }
    }

    pub(super) fn to_uri_rest(&self) -> Option<String> {
        Some(match self {
            Self::Number(number) => number.to_string(),
            Self::Pair { input, output } => format!("{input},{output}"),
            Self::Name(name) => name.clone(),
        })
    }
}

fn number(text: &str) -> Result<i32, AddressError> {
    parse_decimal(text, i32::MAX as u64).map(|number| number as i32).ok_or_else(|| {
        let what =
            format!("{text:?} is not a descriptor number, and a name cannot begin with a digit");
        AddressError::new(what, EXAMPLE)
    })
}
