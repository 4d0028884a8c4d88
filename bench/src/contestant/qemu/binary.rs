//! A QEMU that can be started.

use std::{collections::BTreeMap, env, path::PathBuf};

use crate::{
    child::{Helper, STEP},
    failure::Result,
    role::Foreign,
};

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    program: PathBuf,
    /// Root of one that was unpacked without being installed: its libraries and data are below.
    root: Option<PathBuf>,
    version: String,
}

impl Binary {
    /// Those on this machine: the installed one, and the newer one that `cargo xtask test` unpacks.
    pub(crate) fn all() -> Vec<Self> {
        let unpacked = env::var_os("MIG_SECOND_QEMU").map(PathBuf::from).or_else(|| {
            let program = env::current_exe().ok()?;
            // target/release/mig-bench
            Some(program.ancestors().nth(2)?.join("qemu-10"))
        });
        let second = unpacked.map(|root| (root.join("usr/bin/qemu-system-x86_64"), Some(root)));
        let first = ("qemu-system-x86_64".into(), None);
        let found = [Some(first), second].into_iter().flatten();
        found.filter_map(|(program, root)| Self::look(program, root).ok()).collect()
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    fn look(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut binary = Self { program, root, version: String::new() };
        let mut asked = binary.start("QEMU", vec!["--version".into()])?;
        let text = asked.rest(STEP)?;
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
        binary.version = version.ok_or("QEMU does not tell its version")?.to_owned();
        Ok(binary)
    }

    pub(super) fn start(&self, name: &str, mut arguments: Vec<String>) -> Result<Helper> {
        let mut environment = BTreeMap::new();
        if let Some(root) = &self.root {
            let mut libraries = root.join("usr/lib/x86_64-linux-gnu").display().to_string();
            if let Ok(already) = env::var("LD_LIBRARY_PATH") {
                libraries = format!("{libraries}:{already}");
            }
            environment.insert("LD_LIBRARY_PATH".into(), libraries);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                arguments.extend(["-L".into(), root.join(data).display().to_string()]);
            }
        }
        let program = self.program.display().to_string();
        Helper::foreign(name, Foreign { program, arguments, environment, no_huge_pages: true })
    }
}
