//! The backend over sockets in a scratch folder: the shared promises, and what only unix sockets have.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mig_testkit::conformance;
use mig_transport::{Blame, Channel, Connector, Listener, address::UnixAddress};
use mig_transport_unix::{UnixConnector, UnixListener, UnixOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A folder of its own, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mig-unix-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a fresh folder can be made");
        Self(folder)
    }

    fn address(&self, name: &str) -> UnixAddress {
        UnixAddress::new(self.0.join(name).to_str().expect("the scratch path is text"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is in the system's temporary folder.
        let _removed = fs::remove_dir_all(&self.0);
    }
}

fn listen(address: &UnixAddress) -> UnixListener {
    UnixListener::bind(address, UnixOptions::default()).expect("a free name can be bound")
}

fn refused(address: &UnixAddress) -> String {
    let error = UnixListener::bind(address, UnixOptions::default()).expect_err("it is taken");
    assert_eq!(error.blame(), Blame::Misuse);
    error.to_string()
}

fn connector(address: &UnixAddress) -> UnixConnector {
    UnixConnector::new(address.clone(), UnixOptions::default())
}

async fn pair(address: &UnixAddress) -> (Channel, Channel) {
    let mut listener = listen(address);
    let connector = connector(address);
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    (ours.expect("connects"), theirs.expect("accepts"))
}

async fn hear(mut channel: Channel) -> String {
    let mut heard = String::new();
    let mut receiver = channel.take_receiver().expect("a fresh channel");
    receiver.read_to_string(&mut heard).await.expect("the peer ends in order");
    heard
}

#[tokio::test]
async fn every_promise_holds_over_a_path() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    conformance::two_way(|| pair(&address)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_holds_over_an_abstract_name_on_several_threads() {
    let address = UnixAddress::new_abstract(format!("mig-test-{}", std::process::id()));
    conformance::two_way(|| pair(&address)).await;
}

#[tokio::test]
async fn tight_and_padded_names_are_different_names() {
    let tight = UnixAddress::new_abstract(format!("mig-tight-{}", std::process::id()));
    let padded = UnixAddress { tight: false, ..tight.clone() };
    let _tight = listen(&tight);
    let mut listener = listen(&padded);
    let connector = connector(&padded);
    let (ours, theirs) = tokio::join!(connector.connect(), listener.accept());
    ours.unwrap();
    theirs.unwrap();
    assert_eq!(listener.local_addresses(), [""; 0], "there is no URI for it");
    assert!(refused(&tight).contains("another process has that name"));
}

#[tokio::test]
async fn each_end_knows_the_other() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    let uri = format!("unix:{}", address.path);
    assert_eq!(listen(&address).local_addresses(), [uri]);
    let (ours, theirs) = pair(&address).await;
    let me = format!("pid {}, uid ", std::process::id());
    assert!(theirs.endpoint().peer.starts_with(&me), "{}", theirs.endpoint());
    assert!(ours.endpoint().peer.contains(&me), "{}", ours.endpoint());
    assert_eq!(theirs.endpoint().local, address.path);
    let capabilities = theirs.capabilities();
    assert!(capabilities.fd_passing && capabilities.forced_shutdown && capabilities.return_path);
}

#[tokio::test]
async fn the_file_goes_with_the_listener() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    let listener = listen(&address);
    assert!(fs::symlink_metadata(&address.path).is_ok());
    drop(listener);
    assert!(fs::symlink_metadata(&address.path).is_err());
    // Somebody else's file in its place is left alone.
    let listener = listen(&address);
    fs::remove_file(&address.path).unwrap();
    let other = listen(&address);
    drop(listener);
    connector(&address).connect().await.unwrap();
    drop(other);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    // The standard library leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&address.path).unwrap());
    let stale = fs::symlink_metadata(&address.path).unwrap().ctime_nsec();
    let mut living = listen(&address);
    assert_ne!(fs::symlink_metadata(&address.path).unwrap().ctime_nsec(), stale);

    assert!(refused(&address).contains("another process has that socket"));
    // The refused one has neither removed the file nor knocked at the door.
    let mut ours = connector(&address).connect().await.unwrap();
    ours.take_sender().unwrap().write_all(b"first").await.unwrap();
    assert_eq!(hear(living.accept().await.unwrap()).await, "first", "nobody came before");
}

