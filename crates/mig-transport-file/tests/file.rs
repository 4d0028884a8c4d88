//! Files by path, offset and descriptor set: what is written where, what is refused, what a failure says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    future::Future,
    io::Write,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mig_transport::{Blame, Channel, Connector, Error, Listener, Result};
use mig_transport_file::{DescriptorSets, FileConnector, FileListener, FileTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HANG: Duration = Duration::from_secs(30);

fn scene<F: Future<Output = ()>>(name: &str, play: impl FnOnce(PathBuf) -> F) {
    let dir = std::env::temp_dir().join(format!("mig-file-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let future = play(dir.clone());
    runtime.block_on(async { tokio::time::timeout(HANG, future).await.expect("hangs") });
    std::fs::remove_dir_all(dir).unwrap();
}

async fn write(target: FileTarget) -> Result<Channel> {
    FileConnector::new(target).connect().await
}

async fn read(target: FileTarget) -> Result<Channel> {
    FileListener::new(target).accept().await
}

async fn save(target: FileTarget, bytes: &[u8]) {
    let mut sender = write(target).await.unwrap().take_sender().unwrap();
    sender.write_all(bytes).await.unwrap();
    sender.shutdown().await.unwrap();
}

async fn load(target: FileTarget) -> Vec<u8> {
    let mut receiver = read(target).await.unwrap().take_receiver().unwrap();
    let mut seen = Vec::new();
    receiver.read_to_end(&mut seen).await.unwrap();
    seen
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8).collect()
}

#[test]
fn a_file_is_private_and_comes_back() {
    scene("round", async |dir| {
        let path = dir.join("new");
        let channel = write(FileTarget::new(&path)).await.unwrap();
        let known = channel.capabilities();
        assert!(known.storage && !known.return_path && !known.forced_shutdown);
        drop(channel);
        // Longer than all buffers together.
        let bytes = pattern(11 << 20);
        save(FileTarget::new(&path), &bytes).await;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(load(FileTarget::new(&path)).await == bytes);
        assert!(load(FileTarget::new(&path).at(5_000_000)).await == bytes[5_000_000..]);
        assert_eq!(load(FileTarget::new(&path).at(11 << 20)).await, b"");
    });
}

#[test]
fn a_prefix_is_kept_and_a_missing_one_is_a_hole() {
    scene("offset", async |dir| {
        let path = dir.join("f");
        std::fs::write(&path, b"prefix and a long old tail").unwrap();
        save(FileTarget::new(&path).at(6), b"NEW").await;
        assert_eq!(std::fs::read(&path).unwrap(), b"prefixNEW");
        save(FileTarget::new(&path).at(12), b"FAR").await;
        assert_eq!(std::fs::read(&path).unwrap(), b"prefixNEW\0\0\0FAR");
    });
}

#[test]
fn a_file_gives_one_channel() {
    scene("once", async |dir| {
        let target = FileTarget::new(dir.join("f"));
        let connector = FileConnector::new(target.clone());
        let _channel = connector.connect().await.unwrap();
        assert_eq!(connector.connect().await.unwrap_err().blame(), Blame::Misuse);
        let mut listener = FileListener::new(target);
        let _channel = listener.accept().await.unwrap();
        assert_eq!(listener.accept().await.unwrap_err().blame(), Blame::Misuse);
        // A failed attempt is no channel.
        let missing = FileTarget::new(dir.join("later"));
        let mut listener = FileListener::new(missing.clone());
        assert!(listener.accept().await.is_err());
        std::fs::write(&missing.path, b"x").unwrap();
        assert!(listener.accept().await.is_ok());
    });
}

#[test]
fn refusals_tell_what_it_is_and_what_to_use() {
    scene("refused", async |dir| {
        let fifo = dir.join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        let socket = dir.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let cases = [
            (dir.clone(), "a directory", "name a file"),
            (fifo, "a pipe or FIFO", "fd:N"),
            (socket, "a socket", "unix:PATH"),
            ("/dev/zero".into(), "a character device", "plain file"),
            ("/dev/fdset/7".into(), "no such set", "/dev/fd/N"),
            ("/dev/fdset/x".into(), "the form is", "/dev/fdset/N"),
            (dir.join("no/such"), "No such file", "folder"),
        ];
        for (path, is, instead) in cases {
            for outcome in [write(FileTarget::new(&path)).await, read(FileTarget::new(&path)).await]
            {
                let error = outcome.unwrap_err();
                let text = error.to_string();
                assert_eq!(error.blame(), Blame::Misuse, "{text}");
                assert!(text.contains(is) && text.contains(instead), "{text}");
                assert!(text.contains(&path.display().to_string()), "{text}");
            }
        }
        let path = dir.join("short");
        std::fs::write(&path, b"12345").unwrap();
        let error = read(FileTarget::new(&path).at(6)).await.unwrap_err();
        assert!(error.to_string().contains("has 5 bytes"), "{error}");
        let error = write(FileTarget::new(&path).at(u64::MAX)).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Misuse);
        assert_eq!(std::fs::read(&path).unwrap(), b"12345");
    });
}

#[test]
fn descriptors_by_number_and_by_set() {
    scene("sets", async |dir| {
        let path = dir.join("f");
        std::fs::write(&path, b"through the kernel").unwrap();
        let file = File::open(&path).unwrap();
        let target = FileTarget::new(format!("/dev/fd/{}", file.as_raw_fd()));
        assert_eq!(load(target).await, b"through the kernel");
        let (reader, _writer) = std::io::pipe().unwrap();
        let target = FileTarget::new(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        assert_eq!(read(target).await.unwrap_err().blame(), Blame::Misuse);

        let sets = Arc::new(DescriptorSets::new());
        let target = FileTarget::new("/dev/fdset/3").at(2);
        let writing = || FileConnector::new(target.clone()).with_sets(Arc::clone(&sets));
        sets.add(3, file.into());
        let error = writing().connect().await.unwrap_err();
        assert!(error.to_string().contains("open for writing"), "{error}");
        let append = File::options().append(true).open(&path).unwrap();
        sets.add(3, append.into());
        assert!(writing().connect().await.is_err());
        sets.add(3, File::options().write(true).open(&path).unwrap().into());
        let mut sender = writing().connect().await.unwrap().take_sender().unwrap();
        sender.write_all(b"set").await.unwrap();
        sender.shutdown().await.unwrap();
        let mut listener = FileListener::new(target.clone()).with_sets(Arc::clone(&sets));
        let mut seen = String::new();
        let mut receiver = listener.accept().await.unwrap().take_receiver().unwrap();
        receiver.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "set");
        assert_eq!(std::fs::read(&path).unwrap(), b"thset");
        assert!(sets.remove(3) && !sets.remove(3));
    });
}

#[test]
fn nothing_is_left_running_after_a_cancel() {
    scene("cancel", async |dir| {
        let path = dir.join("f");
        std::fs::write(&path, pattern(9 << 20)).unwrap();
        for _ in 0..20 {
            let mut writing = write(FileTarget::new(dir.join("out"))).await.unwrap();
            let handle = writing.shutdown_handle();
            let mut sender = writing.take_sender().unwrap();
            let bytes = pattern(3 << 20);
            let task = tokio::spawn(async move { while sender.write_all(&bytes).await.is_ok() {} });
            tokio::task::yield_now().await;
            handle.shutdown();
            task.await.unwrap();
            let mut reading = read(FileTarget::new(&path)).await.unwrap();
            let mut receiver = reading.take_receiver().unwrap();
            receiver.read_exact(&mut [0; 10]).await.unwrap();
            reading.shutdown_handle().shutdown();
            let error = Error::io("reading", receiver.read(&mut [0; 10]).await.unwrap_err());
            assert_eq!(error.blame(), Blame::Cancelled);
        }
        while threads().iter().any(|name| name.starts_with("mig-file")) {
            tokio::task::yield_now().await;
        }
    });
}

fn threads() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .collect()
}

