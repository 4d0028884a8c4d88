//! A set of certificates to try TLS with, as `mig certs DIR` writes it (feature `trial`).
//!
//! ```text
//!   ca-cert.pem ──signed──▶ server-cert.pem + server-key.pem    localhost, 127.0.0.1, ::1, this machine, names given
//!        │     └──signed──▶ client-cert.pem + client-key.pem
//!        └─ its key is forgotten as soon as both are signed
//!   keys.psk                                                    for TLS-PSK: one user, one key
//! ```
//!
//! The same directory is for both ends: copied to the other machine, a source takes the client's pair of it and a
//! destination the server's, and so does QEMU (`tls-creds-x509,dir=DIR` or `tls-creds-psk,dir=DIR`). Whoever has the
//! directory is both ends, so it is for a trial, and its names say so; it ends after [`DAYS`] days or as many as were asked for.
//!
//! The CA's key is not kept: nothing more can be issued in its name, and nobody has to guard it. To add a name, make a new set.
//!
//! The set appears whole or not at all: every file is written and on the disk before the first is put in place, `ca-cert.pem`
//! is put in place last, and taken away first where an older set is replaced. What a crash leaves in between has no
//! `ca-cert.pem`, and nothing loads it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mig_transport::{Error, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::SecureRandom;

use crate::credentials::{misuse, now, utc};

/// How long a set is valid if nobody says.
pub const DAYS: u32 = 30;
/// So that a clock of the other end that is a little behind does not make a new set "not valid yet".
const BACKDATED: Duration = Duration::from_secs(3600);
/// The user of `keys.psk`: QEMU's default.
const USER: &str = "qemu";
/// Of a key for TLS-PSK.
const PSK_BYTES: usize = 32;
/// What a set is made in before it is put in place; a later run removes what a crash left of it.
const UNFINISHED: &str = ".mig-certs-unfinished";

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrialSet {
    /// Where.
    pub directory: PathBuf,
    /// Its files, in the order in which they were written.
    pub files: Vec<String>,
    /// The host names and addresses that the destination's certificate is for.
    pub names: Vec<String>,
    /// The last moment of its validity, for people.
    pub valid_until: String,
}

/// Makes a set in `directory`, which is created if need be, with mode 0700; keys have mode 0600. One that is there must be
/// this user's, and nobody else may write to it: whoever can replaces the keys. The destination's
/// certificate is for `names` beside this machine's own.
///
/// # Errors
///
/// [`Misuse`](Error::Misuse): a file of a set is there already and `force` was not given, a name is none, or the
/// directory is open to others;
/// [`Io`](Error::Io): it cannot be written.
pub fn make(directory: &Path, names: &[String], force: bool) -> Result<TrialSet> {
    make_for(DAYS, directory, names, force)
}

/// The same, valid for so many days.
///
/// # Errors
///
/// See [`make`].
pub fn make_for(days: u32, directory: &Path, names: &[String], force: bool) -> Result<TrialSet> {
    let names = all_names(names)?;
    let (files, valid_until) = generate(&names, days)?;
    if !force
        && let Some(there) =
            files.iter().map(|(name, _)| directory.join(name)).find(|path| path.exists())
    {
        return Err(misuse(format!(
            "{}: is there already, and nothing is overwritten; take another directory, or --force to replace the set",
            there.display()
        )));
    }
    place(directory, &files)?;
    Ok(TrialSet {
        directory: directory.to_owned(),
        files: files.into_iter().map(|(name, _)| name.to_owned()).collect(),
        names,
        valid_until: utc(valid_until),
    })
}

/// What every set is for, then `more`, each once.
fn all_names(more: &[String]) -> Result<Vec<String>> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let this_machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let this_machine = this_machine.trim().to_owned();
    // A machine may be called anything; what no certificate can have, nobody can connect to either.
    if is_name(&this_machine) {
        names.push(this_machine);
    }
    for name in more {
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        if !is_name(bare) {
            return Err(misuse(format!(
                "{name:?} is neither a host name nor an IP address, so no certificate can be for it (one beyond ASCII is \
                 given in its xn-- form)"
            )));
        }
        names.push(bare.to_owned());
    }
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.iter().any(|known: &String| known.eq_ignore_ascii_case(&name)) {
            distinct.push(name);
        }
    }
    Ok(distinct)
}

fn is_name(name: &str) -> bool {
    // A certificate may be for all names of a domain.
    let name = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || rustls::pki_types::DnsName::try_from(name).is_ok()
}

