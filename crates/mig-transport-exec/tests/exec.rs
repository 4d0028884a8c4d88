//! Real children: that their bytes arrive, that their failures are told, and that nothing of them stays behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use mig_transport::{Blame, Channel, Connector, Error, Listener};
use mig_transport_exec::{
    CommandFailed, Ending, ExecCommand, ExecConnector, ExecListener, ExecOptions,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HANG: Duration = Duration::from_secs(30);

/// One test at a time: they count this process's descriptors and children.
static ALONE: Mutex<()> = Mutex::new(());

struct Scene {
    dir: PathBuf,
    fds: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Runs `play` and looks whether it left a descriptor or a child behind.
fn scene<F: Future<Output = ()>>(name: &str, play: impl FnOnce(PathBuf) -> F) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = std::env::temp_dir().join(format!("mig-exec-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    // tokio opens a pair of descriptors for signals once in a process.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let scene = Scene { dir, fds: open_fds(), _alone: alone };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(HANG, play(scene.dir.clone())).await.expect("hangs");
        // Children are reaped behind a drop: wait for it, bounded.
        for _ in 0..500 {
            if children().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(children(), Vec::<String>::new(), "children left");
    drop(runtime);
    assert_eq!(open_fds(), scene.fds, "descriptors left");
    assert!(!scene.file("forbidden").exists());
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Our children, zombies included.
fn children() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().map(String::from).collect::<Vec<_>>())
        .collect()
}

fn alive(pid: &str) -> bool {
    // A zombie of somebody else's (init may be slow to collect) is dead enough.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

async fn wait_for(path: &Path) -> String {
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().into(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn wait_dead(pid: &str) {
    while alive(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn shell(line: impl Into<String>) -> ExecCommand {
    ExecCommand::Shell(line.into())
}

async fn source(line: impl Into<String>, options: ExecOptions) -> Channel {
    ExecConnector::new(shell(line), options).unwrap().connect().await.unwrap()
}

async fn destination(line: impl Into<String>, options: ExecOptions) -> Channel {
    ExecListener::new(shell(line), options).unwrap().accept().await.unwrap()
}

fn io(error: std::io::Error) -> Error {
    Error::io("test", error)
}

fn failed(error: &Error) -> &CommandFailed {
    let Error::Io { source, .. } = error else { panic!("{error:?}") };
    source.get_ref().unwrap().downcast_ref().unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8).collect()
}

#[test]
fn a_source_writes_and_the_file_is_whole_when_the_end_returns() {
    scene("write", async |dir| {
        let file = dir.join("out");
        let mut channel = source(
            format!("sleep 0.2; cat >'{0}.part'; mv '{0}.part' '{0}'", file.display()),
            ExecOptions::default(),
        )
        .await;
        assert!(!channel.capabilities().return_path);
        assert!(channel.take_receiver().is_err());
        let bytes = pattern(3 << 20);
        let mut sender = channel.take_sender().unwrap();
        sender.write_all(&bytes).await.unwrap();
        sender.shutdown().await.unwrap();
        assert!(children().is_empty(), "reaped before the end is reported");
        assert!(std::fs::read(&file).unwrap() == bytes);
        sender.shutdown().await.unwrap();
    });
}

/// Both pipes take as much as the system allows an ordinary user, not the 64 KiB that a pipe is born with.
#[test]
fn both_pipes_are_enlarged() {
    let most = std::fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap();
    let expected = most.trim().parse::<usize>().unwrap().min(1 << 20);
    scene("large", async |dir| {
        let mut channel = source("sleep 30", ExecOptions::default()).await;
        let mut sender = channel.take_sender().unwrap();
        // Waits until the runtime knows that the pipe has room; then large pieces, few enough for one turn of a task.
        let first = sender.write(&[0; 4096]).await.unwrap();
        let taken = poll_fn(|cx| {
            let mut taken = first;
            while let Poll::Ready(written) = Pin::new(&mut sender).poll_write(cx, &[0; 32768]) {
                taken += written.unwrap();
            }
            Poll::Ready(taken)
        })
        .await;
        assert!(taken >= expected, "{taken} of {expected} bytes before the command reads");
        channel.shutdown_handle().shutdown();

        // Here the command writes, and gets to its next line although nobody reads.
        let done = dir.join("done");
        let line = format!("head -c {expected} /dev/zero; echo all >'{}'", done.display());
        let channel = destination(line, ExecOptions::default()).await;
        assert_eq!(wait_for(&done).await, "all");
        drop(channel);
    });
}

#[test]
fn a_destination_reads_to_the_end() {
    scene("read", async |dir| {
        let bytes = pattern(3 << 20);
        std::fs::write(dir.join("in"), &bytes).unwrap();
        let args = ["/bin/cat".into(), dir.join("in").into_os_string()];
        let mut listener =
            ExecListener::new(ExecCommand::Args(args.into()), ExecOptions::default()).unwrap();
        let mut channel = listener.accept().await.unwrap();
        let mut receiver = channel.take_receiver().unwrap();
        let mut seen = Vec::new();
        receiver.read_to_end(&mut seen).await.unwrap();
        assert!(seen == bytes);
        assert_eq!(listener.accept().await.unwrap_err().blame(), Blame::Misuse);
    });
}

#[test]
fn a_destination_keeps_stdin_open_while_it_reads() {
    // A relay that takes the end of stdin for a wish to stop would otherwise cut the stream.
    scene("stdin", async |_| {
        let line = "if read -t 1 x; then echo closed; elif [ $? -gt 128 ]; then echo open; else echo eof; fi";
        let args = ["/bin/bash", "-c", line].map(Into::into).to_vec();
        let mut channel = ExecListener::new(ExecCommand::Args(args), ExecOptions::default())
            .unwrap()
            .accept()
            .await
            .unwrap();
        let mut seen = String::new();
        channel.take_receiver().unwrap().read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "open\n");
    });
}

#[test]
fn a_status_other_than_zero_turns_the_end_into_an_error() {
    scene("status", async |_| {
        let mut channel =
            destination("printf data; echo 'no such disk' >&2; exit 3", ExecOptions::default())
                .await;
        let mut seen = Vec::new();
        let mut receiver = channel.take_receiver().unwrap();
        let error = io(receiver.read_to_end(&mut seen).await.unwrap_err());
        assert_eq!(seen, b"data");
        assert_eq!(failed(&error).ending, Ending::Status(3));
        assert_eq!(failed(&error).stderr(), "no such disk");
        assert_eq!(error.blame(), Blame::Io);
        let text = error.to_string();
        assert!(text.contains("status 3") && text.contains("no such disk"), "{text}");

        let mut channel = source("cat >/dev/null; kill -9 $$", ExecOptions::default()).await;
        let mut sender = channel.take_sender().unwrap();
        sender.write_all(b"x").await.unwrap();
        let error = io(sender.shutdown().await.unwrap_err());
        assert_eq!(failed(&error).ending, Ending::Signal(9));
    });
}

#[test]
fn a_broken_pipe_is_explained_by_the_command() {
    scene("epipe", async |_| {
        let mut channel =
            source("head -c 10 >/dev/null; echo 'disk full' >&2; exit 28", ExecOptions::default())
                .await;
        let mut sender = channel.take_sender().unwrap();
        let error = io(sender.write_all(&pattern(8 << 20)).await.unwrap_err());
        assert_eq!(failed(&error).ending, Ending::Status(28));
        assert!(error.to_string().contains("disk full"), "{error}");
        // The reason sticks.
        let again = io(sender.write_all(b"more").await.unwrap_err());
        assert_eq!(failed(&again).ending, Ending::Status(28));
        assert_eq!(failed(&io(sender.shutdown().await.unwrap_err())).ending, Ending::Status(28));

        // Even a good status is a failure when bytes were left.
        let mut channel = source("exec head -c 10 >/dev/null", ExecOptions::default()).await;
        let mut sender = channel.take_sender().unwrap();
        let error = io(sender.write_all(&pattern(8 << 20)).await.unwrap_err());
        assert_eq!(failed(&error).ending, Ending::Status(0));
        assert!(error.to_string().contains("before it had read everything"), "{error}");
    });
}

#[test]
fn a_command_that_closes_its_stdin_and_runs_on_is_ended() {
    scene("closes", async |_| {
        let mut channel = source("exec <&-; sleep 1000", ExecOptions::default()).await;
        let mut sender = channel.take_sender().unwrap();
        let error = io(sender.write_all(&pattern(8 << 20)).await.unwrap_err());
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
    });
}

#[test]
fn the_command_may_be_wrong() {
    scene("wrong", async |_| {
        let empty = ExecConnector::new(shell(" "), ExecOptions::default()).unwrap_err();
        assert_eq!(empty.blame(), Blame::Misuse);
        let args = ExecCommand::Args(vec!["/no/such/program".into()]);
        let connector = ExecConnector::new(args, ExecOptions::default()).unwrap();
        for _ in 0..2 {
            let error = connector.connect().await.unwrap_err();
            assert_eq!(error.blame(), Blame::Misuse);
            assert!(error.to_string().contains("/no/such/program"), "{error}");
        }
        let mut channel = destination("no-such-command-here", ExecOptions::default()).await;
        let mut nothing = Vec::new();
        let mut receiver = channel.take_receiver().unwrap();
        let error = io(receiver.read_to_end(&mut nothing).await.unwrap_err());
        assert_eq!(failed(&error).ending, Ending::Status(127));
        assert!(failed(&error).stderr().contains("no-such-command-here"), "{error}");
    });
}

#[test]
fn outputs_that_nobody_reads_do_not_stop_the_command() {
    scene("chatty", async |_| {
        let mut channel = source(
            "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; cat >/dev/null",
            ExecOptions::default(),
        )
        .await;
        let mut sender = channel.take_sender().unwrap();
        sender.write_all(&pattern(1 << 20)).await.unwrap();
        sender.shutdown().await.unwrap();
    });
}

#[test]
fn two_ways_with_a_return_path() {
    scene("both", async |_| {
        let options = ExecOptions::default().return_path(true);
        let mut channel = source("exec cat", options.clone()).await;
        assert!(channel.capabilities().return_path && channel.capabilities().relayed);
        let (mut sender, mut receiver) =
            (channel.take_sender().unwrap(), channel.take_receiver().unwrap());
        sender.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        receiver.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        sender.shutdown().await.unwrap();
        assert_eq!(receiver.read(&mut answer).await.unwrap(), 0);

        // A command that runs until both ways have ended does not hold up the end of one; the last end tells its status.
        let line = "read x; exec <&-; echo \"$x\"; sleep 0.2; exit 5";
        let mut channel = source(line, options.clone()).await;
        let (mut sender, mut receiver) =
            (channel.take_sender().unwrap(), channel.take_receiver().unwrap());
        sender.write_all(b"verdict\n").await.unwrap();
        sender.shutdown().await.unwrap();
        let mut text = String::new();
        let error = io(receiver.read_to_string(&mut text).await.unwrap_err());
        assert_eq!(failed(&error).ending, Ending::Status(5));

        let mut channel = destination("echo hello; read x; [ \"$x\" = bye ]", options).await;
        let (mut sender, mut receiver) =
            (channel.take_sender().unwrap(), channel.take_receiver().unwrap());
        let mut greeting = [0; 6];
        receiver.read_exact(&mut greeting).await.unwrap();
        sender.write_all(b"bye\n").await.unwrap();
        assert_eq!(receiver.read(&mut greeting).await.unwrap(), 0);
        sender.shutdown().await.unwrap();
    });
}

/// A group that ignores SIGTERM, has a grandchild, and reads nothing.
fn stubborn(dir: &Path) -> String {
    format!(
        "trap '' TERM; sh -c 'echo $$ >{0}/inner; exec sleep 1000' & echo $$ >{0}/outer; \
         while :; do sleep 1000; done; touch {0}/forbidden",
        dir.display()
    )
}

async fn stubborn_pids(dir: &Path) -> [String; 2] {
    let pids = [wait_for(&dir.join("inner")).await, wait_for(&dir.join("outer")).await];
    for name in ["inner", "outer"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    pids
}

#[test]
fn a_shutdown_ends_a_group_that_does_not_want_to() {
    scene("cancel", async |dir| {
        let mut channel = source(stubborn(&dir), ExecOptions::default()).await;
        let pids = stubborn_pids(&dir).await;
        let handle = channel.shutdown_handle();
        let mut sender = channel.take_sender().unwrap();
        let writing = tokio::spawn(async move { sender.write_all(&pattern(8 << 20)).await });
        // Until the pipe is full nothing can be said to wait; a full one is what is wanted here, but either will do.
        tokio::task::yield_now().await;
        handle.shutdown();
        let error = io(writing.await.unwrap().unwrap_err());
        assert_eq!(error.blame(), Blame::Cancelled, "{error}");
        for pid in pids {
            wait_dead(&pid).await;
        }
    });
}

#[test]
fn dropping_a_channel_ends_the_group() {
    scene("drop", async |dir| {
        for take in [false, true] {
            let mut channel = destination(stubborn(&dir), ExecOptions::default()).await;
            let pids = stubborn_pids(&dir).await;
            let handle = channel.shutdown_handle();
            if take {
                let receiver = channel.take_receiver().unwrap();
                drop(channel);
                assert!(pids.iter().all(|pid| alive(pid)), "a half is enough to keep it");
                drop(receiver);
            } else {
                drop(channel);
            }
            for pid in pids {
                wait_dead(&pid).await;
            }
            // Late and repeated shutdowns signal nobody.
            handle.shutdown();
            handle.shutdown();
        }
    });
}

#[test]
fn a_runtime_that_goes_takes_the_group_along() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = std::env::temp_dir().join(format!("mig-exec-{}-runtime", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (channel, pids) = runtime.block_on(async {
        let channel = source(stubborn(&dir), ExecOptions::default()).await;
        let pids = tokio::time::timeout(HANG, stubborn_pids(&dir)).await.unwrap();
        (channel, pids)
    });
    drop(runtime);
    let end = std::time::Instant::now() + HANG;
    while pids.iter().any(|pid| alive(pid)) || !children().is_empty() {
        assert!(std::time::Instant::now() < end, "{pids:?} live on");
        std::thread::yield_now();
    }
    drop(channel);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_command_that_does_not_end_is_ended_at_its_deadline() {
    scene("deadline", async |dir| {
        let options = ExecOptions::default().exit_deadline(Duration::from_millis(50));
        let mut channel =
            source(format!("cat >/dev/null; {}", stubborn(&dir)), options.clone()).await;
        let mut sender = channel.take_sender().unwrap();
        sender.write_all(b"x").await.unwrap();
        let error = io(sender.shutdown().await.unwrap_err());
        assert_eq!(error.blame(), Blame::Deadline, "{error}");

        let mut channel = destination("exec >&-; sleep 1000", options).await;
        let mut receiver = channel.take_receiver().unwrap();
        let error = io(receiver.read(&mut [0; 1]).await.unwrap_err());
        assert_eq!(error.blame(), Blame::Deadline, "{error}");
    });
}

#[test]
fn a_grandchild_that_holds_the_pipe_is_ended_at_the_deadline() {
    scene("orphan", async |dir| {
        let options = ExecOptions::default().exit_deadline(Duration::from_millis(50));
        let line = format!("sh -c 'echo $$ >{}/inner; exec sleep 1000' & exit 0", dir.display());
        let mut channel = destination(line.clone(), options.clone()).await;
        let mut receiver = channel.take_receiver().unwrap();
        let error = io(receiver.read(&mut [0; 1]).await.unwrap_err());
        assert_eq!(error.blame(), Blame::Deadline, "{error}");
        wait_dead(&wait_for(&dir.join("inner")).await).await;
        std::fs::remove_file(dir.join("inner")).unwrap();

        let mut channel = source(line, options).await;
        let mut sender = channel.take_sender().unwrap();
        let error = io(sender.shutdown().await.unwrap_err());
        assert_eq!(error.blame(), Blame::Deadline, "{error}");
        wait_dead(&wait_for(&dir.join("inner")).await).await;
    });
}

#[test]
fn a_grandchild_may_finish_the_work() {
    scene("handover", async |_| {
        let mut channel =
            destination("(sleep 0.3; printf late) & exit 0", ExecOptions::default()).await;
        let mut seen = String::new();
        channel.take_receiver().unwrap().read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "late");
    });
}
