//! Keys that both ends know, in place of certificates (feature `tls-psk`; docs/wire/transports.md §5.2).
//!
//! `keys.psk` has a line `USER:HEXKEY` for each user, as GnuTLS's psktool writes it. A destination takes whoever knows the key of
//! one of them; a source is one of them. Both ends prove that they know the key; there are no names beside
//! the user's, and nothing that expires.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use mig_transport::Result;

use super::directory::{Directory, misuse, purpose, read_bounded, warn_if_no_secret};

const FILE: &str = "keys.psk";
/// Users in all.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// What OpenSSL takes (`PSK_MAX_IDENTITY_LEN` of its oldest supported release).
const MAX_USER_BYTES: usize = 128;
/// psktool makes 32, and goes up to 64.
const MAX_KEY_BYTES: usize = 64;
/// Below this somebody may find a key by trying.
const GOOD_KEY_BYTES: usize = 16;

/// Users and their keys, read once.
#[derive(Clone)]
pub(crate) struct Keys(Arc<HashMap<String, Vec<u8>>>);

impl Keys {
    pub(super) fn load(directory: &Directory) -> Result<Self> {
        let path = directory.file(FILE);
        let bytes = read_bounded(&path, MAX_FILE_BYTES)?.ok_or_else(|| {
            misuse(format!("{}: no such file; {}", path.display(), purpose(FILE)))
        })?;
        warn_if_no_secret(&path);
        let text = String::from_utf8(bytes).map_err(|_| {
            misuse(format!("{}: not text in UTF-8; {}", path.display(), purpose(FILE)))
        })?;
        let mut keys = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // Not the line itself: it may have a key in it.
            let wrong = |why: &str| misuse(format!("{}: line {}: {why}", path.display(), at + 1));
            let (user, key) = parse(line).map_err(|why| wrong(&why))?;
            if key.len() < GOOD_KEY_BYTES {
                tracing::warn!(
                    "{}: line {}: a key of {} bytes can be found by trying; psktool makes 32",
                    path.display(),
                    at + 1,
                    key.len()
                );
            }
            if keys.insert(user.clone(), key).is_some() {
                return Err(wrong(&format!(
                    "a second key of the user {user:?}; leave one of them"
                )));
            }
        }
        if keys.is_empty() {
            return Err(misuse(format!(
                "{}: the file is empty; {}",
                path.display(),
                purpose(FILE)
            )));
        }
        Ok(Self(Arc::new(keys)))
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn of(&self, user: &str) -> Option<&[u8]> {
        self.0.get(user).map(Vec::as_slice)
    }
}

/// Never the keys.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys of {} users", self.0.len())
    }
}

/// One user and the key.
#[derive(Clone, Debug)]
pub(crate) struct User {
    name: String,
    keys: Keys,
}

impl User {
    pub(super) fn load(directory: &Directory, name: &str) -> Result<Self> {
        let name = name.to_owned();
        let keys = Keys::load(directory)?;
        if keys.of(&name).is_none() {
            return Err(misuse(format!(
                "{}: no key of the user {name:?}; give the user whose key it has (username), or add a line {name}:HEXKEY",
                directory.file(FILE).display()
            )));
        }
        Ok(Self { name, keys })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn key(&self) -> &[u8] {
        self.keys.of(&self.name).expect("looked up when it was made")
    }
}

fn parse(line: &str) -> Result<(String, Vec<u8>), String> {
    let (user, hexadecimal) =
        line.split_once(':').ok_or("it must be USER:HEXKEY, as psktool writes it")?;
    if user.is_empty() || user.len() > MAX_USER_BYTES || user.contains('\0') {
        return Err(format!("a user's name has 1 to {MAX_USER_BYTES} bytes"));
    }
    if user.starts_with('#') {
        return Err("names in hexadecimal (#…) are not supported; write the name as it is".into());
    }
    let digits = hexadecimal.as_bytes();
    if digits.is_empty() || digits.len() % 2 != 0 || digits.len() > 2 * MAX_KEY_BYTES {
        return Err(format!(
            "the key must have 1 to {MAX_KEY_BYTES} bytes, two hexadecimal digits each"
        ));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .map(|key| (user.to_owned(), key))
        .ok_or_else(|| "the key has something else than hexadecimal digits in it".into())
}

pub(super) fn client(dir: &Path, user: &str) -> Result<(Directory, User)> {
    let directory = Directory::open(dir)?;
    let user = User::load(&directory, user)?;
    Ok((directory, user))
}

pub(super) fn server(dir: &Path) -> Result<(Directory, Keys)> {
    let directory = Directory::open(dir)?;
    let keys = Keys::load(&directory)?;
    Ok((directory, keys))
}
