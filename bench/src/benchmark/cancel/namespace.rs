//! A network of its own for one process, where nothing that is sent arrives anywhere: no name server, no host.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::scene::{Scene, catches_interrupts};
use crate::failure::Result;

/// What the process there does.
#[derive(Clone, Copy)]
pub(super) enum Doing {
    /// It asks for a name, on a thread.
    Resolving,
    /// It has said SYN.
    Connecting,
}

/// Starts a `mig` there and waits until it is stuck.
pub(super) fn strand(
    scene: &mut Scene,
    program: &Path,
    arguments: &[&str],
    doing: Doing,
) -> Result<()> {
    let resolver = scene.prop("resolv.conf");
    fs::write(&resolver, "nameserver 192.0.2.53\noptions timeout:30\n")?;
    const SCRIPT: &str = "ip link set lo up && ip tuntap add dev mig0 mode tun && \
                          ip addr add 192.0.2.1/24 dev mig0 && ip link set mig0 up && \
                          mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let (resolver, program) = (resolver.display().to_string(), program.display().to_string());
    let enter = ["--user", "--map-root-user", "--net", "--mount", "sh", "-c", SCRIPT];
    scene.start_as("unshare", &[&enter[..], &[&*resolver, &*program], arguments].concat())?;
    scene.until(|process| catches_interrupts(process) && doing.seen(process))?;
    // The kernel ends a process only when its namespaces are gone, if they are its own: that is not what is measured.
    let namespaces = PathBuf::from(format!("/proc/{}/ns", scene.mig()?.id()));
    for namespace in ["user", "net", "mnt"] {
        scene.keep(File::open(namespaces.join(namespace))?);
    }
    Ok(())
}

impl Doing {
    fn seen(self, process: &Path) -> bool {
        match self {
            Self::Resolving => fs::read_dir(process.join("task")).map_or(0, Iterator::count) > 1,
            // State 02 is SYN_SENT.
            Self::Connecting => fs::read_to_string(process.join("net/tcp"))
                .unwrap_or_default()
                .lines()
                .any(|line| line.split_whitespace().nth(3) == Some("02")),
        }
    }
}
