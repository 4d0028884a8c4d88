//! The link is cut after every so many bytes, in either direction: never two owners, and never none without saying so.

use mig_engine::Owner;
use mig_testkit::stream_channel;
use mig_transport::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::{Pair, check};

/// How many bytes go through in each direction before the link is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    forward: usize,
    back: usize,
}

/// Carries bytes until one direction has used up its number, then drops both ends.
async fn link(source: DuplexStream, destination: DuplexStream, cut: Cut) -> (usize, usize) {
    let (mut from_source, mut to_source) = tokio::io::split(source);
    let (mut from_destination, mut to_destination) = tokio::io::split(destination);
    let (mut forward, mut back) = (0, 0);
    let (mut out, mut home) = (vec![0; 1024], vec![0; 64]);
    loop {
        let (out_room, home_room) =
            (out.len().min(cut.forward - forward), home.len().min(cut.back - back));
        if out_room == 0 || home_room == 0 {
            return (forward, back);
        }
        tokio::select! {
            biased;
            got = from_source.read(&mut out[..out_room]) => match got {
                Ok(got) if got > 0 => {
                    if to_destination.write_all(&out[..got]).await.is_err() {
                        return (forward, back);
                    }
                    forward += got;
                }
                _ => return (forward, back),
            },
            got = from_destination.read(&mut home[..home_room]) => match got {
                Ok(got) if got > 0 => {
                    if to_source.write_all(&home[..got]).await.is_err() {
                        return (forward, back);
                    }
                    back += got;
                }
                _ => return (forward, back),
            },
        }
    }
}

async fn migrate(cut: Cut) -> (Pair, bool, Option<Owner>, (usize, usize)) {
    let mut pair = Pair::new();
    let (near, source_end) = tokio::io::duplex(4096);
    let (far, destination_end) = tokio::io::duplex(4096);
    let channel = |io: DuplexStream| {
        let (reader, writer) = tokio::io::split(io);
        stream_channel(
            Some(reader),
            Some(writer),
            Endpoint { transport: "cut", ..Default::default() },
        )
    };
    let (out, into) = (channel(near), channel(far));
    let ((sent, received), carried) =
        tokio::join!(pair.run(out, into), link(source_end, destination_end, cut));
    let owner = sent.as_ref().err().map(mig_engine::Error::owner);
    (pair, received.is_ok(), owner, carried)
}

fn one_owner(pair: &Pair, received: bool, owner: Option<Owner>, cut: Cut) {
    let here = pair.source_diary.entries();
    let source_runs = here.is_empty() || pair.source_diary.runs();
    let destination_runs = pair.destination_diary.runs();
    assert!(!(source_runs && destination_runs), "{cut:?}: two owners");
    assert_eq!(destination_runs, received, "{cut:?}");
    match owner {
        None => assert!(destination_runs, "{cut:?}: completed, so the destination has it"),
        Some(Owner::Source) => assert!(source_runs, "{cut:?}: the source said it has the guest"),
        Some(_) => assert!(!source_runs, "{cut:?}: it may run elsewhere"),
    }
    if received {
        check(&pair.destination_ram);
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_stage_the_guest_has_one_owner() {
    let whole = Cut { forward: usize::MAX, back: usize::MAX };
    let (pair, received, owner, (forward, back)) = migrate(whole).await;
    one_owner(&pair, received, owner, whole);
    assert_eq!(owner, None);
    // PONG 1, SHUT 0.
    assert_eq!(back, 16);

    // Every few bytes through setup and devices, a few cuts in the bulk of the pages between them.
    let pages = 1024..forward - 2048;
    let cuts = (1..forward).filter(|at| !pages.contains(at) || at % 4099 == 0);
    let mut owners = [0, 0, 0];
    for forward in cuts.step_by(7).chain(forward - 8..=forward) {
        let cut = Cut { forward, ..whole };
        let (pair, received, owner, _) = migrate(cut).await;
        one_owner(&pair, received, owner, cut);
        match owner {
            Some(Owner::Source) => owners[0] += 1,
            None => owners[1] += 1,
            Some(_) => owners[2] += 1,
        }
    }
    assert!(owners[0] > 100, "{owners:?}");
}

#[tokio::test(start_paused = true)]
async fn when_the_verdict_is_cut() {
    for back in 1..=16 {
        let cut = Cut { forward: usize::MAX, back };
        let (pair, received, owner, _) = migrate(cut).await;
        one_owner(&pair, received, owner, cut);
    }
}
