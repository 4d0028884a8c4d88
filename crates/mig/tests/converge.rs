//! What helps a guest that writes faster than the link carries: `auto-converge` slows it down, `xbzrle` sends less of
//! it. Both with a guest whose thread really writes, and all memory compared.

use std::{sync::Arc, time::Duration};

use mig::{
    ConnectOptions, ListenOptions,
    bench::{SyntheticGuest, Workload},
    engine::{
        Capabilities, Destination, Error, Event, MigrationHandle, MigrationInfo, Parameters, Source,
    },
    ram::{GuestMemory, RamBlock, RamBlocks},
    transport::{MigrationAddress, RegionSlice},
};

const PAGE: u64 = 4096;
const RAM: u64 = 4 << 20;

/// Far longer than either takes.
const HANG: Duration = Duration::from_secs(300);

/// Fast enough for a debug build, and a tenth of a second for the working set.
const BANDWIDTH: u64 = 10 << 20;
const WORKING_SET: u64 = 1 << 20;

fn ram() -> (Arc<RamBlocks>, RegionSlice) {
    let ram = RamBlocks::new([RamBlock::new("synthetic.ram", RAM).expect("a few MiB")]);
    let ram = Arc::new(ram.expect("one block"));
    let region = ram.block(0).expect("one block was made").region;
    (ram, RegionSlice::whole(region))
}

fn bytes(ram: &RegionSlice) -> Vec<u8> {
    let mut all = vec![0; ram.len()];
    ram.copy_out(&mut all);
    all
}

/// Writes its working set several times in the time that one pass takes.
fn workload() -> Workload {
    Workload {
        dirty_rate: 80 << 20,
        working_set: WORKING_SET,
        zero_percent: 20,
        compressible_percent: 20,
        seed: 3,
    }
}

fn parameters() -> Parameters {
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = BANDWIDTH;
    // A fifth of the working set may be left.
    parameters.downtime_limit = 20;
    parameters.avail_switchover_bandwidth = BANDWIDTH;
    parameters
}

/// Over tcp; `steer` gets the source's handle.
async fn migrate<F: Future<Output = ()>>(
    capabilities: Capabilities,
    parameters: Parameters,
    steer: impl FnOnce(MigrationHandle) -> F,
) -> Result<MigrationInfo, Error> {
    let ((source_ram, from), (destination_ram, to)) = (ram(), ram());
    let guest = SyntheticGuest::running(Arc::clone(from.region()), workload());
    let mut source = Source::new(source_ram, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    let incoming = Box::new(SyntheticGuest::incoming(Arc::clone(to.region())));
    let mut destination = Destination::new(destination_ram, incoming);
    let handle = source.handle();
    let at = MigrationAddress::parse("tcp:127.0.0.1:0").expect("an address");
    let mut listener =
        mig::listener(&at, &ListenOptions::default()).await.expect("loopback is there");
    let at = MigrationAddress::parse(&listener.local_addresses()[0]).expect("what it told");
    let connector = mig::connector(&at, &ConnectOptions::default()).expect("loopback is there");
    let (sent, received, ()) =
        tokio::join!(source.run(&*connector), destination.run(&mut *listener), steer(handle));
    let sent = sent?;
    received.expect("the destination has the guest");
    assert!(bytes(&from) == bytes(&to), "memory differs");
    Ok(sent.info)
}

fn with(change: impl FnOnce(&mut Capabilities)) -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    change(&mut capabilities);
    capabilities
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_writes_too_fast_comes_home_slowly() {
    let converging = with(|capabilities| capabilities.auto_converge = true);
    let migration = migrate(converging, parameters(), |_| async {});
    let info = tokio::time::timeout(HANG, migration).await.expect("it converges").unwrap();
    assert_eq!(info.cpu_throttle_percentage, None, "let go at the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_written_all_the_time_arrives_whole_by_deltas() {
    // The cache is smaller than what is written, then larger, then smaller again.
    let resizes = |handle: MigrationHandle| async move {
        let mut events = handle.subscribe();
        let mut parameters = handle.parameters();
        while !handle.status().is_over() {
            let Ok(Event::Pass { pass, .. }) = events.recv().await else { continue };
            parameters.xbzrle_cache_size = match pass % 4 {
                0 | 1 => WORKING_SET / 4,
                2 => WORKING_SET * 2,
                _ => 3 * PAGE,
            };
            // In time it is let go whatever it still writes.
            parameters.downtime_limit = if pass < 16 { 0 } else { 10_000 };
            handle.set_parameters(parameters.clone());
        }
    };
    let mut begin = parameters();
    begin.downtime_limit = 0;
    begin.xbzrle_cache_size = WORKING_SET;
    let deltas = with(|capabilities| capabilities.xbzrle = true);
    let migration = migrate(deltas, begin, resizes);
    let info = tokio::time::timeout(HANG, migration).await.expect("it is let go").unwrap();
    let cache = info.xbzrle_cache.expect("the capability is on");
    assert!(cache.pages > 0, "{cache:?}");
    assert!(cache.bytes < cache.pages * PAGE / 4, "a word or two of each page changed: {cache:?}");
}
