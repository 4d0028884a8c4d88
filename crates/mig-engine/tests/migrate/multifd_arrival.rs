//! Pages over data channels reach memory, whatever the order in which channels come, whoever else connects, and however
//! rounds end.

use std::time::Duration;

use mig_engine::MultifdCompression;
use mig_transport::Blame;
use tokio::io::AsyncWriteExt;

use crate::multifd_wire::{Kind, Mode, Receiving, Script, connection, deadlines, listen};

const NONE: MultifdCompression = MultifdCompression::None;

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_every_compression_every_socket() {
    for mode in [Mode::PerRound, Mode::PerSection] {
        for compression in [NONE, MultifdCompression::Zlib, MultifdCompression::Zstd] {
            for kind in [Kind::Tcp, Kind::Unix] {
                let mut script = Script::new(3, mode, compression);
                script.rounds();
                let mut receiving = Receiving::new(3, compression);
                let order = [None, Some(0), Some(1), Some(2)];
                let (received, said) = receiving.run(&script, &order, kind).await;
                let outcome = received.unwrap_or_else(|e| panic!("{mode:?} {compression:?}: {e}"));
                assert!(outcome.confirmed);
                assert_eq!(said, Some(0));
                receiving.check(&script);
                assert_eq!(receiving.diary.entries(), ["load clock", "load disk", "start"]);
                let wire: usize = script.data.iter().map(|bytes| bytes.len() + 64).sum();
                assert_eq!(outcome.info.ram.multifd_bytes, wire as u64);
                assert_eq!(outcome.info.ram.transferred, (wire + script.main.len()) as u64);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_come_in_any_order() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    for order in [
        [None, Some(1), Some(0)],
        [Some(0), None, Some(1)],
        [Some(1), Some(0), None],
        [Some(1), None, Some(0)],
    ] {
        let mut receiving = Receiving::new(2, NONE);
        let (received, said) = receiving.run(&script, &order, Kind::Unix).await;
        assert!(received.unwrap().confirmed, "{order:?}");
        assert_eq!(said, Some(0));
        receiving.check(&script);
    }
}

/// All that a channel has to say may be there, its end too, before main is: it fits the sockets' buffers.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_may_be_through_before_main_comes() {
    let mut script = Script::new(1, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1), (2, 2)], &[3]);
    script.end_round();
    script.end();
    let mut receiving = Receiving::new(1, NONE);
    let door = receiving.door.clone();
    let source = async {
        let (first, mut first_far) = connection(Kind::Tcp).await;
        first_far.write_all(&script.hellos[0]).await.unwrap();
        first_far.write_all(&script.data[0]).await.unwrap();
        drop(first_far);
        door.send(first).unwrap();
        // In any case it goes well; this makes it the case that is meant.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (main, main_far) = connection(Kind::Tcp).await;
        door.send(main).unwrap();
        crate::multifd_wire::talk(main_far, &script.main).await
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    received.unwrap();
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// One that is opened on the way may be ahead of main, and of a channel that still has older copies of its pages.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_comes_later_waits_until_main_speaks_of_it() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    let joined = |channels| {
        let mut said = Vec::new();
        let value = mig_proto::peer::channels_from_here(channels);
        mig_proto::encode::command(&mut said, &mig_proto::Command::Ping(value));
        said
    };
    // Before START there is one.
    let start = script.main.windows(4).position(|bytes| bytes == b"\x03ram").unwrap() - 5;
    script.main.splice(start..start, joined(1));
    script.data[1].clear();
    let start = (script.main.len(), script.data[0].len());
    script.packet(0, 0, &[(5, 1)], &[]);
    script.section(mig_proto::SectionKind::Part, "ram");
    script.sync_packet(0);
    script.flush();
    script.end_ram();
    let first_round = (script.main.len(), script.data[0].len());
    script.main.extend(joined(2));
    script.packet(1, 0, &[(5, 2)], &[]);
    script.end_round();
    script.end();
    let mut receiving = Receiving::new(2, NONE);
    let mut parameters = mig_engine::Parameters::default();
    parameters.multifd_auto = Some(mig_engine::AutoChannels::default());
    receiving.destination = receiving.destination.with_parameters(parameters);
    let door = receiving.door.clone();
    let source = async {
        let (main, mut main_far) = connection(Kind::Unix).await;
        let (first, mut first_far) = connection(Kind::Unix).await;
        let (second, mut second_far) = connection(Kind::Unix).await;
        for near in [main, first] {
            door.send(near).unwrap();
        }
        first_far.write_all(&script.hellos[0]).await.unwrap();
        first_far.write_all(&script.data[0][..start.1]).await.unwrap();
        main_far.write_all(&script.main[..start.0]).await.unwrap();
        door.send(second).unwrap();
        second_far.write_all(&script.hellos[1]).await.unwrap();
        second_far.write_all(&script.data[1]).await.unwrap();
        main_far.write_all(&script.main[start.0..first_round.0]).await.unwrap();
        // Time for what must not happen.
        tokio::time::sleep(Duration::from_millis(100)).await;
        first_far.write_all(&script.data[0][start.1..]).await.unwrap();
        let said = crate::multifd_wire::talk(main_far, &script.main[first_round.0..]).await;
        drop((first_far, second_far));
        said
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    received.unwrap();
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// Memory that is there gets pages straight from the kernel; what was there before must be gone.
#[tokio::test(flavor = "multi_thread")]
async fn touched_memory_is_overwritten() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let mut receiving = Receiving::new(2, NONE);
    for block in 0..2 {
        mig_testkit::pattern::fill(&crate::support::whole(&receiving.ram, block), 77);
    }
    // Nobody sends zeros for what is not listed: everything is.
    let (received, _) = receiving.run(&script, &[None, Some(0), Some(1)], Kind::Tcp).await;
    received.unwrap();
    receiving.check(&script);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_no_harm() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let mut receiving = Receiving::new(2, NONE);
    let hello = script.hellos[0];
    let mut version = hello;
    version[7] = 2;
    let mut cut = hello.to_vec();
    cut.truncate(30);
    // One number more than there are: counts only where pages are missing in the end.
    let mut beyond = hello;
    beyond[24] = 2;
    let strangers: [&[u8]; 6] = [b"", b"GET / HTTP/1.1\r\n\r\n", &version, &cut, b"QE", &beyond];
    let mut ends = Vec::new();
    for bytes in strangers {
        let (near, mut far) = connection(Kind::Unix).await;
        far.write_all(bytes).await.unwrap();
        receiving.door.send(near).unwrap();
        ends.push(far);
    }
    // And a source that gave up before its main channel came: its number is free again.
    let (near, mut far) = connection(Kind::Unix).await;
    far.write_all(&hello).await.unwrap();
    receiving.door.send(near).unwrap();
    drop(far);
    let (received, said) = receiving.run(&script, &[Some(1), Some(0), None], Kind::Unix).await;
    received.unwrap();
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// On one thread connections are looked at in the order in which they come: the first one says which guest it is.
#[tokio::test]
async fn a_hello_that_is_no_good_is_dropped_and_the_right_ones_are_not() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let mut receiving = Receiving::new(2, NONE);
    let door = receiving.door.clone();
    let mut other_guest = script.hellos[1];
    other_guest[8] = 9;
    let taken = script.hellos[0];
    let (main, mut main_far) = connection(Kind::Unix).await;
    let (first, mut first_far) = connection(Kind::Unix).await;
    let (second, mut second_far) = connection(Kind::Unix).await;
    let source = async {
        first_far.write_all(&script.hellos[0]).await.unwrap();
        door.send(first).unwrap();
        door.send(main).unwrap();
        main_far.write_all(&script.main).await.unwrap();
        for hello in [other_guest, taken] {
            let (near, mut far) = connection(Kind::Unix).await;
            far.write_all(&hello).await.unwrap();
            door.send(near).unwrap();
            let mut nothing = [0];
            // Closed with or without what it sent having been read.
            let end = tokio::io::AsyncReadExt::read(&mut far, &mut nothing).await;
            assert_eq!(end.unwrap_or(0), 0, "hung up on");
        }
        second_far.write_all(&script.hellos[1]).await.unwrap();
        door.send(second).unwrap();
        let (one, two) = (&script.data[0], &script.data[1]);
        let both = tokio::join!(first_far.write_all(one), second_far.write_all(two));
        both.0.unwrap();
        both.1.unwrap();
        let said = crate::multifd_wire::listen(&mut main_far).await;
        drop((first_far, second_far, main_far));
        said
    };
    // A failure would leave who is not let in waiting at the door.
    let run = async { receiving.destination.run(&mut receiving.listener).await.unwrap() };
    let (_outcome, said) = tokio::join!(run, source);
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// Its pages would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_more_channels_is_refused() {
    let mut script = Script::new(3, Mode::PerRound, NONE);
    script.rounds();
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) =
        receiving.run(&script, &[None, Some(0), Some(1), Some(2)], Kind::Unix).await;
    let error = received.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerIncompatible);
    assert!(error.to_string().contains("multifd-channels"), "{error}");
    assert_ne!(said, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_does_not_come_is_named() {
    let mut script = Script::new(3, Mode::PerRound, NONE);
    script.rounds();
    let mut receiving = Receiving::new(3, NONE);
    let mut short = deadlines();
    short.idle = Some(Duration::from_millis(300));
    receiving.destination = receiving.destination.with_deadlines(short);
    let (received, said) = receiving.run(&script, &[None, Some(0), Some(2)], Kind::Unix).await;
    let error = received.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    assert!(error.to_string().contains("2 of 3 have come, not connected: 1"), "{error}");
    assert_eq!(said, Some(1));
}

#[tokio::test]
async fn a_main_channel_that_does_not_come_is_missed() {
    let script = Script::new(2, Mode::PerRound, NONE);
    let mut receiving = Receiving::new(2, NONE);
    let mut short = deadlines();
    short.accept = Some(Duration::from_millis(300));
    receiving.destination = receiving.destination.with_deadlines(short);
    let (near, mut far) = connection(Kind::Unix).await;
    far.write_all(&script.hellos[1]).await.unwrap();
    receiving.door.send(near).unwrap();
    let error = receiving.destination.run(&mut receiving.listener).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    assert!(error.to_string().contains("1 of 2 data channels have come"), "{error}");
}

/// The main channel alone looks like a whole migration, without the pages: everything may be there before this end looks
/// for the first time.
#[tokio::test]
async fn a_data_channel_that_nobody_expects_ends_the_migration_before_main_and_behind_it() {
    for (mode, data_first) in
        [(Mode::PerRound, true), (Mode::PerRound, false), (Mode::PerSection, false)]
    {
        let mut script = Script::new(1, mode, NONE);
        script.rounds();
        let mut receiving = Receiving::new(1, NONE);
        receiving.destination = receiving.destination.with_capabilities(Default::default());
        let (main, mut main_far) = connection(Kind::Unix).await;
        let (data, mut data_far) = connection(Kind::Unix).await;
        main_far.write_all(&script.main).await.unwrap();
        data_far.write_all(&script.hellos[0]).await.unwrap();
        let order = if data_first { [data, main] } else { [main, data] };
        for channel in order {
            receiving.door.send(channel).unwrap();
        }
        let error = receiving.destination.run(&mut receiving.listener).await.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerIncompatible, "{mode:?}: {error}");
        assert!(error.to_string().contains("turn multifd off"), "{error}");
        drop(receiving);
        assert_ne!(listen(main_far).await, Some(0), "{mode:?}");
    }
}

/// A source has connected its channels before it synchronises them: no need to wait for as long as for one that is busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_fewer_channels_is_not_waited_for() {
    for order in [&[None, Some(0), Some(1)][..], &[None]] {
        let mut script = Script::new(3, Mode::PerRound, NONE);
        script.rounds();
        let mut receiving = Receiving::new(3, NONE);
        let mut short = deadlines();
        short.first_byte = Duration::from_millis(300);
        short.idle = Some(Duration::from_secs(600));
        receiving.destination = receiving.destination.with_deadlines(short);
        let (received, said) = receiving.run(&script, order, Kind::Unix).await;
        let error = received.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
        let here = format!("{} of 3 have come, not connected: ", order.len() - 1);
        assert!(error.to_string().contains(&here), "{error}");
        assert_eq!(said, Some(1));
    }
}
