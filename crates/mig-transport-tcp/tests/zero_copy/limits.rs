//! Limits of the kernel, looked at before anything is sent.

use std::process::Command;

use mig_testkit::not_applicable;

use super::support::{channel, sockets};

/// Set in the process that the test starts of itself.
const INSIDE: &str = "MIG_ZERO_COPY_LIMITED";

/// In a user namespace of its own, because a limit holds for nobody who may lock memory.
#[test]
fn too_little_lockable_memory_is_told_in_figures() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let outcome = Command::new("prlimit")
        .args(["--memlock=65536:65536", "unshare", "--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "limits::too_little_lockable_memory_is_told_in_figures", "--nocapture"])
        .env(INSIDE, "yes")
        .output();
    match outcome {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            if !text.contains("running 1 test") {
                return not_applicable("network-namespace", &text);
            }
            panic!("{text}");
        }
        Err(error) => not_applicable("network-namespace", &format!("prlimit: {error}")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn inside() {
    let (ours, _theirs) = sockets();
    let report = channel(ours).take_sender().unwrap().request_zero_copy().report();
    let reason = report.reason.as_deref().unwrap();
    assert!(!report.in_force);
    assert!(reason.contains("RLIMIT_MEMLOCK is 65536 bytes"), "{reason}");
    assert!(reason.contains("1048576"), "{reason}");
}