#[tokio::test]
async fn what_is_no_socket_is_never_removed() {
    let scratch = Scratch::new();
    let file = scratch.address("file");
    fs::write(&file.path, "precious").unwrap();
    assert!(refused(&file).contains("not a socket"));
    assert_eq!(fs::read_to_string(&file.path).unwrap(), "precious");
    let link = scratch.address("link");
    std::os::unix::fs::symlink(&file.path, &link.path).unwrap();
    assert!(refused(&link).contains("not a socket"));
    let datagram = scratch.address("datagram");
    let _held = std::os::unix::net::UnixDatagram::bind(&datagram.path).unwrap();
    assert!(refused(&datagram).contains("another process has that socket"));
    assert!(refused(&scratch.address("no/such/folder")).contains("folder does not exist"));
    let long = UnixAddress::new("p".repeat(108));
    assert!(refused(&long).contains("at most 107"));
}

#[tokio::test]
async fn the_mode_is_exact() {
    let scratch = Scratch::new();
    for mode in [0o600, 0o666, 0o777] {
        let address = scratch.address("s");
        let options = UnixOptions::with(|options| options.mode = Some(mode));
        let _listener = UnixListener::bind(&address, options).unwrap();
        let found = fs::symlink_metadata(&address.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{found:o}");
    }
    let options = UnixOptions::with(|options| options.mode = Some(0o1777));
    UnixListener::bind(&scratch.address("t"), options).unwrap_err();
    let options = UnixOptions::with(|options| options.mode = Some(0o600));
    UnixListener::bind(&UnixAddress::new_abstract("x"), options).unwrap_err();
}

#[tokio::test]
async fn a_stranger_is_dropped_and_others_are_served() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    // The owner of a file made here is this process's user.
    let me = fs::metadata(&scratch.0).unwrap().uid();
    let only = |uids: Vec<u32>| {
        let options = UnixOptions::with(|options| options.allowed_uids = Some(uids));
        UnixListener::bind(&address, options).unwrap()
    };
    let mut listener = only(vec![me.wrapping_add(1)]);
    let mut ours = connector(&address).connect().await.unwrap();
    let mut receiver = ours.take_receiver().unwrap();
    let mut byte = [0; 1];
    tokio::select! {
        accepted = listener.accept() => panic!("the stranger was let in: {accepted:?}"),
        heard = receiver.read(&mut byte) => assert!(!matches!(heard, Ok(1)), "it has ended"),
    }
    drop(listener);

    let mut listener = only(vec![me]);
    let mut ours = connector(&address).connect().await.unwrap();
    ours.take_sender().unwrap().write_all(b"hello").await.unwrap();
    assert_eq!(hear(listener.accept().await.unwrap()).await, "hello");
}

#[tokio::test]
async fn connecting_to_nobody_says_why() {
    let scratch = Scratch::new();
    let missing = scratch.address("missing");
    let error = connector(&missing).connect().await.unwrap_err();
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains("start the destination first"), "{error}");
    let stale = scratch.address("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale.path).unwrap());
    let error = connector(&stale).connect().await.unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

/// Paused: the clock jumps from pause to pause.
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_until_the_deadline() {
    let scratch = Scratch::new();
    let address = scratch.address("s");
    let options = UnixOptions::with(|options| options.backlog = 1);
    let mut listener = UnixListener::bind(&address, options).unwrap();
    let short = UnixOptions::with(|options| options.deadline = Duration::from_secs(7));
    let connector = UnixConnector::new(address, short);
    let mut held = Vec::new();
    let error = loop {
        match connector.connect().await {
            Ok(channel) => held.push(channel),
            Err(error) => break error,
        }
        assert!(held.len() < 10, "the queue never fills");
    };
    assert_eq!(error.blame(), Blame::Deadline);
    assert!(error.to_string().contains("7s"), "{error}");
    // Room is made: whoever waits gets in.
    let (late, _first) = tokio::join!(connector.connect(), listener.accept());
    late.unwrap();
}
