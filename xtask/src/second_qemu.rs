//! A second, newer QEMU from the distribution's backports, unpacked beside the installed one, not installed.
//!
//! ```text
//!   the machine's own apt sources ── mirror, key ──▶ one generated sources entry: CODENAME-backports
//!     ─▶ apt-get update   (private lists: the machine's apt state is not touched, no root needed)
//!     ─▶ apt-get -s install    which packages would come from there
//!     ─▶ apt-get download, dpkg -x ──▶ target/qemu-10/
//! ```
//! Nothing here names a mirror: it is read from the machine. On failure nothing is left that looks complete, since
//! the directory gets its name last.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::provide::{Network, run_quietly};
use crate::repository::{Repository, in_path};

/// What came of it.
#[derive(Debug)]
pub(crate) enum SecondQemu {
    /// Unpacked below this directory, and it starts.
    Ready(PathBuf),
    /// This distribution has none to offer; not a skip.
    NotOffered(String),
    /// It should be there and is not.
    Missing(String),
}

const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// Finds the unpacked QEMU, or unpacks it.
pub(crate) fn provide(repository: &Repository, network: Network) -> SecondQemu {
    let root = repository.target.join("qemu-10");
    if starts(&root).is_ok() {
        return SecondQemu::Ready(root);
    }
    let distribution = match Distribution::of_this_machine() {
        Ok(distribution) => distribution,
        Err(why) => return SecondQemu::NotOffered(why),
    };
    if network == Network::Forbidden {
        return SecondQemu::Missing(format!("--offline, and no {}", root.display()));
    }
    eprintln!("xtask: unpacking QEMU from {} into {}", distribution.backports(), root.display());
    match fetch(&repository.target, &distribution, &root).and_then(|()| starts(&root)) {
        Ok(()) => SecondQemu::Ready(root),
        Err(why) => SecondQemu::Missing(why),
    }
}

/// Whether the QEMU below `root` can be executed.
fn starts(root: &Path) -> Result<(), String> {
    let mut command = Command::new(root.join(PROGRAM));
    command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu")).arg("--version");
    run_quietly(&mut command).map(drop)
}

fn fetch(target: &Path, distribution: &Distribution, root: &Path) -> Result<(), String> {
    let work = target.join("qemu-10.part");
    let outcome = fetch_into(&work, distribution).and_then(|unpacked| {
        remove(root)?;
        fs::rename(&unpacked, root).map_err(|error| format!("cannot rename: {error}"))
    });
    // Lists and packages have done their work, or are half there.
    outcome.and(remove(&work))
}

/// Gives the directory into which everything was unpacked.
fn fetch_into(work: &Path, distribution: &Distribution) -> Result<PathBuf, String> {
    remove(work)?;
    let unpacked = work.join("root");
    for directory in ["sources", "lists/partial", "cache/archives/partial", "packages", "root"] {
        let directory = work.join(directory);
        fs::create_dir_all(&directory)
            .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    }
    // With the installed QEMU's libraries there, backports alone have all that is missing. Without, the main suite
    // is needed too, whose list is thirty times as long.
    let backports = distribution.backports();
    let wide = format!("{} {backports}", distribution.codename);
    let versions =
        resolve(work, distribution, &backports).or_else(|_| resolve(work, distribution, &wide))?;
    let mut download = apt(work, &distribution.backports());
    download.arg("download").args(&versions).current_dir(work.join("packages"));
    run_quietly(&mut download)?;
    let packages = fs::read_dir(work.join("packages")).map_err(|error| error.to_string())?;
    for package in packages.filter_map(Result::ok) {
        let mut unpack = Command::new("dpkg");
        run_quietly(unpack.arg("-x").arg(package.path()).arg(&unpacked))?;
    }
    Ok(unpacked)
}

/// The packages, as `name=version`, that installing QEMU from backports would bring.
fn resolve(work: &Path, distribution: &Distribution, suites: &str) -> Result<Vec<String>, String> {
    let entry = distribution.sources_entry(suites);
    fs::write(work.join("sources/backports.sources"), entry).map_err(|error| error.to_string())?;
    run_quietly(apt(work, &distribution.backports()).arg("update"))?;
    let mut simulate = apt(work, &distribution.backports());
    simulate.args(["-s", "--no-install-recommends", "install", PACKAGE]);
    let versions = would_install(&run_quietly(&mut simulate)?);
    if versions.iter().any(|version| version.starts_with(&format!("{PACKAGE}="))) {
        Ok(versions)
    } else {
        Err(format!("{} has no newer {PACKAGE} than the installed one", distribution.backports()))
    }
}

/// From lines `Inst NAME [OLD] (VERSION ORIGIN…)`.
fn would_install(simulated: &str) -> Vec<String> {
    let package = |line: &str| {
        let rest = line.strip_prefix("Inst ")?;
        let name = rest.split_whitespace().next()?;
        let version = rest.split_once('(')?.1.split_whitespace().next()?;
        Some(format!("{name}={version}"))
    };
    simulated.lines().filter_map(package).collect()
}

