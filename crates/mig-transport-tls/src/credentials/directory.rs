//! Files of a credentials directory: found, bounded, and wrong in words that name them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use mig_transport::{Error, Result};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Far above any chain or list of a private CA; a mistaken path to something huge is not read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A directory that is there.
pub(crate) struct Directory {
    path: PathBuf,
}

/// One file of it, read whole.
pub(super) struct PemFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                warn_if_others_may_write(
                    path,
                    "put files of their own in the place of those in it",
                );
                Ok(Self { path: path.to_owned() })
            }
            Ok(_) => Err(misuse(format!(
                "{}: not a directory; credentials are a directory with ca-cert.pem and the other files that QEMU's \
                 tls-creds-x509 takes, as `mig certs DIR` makes one",
                path.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(misuse(format!(
                "{}: no such directory; `mig certs {0}` makes one for a trial",
                path.display()
            ))),
            Err(error) => Err(unreadable(path, &error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is such a file; a link that leads nowhere is one, and [`read`](Self::read) says so.
    pub(super) fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.file(name)).is_ok()
    }

    /// A file that must be there.
    pub(super) fn require(&self, name: &str) -> Result<PemFile> {
        self.read(name)?.ok_or_else(|| self.missing(name))
    }

    /// `None` if there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<PemFile>> {
        let path = self.file(name);
        match read_bounded(&path, MAX_FILE_BYTES)? {
            None => Ok(None),
            Some(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {
                Err(misuse(format!("{}: the file is empty; {}", path.display(), purpose(name))))
            }
            Some(bytes) => Ok(Some(PemFile { path, bytes })),
        }
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        misuse(format!("{}: no such file; {}", self.file(name).display(), purpose(name)))
    }
}

impl PemFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All certificates, in the file's order; at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let all: Vec<_> = self.sections("a certificate")?;
        if all.is_empty() { Err(self.wrong_kind("certificate")) } else { Ok(all) }
    }

    /// All revocation lists; at least one.
    pub(super) fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        let all: Vec<_> = self.sections("a revocation list")?;
        if all.is_empty() { Err(self.wrong_kind("revocation list")) } else { Ok(all) }
    }

    /// The first private key: PKCS#8, PKCS#1 or SEC1.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        if self.is_encrypted() {
            return Err(misuse(format!(
                "{}: the key is encrypted with a password, and passwords are not supported; decrypt it: openssl pkey -in \
                 {0} -out plain.pem, give plain.pem mode 0600 and this name",
                self.path.display()
            )));
        }
        match self.sections::<PrivateKeyDer<'static>>("a private key")?.into_iter().next() {
            Some(key) => {
                warn_if_no_secret(&self.path);
                Ok(key)
            }
            None => Err(self.wrong_kind("private key")),
        }
    }

    fn sections<T: PemObject>(&self, what: &str) -> Result<Vec<T>> {
        T::pem_slice_iter(&self.bytes).collect::<std::result::Result<_, _>>().map_err(|error| {
            let why = match error {
                pem::Error::MissingSectionEnd { .. } => {
                    "it has a BEGIN line without its END: the file is cut short".into()
                }
                pem::Error::IllegalSectionStart { .. } => "it has a BEGIN line that is none".into(),
                pem::Error::Base64Decode(why) => {
                    format!("what is between BEGIN and END is not base64 ({why})")
                }
                other => format!("{other:?}"),
            };
            misuse(format!(
                "{}: {what} cannot be read: {why}; write the file anew",
                self.path.display()
            ))
        })
    }

    /// Labels of the sections, for telling what is there instead.
    fn labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = Vec::new();
        for line in self.bytes.split(|&byte| byte == b'\n') {
            let label = line
                .strip_prefix(b"-----BEGIN ")
                .and_then(|line| line.trim_ascii_end().strip_suffix(b"-----"));
            if let Some(label) = label.map(|label| String::from_utf8_lossy(label).into_owned())
                && !labels.contains(&label)
                && labels.len() < 8
            {
                labels.push(label);
            }
        }
        labels
    }

    fn is_encrypted(&self) -> bool {
        let has = |needle: &[u8]| self.bytes.windows(needle.len()).any(|window| window == needle);
        has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
    }

    fn wrong_kind(&self, wanted: &str) -> Error {
        let labels = self.labels();
        let found = if !labels.is_empty() {
            format!("it holds {}", labels.join(", "))
        } else if self.bytes.first() == Some(&0x30) {
            "it looks like DER, and PEM is wanted (openssl converts it: -inform DER -outform PEM)"
                .into()
        } else {
            "it holds nothing in PEM".into()
        };
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        misuse(format!("{}: no {wanted} in it, {found}; {}", self.path.display(), purpose(name)))
    }
}

