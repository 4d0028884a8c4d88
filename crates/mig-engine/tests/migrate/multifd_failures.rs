//! A data channel that breaks, ends or falls silent, and a cancel at any moment, end the migration on all channels: soon,
//! and with no thread left behind.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mig_engine::{Destination, MultifdCompression};
use mig_ram::{GuestMemory, RamBlocks};
use mig_transport::Blame;
use tokio::io::AsyncWriteExt;

use crate::multifd_wire::{Kind, Mode, Receiving, Script, connection, deadlines, listen, tcp_pair};

const NONE: MultifdCompression = MultifdCompression::None;
/// Far below the idle deadline of the tests.
const SOON: Duration = Duration::from_secs(10);

/// Nobody but the memory itself holds on to it any more.
fn assert_nobody_is_left(destination: Destination, ram: &Arc<RamBlocks>) {
    drop(destination);
    let region = ram.block(0).unwrap().region;
    // The block's own and ours.
    assert_eq!(Arc::strong_count(&region), 2, "a thread still has guest memory");
}

/// What happens to channel 0 after its first round, while channel 1 goes on.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Reset,
    End,
    EndInHeader,
    EndInPages,
    Silence,
}

async fn suffer(fate: Fate, idle: Duration) -> (mig_engine::Error, Option<u32>) {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1)], &[]);
    script.packet(1, 0, &[(2, 1)], &[]);
    script.end_round();
    let mut tail = Script::new(1, Mode::PerRound, NONE);
    tail.data[0].clear();
    tail.packet(0, 0, &[(1, 1), (2, 1), (3, 3)], &[]);
    match fate {
        Fate::EndInHeader => script.data[0].extend_from_slice(&tail.data[0][..700]),
        Fate::EndInPages => script.data[0].extend_from_slice(&tail.data[0][..6000]),
        _ => {}
    }
    script.end_round();
    let mut receiving = Receiving::new(2, NONE);
    let mut limits = deadlines();
    limits.idle = Some(idle);
    receiving.destination = receiving.destination.with_deadlines(limits);
    let door = receiving.door.clone();
    let bytes_before_second_sync = script.data[0].len() - 1344;
    let source = async {
        let (main, mut main_far) = connection(Kind::Tcp).await;
        let (first, mut first_far) = tcp_pair().await;
        let (second, mut second_far) = connection(Kind::Tcp).await;
        for near in [main, first, second] {
            door.send(near).unwrap();
        }
        first_far.write_all(&script.hellos[0]).await.unwrap();
        second_far.write_all(&script.hellos[1]).await.unwrap();
        main_far.write_all(&script.main).await.unwrap();
        second_far.write_all(&script.data[1]).await.unwrap();
        first_far.write_all(&script.data[0][..bytes_before_second_sync]).await.unwrap();
        let kept = match fate {
            Fate::Reset => {
                first_far.set_zero_linger().unwrap();
                drop(first_far);
                None
            }
            Fate::Silence => Some(first_far),
            Fate::End | Fate::EndInHeader | Fate::EndInPages => {
                drop(first_far);
                None
            }
        };
        let said = listen(&mut main_far).await;
        drop((kept, second_far));
        said
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    let Receiving { destination, ram, .. } = receiving;
    assert_nobody_is_left(destination, &ram);
    (received.unwrap_err(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_breaks_ends_the_migration_at_once() {
    for (fate, blame, words) in [
        (Fate::Reset, Blame::Io, "data channel 0: "),
        (Fate::End, Blame::PeerMisbehaved, "data channel 0"),
        (Fate::EndInHeader, Blame::PeerMisbehaved, "ended inside a packet's header: 700 of 1344"),
        (Fate::EndInPages, Blame::PeerMisbehaved, "bytes are missing"),
    ] {
        let begun = Instant::now();
        let (error, said) = suffer(fate, Duration::from_secs(60)).await;
        assert!(begun.elapsed() < SOON, "{fate:?}: {error}");
        assert_eq!(error.blame(), blame, "{fate:?}: {error}");
        assert!(error.to_string().contains(words), "{fate:?}: {error}");
        assert_eq!(said, Some(1), "{fate:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_falls_silent_is_named_by_the_idle_deadline() {
    let (error, said) = suffer(Fate::Silence, Duration::from_millis(400)).await;
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(error.to_string().contains("no SYNC from 0"), "{error}");
    assert_eq!(said, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn main_that_ends_alone_is_noticed_at_a_mark() {
    let mut script = Script::new(1, Mode::PerRound, NONE);
    script.section(mig_proto::SectionKind::Part, "ram");
    script.flush();
    let mut receiving = Receiving::new(1, NONE);
    let door = receiving.door.clone();
    let source = async {
        let (main, mut main_far) = tcp_pair().await;
        let (first, mut first_far) = connection(Kind::Tcp).await;
        door.send(main).unwrap();
        door.send(first).unwrap();
        first_far.write_all(&script.hellos[0]).await.unwrap();
        first_far.write_all(&script.data[0]).await.unwrap();
        main_far.write_all(&script.main).await.unwrap();
        // Only when it waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        main_far.set_zero_linger().unwrap();
        drop(main_far);
        first_far
    };
    let begun = Instant::now();
    let (received, _kept) =
        tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    assert!(begun.elapsed() < SOON);
    assert_eq!(received.unwrap_err().blame(), Blame::Io);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_leaves_nothing_behind() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    // So much of each channel is sent before; the rest never comes.
    for percent in [0, 1, 5, 20, 40, 60, 80, 99] {
        let part = |bytes: &[u8]| bytes[..bytes.len() * percent / 100].to_vec();
        let mut receiving = Receiving::new(2, NONE);
        let handle = receiving.destination.handle();
        let door = receiving.door.clone();
        let (main, mut main_far) = connection(Kind::Unix).await;
        let (first, mut first_far) = connection(Kind::Unix).await;
        let (second, mut second_far) = connection(Kind::Unix).await;
        let source = async {
            for near in [first, main, second] {
                door.send(near).unwrap();
            }
            first_far.write_all(&script.hellos[0]).await.unwrap();
            second_far.write_all(&script.hellos[1]).await.unwrap();
            let (one, two) = (part(&script.data[0]), part(&script.data[1]));
            let main = part(&script.main);
            let sent = async {
                let sent = tokio::join!(
                    first_far.write_all(&one),
                    second_far.write_all(&two),
                    main_far.write_all(&main)
                );
                drop(sent);
            };
            // Not all of it may fit where nobody reads on.
            let _late = tokio::time::timeout(Duration::from_millis(100), sent).await;
            handle.cancel();
            Instant::now()
        };
        let (received, asked) =
            tokio::join!(receiving.destination.run(&mut receiving.listener), source);
        assert!(asked.elapsed() < SOON, "{percent} %");
        assert_eq!(received.unwrap_err().blame(), Blame::Cancelled, "{percent} %");
        let Receiving { destination, ram, .. } = receiving;
        assert_nobody_is_left(destination, &ram);
    }
}
