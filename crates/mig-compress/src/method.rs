//! Which compression, and how hard it tries.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use crate::error::{Error, Result};

/// Pages in one multifd packet, in bytes: docs/wire/ram.md §9.3, `524288/TPS` pages of any size.
pub const MAX_PACKET_BYTES: usize = 512 * 1024;

/// A compression method of multifd that this crate speaks (docs/wire/ram.md §9.6).
///
/// The others (QPL, UADK, QATzip) belong to accelerators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// One RFC 1950 stream: every QEMU with multifd compression has it; slower and weaker than zstd.
    Zlib,
    /// One RFC 8878 frame: the one to take wherever both ends were built with it.
    Zstd,
}

impl Method {
    /// QEMU's own name, as `multifd-compression` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// The levels this method has here. QEMU's are 0–9 and 1–20; zstd's negative ones are faster than 1, and the
    /// receiver need not know. zstd's 21 and 22 are left out: they need windows that a receiver refuses.
    pub fn levels(self) -> RangeInclusive<i32> {
        match self {
            Self::Zlib => 0..=9,
            Self::Zstd => -50..=20,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "zlib" => Ok(Self::Zlib),
            "zstd" => Ok(Self::Zstd),
            other => Err(Error::Misuse {
                what: format!("no compression method is called {other:?}: take zlib or zstd"),
            }),
        }
    }
}

/// How hard a method tries: a number that [`Method::levels`] contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(i32);

impl Level {
    /// Level 1: QEMU's default for both methods.
    pub const DEFAULT: Self = Self(1);

    /// Checks `number` against the method's levels.
    ///
    /// # Errors
    /// [`Error::Misuse`] names the levels there are.
    pub fn new(method: Method, number: i32) -> Result<Self> {
        let levels = method.levels();
        if levels.contains(&number) {
            Ok(Self(number))
        } else {
            Err(Error::Misuse {
                what: format!(
                    "{method} has no level {number}: its levels are {} to {}",
                    levels.start(),
                    levels.end()
                ),
            })
        }
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_outside_the_method_are_refused_by_name() {
        assert!(Level::new(Method::Zlib, 0).is_ok());
        assert!(Level::new(Method::Zlib, 9).is_ok());
        assert!(Level::new(Method::Zlib, -1).is_err());
        assert!(Level::new(Method::Zstd, 20).is_ok());
        assert!(Level::new(Method::Zstd, -7).is_ok());
        let refused = Level::new(Method::Zstd, 21).unwrap_err().to_string();
        assert!(refused.contains("zstd has no level 21: its levels are -50 to 20"), "{refused}");
    }

    #[test]
    fn names_are_qemus_both_ways() {
        for method in [Method::Zlib, Method::Zstd] {
            assert_eq!(method.name().parse::<Method>().unwrap(), method);
        }
        assert!("qpl".parse::<Method>().is_err());
    }
}