/// Name and text of each file, and until when they are valid.
type Set = (Vec<(&'static str, String)>, i64);

fn generate(names: &[String], days: u32) -> Result<Set> {
    let begins = SystemTime::now() - BACKDATED;
    let ends = begins + Duration::from_secs(u64::from(days) * 86_400);
    let unavailable = |error: rcgen::Error| Error::Unavailable {
        what: format!("no certificates can be made: {error}"),
        remedy: "this machine must have a source of random numbers".into(),
    };
    let with = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "mig trial");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = begins.into();
        params.not_after = ends.into();
        params.use_authority_key_identifier_extension = true;
        params
    };
    let pair = |params: CertificateParams, ca: &CertifiedIssuer<'_, KeyPair>| {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
    };
    // A name of its own, so that certificates of two sets are told apart by who issued them.
    let mut ca = with(&format!("trial CA {}", random_hexadecimal::<4>()?));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unavailable)?;
    let ca = CertifiedIssuer::self_signed(ca, ca_key).map_err(unavailable)?;

    let end = |mut params: CertificateParams, purpose| {
        params.is_ca = IsCa::ExplicitNoCa;
        // keyEncipherment means nothing for such a key, and QEMU 10 wants it (docs/wire/transports.md §5.4).
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        params
    };
    let mut server = end(with("destination"), ExtendedKeyUsagePurpose::ServerAuth);
    let alternative = CertificateParams::new(names.to_vec()).map_err(unavailable)?;
    server.subject_alt_names = alternative.subject_alt_names;
    let client = end(with("source"), ExtendedKeyUsagePurpose::ClientAuth);
    let (server_certificate, server_key) = pair(server, &ca).map_err(unavailable)?;
    let (client_certificate, client_key) = pair(client, &ca).map_err(unavailable)?;
    let ends = ends.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let files = vec![
        ("ca-cert.pem", ca.pem()),
        ("server-cert.pem", server_certificate),
        ("server-key.pem", server_key),
        ("client-cert.pem", client_certificate),
        ("client-key.pem", client_key),
        ("keys.psk", format!("{USER}:{}\n", random_hexadecimal::<PSK_BYTES>()?)),
    ];
    Ok((files, i64::try_from(ends).unwrap_or_else(|_| now())))
}

