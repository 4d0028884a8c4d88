//! Limits of the kernel: looked at before anything is sent, and met while it is. In user namespaces of their own, because a
//! limit holds for nobody who may lock memory.

use std::{
    future::poll_fn,
    io::{self, Read},
    sync::atomic::AtomicUsize,
    task::Poll,
    thread,
};

use mig_testkit::{pattern, runs_inside};
use mig_transport::Gather;
use tokio::io::AsyncWriteExt;

use super::support::{Gone, channel, region, send, sockets};

#[test]
fn too_little_lockable_memory_is_told_in_figures() {
    let limited = ["prlimit", "--memlock=65536:65536", "unshare", "--user", "--map-root-user"];
    if runs_inside("limits::too_little_lockable_memory_is_told_in_figures", &limited) {
        too_little();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn too_little() {
    let (ours, _theirs) = sockets();
    let report = channel(ours).take_sender().unwrap().request_zero_copy().report();
    let reason = report.reason.as_deref().unwrap();
    assert!(!report.in_force);
    assert!(reason.contains("RLIMIT_MEMLOCK is 65536 bytes"), "{reason}");
    assert!(reason.contains("1048576"), "{reason}");
}

/// Just enough for two sends, of which more do not fit, and perhaps others of this user have taken it already.
#[test]
fn what_the_kernel_has_no_room_for_goes_the_ordinary_way() {
    let limited = ["prlimit", "--memlock=1048576:1048576", "unshare", "--user", "--map-root-user"];
    if runs_inside("limits::what_the_kernel_has_no_room_for_goes_the_ordinary_way", &limited) {
        no_room();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn no_room() {
    const BYTES: usize = 12 << 20;
    let (ours, mut theirs) = sockets();
    let mut channel = channel(ours);
    let mut sender = channel.take_sender().unwrap();
    let told = sender.request_zero_copy();
    assert!(told.is_in_force(), "{told:?}");
    let gone = Gone::default();
    let lent = region(4, BYTES, &gone);
    let mut gather = Gather::new();
    for at in (0..BYTES).step_by(256 * 1024) {
        gather.push_page(&lent, at, 256 * 1024).unwrap().unwrap();
    }
    // A call takes what fits: small allowances make many calls.
    let filled = poll_fn(|cx| {
        loop {
            gather.set_allowance(Some(256 * 1024));
            match sender.poll_send(cx, &mut gather) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return Poll::Ready(io::Result::Ok(())),
            };
        }
    });
    filled.await.unwrap();
    gather.set_allowance(None);
    let report = told.report();
    assert!(report.enobufs > 0 && report.bytes_ordinary > 0, "{report:?}");
    assert!(report.in_force, "for want of room alone it is not given up at once: {report:?}");

    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all
    });
    send(&mut sender, &mut gather, &AtomicUsize::new(0)).await.unwrap();
    sender.shutdown().await.unwrap();
    assert!(reader.join().unwrap() == pattern::bytes(4, 0, BYTES), "all bytes, in order");
    let report = told.report();
    let all = report.bytes_zero_copied + report.bytes_copied_by_kernel + report.bytes_ordinary;
    assert_eq!(all, BYTES as u64);
    drop((gather, lent));
    assert_eq!(gone.count(), 1);
}
