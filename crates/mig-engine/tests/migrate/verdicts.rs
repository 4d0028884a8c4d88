//! What the destination says, or does not say, decides who owns the guest.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use mig_engine::{Deadlines, Owner};
use mig_proto::{Command, Configuration, encode, state::MigrationStatus};
use mig_transport::{Blame, Channel, ChannelParts};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf};

use crate::support::{Arriving, Diary, Half, Pair, Ready, TestGuest, channels, one_way};

#[tokio::test(start_paused = true)]
async fn a_device_that_does_not_fit_leaves_the_guest_with_its_source() {
    let diary = Diary::default();
    let mut pair =
        Pair::with_destination_guest(TestGuest { refuses: Some("disk"), ..TestGuest::new(&diary) });
    let (out, into) = channels();
    let (sent, received) = pair.run(out, into).await;
    let (sent, received) = (sent.unwrap_err(), received.unwrap_err());
    assert_eq!(received.blame(), Blame::PeerIncompatible);
    assert!(received.to_string().contains("device disk"), "{received}");
    assert!(
        std::error::Error::source(&received).is_some_and(|c| c.to_string() == "it does not fit")
    );
    assert!(received.position().is_some());
    assert_eq!(sent.blame(), Blame::PeerIncompatible);
    assert!(sent.to_string().contains("SHUT 1"), "{sent}");
    assert_eq!(sent.owner(), Owner::Source);
    assert!(pair.source_diary.runs());
    assert!(!pair.destination_diary.runs());
    assert_eq!(pair.source.handle().status(), MigrationStatus::Failed);
    assert!(pair.source.handle().info().error_desc.is_some());
}

#[tokio::test(start_paused = true)]
async fn another_machine_type_is_refused_before_any_page() {
    let diary = Diary::default();
    let mut pair =
        Pair::with_destination_guest(TestGuest { machine: "other-2.0", ..TestGuest::new(&diary) });
    let (out, into) = channels();
    let (sent, received) = pair.run(out, into).await;
    let received = received.unwrap_err();
    assert_eq!(received.blame(), Blame::PeerIncompatible);
    assert_eq!(received.position().map(|at| at < 64), Some(true));
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
    assert_eq!(pair.source_diary.entries(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_return_path_that_cannot_be_is_refused_before_a_byte_is_sent() {
    let mut pair = Pair::new();
    let (mut far, near) = tokio::io::duplex(1 << 20);
    let channel = mig_testkit::stream_channel(
        None::<tokio::io::Empty>,
        Some(near),
        mig_transport::Endpoint { transport: "one-way", ..Default::default() },
    );
    let error = pair.source.run(&Ready::new(channel)).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("return path"), "{error}");
    let mut sent = Vec::new();
    far.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent, b"");
}

/// A destination that reads everything and then does as it is told.
async fn sent_to(answer: Option<&[u8]>, hang_up: bool) -> (mig_engine::Error, Diary) {
    let (outcome, diary) = sent_over(|io| io, answer, hang_up).await;
    (outcome.unwrap_err(), diary)
}

/// The same, with the way back through something else.
async fn sent_over<R: AsyncRead + Send + Unpin + 'static>(
    way_back: impl FnOnce(ReadHalf<DuplexStream>) -> R,
    answer: Option<&[u8]>,
    hang_up: bool,
) -> (Result<mig_engine::Outcome, mig_engine::Error>, Diary) {
    sent_through(|channel| channel, way_back, answer, hang_up).await
}