/// Loud and no more, as QEMU takes such a file without a word: where users share a group, 0640 can be on purpose.
pub(super) fn warn_if_no_secret(path: &Path) {
    if let Some(mode) = mode(path) {
        let what = match (mode & 0o044 != 0, mode & 0o022 != 0) {
            (true, true) => "readable and writable",
            (true, false) => "readable",
            (false, true) => "writable",
            (false, false) => return,
        };
        tracing::warn!(
            "{}: this secret is {what} by others (mode {mode:04o}); chmod 600 it",
            path.display()
        );
    }
}

/// Whoever can write to what is trusted decides who is: what they `can` do.
pub(crate) fn warn_if_others_may_write(path: &Path, can: &str) {
    if let Some(mode) = mode(path).filter(|mode| mode & 0o022 != 0) {
        tracing::warn!(
            "{}: others can write to it (mode {mode:04o}), and {can}; chmod go-w it",
            path.display()
        );
    }
}

fn mode(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

/// A whole file of at most `limit` bytes; `None` if there is none. A link that leads nowhere is not none: whoever put it there
/// meant a file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    // Looked at before it is opened: opening a FIFO would wait for its writer.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(misuse(format!("{}: not a regular file", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::read_link(path) {
                Ok(there) => Err(misuse(format!(
                    "{}: a link to {}, and there is no such file; mend the link, or remove it where none is meant",
                    path.display(),
                    there.display()
                ))),
                Err(_no_link) => Ok(None),
            };
        }
        Err(error) => return Err(unreadable(path, &error)),
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > limit {
        return Err(misuse(format!(
            "{}: larger than {} KiB, so it cannot be what its name says",
            path.display(),
            limit >> 10
        )));
    }
    Ok(Some(bytes))
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run as its owner, or give this user the right to read it"
        }
        _ => "",
    };
    misuse(format!("{}: cannot be read: {error}{remedy}", path.display()))
}

/// What a file of the layout is for, and where it comes from.
pub(super) fn purpose(name: &str) -> &'static str {
    match name {
        "ca-cert.pem" => {
            "it must have the certificate of the CA that signed the other end's certificate, one or several in PEM"
        }
        "ca-crl.pem" => {
            "remove it where nothing is revoked, else it must have the CA's revocation list in PEM"
        }
        "server-cert.pem" => {
            "a destination needs its certificate there, and the key in server-key.pem (`mig certs` makes both for a trial)"
        }
        "server-key.pem" => "it must have the key of the certificate in server-cert.pem",
        "client-cert.pem" => {
            "it must have the certificate to the key in client-key.pem; a source without a certificate has neither"
        }
        "client-key.pem" => {
            "it must have the key of the certificate in client-cert.pem; a source without a certificate has neither"
        }
        "keys.psk" => "it must have a line USER:HEXKEY for each user, as psktool writes it",
        _ => "it is part of QEMU's layout",
    }
}

pub(crate) fn misuse(what: String) -> Error {
    Error::Misuse { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not over a real file: root may read everything.
    #[test]
    fn a_file_that_may_not_be_read_is_named() {
        let error =
            unreadable(Path::new("DIR/server-key.pem"), &io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            error.to_string(),
            "DIR/server-key.pem: cannot be read: permission denied; run as its owner, or give this user the right to read it"
        );
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca-cert.pem");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        let error = read_bounded(&path, 1).expect_err("not a file");
        assert!(error.to_string().ends_with("not a regular file"), "{error}");
    }
}
