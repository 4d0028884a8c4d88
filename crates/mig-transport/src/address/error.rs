//! Why a text is not an address.

use std::fmt;

use crate::error::{Blame, Error};

/// Characters of the text that a message repeats.
const SHOWN_CHARS: usize = 120;

/// Why a text is not an address: what is wrong, where, and what would be right. To blame is the caller
/// ([`Blame::Misuse`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    what: String,
    place: Place,
    text: String,
    example: String,
}

/// Where in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The address as a whole, or a value that never was a text.
    Whole,
    /// A byte position.
    Byte(usize),
    /// A key of the channel object, as a path.
    Key(String),
}

impl AddressError {
    pub(super) fn new(what: impl Into<String>, example: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            place: Place::Whole,
            text: String::new(),
            example: example.into(),
        }
    }

    /// Sets the byte position, unless a deeper parser knew it better.
    pub(super) fn at(mut self, position: usize) -> Self {
        if self.place == Place::Whole {
            self.place = Place::Byte(position);
        }
        self
    }

    /// Counts the byte position from `by` bytes earlier.
    pub(super) fn moved(mut self, by: usize) -> Self {
        if let Place::Byte(position) = &mut self.place {
            *position += by;
        }
        self
    }

    /// Sets the key, unless a deeper parser knew it better.
    pub(super) fn in_key(mut self, path: &str) -> Self {
        if self.place == Place::Whole {
            self.place = Place::Key(path.to_owned());
        }
        self
    }

    pub(super) fn in_text(mut self, text: &str) -> Self {
        self.text = text.chars().take(SHOWN_CHARS).collect();
        if self.text.len() < text.len() {
            self.text.push('…');
        }
        self
    }

    /// What is wrong.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The byte position of what is wrong, where it is known.
    pub fn position(&self) -> Option<usize> {
        match self.place {
            Place::Byte(position) => Some(position),
            Place::Whole | Place::Key(_) => None,
        }
    }

    /// The key of the channel object that is wrong, as a path (`addr.port`).
    pub fn key(&self) -> Option<&str> {
        match &self.place {
            Place::Key(path) => Some(path),
            Place::Whole | Place::Byte(_) => None,
        }
    }

    /// An address of the right form.
    pub fn example(&self) -> &str {
        &self.example
    }

    /// Always [`Blame::Misuse`].
    pub fn blame(&self) -> Blame {
        Blame::Misuse
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            f.write_str("bad address")?;
        } else {
            // Quoted and escaped: the text may hold anything.
            write!(f, "bad address {:?}", self.text)?;
        }
        match &self.place {
            Place::Whole => {}
            Place::Byte(position) => write!(f, ", byte {position}")?,
            Place::Key(path) => write!(f, ", {path}")?,
        }
        write!(f, ": {}; write for example {}", self.what, self.example)
    }
}

impl std::error::Error for AddressError {}

impl From<AddressError> for Error {
    fn from(error: AddressError) -> Self {
        Self::Misuse { what: error.to_string() }
    }
}
