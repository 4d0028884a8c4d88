//! Why this exists: a service that migrates guests all day must hold as much on the evening as in the morning. Small
//! migrations of every kind follow each other in one process, then 200 run at once, and memory, descriptors, threads and
//! mappings must be where they were.
//!
//! ```text
//!   warm-up ─▶ baseline ─▶ N one after the other, looked at ten times ─▶ 200 at once, three times ─▶ as before?
//! ```
//!
//! One test in a process of its own, because it counts what the process has. `MIG_SOAK` is N; `cargo xtask soak` runs it
//! with 10 000 and shows the numbers (docs/testing.md).

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

mod guest;
mod held;
mod lives;

use std::{process::Command, sync::Arc, time::Duration};

use tokio::{runtime, task::JoinSet};

use self::{
    held::{Held, settled},
    lives::World,
};

/// One after the other, unless `MIG_SOAK` says otherwise: a few of each kind.
const FEW: usize = 600;
const AT_ONCE: usize = 200;
/// What a process may keep of ten thousand migrations: half a kilobyte each would be a leak, the allocator's mood is not.
const RSS_MAY_GROW_KIB: u64 = 4096;
/// A hang anywhere ends the test, long after anything that merely is slow.
const ONE_LIFE: Duration = Duration::from_secs(120);

/// How often they run at once; the last two are compared.
const BURSTS: usize = 3;

#[test]
fn nothing_grows() {
    if std::env::var_os(RETURNS_MEMORY.0).is_none() {
        return in_a_process_that_returns_memory();
    }
    held::allow_many_descriptors();
    let count = std::env::var("MIG_SOAK").map_or(FEW, |text| text.parse().unwrap());
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Threads that blocked for a moment do not count as kept.
        .thread_keep_alive(Duration::from_millis(50))
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new().await);
        one_after_the_other(&world, 0..FEW / 3).await;
        // A moment for what is on its way out.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = Held::now();
        println!("{:>9} migrations: {before}", "before");

        for tenth in 0..10 {
            one_after_the_other(&world, count * tenth / 10..count * (tenth + 1) / 10).await;
            println!("{:>9} migrations: {}", count * (tenth + 1) / 10, settled(&before).await);
        }
        before.is_still(&settled(&before).await, RSS_MAY_GROW_KIB);

        let mut bursts = Vec::new();
        for _ in 0..BURSTS {
            at_once(&world).await;
            bursts.push(settled(&before).await);
            println!("{AT_ONCE:>9} at once:    {}", bursts[bursts.len() - 1]);
        }
        // The first times the heap gets room for so many.
        bursts[BURSTS - 2].is_still(&bursts[BURSTS - 1], RSS_MAY_GROW_KIB);
        let after = bursts[BURSTS - 1];
        before.is_still(&Held { rss_kib: before.rss_kib, mappings: before.mappings, ..after }, 0);
        println!("{}", world.tally());
    });
}

/// What the allocator keeps for later is not ours to count: with this, glibc gives every buffer back that it frees. Without,
/// it keeps what 200 migrations at once needed, and uses it again.
const RETURNS_MEMORY: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

fn in_a_process_that_returns_memory() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "nothing_grows", "--nocapture"]);
    let status = again.env(RETURNS_MEMORY.0, RETURNS_MEMORY.1).status().unwrap();
    assert!(status.success(), "its output is above");
}

async fn one_after_the_other(world: &Arc<World>, numbers: std::ops::Range<usize>) {
    for number in numbers {
        one(world, number).await;
    }
}

async fn at_once(world: &Arc<World>) {
    let mut lives = JoinSet::new();
    for number in 0..AT_ONCE {
        let world = Arc::clone(world);
        lives.spawn(async move { one(&world, number).await });
    }
    while let Some(life) = lives.join_next().await {
        life.unwrap();
    }
}

async fn one(world: &World, number: usize) {
    let life = tokio::time::timeout(ONE_LIFE, world.live(number)).await;
    assert!(life.is_ok(), "migration {number} hangs: {:?}", world.kind(number));
}
