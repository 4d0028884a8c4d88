//! Descriptors of every kind, adopted by number and handed over: what carries bytes, what is refused, and that nothing
//! is taken twice, left open or left non-blocking.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    future::Future,
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use mig_transport::{Blame, Channel, Connector, Error, Listener};
use mig_transport_fd::{
    Descriptor, DescriptorKind, FdConnector, FdEnds, FdListener, NamedDescriptors, receive_fd,
    send_fd,
};
use rustix::fs::OFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HANG: Duration = Duration::from_secs(30);

fn play(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HANG, future).await.expect("hangs") });
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

/// As a parent leaves it to us: open, without close-on-exec, owned by nobody. Numbers are not used twice: one that was
/// adopted stays so.
fn inherited(fd: impl Into<OwnedFd>) -> RawFd {
    static NEXT: AtomicI32 = AtomicI32::new(200);
    let lowest = NEXT.fetch_add(1, Ordering::Relaxed);
    let fd = rustix::io::fcntl_dupfd_cloexec(fd.into(), lowest).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    fd.into_raw_fd()
}

fn owned(fd: impl Into<OwnedFd>) -> Result<Descriptor, Error> {
    Descriptor::from_owned(fd.into(), "fd:test").map_err(Error::from)
}

fn nonblocking(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

async fn connect(ends: FdEnds) -> Channel {
    FdConnector::new(ends).unwrap().connect().await.unwrap()
}

async fn accept(ends: FdEnds) -> Channel {
    FdListener::new(ends).unwrap().accept().await.unwrap()
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mig-fd-{}-{name}", std::process::id()));
    let _stale = std::fs::remove_file(&path);
    path
}

#[test]
fn a_number_is_adopted_exactly_once() {
    play(async {
        let (mut here, there) = UnixStream::pair().unwrap();
        let number = inherited(there);
        let ends = FdEnds::adopt(number).unwrap();
        let second = FdEnds::adopt(number).unwrap_err();
        assert_eq!(second.blame(), Blame::Misuse);
        assert!(second.to_string().contains("already adopted"), "{second}");

        let connector = FdConnector::new(ends).unwrap();
        let mut channel = connector.connect().await.unwrap();
        assert!(channel.capabilities().return_path && channel.capabilities().forced_shutdown);
        assert!(channel.capabilities().fd_passing && !channel.capabilities().several_channels);
        assert_eq!(channel.endpoint().to_string(), format!("fd {number}"));
        assert_eq!(connector.connect().await.unwrap_err().blame(), Blame::Misuse);

        let mut sender = channel.take_sender().unwrap();
        sender.write_all(b"hello").await.unwrap();
        let mut seen = [0; 5];
        here.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        here.write_all(b"back").unwrap();
        channel.take_receiver().unwrap().read_exact(&mut seen[..4]).await.unwrap();
        assert_eq!(&seen[..4], b"back");
        drop((sender, channel));
        // Closed, and still taken: the number may be anybody's by now.
        assert_eq!(here.read(&mut seen).unwrap(), 0);
        assert_eq!(FdEnds::adopt(number).unwrap_err().blame(), Blame::Misuse);
    });
}

#[test]
fn many_threads_adopt_one_number_once() {
    let (_here, there) = UnixStream::pair().unwrap();
    let number = inherited(there);
    let adopted = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| FdEnds::adopt(number))).collect();
        all.into_iter().filter_map(|thread| thread.join().unwrap().ok()).count()
    });
    assert_eq!(adopted, 1);
}

#[test]
fn what_this_process_opened_for_itself_is_not_adopted() {
    let (here, _there) = UnixStream::pair().unwrap();
    let error = FdEnds::adopt(here.as_raw_fd()).unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("not inherited"), "{error}");
    for number in [-1, 1_000_000] {
        assert_eq!(FdEnds::adopt(number).unwrap_err().blame(), Blame::Misuse);
    }
}

