//! A kernel with RDMA for the lab: the distribution's package, downloaded and unpacked once, never installed.
//!
//! ```text
//!   apt-cache depends linux-image-… ──name──▶ apt-get download ─▶ dpkg -x ─▶ depmod ─▶ target/lab/kernel-…/
//! ```
//! The first of [`WANTED`] that apt offers is taken; `MIG_LAB_KERNEL` names another package.
//!
//! On failure nothing is left that looks complete, since the directory gets its name last.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files;
use crate::provide::{self, Network, run_quietly};

/// Packages that depend on a kernel, best first: 6.12 tracks dirty pages and pins memory for RDMA as kernels of today do;
/// what a release came with may be older.
const WANTED: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// `uname -r`.
    pub(crate) release: String,
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// What belongs at `/lib/modules`.
    pub(crate) modules: PathBuf,
}

/// Finds the unpacked kernel below `lab`, or brings it.
pub(crate) fn provide(lab: &Path, network: Network) -> Result<Kernel, String> {
    let named = std::env::var("MIG_LAB_KERNEL").ok();
    let wanted: Vec<&str> = named.as_deref().map_or_else(|| WANTED.to_vec(), |name| vec![name]);
    let root_of = |package: &str| lab.join(format!("kernel-{package}"));
    if let Some(kernel) = wanted.iter().find_map(|package| Kernel::unpacked(&root_of(package)).ok())
    {
        return Ok(kernel);
    }
    if network == Network::Forbidden {
        return Err(format!("--offline, and no kernel in {}", lab.display()));
    }
    let part = lab.join("kernel.part");
    files::remove(&part)?;
    let package = fetch(&part, &wanted)?;
    let root = root_of(package);
    files::remove(&root)?;
    fs::rename(part.join("root"), &root).map_err(|error| format!("cannot rename: {error}"))?;
    files::remove(&part)?;
    Kernel::unpacked(&root)
}

impl Kernel {
    fn unpacked(root: &Path) -> Result<Self, String> {
        let images = files::names(&root.join("boot"))?;
        let release = images.iter().find_map(|name| name.strip_prefix("vmlinuz-"));
        let release = release.ok_or_else(|| format!("no vmlinuz in {}", root.display()))?;
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .into_iter()
            .find(|modules| modules.join(release).join("modules.dep").is_file())
            .ok_or_else(|| format!("no modules of {release} in {}", root.display()))?;
        Ok(Self {
            release: release.to_owned(),
            image: root.join(format!("boot/vmlinuz-{release}")),
            modules,
        })
    }

    /// The files of these modules and of all they need, in an order in which they can be loaded.
    pub(crate) fn closure(&self, wanted: &[&str]) -> Result<Vec<PathBuf>, String> {
        let directory = self.modules.join(&self.release);
        let dependencies = files::read_text(&directory.join("modules.dep"))?;
        let built_in = files::read_text(&directory.join("modules.builtin"))?;
        let files = in_loading_order(&dependencies, &built_in, wanted)?;
        Ok(files.into_iter().map(|file| directory.join(file)).collect())
    }
}

/// Downloads and unpacks the first of `wanted` there is into `part/root`; answers which.
fn fetch<'a>(part: &Path, wanted: &[&'a str]) -> Result<&'a str, String> {
    files::create(part)?;
    let taken = match download(part, wanted) {
        Ok(taken) => taken,
        // Lists that are not there, or so old that the mirror no longer has what they name.
        Err(why) => {
            eprintln!("xtask: {why}; once more with fresh lists");
            provide::update_lists()?;
            download(part, wanted)?
        }
    };
    let names = files::names(part)?;
    let package = names.iter().find(|name| name.ends_with(".deb"));
    let package = package.ok_or("apt-get download left no package")?;
    let root = part.join("root");
    run_quietly(Command::new("dpkg").arg("-x").arg(part.join(package)).arg(&root))?;
    for release in files::names(&root.join("lib/modules"))
        .or_else(|_| files::names(&root.join("usr/lib/modules")))?
    {
        let mut depmod = Command::new(files::program("depmod"));
        run_quietly(depmod.arg("-b").arg(&root).arg(release))?;
    }
    Ok(taken)
}

fn download<'a>(part: &Path, wanted: &[&'a str]) -> Result<&'a str, String> {
    let found = wanted.iter().find_map(|name| {
        let mut depends = Command::new("apt-cache");
        let depends = run_quietly(depends.args(["depends", name]).env("LC_ALL", "C")).ok()?;
        dependency(&depends).map(|package| (*name, package.to_owned()))
    });
    let (name, package) =
        found.ok_or_else(|| format!("apt knows no kernel package among {wanted:?}"))?;
    eprintln!("xtask: downloading {package} for the lab (it is not installed)");
    let mut download = Command::new("apt-get");
    // The download user could not write below our target directory.
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", &package]);
    run_quietly(download.current_dir(part)).map(|_| name)
}

/// From a line `  Depends: linux-image-6.1.0-44-amd64`.
fn dependency(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| {
        let (_, package) = line.split_once("Depends: ")?;
        package.starts_with("linux-image-").then(|| package.trim())
    })
}

/// Lines of modules.dep are `FILE: FILE…`, each file's needs complete, the deepest last.
fn in_loading_order<'a>(
    dependencies: &'a str,
    built_in: &str,
    wanted: &[&str],
) -> Result<Vec<&'a str>, String> {
    let mut ordered: Vec<&str> = Vec::new();
    for module in wanted {
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| module_name(file) == *module);
        let Some((file, needs)) = line else {
            if built_in.lines().any(|file| module_name(file) == *module) {
                continue;
            }
            return Err(format!("this kernel has no module {module}"));
        };
        for file in needs.split_whitespace().rev().chain([file]) {
            if !ordered.contains(&file) {
                ordered.push(file);
            }
        }
    }
    Ok(ordered)
}

/// `kernel/net/9p/9pnet_virtio.ko.xz` is module `9pnet_virtio`; `-` and `_` are the same letter.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_package_is_found_among_the_dependencies() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-44-amd64\n  Recommends: x\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-44-amd64"));
        assert_eq!(dependency("linux-image-amd64\n"), None);
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let dependencies =
            "k/a.ko: k/b-x.ko k/c.ko\nk/b-x.ko: k/c.ko\nk/c.ko:\nk/d.ko.xz: k/c.ko\n";
        let order = |wanted: &[&str]| in_loading_order(dependencies, "k/in.ko\n", wanted);
        assert_eq!(
            order(&["a", "d", "in"]).unwrap(),
            ["k/c.ko", "k/b-x.ko", "k/a.ko", "k/d.ko.xz"]
        );
        assert_eq!(order(&["b_x"]).unwrap(), ["k/c.ko", "k/b-x.ko"]);
        assert!(order(&["z"]).unwrap_err().contains("no module z"));
    }
}
