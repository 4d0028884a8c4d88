//! The promises of every channel, kept through real commands that forward into FIFOs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use mig_testkit::conformance;
use mig_transport::{Channel, Connector, Listener};
use mig_transport_exec::{ExecCommand, ExecConnector, ExecListener, ExecOptions};

struct Fifos(PathBuf);

impl Fifos {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mig-execc-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn fresh(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.0.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        Path::display(&path).to_string()
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let _tidied = std::fs::remove_dir_all(&self.0);
    }
}

/// Both commands say through the file system that their FIFOs are open: one that is ended before would leave the other
/// waiting in its open.
async fn channels(source: String, destination: String, two_way: bool) -> (Channel, Channel) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let ready = std::env::temp_dir().join(format!(
        "mig-execc-{}-ready{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let marks = ["s", "d"].map(|side| ready.with_extension(side));
    let options = ExecOptions::default().return_path(two_way);
    let command = |line: String, mark: &Path| {
        ExecCommand::Shell(line.replace("READY", &format!(": >{}", mark.display())))
    };
    let source = ExecConnector::new(command(source, &marks[0]), options.clone()).unwrap();
    let mut destination = ExecListener::new(command(destination, &marks[1]), options).unwrap();
    let pair = (source.connect().await.unwrap(), destination.accept().await.unwrap());
    for mark in marks {
        while std::fs::remove_file(&mark).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    pair
}

#[tokio::test]
async fn one_way() {
    let fifos = Fifos::new("one");
    conformance::one_way(async || {
        let fifo = fifos.fresh();
        channels(
            format!("exec 4>{fifo}; READY; exec cat >&4 4>&-"),
            format!("exec 4<{fifo}; READY; exec cat <&4 4<&-"),
            false,
        )
        .await
    })
    .await;
}

#[tokio::test]
async fn two_ways() {
    let fifos = Fifos::new("two");
    let forward =
        "exec 3<&0; READY; cat <&3 >&4 3<&- 4>&- 5<&- & exec 3<&- 4>&-; exec cat <&5 5<&-";
    conformance::two_way(async || {
        let (there, back) = (fifos.fresh(), fifos.fresh());
        channels(
            format!("exec 4>{there} 5<{back}; {forward}"),
            format!("exec 5<{there} 4>{back}; {forward}"),
            true,
        )
        .await
    })
    .await;
}
