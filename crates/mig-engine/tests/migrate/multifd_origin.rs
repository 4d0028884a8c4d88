//! A data channel is of the main channel's source: by what it has proven, or else by where it comes from.

use std::time::Duration;

use mig_engine::MultifdCompression;
use mig_transport::{Blame, Capabilities, Channel, ChannelParts, Identity, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::multifd_wire::{Far, Kind, Mode, Receiving, Script, connection, deadlines, talk};
use crate::support::Half;

const NONE: MultifdCompression = MultifdCompression::None;

fn script() -> Script {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    script
}

/// From the last number of an address, of whoever has proven to be `who`.
async fn from(last: u8, who: Option<&str>) -> (Channel, Box<dyn Far>) {
    let (near, far) = connection(Kind::Unix).await;
    let identity = who.map(|who| Identity::proven(who.as_bytes()));
    (near.with_peer(Peer::address([192, 0, 2, last].into())).with_identity(identity), far)
}

async fn hung_up_on(far: &mut Box<dyn Far>) {
    let mut nothing = [0];
    // Closed with or without what it sent having been read.
    assert_eq!(far.read(&mut nothing).await.unwrap_or(0), 0, "hung up on");
}

/// A source with several addresses, before and after main.
#[tokio::test]
async fn whoever_has_proven_to_be_the_source_may_come_from_any_address() {
    let script = script();
    let mut receiving = Receiving::new(2, NONE);
    let door = receiving.door.clone();
    let source = async {
        let (first, mut first_far) = from(1, Some("source")).await;
        let (main, main_far) = from(2, Some("source")).await;
        let (second, mut second_far) = from(3, Some("source")).await;
        first_far.write_all(&script.hellos[0]).await.unwrap();
        second_far.write_all(&script.hellos[1]).await.unwrap();
        for near in [first, main, second] {
            door.send(near).unwrap();
        }
        let sending = async {
            let one = first_far.write_all(&script.data[0]);
            let both = tokio::join!(one, second_far.write_all(&script.data[1]));
            both.0.unwrap();
            both.1.unwrap();
        };
        let (said, ()) = tokio::join!(talk(main_far, &script.main), sending);
        said
    };
    let run = async { receiving.destination.run(&mut receiving.listener).await.unwrap() };
    let (_outcome, said) = tokio::join!(run, source);
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// May migrate here, and is not the one that does: neither another client at the same address, nor nobody.
#[tokio::test]
async fn another_identity_takes_no_channel() {
    let script = script();
    let mut receiving = Receiving::new(2, NONE);
    let door = receiving.door.clone();
    let source = async {
        let (main, mut main_far) = from(1, Some("source")).await;
        door.send(main).unwrap();
        main_far.write_all(&script.main).await.unwrap();
        for who in [Some("another"), None] {
            let (near, mut far) = from(1, who).await;
            far.write_all(&script.hellos[0]).await.unwrap();
            door.send(near).unwrap();
            hung_up_on(&mut far).await;
        }
        let mut data = Vec::new();
        for (hello, bytes) in script.hellos.iter().zip(&script.data) {
            let (near, mut far) = from(1, Some("source")).await;
            far.write_all(hello).await.unwrap();
            door.send(near).unwrap();
            let bytes = bytes.clone();
            data.push(tokio::spawn(async move {
                far.write_all(&bytes).await.unwrap();
                far
            }));
        }
        let said = crate::multifd_wire::listen(&mut main_far).await;
        for channel in data {
            drop(channel.await.unwrap());
        }
        said
    };
    let run = async { receiving.destination.run(&mut receiving.listener).await.unwrap() };
    let (_outcome, said) = tokio::join!(run, source);
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// Whichever deadline notices that the channel is missing.
#[tokio::test]
async fn a_channel_that_was_dropped_for_its_address_is_told_with_the_remedy() {
    for (first_byte, idle, blame) in
        [(30_000, 300, Blame::Deadline), (300, 30_000, Blame::PeerIncompatible)]
    {
        let script = script();
        let mut receiving = Receiving::new(2, NONE);
        let mut short = deadlines();
        short.first_byte = Duration::from_millis(first_byte);
        short.idle = Some(Duration::from_millis(idle));
        receiving.destination = receiving.destination.with_deadlines(short);
        let door = receiving.door.clone();
        let source = async {
            let (main, mut main_far) = from(1, None).await;
            let (first, mut first_far) = from(1, None).await;
            let (second, mut second_far) = from(2, None).await;
            first_far.write_all(&script.hellos[0]).await.unwrap();
            second_far.write_all(&script.hellos[1]).await.unwrap();
            main_far.write_all(&script.main).await.unwrap();
            for near in [main, first, second] {
                door.send(near).unwrap();
            }
            hung_up_on(&mut second_far).await;
            let _sent = first_far.write_all(&script.data[0]).await;
            let said = crate::multifd_wire::listen(&mut main_far).await;
            drop(first_far);
            said
        };
        let run = async { receiving.destination.run(&mut receiving.listener).await.unwrap_err() };
        let (error, said) = tokio::join!(run, source);
        assert_eq!(error.blame(), blame, "{error}");
        let text = error.to_string();
        for part in ["from 192.0.2.2, and the main channel from 192.0.2.1", "come from one address"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(said, Some(1));
    }
}

/// Whose number cannot be is not kept, whichever guest it is for; those who may be a source's are looked at in no time, however
/// many are silent.
#[tokio::test(start_paused = true)]
async fn channels_before_main_cost_no_time() {
    let mut receiving = Receiving::new(200, NONE);
    let mut hello = Script::new(1, Mode::PerRound, NONE).hellos[0];
    let door = receiving.door.clone();
    let handle = receiving.destination.handle();
    let strangers = async {
        let begun = tokio::time::Instant::now();
        let mut kept = Vec::new();
        for id in 0..200 {
            let (near, mut far) = mig_testkit::memory_pair(4096);
            let (mut say, hear) = (far.take_sender().unwrap(), far.take_receiver().unwrap());
            hello[24] = id;
            say.write_all(&hello).await.unwrap();
            door.send(several(near)).unwrap();
            kept.push((say, hear));
        }
        let (near, mut far) = mig_testkit::memory_pair(4096);
        let (mut say, mut hear) = (far.take_sender().unwrap(), far.take_receiver().unwrap());
        hello[24] = 200;
        say.write_all(&hello).await.unwrap();
        door.send(several(near)).unwrap();
        assert_eq!(hear.read(&mut [0]).await.unwrap_or(0), 0, "hung up on");
        // Paused time moves where somebody waits for it, a millisecond at least.
        assert_eq!(begun.elapsed(), Duration::ZERO);
        handle.cancel();
        kept
    };
    let run = receiving.destination.run(&mut receiving.listener);
    let (received, _kept) = tokio::join!(run, strangers);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
}

/// As one of a listener is.
fn several(mut channel: Channel) -> Channel {
    Channel::new(ChannelParts {
        receive: Some(Box::new(Half(channel.take_receiver().unwrap()))),
        send: Some(Box::new(Half(channel.take_sender().unwrap()))),
        capabilities: Capabilities::socket(),
        ..ChannelParts::default()
    })
}

/// Strangers from many addresses took every place that there is before main: the oldest of them go, and the source gets in.
#[tokio::test]
async fn a_crowd_before_main_keeps_no_source_out() {
    let script = script();
    let mut receiving = Receiving::new(2, NONE);
    let door = receiving.door.clone();
    let source = async {
        let mut crowd = Vec::new();
        for last in 10..60 {
            for hello in &script.hellos {
                let (near, mut far) = from(last, None).await;
                far.write_all(hello).await.unwrap();
                door.send(near).unwrap();
                crowd.push(far);
            }
        }
        // Each has been looked at once the last one was.
        let (near, mut far) = from(59, None).await;
        far.write_all(&script.hellos[0]).await.unwrap();
        door.send(near).unwrap();
        hung_up_on(&mut far).await;
        hung_up_on(&mut crowd[0]).await;
        let mut data = Vec::new();
        for (hello, bytes) in script.hellos.iter().zip(&script.data) {
            let (near, mut far) = from(1, None).await;
            far.write_all(hello).await.unwrap();
            door.send(near).unwrap();
            let bytes = bytes.clone();
            data.push(tokio::spawn(async move {
                far.write_all(&bytes).await.unwrap();
                far
            }));
        }
        let (main, main_far) = from(1, None).await;
        door.send(main).unwrap();
        let said = talk(main_far, &script.main).await;
        for channel in data {
            drop(channel.await.unwrap());
        }
        said
    };
    let run = async { receiving.destination.run(&mut receiving.listener).await.unwrap() };
    let (_outcome, said) = tokio::join!(run, source);
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// A channel too many counts if it came from where main comes from, before it or after it.
#[tokio::test]
async fn a_surplus_before_main_is_remembered_of_its_source_alone() {
    for (surplus_from, blame) in [(1, Blame::PeerIncompatible), (2, Blame::Deadline)] {
        let script = Script::new(3, Mode::PerRound, NONE);
        let mut receiving = Receiving::new(2, NONE);
        let mut short = deadlines();
        short.first_byte = Duration::from_millis(300);
        short.idle = Some(Duration::from_secs(3));
        receiving.destination = receiving.destination.with_deadlines(short);
        let door = receiving.door.clone();
        let source = async {
            let mut ends = Vec::new();
            let (near, mut beyond) = from(surplus_from, None).await;
            beyond.write_all(&script.hellos[2]).await.unwrap();
            door.send(near).unwrap();
            hung_up_on(&mut beyond).await;
            for hello in &script.hellos[..2] {
                let (near, mut far) = from(1, None).await;
                far.write_all(hello).await.unwrap();
                door.send(near).unwrap();
                ends.push(far);
            }
            let (near, mut main) = from(1, None).await;
            main.write_all(&script.main).await.unwrap();
            door.send(near).unwrap();
            let _said = crate::multifd_wire::listen(&mut main).await;
            ends
        };
        let run = receiving.destination.run(&mut receiving.listener);
        let (received, _ends) = tokio::join!(run, source);
        let error = received.unwrap_err();
        assert_eq!(error.blame(), blame, "{error}");
    }
}

/// Whoever connects, again and again, does not put off what is found out about the source.
#[tokio::test]
async fn strangers_do_not_put_off_that_a_channel_is_too_many() {
    let script = Script::new(3, Mode::PerRound, NONE);
    let mut receiving = Receiving::new(2, NONE);
    let mut short = deadlines();
    short.first_byte = Duration::from_millis(400);
    short.idle = Some(Duration::from_secs(20));
    receiving.destination = receiving.destination.with_deadlines(short);
    let door = receiving.door.clone();
    let source = async {
        let mut ends = Vec::new();
        for (number, bytes) in [
            (None, &script.main[..]),
            (Some(0), &script.hellos[0]),
            (Some(1), &script.hellos[1]),
            (Some(2), &script.hellos[2]),
        ] {
            let (near, mut far) = from(1, None).await;
            far.write_all(bytes).await.unwrap();
            door.send(near).unwrap();
            ends.push((number, far));
        }
        loop {
            let (near, mut far) = from(2, None).await;
            far.write_all(&script.hellos[2]).await.unwrap();
            if door.send(near).is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let error = tokio::select! {
        received = receiving.destination.run(&mut receiving.listener) => received.unwrap_err(),
        () = source => unreachable!(),
    };
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    assert!(error.to_string().contains("multifd-channels"), "{error}");
    // Found out by itself, and not after something else had failed.
    assert!(std::error::Error::source(&error).is_none(), "{error:?}");
}