#[test]
fn a_refused_number_stays_as_it_was() {
    let path = scratch("plain");
    let number = inherited(File::create(&path).unwrap());
    for _ in 0..2 {
        let error = FdEnds::adopt(number).unwrap_err();
        assert!(error.to_string().contains("use file:"), "{error}");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn refusals_tell_what_it_is_and_what_to_use() {
    let path = scratch("refused");
    let plain = File::create(&path).unwrap();
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket_path = scratch("listening");
    let unix_listening = UnixListener::bind(&socket_path).unwrap();
    let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unconnected = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let o_path = rustix::fs::open("/", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let cases: [(OwnedFd, &str, &str); 9] = [
        (plain.into(), "a plain file", "file:"),
        (File::open("/").unwrap().into(), "a directory", "file:"),
        (File::open("/dev/null").unwrap().into(), "character device", "pipe or a socket"),
        (listening.into(), "a listening socket", "connection it accepts"),
        (unix_listening.into(), "a listening socket", "tcp: or unix:"),
        (datagram.into(), "not a stream socket", "SOCK_STREAM"),
        (unconnected, "not connected", "connect it"),
        (o_path, "O_PATH", "open it"),
        (event, "neither a socket nor a pipe", "pipe or a socket"),
    ];
    for (fd, is, instead) in cases {
        let raw = fd.as_raw_fd();
        let rejected = Descriptor::from_owned(fd, "fd:case").unwrap_err();
        assert_eq!(rejected.fd.as_raw_fd(), raw, "handed back");
        assert_eq!(rejected.error.blame(), Blame::Misuse);
        let text = rejected.to_string();
        assert!(
            text.contains(is) && text.contains(instead) && text.starts_with("fd:case"),
            "{text}"
        );
    }
    std::fs::remove_file(path).unwrap();
    std::fs::remove_file(socket_path).unwrap();
}

#[test]
fn a_pipe_goes_one_way_and_the_role_must_fit() {
    play(async {
        let (reader, writer) = pipe();
        let flags = writer.try_clone().unwrap();
        let (reader, writer) = (owned(reader).unwrap(), owned(writer).unwrap());
        assert_eq!(
            (reader.kind(), writer.kind()),
            (DescriptorKind::PipeReader, DescriptorKind::PipeWriter)
        );
        let connector = FdConnector::new(FdEnds::One(writer)).unwrap();
        assert_eq!(connector.is_two_way(), Some(false), "told before the channel is taken");
        let mut source = connector.connect().await.unwrap();
        let mut destination = accept(FdEnds::One(reader)).await;
        assert!(!source.capabilities().return_path && !destination.capabilities().return_path);
        assert!(source.take_receiver().is_err() && destination.take_sender().is_err());
        assert!(nonblocking(&flags));

        let (mut sender, mut receiver) =
            (source.take_sender().unwrap(), destination.take_receiver().unwrap());
        let bytes: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        let sent = bytes.clone();
        let writing = tokio::spawn(async move {
            sender.write_all(&sent).await.unwrap();
            // The end of a pipe is its close, so an orderly end must close it, though the half lives on.
            sender.shutdown().await.unwrap();
            sender
        });
        // The clone made to look at the flags would keep the pipe open.
        drop(flags);
        let mut seen = Vec::new();
        receiver.read_to_end(&mut seen).await.unwrap();
        assert!(seen == bytes);
        let mut sender = writing.await.unwrap();
        assert!(sender.write_all(b"x").await.is_err());

        let (reader, writer) = pipe();
        let error = FdConnector::new(FdEnds::One(owned(reader).unwrap())).unwrap_err();
        assert!(error.to_string().contains("a source writes"), "{error}");
        let error = FdListener::new(FdEnds::One(owned(writer).unwrap())).unwrap_err();
        assert!(error.to_string().contains("a destination reads"), "{error}");
    });
}

#[test]
fn a_fifo_by_its_access_mode() {
    play(async {
        let path = scratch("fifo");
        let name = CString::new(path.to_str().unwrap()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &name, rustix::fs::Mode::RWXU).unwrap();
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(owned(both.try_clone().unwrap()).unwrap().kind(), DescriptorKind::PipeBoth);
        drop(both);
        let (reader, writer) = (owned(reader).unwrap(), owned(writer).unwrap());
        let mut sender = connect(FdEnds::One(writer)).await.take_sender().unwrap();
        let mut receiver = accept(FdEnds::One(reader)).await.take_receiver().unwrap();
        sender.write_all(b"through").await.unwrap();
        drop(sender);
        let mut seen = String::new();
        receiver.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "through");
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn two_pipes_make_a_two_way_channel() {
    play(async {
        let (ours_in, theirs_out) = pipe();
        let (theirs_in, ours_out) = pipe();
        let ours = FdEnds::adopt_pair(inherited(ours_in), inherited(ours_out)).unwrap();
        let theirs = FdEnds::pair(owned(theirs_in).unwrap(), owned(theirs_out).unwrap()).unwrap();
        assert!(ours.is_two_way() && ours.has_pipe());
        let (mut source, mut destination) = (connect(ours).await, accept(theirs).await);
        assert!(source.capabilities().return_path && !source.capabilities().forced_shutdown);
        assert!(source.capabilities().relayed, "whoever has the other ends may be a relay");
        let (mut send, mut receive) =
            (source.take_sender().unwrap(), source.take_receiver().unwrap());
        let (mut answer, mut take) =
            (destination.take_sender().unwrap(), destination.take_receiver().unwrap());
        send.write_all(b"question").await.unwrap();
        drop(send);
        let mut seen = String::new();
        take.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "question");
        answer.write_all(b"answer").await.unwrap();
        drop(answer);
        seen.clear();
        receive.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "answer");

        let (reader, writer) = pipe();
        let error = FdEnds::pair(owned(writer).unwrap(), owned(reader).unwrap()).unwrap_err();
        assert!(error.to_string().contains("fd:IN,OUT"), "{error}");
        assert_eq!(FdEnds::adopt_pair(7, 7).unwrap_err().blame(), Blame::Misuse);
    });
}

#[test]
fn one_socket_under_two_numbers_is_one_socket() {
    let (here, _there) = UnixStream::pair().unwrap();
    let twin = here.try_clone().unwrap();
    let ends = FdEnds::pair(owned(here).unwrap(), owned(twin).unwrap()).unwrap();
    assert!(matches!(ends, FdEnds::One(_)) && !ends.has_pipe());
}

#[test]
fn blocking_mode_is_given_back() {
    play(async {
        // Another process shares the open file: what we set there, it sees.
        let (reader, writer) = pipe();
        let shell = reader.try_clone().unwrap();
        let channel = accept(FdEnds::One(owned(reader).unwrap())).await;
        assert!(nonblocking(&shell));
        drop(channel);
        assert!(!nonblocking(&shell));

        // What was non-blocking before stays so.
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let parent = writer.try_clone().unwrap();
        drop(connect(FdEnds::One(owned(writer).unwrap())).await);
        assert!(nonblocking(&parent));

        let (socket, _there) = UnixStream::pair().unwrap();
        let parent = socket.try_clone().unwrap();
        let channel = connect(FdEnds::One(owned(socket).unwrap())).await;
        assert!(nonblocking(&parent));
        drop(channel);
        assert!(!nonblocking(&parent));
    });
}

#[test]
fn a_shutdown_wakes_a_waiting_pipe_and_tells_the_far_end() {
    play(async {
        let (reader, mut far) = {
            let (reader, writer) = std::io::pipe().unwrap();
            (reader, writer)
        };
        let mut channel = accept(FdEnds::One(owned(reader).unwrap())).await;
        let handle = channel.shutdown_handle();
        let mut receiver = channel.take_receiver().unwrap();
        let reading = tokio::spawn(async move { receiver.read(&mut [0; 16]).await });
        tokio::task::yield_now().await;
        handle.shutdown();
        let error = Error::io("reading", reading.await.unwrap().unwrap_err());
        assert_eq!(error.blame(), Blame::Cancelled);
        // The half is gone though the handle lives: the writer must see a broken pipe, not a full one.
        drop(channel);
        let written = tokio::task::spawn_blocking(move || far.write_all(&[0; 1 << 20]));
        assert_eq!(written.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let channel = accept(FdEnds::One(owned(listener.accept().unwrap().0).unwrap())).await;
        assert!(!channel.capabilities().fd_passing);
        channel.shutdown_handle().shutdown();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn names_are_consumed() {
    let names = NamedDescriptors::new();
    for wrong in ["", "1st"] {
        let (reader, _writer) = pipe();
        let raw = reader.as_raw_fd();
        let rejected = names.add(wrong, reader).unwrap_err();
        assert_eq!((rejected.error.blame(), rejected.fd.as_raw_fd()), (Blame::Misuse, raw));
    }
    let (reader, writer) = pipe();
    let plain = File::open("/").unwrap();
    names.add("mig0", reader).unwrap();
    names.add("mig1", writer).unwrap();
    names.add("dir", plain.into()).unwrap();
    assert_eq!(names.names(), ["dir", "mig0", "mig1"]);
    assert_eq!(names.take("mig0").unwrap().kind(), DescriptorKind::PipeReader);
    let error = names.take("mig0").unwrap_err();
    assert!(error.to_string().contains("dir, mig1"), "{error}");
    assert!(names.take("dir").is_err());
    assert!(names.close("dir"), "a refused one stays until it is closed");
    assert!(names.close("mig1") && !names.close("mig1"));
}

#[test]
fn a_descriptor_travels_over_a_unix_socket() {
    play(async {
        let (to, from) = tokio::net::UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        send_fd(&to, writer.as_fd(), HANG).await.unwrap();
        drop(writer);
        let received = receive_fd(&from, HANG).await.unwrap();
        assert!(rustix::io::fcntl_getfd(&received).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let mut sender =
            connect(FdEnds::One(owned(received).unwrap())).await.take_sender().unwrap();
        sender.write_all(b"carried").await.unwrap();
        drop(sender);
        let mut seen = String::new();
        File::from(reader).read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "carried");
    });
}

fn send_many(socket: &tokio::net::UnixStream, fd: &OwnedFd, count: usize) {
    let fds = vec![fd.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    }
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, flags).unwrap();
}

#[test]
fn only_one_descriptor_is_taken_and_extra_ones_are_closed() {
    play(async {
        for (count, what) in [(0, "without"), (2, "2 descriptors"), (40, "more than")] {
            let (to, from) = tokio::net::UnixStream::pair().unwrap();
            let (reader, writer) = pipe();
            send_many(&to, &writer, count);
            drop(writer);
            let error = receive_fd(&from, HANG).await.unwrap_err();
            assert_eq!(error.blame(), Blame::PeerMisbehaved);
            assert!(error.to_string().contains(what), "{error}");
            // If one copy of the writing end were left, this would wait for ever.
            let end = tokio::task::spawn_blocking(move || File::from(reader).read(&mut [0; 1]));
            assert_eq!(end.await.unwrap().unwrap(), 0);
        }
        let (to, from) = tokio::net::UnixStream::pair().unwrap();
        let error = receive_fd(&from, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Deadline);
        drop(to);
        let error = receive_fd(&from, HANG).await.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved);
    });
}

/// Not a test by itself: the one below runs it in a process of its own, because it takes 0 and 1.
#[test]
fn child_answers_on_standard_output() {
    if std::env::var_os("MIG_TEST_CHILD").is_none() {
        return;
    }
    play(async {
        let mut channel = accept(FdEnds::adopt_pair(0, 1).unwrap()).await;
        // Whatever is printed now must not reach the stream.
        println!("noise");
        let mut receiver = channel.take_receiver().unwrap();
        let mut sender = channel.take_sender().unwrap();
        let mut seen = [0; 4];
        receiver.read_exact(&mut seen).await.unwrap();
        sender.write_all(b"got ").await.unwrap();
        sender.write_all(&seen).await.unwrap();
        sender.shutdown().await.unwrap();
        drop((receiver, sender, channel));
        // The numbers stay taken: the next descriptor is not one of them.
        assert!(File::open("/dev/null").unwrap().as_raw_fd() > 2);
    });
}

#[test]
fn stdin_and_stdout_carry_a_channel_both_ways() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_answers_on_standard_output", "--nocapture", "--quiet"])
        .env("MIG_TEST_CHILD", "1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"ping").unwrap();
    let mut seen = String::new();
    child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert!(child.wait().unwrap().success());
    // The test harness says its own words before the channel starts; nothing may come after it.
    assert!(seen.ends_with("got ping"), "{seen:?}");
    assert!(!seen.contains("noise"), "{seen:?}");
}