/// The same, of another kind of channel.
async fn sent_through<R: AsyncRead + Send + Unpin + 'static>(
    kind: impl FnOnce(Channel) -> Channel,
    way_back: impl FnOnce(ReadHalf<DuplexStream>) -> R,
    answer: Option<&[u8]>,
    hang_up: bool,
) -> (Result<mig_engine::Outcome, mig_engine::Error>, Diary) {
    let mut pair = Pair::new();
    let (far, near) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(near);
    let endpoint = mig_transport::Endpoint { transport: "memory", ..Default::default() };
    let channel = mig_testkit::stream_channel(Some(way_back(reader)), Some(writer), endpoint);
    let connector = Ready::new(kind(channel));
    let destination = async {
        let (mut reader, mut writer) = tokio::io::split(far);
        let mut all = Vec::new();
        let mut buffer = vec![0; 65536];
        // The description is the last thing in the stream, and nothing else in it ends like this.
        while !all.ends_with(b"}]}]}") {
            let got = reader.read(&mut buffer).await.unwrap();
            assert!(got > 0, "the source waits for a verdict before it hangs up");
            all.extend_from_slice(&buffer[..got]);
        }
        if let Some(answer) = answer {
            writer.write_all(answer).await.unwrap();
        }
        if hang_up {
            writer.shutdown().await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = pair.source.run(&connector) => outcome,
        () = destination => unreachable!(),
    };
    (outcome, pair.source_diary.clone())
}

/// Under TLS: an end that the destination's TLS did not announce is none (docs/wire/transports.md §5.3), for anybody on
/// the way can close a connection.
struct Unannounced<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Unannounced<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buffer))?;
        Poll::Ready(match buffer.filled().len() == before {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn silence_after_everything_was_sent_leaves_the_owner_unknown() {
    let begun = tokio::time::Instant::now();
    let (error, diary) = sent_to(None, false).await;
    assert_eq!(error.blame(), Blame::Deadline);
    assert_eq!(error.owner(), Owner::Unknown);
    assert!(begun.elapsed() >= Duration::from_secs(60));
    assert!(!diary.runs(), "a guest that may run elsewhere must not run here");
}

#[tokio::test(start_paused = true)]
async fn an_orderly_end_without_a_verdict_means_no() {
    let (error, diary) = sent_to(None, true).await;
    assert_eq!(error.owner(), Owner::Source);
    assert!(diary.runs());
}

/// As it is over a command or a pipe.
fn relayed(mut channel: Channel) -> Channel {
    let parts = ChannelParts {
        receive: Some(Box::new(Half(channel.take_receiver().unwrap()))),
        send: Some(Box::new(Half(channel.take_sender().unwrap()))),
        capabilities: channel.capabilities().with(|can| can.relayed = true),
        ..ChannelParts::default()
    };
    Channel::new(parts)
}

/// A relay that lost its connection with the verdict on its way exits as one does that has done its work.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_relay_after_everything_was_sent_decides_nothing() {
    let (outcome, diary) = sent_through(relayed, |io| io, None, true).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Io, Owner::Unknown), "{error}");
    assert!(!diary.runs(), "a guest that may run elsewhere must not run here");
}

