//! The promises of every channel hold under TLS too.

use mig_testkit::{conformance, memory_pair};

use super::doubles::{Ends, socket_pair};

#[tokio::test]
async fn every_promise_holds_over_a_socket() {
    let ends = Ends::new();
    conformance::two_way(|| ends.pair(socket_pair())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_holds_on_several_threads() {
    let ends = Ends::new();
    conformance::two_way(|| ends.pair(socket_pair())).await;
}

/// Records and what carries them never line up, and every write is partial.
#[tokio::test]
async fn every_promise_holds_over_a_trickle() {
    let ends = Ends::new();
    conformance::two_way(|| ends.pair(memory_pair(5001))).await;
}
