//! A channel that is reset, closed, stalled or never there ends the migration at the source: soon, with an error that
//! names it, with nothing left behind, and with the guest running here.

use std::{future::Future, sync::Arc, time::Duration};

use mig_engine::{Deadlines, Error, MigrationHandle, MultifdCompression, Owner, ZeroPageDetection};
use mig_proto::multifd::Method;
use mig_transport::Blame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    multifd_source_far::{
        Answer, Arrivals, Dialling, Line, SOON, Said, channels, drain, hear, idle, multifd, mute,
        no_lane_stays, populate, same_memory, shut, source, still_guest,
    },
    multifd_wire::Far,
    scripted::Writes,
};

/// More than all buffers of three channels.
const PAGES: [usize; 2] = [3000, 20];
const CHANNELS: u8 = 3;

/// The far ends of a migration.
struct Ends {
    main: Box<dyn Far>,
    data: Vec<Box<dyn Far>>,
    handle: MigrationHandle,
}

impl Ends {
    /// Waits for all channels and their hellos.
    async fn come(mut arrivals: Arrivals, handle: MigrationHandle) -> Self {
        let main = arrivals.recv().await.unwrap();
        let mut data = Vec::new();
        for _ in 0..CHANNELS {
            let mut far = arrivals.recv().await.unwrap();
            far.read_exact(&mut [0; 64]).await.unwrap();
            data.push(far);
        }
        Self { main, data, handle }
    }

    /// Waits until no channel takes any more; nobody reads.
    async fn full(&self) {
        let (mut before, mut same) = (0, 0);
        while same < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.handle.info().ram.transferred;
            // Sections go on to begin and to end on main.
            same = if now > 200_000 && now - before < 1000 { same + 1 } else { 0 };
            before = now;
        }
    }
}

struct Migration {
    memory: Arc<Writes>,
    line: Line,
    main: Option<Line>,
    machine: &'static str,
    deadlines: Deadlines,
    return_path: bool,
    zeros: ZeroPageDetection,
}

impl Migration {
    fn over(line: Line) -> Self {
        Self {
            memory: still_guest(PAGES),
            line,
            main: None,
            machine: "pc-q35-10.0",
            deadlines: Deadlines::default(),
            return_path: true,
            zeros: ZeroPageDetection::Multifd,
        }
    }

    /// The error that it ends with; all that is checked of every failure is checked here.
    async fn fails<T, F>(self, script: impl FnOnce(Ends) -> F) -> (Error, T)
    where
        F: Future<Output = (T, Vec<Box<dyn Far>>)>,
    {
        let (connector, arrivals) = Dialling::new(self.line);
        let connector = connector.with_main(self.main.unwrap_or(self.line));
        let mut capabilities = multifd();
        capabilities.return_path = self.return_path;
        let mut parameters = channels(CHANNELS);
        parameters.zero_page_detection = self.zeros;
        let mut source = source(&self.memory, self.machine, parameters)
            .with_capabilities(capabilities)
            .with_deadlines(self.deadlines);
        let handle = source.handle();
        let script = async { script(Ends::come(arrivals, handle).await).await };
        let both = async { tokio::join!(source.run(&connector), script) };
        let (sent, (told, left)) = tokio::time::timeout(SOON, both).await.expect("no end");
        let error = sent.unwrap_err();
        assert_eq!(error.owner(), Owner::Source, "{error}");
        runs_here(&self.memory);
        no_lane_stays();
        // Every connection has ended.
        for far in left {
            tokio::time::timeout(SOON, drain(far)).await.expect("a connection that stayed");
        }
        (error, told)
    }
}

pub(crate) fn runs_here(memory: &Writes) {
    let diary = memory.diary.entries();
    let last = diary.iter().rev().find(|entry| ["stop", "resume"].contains(&entry.as_str()));
    assert_ne!(last.map(String::as_str), Some("stop"), "{diary:?}");
}