fn random_hexadecimal<const BYTES: usize>() -> Result<String> {
    let random: &dyn SecureRandom = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let mut key = [0; BYTES];
    random.fill(&mut key).map_err(|_| Error::Unavailable {
        what: "no key can be made: no random numbers".into(),
        remedy: "this machine must have a source of them".into(),
    })?;
    Ok(key.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Puts the files where they belong.
fn place(directory: &Path, files: &[(&'static str, String)]) -> Result<()> {
    let failed =
        |what: &str, path: &Path, error| Error::io(format!("{what} {}", path.display()), error);
    let private = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    // Parents are made like `mkdir -p` makes them; only the set is private.
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| failed("creating", parent, error))?;
    }
    match private(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {
            closed_to_others(directory)?;
        }
        Err(error) => return Err(failed("creating", directory, error)),
    }
    let unfinished = directory.join(UNFINISHED);
    remove_if_there(fs::remove_dir_all(&unfinished))
        .and_then(|()| private(&unfinished))
        .map_err(|error| failed("creating", &unfinished, error))?;
    let belongs = owner(&unfinished).and_then(|ours| Ok(ours == owner(directory)?));
    if !belongs.map_err(|error| failed("looking at", directory, error))? {
        let _nothing_is_in_it = fs::remove_dir(&unfinished);
        return Err(misuse(format!(
            "{}: another user's directory, who could replace the keys; take one of your own",
            directory.display()
        )));
    }
    let written = files.iter().try_for_each(|(name, text)| {
        let path = unfinished.join(name);
        write_new(&path, text).map_err(|error| failed("writing", &path, error))
    });
    let placed = written.and_then(|()| {
        let (first, _) = files[0];
        let path = directory.join(first);
        remove_if_there(fs::remove_file(&path))
            .map_err(|error| failed("replacing", &path, error))?;
        files.iter().rev().try_for_each(|(name, _)| {
            let path = directory.join(name);
            fs::rename(unfinished.join(name), &path)
                .map_err(|error| failed("writing", &path, error))
        })
    });
    let _else_the_next_run_removes_it = fs::remove_dir_all(&unfinished);
    placed?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| failed("writing", directory, error))
}

/// Whoever can write to a directory can put other files in the place of those in it.
fn closed_to_others(directory: &Path) -> Result<()> {
    let mode = fs::metadata(directory)
        .map_err(|error| Error::io(format!("looking at {}", directory.display()), error))?
        .mode();
    if mode & 0o022 != 0 {
        return Err(misuse(format!(
            "{0}: others can write to this directory (mode {1:04o}), and could replace the keys; chmod go-w {0}, or take \
             another",
            directory.display(),
            mode & 0o7777
        )));
    }
    Ok(())
}

fn owner(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.uid())
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let name = path.to_string_lossy();
    let is_secret = name.ends_with("-key.pem") || name.ends_with(".psk");
    let mode = if is_secret { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mig_transport::Blame;

    use super::*;
    use crate::{
        credentials::{CertificateFacts, ClientCredentials, ServerCredentials},
        testing,
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_set_is_complete_private_and_loads_at_both_ends() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("deep/er");
        let more =
            ["dst1.example", "[2001:db8::7]", "LOCALHOST", "*.pool.example"].map(str::to_owned);
        let set = make(&dir, &more, false).expect("made");
        for name in
            ["localhost", "127.0.0.1", "::1", "dst1.example", "2001:db8::7", "*.pool.example"]
        {
            assert!(set.names.iter().any(|known| known == name), "{:?}", set.names);
        }
        assert_eq!(
            set.names.iter().filter(|name| name.eq_ignore_ascii_case("localhost")).count(),
            1
        );
        assert_eq!(mode(&dir), 0o700);
        let mut there: Vec<_> = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
            .collect();
        there.sort();
        let mut told = set.files.clone();
        told.sort();
        assert_eq!(there, told, "nothing else is left there, no key of the CA above all");
        for secret in ["server-key.pem", "client-key.pem", "keys.psk"] {
            assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
        }
        ServerCredentials::x509(&dir, true).expect("a server");
        assert!(ClientCredentials::x509(&dir).expect("a client").has_certificate());
        assert!(
            fs::read_to_string(dir.join("server-key.pem"))
                .expect("there")
                .contains("BEGIN PRIVATE KEY")
        );
        let psk = fs::read_to_string(dir.join("keys.psk")).expect("there");
        assert_eq!(psk.trim_end().strip_prefix("qemu:").map(str::len), Some(64));
    }

    #[test]
    fn nothing_is_overwritten_unless_forced() {
        let dir = tempfile::tempdir().expect("a directory");
        let old = dir.path().join("client-key.pem");
        fs::write(&old, "mine").expect("written");
        let error = make(dir.path(), &[], false).expect_err("refused");
        assert_eq!(error.blame(), Blame::Misuse);
        assert!(error.to_string().contains("client-key.pem: is there already"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
        make(dir.path(), &[], true).expect("made");
        let first = fs::read(&old).expect("there");
        make(dir.path(), &[], true).expect("made again");
        assert_ne!(fs::read(&old).expect("there"), first);
        ServerCredentials::x509(dir.path(), true).expect("a server");
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(UNFINISHED)).expect("made");
        fs::write(dir.path().join(UNFINISHED).join("ca-cert.pem"), "half").expect("written");
        make(dir.path(), &[], false).expect("made");
        assert!(!dir.path().join(UNFINISHED).exists());
    }

    /// Each step fails once: what is in the directory afterwards is the whole old set or nothing that loads.
    #[test]
    fn a_failure_leaves_no_half_set() {
        for (at, name) in
            ["keys.psk", "client-key.pem", "client-cert.pem", "server-key.pem", "server-cert.pem"]
                .into_iter()
                .enumerate()
        {
            let dir = tempfile::tempdir().expect("a directory");
            // A directory that is not empty cannot be replaced by a file.
            fs::create_dir_all(dir.path().join(name).join("x")).expect("made");
            let error = make(dir.path(), &[], true).expect_err("cannot be written");
            assert_eq!(error.blame(), Blame::Io);
            assert!(error.to_string().contains(name), "{error}");
            assert!(!dir.path().join("ca-cert.pem").exists(), "{at}");
            assert!(!dir.path().join(UNFINISHED).exists(), "{at}");
            assert!(ClientCredentials::x509(dir.path()).is_err());
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        for open in [0o770, 0o707, 0o1777] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(open)).expect("changed");
            let error = make(dir.path(), &[], true).expect_err("refused");
            assert_eq!(error.blame(), Blame::Misuse);
            assert!(error.to_string().contains("chmod go-w"), "{error}");
            assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "{open:o}");
        }
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        // Only root can give one away, and only root can write there then.
        if std::os::unix::fs::chown(dir.path(), Some(1), None).is_ok() {
            let error = make(dir.path(), &[], true).expect_err("refused");
            assert!(error.to_string().contains("another user's directory"), "{error}");
            assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
            return;
        }
        // Whoever is not root knows a directory of another user that it cannot write to.
        let root = Path::new("/");
        let owner = |path: &Path| fs::metadata(path).expect("there").uid();
        assert_ne!(owner(root), owner(dir.path()), "root may give a directory away");
        let error = make(root, &[], false).expect_err("refused");
        assert_eq!(error.blame(), Blame::Io, "{error}");
        assert!(error.to_string().starts_with("creating /"), "{error}");
        assert!(!root.join(UNFINISHED).exists() && !root.join("ca-cert.pem").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let parent = tempfile::tempdir().expect("a directory");
        let file = parent.path().join("file");
        fs::write(&file, "x").expect("written");
        for dir in [file.clone(), file.join("below")] {
            let error = make(&dir, &[], false).expect_err("cannot be");
            assert!(error.to_string().contains("creating"), "{error}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["", "a b", "münchen.example", "tcp:host:4444", "[::1", "*"] {
            let error = make(dir.path(), &[name.to_owned()], false).expect_err(name);
            assert!(error.to_string().contains("neither a host name"), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn what_is_written_says_trial() {
        let (files, ends) = generate(&["localhost".to_owned()], DAYS).expect("made");
        for (name, text) in files.iter().filter(|(name, _)| name.ends_with("-cert.pem")) {
            let der = testing::der(text);
            let facts = CertificateFacts::of(&der).expect("a certificate");
            assert!(facts.subject.to_string().starts_with("O=mig trial,CN="), "{name}");
            assert_eq!(facts.not_after, ends, "{name}");
            assert_eq!(facts.is_ca, *name == "ca-cert.pem");
        }
    }
}