/// apt-get with a state of its own.
fn apt(work: &Path, release: &str) -> Command {
    let mut command = Command::new("apt-get");
    for (option, value) in [
        ("Dir::Etc::SourceList", PathBuf::from("/dev/null")),
        ("Dir::Etc::SourceParts", work.join("sources")),
        ("Dir::State::Lists", work.join("lists")),
        ("Dir::Cache", work.join("cache")),
        // The download user could not write below our target directory.
        ("APT::Sandbox::User", PathBuf::from("root")),
    ] {
        command.arg("-o").arg(format!("{option}={}", value.display()));
    }
    command.args(["-qq", "-t", release]).env("LC_ALL", "C");
    command
}

fn remove(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// What the machine says about where its packages come from.
#[derive(Debug, PartialEq, Eq)]
struct Distribution {
    codename: String,
    source: Source,
}

/// A mirror and the key its indexes are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    mirror: String,
    signed_by: Option<String>,
}

impl Distribution {
    fn of_this_machine() -> Result<Self, String> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if field("ID=").as_deref() != Some("debian") || !in_path("apt-get") || !in_path("dpkg") {
            return Err("not Debian, so there are no backports".to_owned());
        }
        if std::env::consts::ARCH != "x86_64" {
            return Err(format!("not tried on {}", std::env::consts::ARCH));
        }
        let codename =
            field("VERSION_CODENAME=").ok_or("a Debian without a code name has no backports")?;
        let source = apt_sources()
            .iter()
            .find_map(|(file, text)| source_in(file, text, &codename))
            .ok_or_else(|| format!("the apt sources name no mirror of {codename}"))?;
        Ok(Self { codename, source })
    }

    fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }

    fn sources_entry(&self, suites: &str) -> String {
        let signed_by = self.source.signed_by.as_ref();
        let signed_by = signed_by.map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        format!(
            "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\n{signed_by}",
            self.source.mirror
        )
    }
}

/// The machine's sources files, with their contents.
fn apt_sources() -> Vec<(PathBuf, String)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let mut parts: Vec<PathBuf> = parts.filter_map(Result::ok).map(|part| part.path()).collect();
    parts.sort();
    files.extend(parts);
    let read = |file: PathBuf| fs::read_to_string(&file).ok().map(|text| (file, text));
    files.into_iter().filter_map(read).collect()
}

/// The mirror that a sources file gives for exactly this suite.
fn source_in(file: &Path, text: &str, codename: &str) -> Option<Source> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("sources") => text.split("\n\n").find_map(|stanza| source_in_stanza(stanza, codename)),
        Some("list") => text.lines().find_map(|line| source_in_line(line, codename)),
        _ => None,
    }
}

fn source_in_stanza(stanza: &str, codename: &str) -> Option<Source> {
    let field = |key: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim)
    };
    let has = |key: &str, word: &str| {
        field(key).is_some_and(|value| value.split_whitespace().any(|one| one == word))
    };
    if !has("Types:", "deb") || !has("Suites:", codename) || field("Enabled:") == Some("no") {
        return None;
    }
    Some(Source {
        mirror: field("URIs:")?.split_whitespace().next()?.to_owned(),
        // A key written out in the stanza spans lines; then the system's own keys have to do.
        signed_by: field("Signed-By:").filter(|key| key.starts_with('/')).map(str::to_owned),
    })
}

/// `deb [OPTION=VALUE …] URI SUITE COMPONENT…`
fn source_in_line(line: &str, codename: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let mirror = words.next()?.to_owned();
    (words.next()? == codename).then(|| Source {
        mirror,
        signed_by: options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_of_the_exact_suite_is_taken() {
        let text = "Types: deb\n# comment\nURIs: ftp://mirror.example/security\nSuites: sid-security\n\n\
                    Types: deb\nURIs: ftp://mirror.example/debian\nSuites: sid sid-updates\n\
                    Signed-By: /usr/share/keyrings/key.gpg\n";
        let found = source_in(Path::new("debian.sources"), text, "sid").unwrap();
        assert_eq!(found.mirror, "ftp://mirror.example/debian");
        assert_eq!(found.signed_by.as_deref(), Some("/usr/share/keyrings/key.gpg"));
        assert_eq!(source_in(Path::new("debian.sources"), text, "buster"), None);
    }

    #[test]
    fn one_line_entries_are_read_with_and_without_options() {
        let text = "# deb ftp://no.example x main\ndeb-src ftp://no.example x main\n\
                    deb ftp://a.example x-updates main\n\
                    deb [arch=amd64 signed-by=/k.gpg] ftp://b.example x main contrib\n";
        let found = source_in(Path::new("sources.list"), text, "x").unwrap();
        let wanted =
            Source { mirror: "ftp://b.example".to_owned(), signed_by: Some("/k.gpg".to_owned()) };
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_apt_would_install_is_read() {
        let text = "Inst qemu-system-x86 [1:7.2] (1:10.0~bpo Debian Backports [amd64]) []\n\
                    Inst new-library (2.0 Debian [all])\nConf new-library (2.0 Debian [all])\n";
        assert_eq!(would_install(text), ["qemu-system-x86=1:10.0~bpo", "new-library=2.0"]);
    }
}