/// Reads main for as long as it lasts.
fn reading(main: Box<dyn Far>) -> impl AsyncWriteExt + Send + Unpin {
    let (reader, writer) = tokio::io::split(main);
    tokio::spawn(async move {
        let mut reader = reader;
        let mut bytes = vec![0; 4096];
        while reader.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    writer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_one_channel_while_all_are_full_ends_it() {
    for lost in 0..CHANNELS {
        let (error, _main) = Migration::over(Line::Tcp)
            .fails(|mut ends| async move {
                ends.full().await;
                drop(ends.data.remove(usize::from(lost)));
                (reading(ends.main), ends.data)
            })
            .await;
        assert_eq!(error.blame(), Blame::Io, "{error}");
        assert!(error.to_string().contains(&format!("data channel {lost}, ")), "{error}");
    }
}

/// As our own destination does.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_says_so_as_well_does_not_hide_the_channel() {
    let (error, _main) = Migration::over(Line::Tcp)
        .fails(|mut ends| async move {
            ends.full().await;
            drop(ends.data.remove(1));
            ends.main.write_all(&shut(1)).await.unwrap();
            (reading(ends.main), ends.data)
        })
        .await;
    let causes = chain(&error);
    assert!(causes.contains("gave up (SHUT 1)") || causes.contains("data channel 1, "), "{causes}");
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_noticed_while_main_is_blocked() {
    // Sections begin and end there, and nobody reads them: nothing moves any more.
    let migration = Migration { main: Some(Line::Memory(64)), ..Migration::over(Line::Tcp) };
    let (error, ()) = migration
        .fails(|mut ends| async move {
            for far in &mut ends.data {
                // All before the first page.
                let mut sync = [0; 1344];
                let read = far.read_exact(&mut sync);
                let mut head = [0; 16];
                let mut read = std::pin::pin!(read);
                loop {
                    tokio::select! {
                                           read = &mut read => {
                    read.unwrap();
                    break;
                    }
                                           read = ends.main.read(&mut head) => {
                    read.unwrap();
                    }
                                       }
                }
            }
            let mut head = [0; 16];
            while ends.handle.info().ram.transferred < 200_000 {
                let read = ends.main.read(&mut head);
                let _yet = tokio::time::timeout(Duration::from_millis(5), read).await;
            }
            let (mut before, mut same) = (0, 0);
            while same < 10 {
                // Four sections would have ended in this time.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let now = ends.handle.info().ram.transferred;
                same = if now == before { same + 1 } else { 0 };
                before = now;
            }
            drop(ends.data.remove(0));
            ends.data.push(ends.main);
            ((), ends.data)
        })
        .await;
    assert!(error.to_string().contains("data channel 0, "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_closed_in_order_ends_it() {
    let (error, _main) = Migration::over(Line::Unix)
        .fails(|mut ends| async move {
            ends.full().await;
            drop(ends.data.remove(2));
            (reading(ends.main), ends.data)
        })
        .await;
    assert_eq!(error.blame(), Blame::Io, "{error}");
    assert!(error.to_string().contains("data channel 2, "), "{error}");
}

/// It never says anything there.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_may_end_its_own_direction_of_a_data_channel() {
    let memory = still_guest(PAGES);
    let (connector, mut arrivals) = Dialling::new(Line::Unix);
    let (door, ended) = tokio::sync::mpsc::unbounded_channel();
    let ending = async move {
        let mut is_main = true;
        while let Some(mut far) = arrivals.recv().await {
            if !std::mem::take(&mut is_main) {
                far.shutdown().await.unwrap();
            }
            assert!(door.send(far).is_ok());
        }
    };
    let mut source = source(&memory, "pc-q35-10.0", channels(2));
    let migration = async {
        let (sent, heard) = tokio::join!(source.run(&connector), hear(ended, Method::None, mute));
        drop(connector);
        (sent, heard)
    };
    let ((sent, heard), ()) = tokio::join!(migration, ending);
    sent.unwrap();
    same_memory(&memory.ram, &heard.memory(&Said::Flush, PAGES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_stalls_for_ever_is_named() {
    for machine in ["pc-q35-7.2", "pc-q35-10.0"] {
        let migration = Migration {
            machine,
            deadlines: idle(Duration::from_millis(500)),
            ..Migration::over(Line::Unix)
        };
        let (error, _main) = migration
            .fails(|mut ends| async move {
                let stalled = ends.data.remove(1);
                for far in ends.data {
                    tokio::spawn(drain(far));
                }
                (reading(ends.main), vec![stalled])
            })
            .await;
        assert_eq!(error.blame(), Blame::Deadline, "{machine}: {error}");
        assert!(error.to_string().contains("data channel 1, "), "{machine}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_stalls_when_the_guest_stands_still_is_named() {
    let guest = |guest: &Writes, pass| {
        if pass == 2 {
            (0..2000).for_each(|page| guest.write(0, page, 8, b"last words"));
        }
    };
    let memory = Writes::with_pages(PAGES, guest, None);
    populate(&memory, PAGES);
    let diary = memory.diary.clone();
    let migration = Migration {
        memory,
        deadlines: idle(Duration::from_millis(500)),
        ..Migration::over(Line::Memory(4096))
    };
    let (error, _main) = migration
        .fails(|mut ends| async move {
            let mut stalled = ends.data.remove(0);
            for far in ends.data {
                tokio::spawn(drain(far));
            }
            let main = reading(ends.main);
            let mut byte = [0; 256];
            while !diary.has("stop") {
                let read = stalled.read(&mut byte);
                let _nothing_yet = tokio::time::timeout(Duration::from_millis(5), read).await;
            }
            (main, vec![stalled])
        })
        .await;
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(error.to_string().contains("data channel 0, "), "{error}");
    assert_eq!(error.phase(), Some("device"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_the_last_pass_lets_the_guest_run_again() {
    let guest = |guest: &Writes, pass| {
        if pass == 2 {
            (0..2000).for_each(|page| guest.write(0, page, 8, b"last words"));
        }
    };
    let memory = Writes::with_pages(PAGES, guest, None);
    populate(&memory, PAGES);
    let diary = memory.diary.clone();
    let migration = Migration { memory: Arc::clone(&memory), ..Migration::over(Line::Tcp) };
    let (error, _main) = migration
        .fails(|ends| async move {
            let main = reading(ends.main);
            let readers = ends.data.into_iter().map(|mut far| {
                let diary = diary.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while !diary.has("stop") {
                        let read = far.read(&mut bytes);
                        let _yet = tokio::time::timeout(Duration::from_millis(5), read).await;
                    }
                    far
                })
            });
            let mut left = Vec::new();
            for reader in readers.collect::<Vec<_>>() {
                left.push(reader.await.unwrap());
            }
            drop(left.remove(1));
            (main, left)
        })
        .await;
    assert!(error.to_string().contains("data channel 1, "), "{error}");
    assert_eq!(memory.diary.entries(), ["stop", "resume"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_gives_up_while_channels_are_full_is_heard() {
    for line in [Line::Unix, Line::Tcp, Line::Memory(8192)] {
        let (error, ()) = Migration::over(line)
            .fails(|mut ends| async move {
                if !matches!(line, Line::Memory(_)) {
                    ends.full().await;
                }
                ends.main.write_all(&shut(1)).await.unwrap();
                ends.data.push(ends.main);
                ((), ends.data)
            })
            .await;
        assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
        assert!(error.to_string().contains("gave up (SHUT 1)"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn main_that_is_closed_alone_ends_it() {
    for return_path in [true, false] {
        let migration = Migration { return_path, ..Migration::over(Line::Unix) };
        let (error, ()) = migration
            .fails(|ends| async move {
                ends.full().await;
                drop(ends.main);
                ((), ends.data)
            })
            .await;
        let text = error.to_string();
        // What was not read makes it a reset.
        let blame = error.blame();
        assert!([Blame::PeerIncompatible, Blame::Io].contains(&blame), "{return_path}: {text}");
        assert!(!text.contains("data channel"), "{return_path}: {text}");
    }
}

/// Records of zero pages fill main while the data channels wait.
#[tokio::test(flavor = "multi_thread")]
async fn main_that_nobody_reads_is_named() {
    let pages = [60_000, 20];
    let migration = Migration {
        memory: Writes::with_pages(pages, |_, _| {}, None),
        zeros: ZeroPageDetection::Legacy,
        deadlines: idle(Duration::from_millis(500)),
        ..Migration::over(Line::Unix)
    };
    let (error, ()) = migration
        .fails(|ends| async move {
            let Ends { main, data, .. } = ends;
            for far in data {
                tokio::spawn(drain(far));
            }
            ((), vec![main])
        })
        .await;
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(!error.to_string().contains("data channel"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_cannot_be_opened_is_named() {
    for (answer, blame) in [(Answer::Refused, Blame::Io), (Answer::TimedOut, Blame::Deadline)] {
        for nth in 1..=usize::from(CHANNELS) {
            let memory = still_guest(PAGES);
            let answers = move |n| if n == nth { answer } else { Answer::Taken };
            let (connector, mut arrivals) = Dialling::answering(Line::Unix, answers);
            let mut source = source(&memory, "pc-q35-10.0", channels(CHANNELS));
            let sent = tokio::time::timeout(SOON, source.run(&connector)).await.expect("no end");
            let error = sent.unwrap_err();
            assert_eq!((error.blame(), error.owner()), (blame, Owner::Source), "{error}");
            let words = format!("while data channel {} was opened", nth - 1);
            assert!(error.to_string().contains(&words), "{error}");
            runs_here(&memory);
            no_lane_stays();
            drop(connector);
            while let Some(far) = arrivals.recv().await {
                tokio::time::timeout(SOON, drain(far)).await.expect("a connection that stayed");
            }
        }
    }
}

/// The wait for a connection is the connector's; what happens to the others meanwhile is not.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_channel_is_being_opened_the_others_are_watched() {
    let memory = still_guest(PAGES);
    let answers = |n| if n == 2 { Answer::Never } else { Answer::Taken };
    let (connector, mut arrivals) = Dialling::answering(Line::Unix, answers);
    let mut source = source(&memory, "pc-q35-10.0", channels(CHANNELS));
    let script = async {
        let mut main = arrivals.recv().await.unwrap();
        let data = arrivals.recv().await.unwrap();
        while connector.dialled() < 3 {
            tokio::task::yield_now().await;
        }
        main.write_all(&shut(1)).await.unwrap();
        [main, data]
    };
    let both = async { tokio::join!(source.run(&connector), script) };
    let (sent, left) = tokio::time::timeout(SOON, both).await.expect("no end");
    let error = sent.unwrap_err();
    assert!(error.to_string().contains("gave up (SHUT 1)"), "{error}");
    runs_here(&memory);
    no_lane_stays();
    for far in left {
        tokio::time::timeout(SOON, drain(far)).await.expect("a connection that stayed");
    }
}

/// Nothing was said to anybody.
#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_sent() {
    type Change = fn(&mut mig_engine::Parameters, &mut mig_engine::Capabilities);
    let cases: [(Change, &str); 5] = [
        (|parameters, _| parameters.multifd_channels = 0, "0 channels"),
        (|_, capabilities| capabilities.xbzrle = true, "xbzrle"),
        (
            |parameters, _| {
                parameters.multifd_compression = MultifdCompression::Zlib;
                parameters.multifd_zlib_level = Some(10);
            },
            "10",
        ),
        (
            |parameters, _| {
                parameters.multifd_compression = MultifdCompression::Zstd;
                parameters.multifd_zstd_level = Some(23);
            },
            "23",
        ),
        (
            |parameters, _| {
                parameters.multifd_auto = Some(mig_engine::AutoChannels::default());
                parameters.multifd_channels = 0;
            },
            "0 channels",
        ),
    ];
    for (change, words) in cases {
        let memory = still_guest([16, 4]);
        let (mut parameters, mut capabilities) = (channels(2), multifd());
        change(&mut parameters, &mut capabilities);
        let (connector, mut arrivals) = Dialling::new(Line::Unix);
        let mut source = source(&memory, "pc-q35-10.0", parameters).with_capabilities(capabilities);
        let error = source.run(&connector).await.unwrap_err();
        assert_eq!((error.blame(), error.owner()), (Blame::Misuse, Owner::Source), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(memory.diary.entries().is_empty());
        drop(connector);
        while let Some(mut far) = arrivals.recv().await {
            let mut came = Vec::new();
            far.read_to_end(&mut came).await.unwrap();
            assert!(came.is_empty(), "{error}");
        }
    }
}

#[tokio::test]
async fn a_transport_of_one_channel_is_refused_before_anything_is_sent() {
    let memory = still_guest([16, 4]);
    let (out, mut into, _direct) = mig_testkit::direct_pair(8192, true);
    let mut source = source(&memory, "pc-q35-10.0", channels(2));
    let error = source.run(&crate::support::Ready::new(out)).await.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Misuse, Owner::Source), "{error}");
    assert!(error.to_string().contains("no data channels beside the main one"), "{error}");
    let mut came = Vec::new();
    into.take_receiver().unwrap().read_to_end(&mut came).await.unwrap();
    assert!(came.is_empty());
}
