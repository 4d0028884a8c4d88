//! What went wrong, for people.

use std::error::Error;

/// Anything that ends a benchmark.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// A result of this program.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The error and all its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