/// What came is still what the destination said.
#[tokio::test(start_paused = true)]
async fn a_word_that_came_through_a_relay_counts() {
    let (outcome, diary) =
        sent_through(relayed, |io| io, Some(&[0, 1, 0, 4, 0, 0, 0, 0]), true).await;
    assert!(outcome.unwrap().confirmed);
    assert!(!diary.runs());
    let (outcome, diary) =
        sent_through(relayed, |io| io, Some(&[0, 1, 0, 4, 0, 0, 0, 7]), true).await;
    assert_eq!(outcome.unwrap_err().owner(), Owner::Source);
    assert!(diary.runs());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_relay_before_everything_was_sent_leaves_the_guest_here() {
    let mut pair = Pair::new();
    let (out, mut far) = mig_testkit::memory_pair(100);
    let destination = async {
        let (mut reader, mut writer) = (far.take_receiver().unwrap(), far.take_sender().unwrap());
        reader.read_exact(&mut [0; 3000]).await.unwrap();
        writer.shutdown().await.unwrap();
        std::future::pending::<()>().await;
    };
    let connector = Ready::new(relayed(out));
    let error = tokio::select! {
        outcome = pair.source.run(&connector) => outcome.unwrap_err(),
        () = destination => unreachable!(),
    };
    assert_eq!((error.blame(), error.owner()), (Blame::PeerIncompatible, Owner::Source));
    assert!(error.to_string().contains("without a verdict"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_unannounced_end_after_everything_was_sent_decides_nothing() {
    let (outcome, diary) = sent_over(Unannounced, None, true).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Io, Owner::Unknown));
    assert!(!diary.runs(), "a guest that may run elsewhere must not run here");
}

/// What real QEMU does: its TLS announces no end on the main channel.
#[tokio::test(start_paused = true)]
async fn an_unannounced_end_after_a_yes_is_a_success() {
    let (outcome, diary) = sent_over(Unannounced, Some(&[0, 1, 0, 4, 0, 0, 0, 0]), true).await;
    assert!(outcome.unwrap().confirmed);
    assert!(!diary.runs());
}

#[tokio::test(start_paused = true)]
async fn an_unannounced_end_before_everything_was_sent_leaves_the_guest_here() {
    let mut pair = Pair::new();
    // So narrow that the source is in the middle of memory for as long as nobody reads.
    let (far, near) = tokio::io::duplex(100);
    let (reader, writer) = tokio::io::split(near);
    let endpoint = mig_transport::Endpoint { transport: "memory", ..Default::default() };
    let channel = mig_testkit::stream_channel(Some(Unannounced(reader)), Some(writer), endpoint);
    let (mut far_reader, mut far_writer) = tokio::io::split(far);
    let destination = async {
        far_reader.read_exact(&mut [0; 3000]).await.unwrap();
        far_writer.shutdown().await.unwrap();
        std::future::pending::<()>().await;
    };
    let connector = Ready::new(channel);
    let error = tokio::select! {
        outcome = pair.source.run(&connector) => outcome.unwrap_err(),
        () = destination => unreachable!(),
    };
    assert_eq!((error.blame(), error.owner()), (Blame::Io, Owner::Source));
}

#[tokio::test(start_paused = true)]
async fn a_failure_said_last_means_no() {
    let (error, diary) = sent_to(Some(&[0, 1, 0, 4, 0, 0, 0, 7]), false).await;
    assert_eq!(error.owner(), Owner::Source);
    assert!(error.to_string().contains("SHUT 7"), "{error}");
    assert!(diary.runs());
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_return_path_is_the_destinations_fault_and_decides_nothing() {
    let (error, diary) = sent_to(Some(&[0, 99, 0, 0]), false).await;
    assert_eq!(error.blame(), Blame::PeerMisbehaved);
    assert_eq!(error.owner(), Owner::Unknown);
    assert!(!diary.runs());
}

#[tokio::test(start_paused = true)]
async fn a_destination_for_another_guest_refuses_by_uuid() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_uuid([1; 16]).with_capabilities(one_way());
    pair.destination = pair.destination.with_uuid([2; 16]);
    let (out, into) = channels();
    let (sent, received) = pair.run(out, into).await;
    assert_eq!(received.unwrap_err().blame(), Blame::PeerIncompatible);
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
}

#[tokio::test(start_paused = true)]
async fn a_yes_before_the_end_was_sent_is_a_lie_and_the_guest_runs_on() {
    let mut pair = Pair::new();
    let (out, mut far) = channels();
    let connector = Ready::new(out);
    let mut sender = far.take_sender().unwrap();
    // Nobody reads, so the source cannot come to the end.
    sender.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).await.unwrap();
    let error = pair.source.run(&connector).await.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::PeerMisbehaved, Owner::Source));
    assert!(!pair.source_diary.has("stop"), "the guest was never stopped");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_hangs_up_after_its_yes_without_reading_the_description_has_the_guest() {
    let mut pair = Pair::new();
    let (out, mut far) = mig_testkit::memory_pair(4);
    let connector = Ready::new(out);
    let mut sender = far.take_sender().unwrap();
    let mut receiver = far.take_receiver().unwrap();
    let destination = async move {
        let mut all = Vec::new();
        // The footer of globalstate, the fourth section, and the EOF.
        while !all.ends_with(&[0x7e, 0, 0, 0, 4, 0]) {
            all.push(receiver.read_u8().await.unwrap());
        }
        sender.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(pair.source.run(&connector), destination);
    assert!(outcome.unwrap().confirmed);
    assert!(!pair.source_diary.runs());
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_refuses_reads_on_until_its_source_has_heard_it() {
    let diary = Diary::default();
    let mut pair = Pair::with_destination_guest(TestGuest {
        refuses: Some("clock"),
        ..TestGuest::new(&diary)
    });
    // So narrow that the source is still writing when it is refused.
    let (out, mut near) = mig_testkit::memory_pair(16);
    let (mut far, into) = mig_testkit::memory_pair(16);
    let (mut from, mut to) = (near.take_receiver().unwrap(), far.take_sender().unwrap());
    let (mut answers, mut back) = (far.take_receiver().unwrap(), near.take_sender().unwrap());
    let link = async {
        let forth = async {
            tokio::io::copy(&mut from, &mut to).await.expect("nobody hung up on the source");
            drop(to);
        };
        let back = async {
            tokio::io::copy(&mut answers, &mut back).await.unwrap();
        };
        tokio::join!(forth, back)
    };
    let ((sent, received), _) = tokio::join!(pair.run(out, into), link);
    assert!(received.unwrap_err().to_string().contains("clock"));
    assert!(sent.unwrap_err().to_string().contains("SHUT 1"));
    assert!(pair.source_diary.runs());
}

/// Of the ten seconds that docs/deadlines.md allows for what is still owed, the description and the end share.
#[tokio::test(start_paused = true)]
async fn a_destination_that_neither_reads_nor_hangs_up_after_its_yes_is_left_soon() {
    let mut pair = Pair::new();
    let mut deadlines = Deadlines::default();
    deadlines.idle = None;
    pair.source = pair.source.with_deadlines(deadlines);
    let (out, mut far) = mig_testkit::memory_pair(4);
    let connector = Ready::new(out);
    let mut sender = far.take_sender().unwrap();
    let mut receiver = far.take_receiver().unwrap();
    let destination = async move {
        let mut all = Vec::new();
        // The footer of globalstate, the fourth section, and the EOF.
        while !all.ends_with(&[0x7e, 0, 0, 0, 4, 0]) {
            all.push(receiver.read_u8().await.unwrap());
        }
        sender.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).await.unwrap();
        let said = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_secs(11)).await;
        (said, sender, receiver)
    };
    let migrating = async {
        let outcome = pair.source.run(&connector).await;
        (outcome, tokio::time::Instant::now())
    };
    let ((outcome, ended), (said, ..)) = tokio::join!(migrating, destination);
    assert!(outcome.unwrap().confirmed);
    assert!(ended - said <= Duration::from_secs(10), "{:?}", ended - said);
}

