//! A cancel ends a source with data channels wherever it is: soon, with nothing left behind, and with the guest running
//! here.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use mig_engine::{MigrationHandle, MultifdCompression, Owner, Parameters};
use mig_transport::Blame;
use tokio::io::AsyncReadExt;

use crate::{
    multifd_source_far::{
        Answer, Arrivals, Dialling, Line, SOON, channels, drain, no_lane_stays, populate, source,
        still_guest,
    },
    multifd_source_faults::runs_here,
    scripted::Writes,
};

const PAGES: [usize; 2] = [3000, 20];
/// Ten times what is promised.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Cancels when `script` has brought the migration to where it is to be cancelled.
async fn cancelled<T, F>(
    memory: &Arc<Writes>,
    parameters: Parameters,
    (connector, arrivals): (Dialling, Arrivals),
    script: impl FnOnce(Arrivals) -> F,
) where
    F: Future<Output = T>,
{
    let mut source = source(memory, "pc-q35-10.0", parameters);
    let handle = source.handle();
    let cancel = async {
        let kept = script(arrivals).await;
        handle.cancel();
        (kept, Instant::now())
    };
    let both =
        async { tokio::join!(async { (source.run(&connector).await, Instant::now()) }, cancel) };
    let ((sent, ended), (_kept, asked)) = tokio::time::timeout(SOON, both).await.expect("no end");
    let error = sent.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Cancelled, Owner::Source), "{error}");
    let took = ended.saturating_duration_since(asked);
    assert!(took < AT_ONCE, "{took:?}");
    runs_here(memory);
    no_lane_stays();
}

#[tokio::test(flavor = "multi_thread")]
async fn before_and_while_channels_are_opened() {
    for opened in 0..4 {
        let memory = still_guest([64, 4]);
        let answers = move |n| if n == opened { Answer::Never } else { Answer::Taken };
        let line = Dialling::answering(Line::Unix, answers);
        let dialled = line.0.counter();
        cancelled(&memory, channels(3), line, |arrivals| async move {
            while dialled() <= opened {
                tokio::task::yield_now().await;
            }
            arrivals
        })
        .await;
        assert!(memory.diary.entries().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_all_channels_are_full() {
    for line in [Line::Unix, Line::Tcp, Line::Memory(64 * 1024)] {
        for compression in
            [MultifdCompression::None, MultifdCompression::Zlib, MultifdCompression::Zstd]
        {
            let memory = still_guest(PAGES);
            let mut parameters = channels(3);
            parameters.multifd_compression = compression;
            cancelled(&memory, parameters, Dialling::new(line), |mut arrivals| async move {
                let mut kept = Vec::new();
                // Main, and something of a packet on each other one.
                for bytes in [8, 4000, 4000, 4000] {
                    let mut far = arrivals.recv().await.unwrap();
                    far.read_exact(&mut vec![0; bytes]).await.unwrap();
                    kept.push(far);
                }
                (kept, arrivals)
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_synchronisation() {
    let memory = still_guest(PAGES);
    let line = Dialling::new(Line::Memory(512));
    cancelled(&memory, channels(3), line, |mut arrivals| async move {
        let mut kept = vec![arrivals.recv().await.unwrap()];
        for _ in 0..3 {
            let mut far = arrivals.recv().await.unwrap();
            // The hello, and not all of SYNC.
            far.read_exact(&mut [0; 64 + 100]).await.unwrap();
            kept.push(far);
        }
        (kept, arrivals)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_last_pass() {
    let guest = |guest: &Writes, pass| {
        if pass == 2 {
            (0..2000).for_each(|page| guest.write(0, page, 8, b"last words"));
        }
    };
    let memory = Writes::with_pages(PAGES, guest, None);
    populate(&memory, PAGES);
    let diary = memory.diary.clone();
    cancelled(&memory, channels(3), Dialling::new(Line::Unix), |mut arrivals| async move {
        let mut readers = Vec::new();
        for _ in 0..4 {
            let mut far = arrivals.recv().await.unwrap();
            let diary = diary.clone();
            readers.push(tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while !diary.has("stop") {
                    let read = far.read(&mut bytes);
                    let _yet = tokio::time::timeout(Duration::from_millis(5), read).await;
                }
                far
            }));
        }
        let mut kept = Vec::new();
        for reader in readers {
            kept.push(reader.await.unwrap());
        }
        (kept, arrivals)
    })
    .await;
    assert_eq!(memory.diary.entries(), ["stop", "resume"]);
}

/// A channel that never has to wait looks up all the same.
#[tokio::test(flavor = "multi_thread")]
async fn while_channels_compress_as_fast_as_they_can() {
    // Seconds of work.
    let memory = still_guest([40_000, 20]);
    let mut parameters = channels(8);
    parameters.multifd_compression = MultifdCompression::Zstd;
    parameters.multifd_zstd_level = Some(3);
    cancelled(&memory, parameters, Dialling::new(Line::Unix), |mut arrivals| async move {
        tokio::spawn(drain(arrivals.recv().await.unwrap()));
        let mut under_way = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut far = arrivals.recv().await.unwrap();
            under_way.spawn(async move {
                // Hello, SYNC, and the first packet's header.
                far.read_exact(&mut [0; 64 + 2 * 1344]).await.unwrap();
                tokio::spawn(drain(far));
            });
        }
        under_way.join_all().await;
        arrivals
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_rate_holds_everything_up() {
    let memory = still_guest(PAGES);
    let mut parameters = channels(3);
    parameters.max_bandwidth = 1000;
    cancelled(&memory, parameters, Dialling::new(Line::Unix), |mut arrivals| async move {
        for _ in 0..4 {
            tokio::spawn(drain(arrivals.recv().await.unwrap()));
        }
        arrivals
    })
    .await;
}

/// The last chance is before the destination's yes.
#[tokio::test(flavor = "multi_thread")]
async fn before_it_began() {
    let memory = still_guest([64, 4]);
    let (connector, _arrivals) = Dialling::new(Line::Unix);
    let mut source = source(&memory, "pc-q35-10.0", channels(2));
    let handle: MigrationHandle = source.handle();
    handle.cancel();
    let error = source.run(&connector).await.unwrap_err();
    assert_eq!((error.blame(), connector.dialled()), (Blame::Cancelled, 0));
}
