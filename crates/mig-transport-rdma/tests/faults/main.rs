//! What goes wrong over `rdma:` on a real device, both ends in one process: hostile and silent peers played by hand
//! ([`actor`]), dead links, cancelling at each moment, and whether anything is left behind.
//!
//! Where there is no RDMA device each test says that it is not applicable; `cargo xtask test` runs them in the lab. The address
//! is 10.55.0.1, or the first one in `MIG_RDMA_TEST_ADDRS`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod actor;
mod dead;
mod dropped;
mod hostile_destination;
mod hostile_source;
mod memlock;
mod migration;
mod protocol;
mod strangers;

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Ten times what anything here takes under emulation.
const GUARD: Duration = Duration::from_secs(60);

/// Runs a test alone: `rdma resource show` counts what all of them use. Afterwards nothing may be left that was not there
/// before.
fn on_a_device<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let reason = match mig_transport_rdma::devices() {
        Ok(devices) if devices.is_empty() => "no RDMA device".to_owned(),
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    if !reason.is_empty() {
        return mig_testkit::not_applicable("rdma-device", &reason);
    }
    static WARM: std::sync::Once = std::sync::Once::new();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    WARM.call_once(warm_up);
    let before = Left::now();
    let started = Instant::now();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
    println!("took {:.1} s", started.elapsed().as_secs_f64());
    drop(runtime);
    let deadline = Instant::now() + GUARD;
    while Left::now() != before {
        assert!(Instant::now() < deadline, "left: {:?}, before: {before:?}", Left::now());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the libraries open once and keep is not a leak.
fn warm_up() {
    let before = objects();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut listener, address) = migration::listener(migration::options()).await;
        migration::migrate(&mut listener, &address, migration::options()).await;
    });
    drop(runtime);
    let deadline = Instant::now() + GUARD;
    while objects() != before {
        assert!(Instant::now() < deadline, "left by a sound migration: {}", objects());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a test may leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// What the kernel counts of each kind of object on all devices: queue pairs, memory regions, …
    objects: String,
    descriptors: usize,
    /// Pages that are pinned, where the kernel says so.
    pinned: Option<String>,
}

impl Left {
    fn now() -> Self {
        Self {
            objects: objects(),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            pinned: status("VmPin:"),
        }
    }
}

/// What the kernel counts of each kind of object on all devices, but for contexts: the libraries keep theirs.
fn objects() -> String {
    let output = std::process::Command::new("rdma").args(["resource", "show"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(" mr "), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let contexts = |at: usize| words[at] == "ctx" || at > 0 && words[at - 1] == "ctx";
    let kept: Vec<&str> =
        (0..words.len()).filter(|&at| !contexts(at)).map(|at| words[at]).collect();
    kept.join(" ")
}

/// A line of `/proc/self/status`.
fn status(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with(name)).map(str::to_owned)
}

fn address() -> IpAddr {
    let addresses = std::env::var("MIG_RDMA_TEST_ADDRS").unwrap_or_else(|_| "10.55.0.1".into());
    addresses.split(',').next().unwrap_or_default().parse().expect("an IP address")
}

/// An address to listen at.
fn any_port() -> SocketAddr {
    SocketAddr::new(address(), 0)
}

/// Waits, but not for ever.
async fn guarded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}
