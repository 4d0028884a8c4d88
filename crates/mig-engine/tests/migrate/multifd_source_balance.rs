//! Work goes to whichever channel is free: a slow one gets little and holds up nothing but what it has, and all of them
//! keep to one rate.

use std::time::Duration;

use mig_engine::{MigrationHandle, ZeroPageDetection};
use mig_proto::multifd::{HEADER_LEN, Hello, Method, PACKET_PAGES};
use mig_ram::PAGE_SIZE;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
};

use crate::{
    multifd_source_far::{
        Arrivals, Dialling, Line, SOON, Said, channels, echo, hear, no_lane_stays, same_memory,
        source, still_guest,
    },
    multifd_wire::Far,
};

const PAGES: [usize; 2] = [4000, 20];

/// The far end, of which only `bytes` can be read before `gate` opens.
fn slowed(far: Box<dyn Far>, bytes: usize, gate: oneshot::Receiver<()>) -> Box<dyn Far> {
    let (near, mut other) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let mut far = far;
        let mut some = vec![0; bytes];
        far.read_exact(&mut some).await.unwrap();
        other.write_all(&some).await.unwrap();
        gate.await.unwrap();
        tokio::io::copy(&mut far, &mut other).await.unwrap();
    });
    Box::new(near)
}

/// Slows the channel with this number down, main being 0.
fn with_slow(mut arrivals: Arrivals, slow: usize, bytes: usize) -> (Arrivals, oneshot::Sender<()>) {
    let (open, gate) = oneshot::channel();
    let (door, slowed_too) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut gate = Some(gate);
        let mut nth = 0;
        while let Some(far) = arrivals.recv().await {
            let far = match gate.take_if(|_| nth == slow) {
                Some(gate) => slowed(far, bytes, gate),
                None => far,
            };
            door.send(far).unwrap_or_else(|_| panic!("nobody listens"));
            nth += 1;
        }
    });
    (slowed_too, open)
}

/// Waits until nothing is unsent but what fits into `packets`.
async fn nearly_done(handle: &MigrationHandle, packets: usize) {
    let most = (packets * PACKET_PAGES * PAGE_SIZE) as u64;
    loop {
        let ram = handle.info().ram;
        if ram.transferred > 1_000_000 && ram.remaining <= most {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_channel_gets_little_and_the_others_do_its_work() {
    // A packet does not fit on the way; what was taken is all that it has.
    for line in [Line::Memory(8192), Line::Unix, Line::Tcp] {
        for machine in ["pc-q35-7.2", "pc-q35-10.0"] {
            for slow in 1..=3 {
                let memory = still_guest(PAGES);
                let (connector, arrivals) = Dialling::new(line);
                // Hello and the first SYNC.
                let (arrivals, open) = with_slow(arrivals, slow, Hello::LEN + HEADER_LEN);
                let mut parameters = channels(3);
                // Those of older machine types would be left to the end of the section.
                parameters.zero_page_detection = ZeroPageDetection::None;
                let mut source = source(&memory, machine, parameters);
                let handle = source.handle();
                let last = async {
                    nearly_done(&handle, 1).await;
                    open.send(()).unwrap();
                };
                let hearing = hear(arrivals, Method::None, echo);
                let all = async { tokio::join!(source.run(&connector), hearing, last) };
                let (sent, heard, ()) = tokio::time::timeout(SOON, all).await.expect("no end");
                sent.unwrap();
                let mark = if machine == "pc-q35-7.2" { Said::Eos } else { Said::Flush };
                same_memory(&memory.ram, &heard.memory(&mark, PAGES));
                let carried: Vec<usize> = heard
                    .data
                    .iter()
                    .map(|data| data.packets.iter().filter(|packet| !packet.sync).count())
                    .collect();
                assert!(carried[slow - 1] <= 1, "{line:?} {machine}: {carried:?}");
                assert!(carried.iter().sum::<usize>() > 20, "{carried:?}");
            }
        }
    }
    no_lane_stays();
}

/// What is behind the slow one's packet waits for it: rounds never mix.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_ends_with_its_slowest_channel() {
    let memory = still_guest(PAGES);
    let (connector, arrivals) = Dialling::new(Line::Memory(8192));
    let (arrivals, open) = with_slow(arrivals, 2, Hello::LEN + HEADER_LEN);
    let mut source = source(&memory, "pc-q35-10.0", channels(3));
    let handle = source.handle();
    let diary = memory.diary.clone();
    let last = async {
        nearly_done(&handle, 1).await;
        // The others have nothing to do: main begins and ends sections, and no pass ends.
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(handle.info().ram.dirty_sync_count, 1);
            assert!(!diary.has("stop"));
        }
        open.send(()).unwrap();
    };
    let hearing = hear(arrivals, Method::None, echo);
    let all = async { tokio::join!(source.run(&connector), hearing, last) };
    let (sent, heard, ()) = tokio::time::timeout(SOON, all).await.expect("no end");
    sent.unwrap();
    assert_eq!(heard.rounds(&Said::Flush).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_channels_share_a_rate_that_can_be_changed() {
    for machine in ["pc-q35-7.2", "pc-q35-10.0"] {
        let memory = still_guest(PAGES);
        let (connector, arrivals) = Dialling::new(Line::Unix);
        let mut parameters = channels(3);
        parameters.max_bandwidth = 20_000_000;
        let mut source = source(&memory, machine, parameters.clone());
        let handle = source.handle();
        let steer = async {
            while handle.info().ram.transferred < 500_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            parameters.max_bandwidth = 1;
            handle.set_parameters(parameters.clone());
            // What was allowed before may still go.
            let (mut before, mut same) = (0, 0);
            while same < 15 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let now = handle.info().ram.transferred;
                same = if now == before { same + 1 } else { 0 };
                before = now;
            }
            assert!(handle.info().ram.remaining > 0);
            parameters.max_bandwidth = 0;
            handle.set_parameters(parameters);
        };
        let hearing = hear(arrivals, Method::None, echo);
        let all = async { tokio::join!(source.run(&connector), hearing, steer) };
        let (sent, heard, ()) = tokio::time::timeout(SOON, all).await.expect("no end");
        sent.unwrap();
        let mark = if machine == "pc-q35-7.2" { Said::Eos } else { Said::Flush };
        same_memory(&memory.ram, &heard.memory(&mark, PAGES));
    }
}