/// Runs a test of this file in a process that may write files of 64 KiB at most.
fn in_small_process(test: &str, dir: &Path) {
    let status = std::process::Command::new("/bin/bash")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 64; exec "$0" --exact "$1""#])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env("MIG_TEST_DIR", dir)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Not a test by itself: the one below runs it in a process of its own, because the limit is the process's.
#[test]
fn child_meets_the_limit() {
    let Some(dir) = std::env::var_os("MIG_TEST_DIR") else { return };
    let path = PathBuf::from(dir).join("full");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut sender = write(FileTarget::new(&path)).await.unwrap().take_sender().unwrap();
        let outcome = async {
            sender.write_all(&pattern(1 << 20)).await?;
            sender.shutdown().await
        };
        let error = Error::io("", outcome.await.unwrap_err());
        assert_eq!(error.blame(), Blame::Io);
        let text = error.to_string();
        assert!(text.contains("full") && text.contains("at byte 65536"), "{text}");
        assert!(text.contains("File too large"), "{text}");
        // It sticks.
        assert!(sender.write_all(b"x").await.is_err());
        assert!(sender.shutdown().await.is_err());
    });
    let mut target = mig_transport_file::CommitFile::create(path.with_extension("saved")).unwrap();
    let error = target.write_all(&pattern(2 << 20)).unwrap_err();
    assert!(error.to_string().contains("full.saved: writing at byte 65536"), "{error}");
    assert!(target.write_all(b"x").is_err());
    assert!(target.flush().is_err());
    assert!(target.commit().is_err());
    assert!(!path.with_extension("saved").exists());
}

#[test]
fn a_full_disk_is_named_with_path_and_position() {
    scene("full", async |dir| {
        in_small_process("child_meets_the_limit", &dir);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "only the plain target stays");
    });
}
