//! Small limits on locked memory, as a user without privileges has them: refused with the figure before anything is sent, or
//! kept to. A limit is a process's for ever, so each case is this binary again, under `setpriv` and `prlimit`.

use std::process::Command;

use mig_transport::{Blame, Connector, Error, Listener, Result};
use mig_transport_rdma::{RdmaConnector, RdmaOptions};

use crate::{
    guarded,
    migration::{Ends, Guest, MIB, listener, migrate, options},
    on_a_device,
};

/// Set in the process with the limit.
const CASE: &str = "MIG_RDMA_MEMLOCK_CASE";

/// Runs this test again with the limit; its output.
fn limited(case: &str, bytes: usize) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.args(["prlimit", &format!("--memlock={bytes}:{bytes}")]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "memlock::the_process_with_the_limit", "--nocapture"]);
    let output = command.env(CASE, case).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{case}: {text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{case}: {text}");
    text
}

#[test]
fn a_limit_on_locked_memory_is_told_before_the_migration_or_kept_to() {
    // Whether this can be tried at all: who is not root has the limit already.
    let is_root = rustix::process::geteuid().is_root();
    on_a_device(|| async move {
        if !is_root {
            return mig_testkit::not_applicable("rdma-device", "only root can become nobody");
        }
        // Not even the control buffers of one connection.
        let told = limited("connection", 2 * MIB);
        assert!(told.contains("3670032 bytes must be locked for the control buffers"), "{told}");
        assert!(told.contains("`ulimit -l 3585`"), "{told}");
        // All of 5 MiB, and what is reserved.
        let told = limited("pin-all", 20 * MIB);
        assert!(told.contains("22020096 bytes must be locked for all guest memory"), "{told}");
        assert!(told.contains("RLIMIT_MEMLOCK allows 20971520"), "{told}");
        assert!(told.contains("`ulimit -l 21504`"), "{told}");
        // A budget that fits.
        limited("budget", 20 * MIB);
        limited("budget of its own", 20 * MIB);
    });
}

#[test]
fn the_process_with_the_limit() {
    let Ok(case) = std::env::var(CASE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut options = options();
        match case.as_str() {
            "connection" => println!("{}", refused_connection(options).await),
            "pin-all" => {
                options.pin_all = true;
                println!("{}", refused_memory(options).await.expect_err("too little"));
            }
            "budget" => {
                options.pinned_memory = Some(2 * MIB as u64);
                options.window_bytes = MIB as u64;
                let (mut listener, address) = listener(options.clone()).await;
                migrate(&mut listener, &address, options).await;
            }
            _ => {
                let (mut listener, address) = listener(options.clone()).await;
                migrate(&mut listener, &address, options).await;
            }
        }
    });
}

/// What a listener says that can serve nobody. The caller is turned away.
async fn refused_connection(options: RdmaOptions) -> Error {
    let (mut listener, address) = listener(options.clone()).await;
    // The caller needs as much, so only its request gets anywhere, with nothing behind it.
    let (id, _events) = crate::actor::resolved(crate::strangers::socket(&address)).await;
    let asked = mig_transport_rdma::verbs::ConnectParameters {
        private_data: crate::actor::QEMU,
        ..Default::default()
    };
    id.connect(&asked).unwrap();
    let error = guarded("the listener", listener.accept()).await.expect_err("too little");
    assert_eq!(error.blame(), Blame::Unavailable, "{error}");
    error
}

/// What a source says in front of the first window.
async fn refused_memory(options: RdmaOptions) -> Result<()> {
    let (mut listener, address) = listener(options.clone()).await;
    let connector = RdmaConnector::new(address, options);
    let guest = Guest::full();
    let (source, destination) = tokio::join!(connector.connect(), listener.accept());
    let (source, _destination) = (Ends::of(source?), Ends::of(destination?));
    let (refused, registered) = (source.set_up_only(&guest).await, guest.is_free());
    assert!(registered, "something was registered before the check");
    refused
}
