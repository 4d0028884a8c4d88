//! The lab's initramfs: busybox, the few modules that lead to the shared root, and init.sh.
//!
//! Made once: its name holds the kernel's release and a digest of everything in it. It is a plain "newc" cpio archive,
//! written here, uncompressed (some 3 MB; the emulated CPU would take longer to unpack it).

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files;
use super::kernel::Kernel;

const INIT: &str = include_str!("init.sh");

/// What it takes to reach the root and the ports; everything else is loaded from the root.
const MODULES: &[&str] = &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// busybox-static puts it there.
const BUSYBOX: &[&str] = &["/bin/busybox", "/usr/bin/busybox"];

/// Finds the initramfs for this kernel and this recipe below `lab`, or makes it.
pub(crate) fn provide(lab: &Path, kernel: &Kernel) -> Result<PathBuf, String> {
    let busybox = BUSYBOX.iter().find_map(|file| fs::read(file).ok());
    let busybox = busybox.ok_or("no busybox (package busybox-static)")?;
    let modules = kernel.closure(MODULES)?;
    let mut digest = DefaultHasher::new();
    (INIT, MODULES, busybox.len(), &modules).hash(&mut digest);
    let name = format!("initramfs-{}-{:016x}", kernel.release, digest.finish());
    let file = lab.join(&name);
    if file.is_file() {
        return Ok(file);
    }
    let mut archive = Archive::default();
    for directory in ["bin", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &busybox);
    archive.add("bin/sh", 0o120_777, b"busybox");
    archive.add("init", 0o100_755, INIT.as_bytes());
    for (number, module) in modules.iter().enumerate() {
        // The number keeps the order in which they must be loaded.
        archive.add(&format!("modules/{number:02}.ko"), 0o100_644, &unpacked(module)?);
    }
    for old in files::names(lab)?.iter().filter(|name| name.starts_with("initramfs-")) {
        // Another kernel's or recipe's. A machine that is just starting has it open already, or says so.
        let _ = fs::remove_file(lab.join(old));
    }
    let part = lab.join("initramfs.part");
    files::write(&part, &archive.finish())?;
    fs::rename(&part, &file).map_err(|error| format!("cannot rename: {error}"))?;
    Ok(file)
}

/// A module's contents; some distributions compress them.
fn unpacked(module: &Path) -> Result<Vec<u8>, String> {
    let unpacker = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return fs::read(module)
                .map_err(|error| format!("cannot read {}: {error}", module.display()));
        }
    };
    let output = Command::new(unpacker).arg("-dc").arg(module).output();
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        other => Err(format!("{unpacker} cannot unpack {}: {other:?}", module.display())),
    }
}

/// A cpio archive in the "newc" format: per entry a header of ASCII hexadecimal, the name, the contents, each padded
/// to four bytes.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a module is far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, uid, gid, links, time, size, device (2), special device (2), length of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0]
            .map(|field| format!("{field:08x}"));
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(fields.concat().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_padded_contents() {
        let mut archive = Archive::default();
        archive.add("ab", 0o100_644, b"hello");
        let bytes = archive.bytes;
        assert_eq!(&bytes[..22], b"07070100000001000081a4");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000003");
        assert_eq!(&bytes[110..], b"ab\0\0\0\0hello\0\0\0");
    }
}
