//! A source that finds the number of its data channels: with a destination of ours it grows, with others it is QEMU's
//! default, and the report says why.

use std::sync::Arc;

use async_trait::async_trait;
use mig_engine::{AutoChannels, Capabilities, Destination, MultifdInfo, Parameters};
use mig_proto::{
    multifd::{Hello, Method},
    peer::{CHANNELS_MAY_CHANGE, MAY_CHANNELS_CHANGE, channels_from_here},
};
use mig_ram::{PAGE_SIZE, RamBlock, RamBlocks};
use mig_testkit::memory_pair;
use mig_transport::{Channel, Connector};
use tokio::sync::mpsc;

use crate::{
    multifd_source_far::{
        Dialling, Heard, Line, Pong, SOON, Said, channels, echo, hear, multifd, mute,
        no_lane_stays, same_memory, source, still_guest,
    },
    support::{Arriving, Diary, TestGuest, whole},
};

const PAGES: [usize; 2] = [3000, 20];

/// A link that is slower than anything else, so that a second channel brings nothing.
fn auto(limits: AutoChannels) -> Parameters {
    let mut parameters = channels(7);
    parameters.multifd_auto = Some(limits);
    parameters.max_bandwidth = 6_000_000;
    parameters
}

fn at_most(most: u8, cpu_budget: Option<u32>) -> AutoChannels {
    let mut limits = AutoChannels::default();
    (limits.most, limits.cpu_budget) = (most, cpu_budget);
    limits
}

/// Migrates to a script that answers PING so; memory is compared.
async fn to_script(
    parameters: Parameters,
    capabilities: Capabilities,
    pong: Pong,
) -> (Heard, MultifdInfo) {
    let memory = still_guest(PAGES);
    let (connector, arrivals) = Dialling::new(Line::Unix);
    let mut source = source(&memory, "pc-q35-10.0", parameters).with_capabilities(capabilities);
    let both = async { tokio::join!(source.run(&connector), hear(arrivals, Method::None, pong)) };
    let (sent, heard) = tokio::time::timeout(2 * SOON, both).await.expect("no end");
    same_memory(&memory.ram, &heard.memory(&Said::Flush, PAGES));
    no_lane_stays();
    let info = sent.unwrap().info.multifd.unwrap();
    assert_eq!(info.channels, heard.data.len());
    (heard, info)
}

fn pings(heard: &Heard) -> Vec<u32> {
    let pings = heard.main.iter().filter_map(|said| match said {
        Said::Ping(value) => Some(*value),
        _ => None,
    });
    pings.collect()
}

/// As a destination of ours that was told to take any number.
fn ours(value: u32) -> Option<u32> {
    Some(if value == MAY_CHANNELS_CHANGE { CHANNELS_MAY_CHANGE } else { value })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_takes_any_number_is_told_of_each() {
    let (heard, info) = to_script(auto(at_most(3, None)), multifd(), ours).await;
    assert!((2..=3).contains(&info.channels), "{info:?}");
    let why = info.channels_chosen.unwrap();
    assert!(why.contains("changed the rate by") || why.contains("as many as"), "{why}");
    let mut expected = vec![1, MAY_CHANNELS_CHANGE];
    expected.extend((1..=info.channels as u8).map(channels_from_here));
    assert_eq!(pings(&heard), expected);
    for (id, data) in (0..).zip(&heard.data) {
        assert_eq!(data.hello, Hello { uuid: [0; 16], id }.encode());
    }
    // The first says everything from START on, and the second came in the middle of a pass.
    let syncs = |id: usize| heard.data[id].packets.iter().filter(|packet| packet.sync).count();
    assert_eq!((syncs(0), syncs(1)), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept() {
    for (limits, words) in
        [(at_most(1, None), "as many as were allowed"), (at_most(9, Some(0)), "of 0.0 processors")]
    {
        let (heard, info) = to_script(auto(limits), multifd(), ours).await;
        assert_eq!(info.channels, 1);
        let why = info.channels_chosen.unwrap();
        assert!(why.contains(words), "{why}");
        assert_eq!(pings(&heard), [1, MAY_CHANNELS_CHANGE, channels_from_here(1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_anybody_else_it_is_what_qemu_does() {
    let mut one_way = multifd();
    one_way.return_path = false;
    let asked = vec![1, MAY_CHANNELS_CHANGE, channels_from_here(2)];
    let cases: [(_, Pong, _, _); 3] = [
        (multifd(), echo, asked.clone(), "a number that it was given"),
        (multifd(), mute, asked, "a number that it was given"),
        (one_way, mute, vec![], "without a return path"),
    ];
    for (capabilities, pong, said, words) in cases {
        let mut parameters = auto(AutoChannels::default());
        parameters.max_bandwidth = 0;
        let (heard, info) = to_script(parameters, capabilities, pong).await;
        assert_eq!(info.channels, 2);
        let why = info.channels_chosen.unwrap();
        assert!(why.contains(words) && why.contains("QEMU's default"), "{why}");
        assert_eq!(pings(&heard), said);
    }
}

/// Connects to a listener in memory.
struct Meeting(mpsc::UnboundedSender<Channel>);

#[async_trait]
impl Connector for Meeting {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        let (near, far) = memory_pair(64 * 1024);
        self.0.send(far).unwrap();
        Ok(near)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ends_of_ours_find_a_number() {
    let memory = still_guest(PAGES);
    let blocks = ["test.ram", "test.rom"].into_iter().zip(PAGES);
    let blocks =
        blocks.map(|(name, pages)| RamBlock::new(name, (pages * PAGE_SIZE) as u64).unwrap());
    let there = Arc::new(RamBlocks::new(blocks).unwrap());
    let diary = Diary::default();
    let mut parameters = Parameters::default();
    parameters.multifd_auto = Some(AutoChannels::default());
    let guest = TestGuest { machine: "pc-q35-10.0", ..TestGuest::new(&diary) };
    let mut destination = Destination::new(there.clone(), Box::new(guest))
        .with_capabilities(multifd())
        .with_parameters(parameters);
    let mut listener = Arriving::new([]);
    let connector = Meeting(listener.door());
    let mut source = source(&memory, "pc-q35-10.0", auto(at_most(4, None)));
    let both = async { tokio::join!(source.run(&connector), destination.run(&mut listener)) };
    let (sent, received) = tokio::time::timeout(2 * SOON, both).await.expect("no end");
    let info = sent.unwrap().info.multifd.unwrap();
    received.unwrap();
    assert!((2..=4).contains(&info.channels), "{info:?}");
    assert!(diary.has("start"));
    let memory_there = [0, 1].map(|block| {
        let mut bytes = vec![0; PAGES[block] * PAGE_SIZE];
        whole(&there, block).copy_out(&mut bytes);
        bytes
    });
    same_memory(&memory.ram, &memory_there);
}
