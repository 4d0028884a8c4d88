//! Errors are told to people: their text is made now and then, since making it takes as long as the rest of an execution.

use std::fmt::Display;

/// Makes the text of one input in eight; whoever reads it must get a sentence.
pub(crate) fn told(error: &impl Display, input: &[u8]) {
    if input.len().is_multiple_of(8) {
        assert!(!error.to_string().is_empty());
    }
}