#[tokio::test(start_paused = true)]
async fn more_questions_than_fit_one_list_of_answers_are_answered() {
    const PINGS: u32 = 20_000;
    let mut pair = Pair::new();
    let (mut far, near) = mig_testkit::memory_pair(1 << 20);
    let mut listener = Arriving::new([near]);
    let source = async move {
        let mut sender = far.take_sender().unwrap();
        let mut receiver = far.take_receiver().unwrap();
        let mut all = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut all, &Configuration::new(b"test-1.0").unwrap());
        encode::command(&mut all, &Command::OpenReturnPath);
        for value in 0..PINGS {
            encode::command(&mut all, &Command::Ping(value));
        }
        sender.write_all(&all).await.unwrap();
        let mut pongs = vec![0; 8 * PINGS as usize];
        receiver.read_exact(&mut pongs).await.unwrap();
        // Only now, as it would be answered with a failure.
        drop(sender);
        pongs
    };
    let (received, pongs) = tokio::join!(pair.destination.run(&mut listener), source);
    assert_eq!(received.unwrap_err().blame(), Blame::PeerMisbehaved);
    for (value, pong) in (0..PINGS).zip(pongs.chunks(8)) {
        assert_eq!(pong, [[0, 2, 0, 4], value.to_be_bytes()].concat());
    }
}

/// Who cannot be told need not be given the time to hear it: the source is let go at once, and goes on.
#[tokio::test(start_paused = true)]
async fn a_destination_whose_way_back_broke_hangs_up_at_once() {
    let mut pair = Pair::new();
    let (mut source, from) = tokio::io::duplex(1 << 20);
    let (to, way_back) = tokio::io::duplex(16);
    drop(way_back);
    let endpoint = mig_transport::Endpoint { transport: "broken", ..Default::default() };
    let mut listener = Arriving::new([mig_testkit::stream_channel(Some(from), Some(to), endpoint)]);
    let mut head = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut head, &Configuration::new(b"test-1.0").unwrap());
    encode::command(&mut head, &Command::OpenReturnPath);
    encode::command(&mut head, &Command::Ping(1));
    source.write_all(&head).await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = pair.destination.run(&mut listener).await.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Io, Owner::Source), "{error}");
    // The clock stands still unless somebody waits.
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(source.write_all(&head).await.is_err(), "it was not let go");
}
