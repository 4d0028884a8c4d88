//! `file:` addresses (docs/wire/transports.md §2.7).

use super::{error::AddressError, options::parse_decimal};

const EXAMPLE: &str = "file:/var/s.mig,offset=4k";
const SEPARATOR: &str = ",offset=";

/// A file, from an offset on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAddress {
    /// The file's path.
    pub path: String,
    /// Where the stream starts, in bytes.
    pub offset: u64,
}

impl FileAddress {
    /// A file from its beginning.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), offset: 0 }
    }

    /// Whether the kernel can take it.
    pub fn check(&self) -> Result<(), AddressError> {
        if self.path.is_empty() {
            return Err(AddressError::new("the path is missing", EXAMPLE));
        }
        if self.path.contains('\0') {
            return Err(AddressError::new("a path cannot hold a NUL byte", EXAMPLE));
        }
        if i64::try_from(self.offset).is_err() {
            let what = format!("the offset {} is beyond any file", self.offset);
            return Err(AddressError::new(what, EXAMPLE));
        }
        Ok(())
    }

    /// The first `,offset=` splits, so a path cannot hold that text in this form.
    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        let (path, offset) = match rest.split_once(SEPARATOR) {
            None => (rest, 0),
            Some((path, size)) => {
                let position = path.len() + SEPARATOR.len();
                (path, parse_size(size).map_err(|error| error.at(position))?)
            }
        };
        let address = Self { path: path.to_owned(), offset };
        address.check()?;
        Ok(address)
    }

    pub(super) fn to_uri_rest(&self) -> Option<String> {
        Some(match self.offset {
            0 => self.path.clone(),
            offset => format!("{}{SEPARATOR}{offset}", self.path),
        })
    }
}

/// A number of bytes: decimal with an optional suffix (powers of 1024, either case), or hexadecimal without one.
fn parse_size(text: &str) -> Result<u64, AddressError> {
    let bad = |what: &str| AddressError::new(format!("the offset {text:?} {what}"), EXAMPLE);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad("is not a hexadecimal number (which takes no suffix)"));
        }
        return u64::from_str_radix(hex, 16).map_err(|_| bad("is beyond any file"));
    }
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(bad("has an unknown suffix; there are b, k, M, G, T, P and E")),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("is not a whole number of bytes"));
    }
    parse_decimal(digits, u64::MAX)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| bad("is beyond any file"))
}
