//! Device state over data channels (docs/wire/ram.md §9.7) reaches the guest whole, with the right name, before it
//! starts; what breaks a rule, and what the guest refuses, ends the migration with the guest still the source's.

use std::{
    error::Error as _,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use mig_engine::{
    DeviceSection, Discard, Error, Guest, GuestError, MultifdCompression, MultifdOptions, Owner,
    RecordOptions, Recorder,
};
use mig_proto::{Command, SectionKind, encode, globalstate::RunState, multifd};
use mig_transport::{Blame, Channel};
use tokio::{io::AsyncWriteExt, sync::mpsc::UnboundedSender};

use crate::{
    multifd_wire::{
        Far, Kind, Mode, Receiving, Script, connection, deadlines, listen, name, page_bytes, play,
    },
    support::{Arriving, Diary, TestGuest},
};

const NONE: MultifdCompression = MultifdCompression::None;
const BOTH: [Option<usize>; 3] = [None, Some(0), Some(1)];
/// The longest that is taken.
const LONGEST: u32 = 64 << 20;

/// What came for a device.
type State = (String, u32, Vec<u8>);

/// A guest with a device that takes its state over data channels.
struct StateGuest {
    inner: TestGuest,
    /// So many parts must come before it may start.
    expects: usize,
    came: Arc<Mutex<Vec<State>>>,
    /// So many bytes of each are kept.
    keeps: usize,
    refuses: bool,
}

impl Guest for StateGuest {
    fn machine_type(&self) -> String {
        self.inner.machine_type()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.inner.stop()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.inner.resume()
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        self.inner.save_devices()
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        self.inner.load_device(section)
    }

    fn load_device_state(
        &mut self,
        idstr: &str,
        instance_id: u32,
        mut state: Vec<u8>,
    ) -> Result<(), GuestError> {
        if self.refuses {
            return Err("the firmware is older".into());
        }
        self.inner.diary.note(format!("state of {idstr}"));
        assert!(self.keeps == usize::MAX || state.len() == LONGEST as usize);
        state.truncate(self.keeps);
        self.came.lock().unwrap().push((idstr.into(), instance_id, state));
        Ok(())
    }

    fn expects_device_state(&self) -> bool {
        self.came.lock().unwrap().len() < self.expects
    }

    fn start(&mut self, state: RunState) -> Result<(), GuestError> {
        assert!(!self.expects_device_state(), "started without its state");
        self.inner.start(state)
    }
}

/// A destination, and what comes for its device.
fn receiving(expects: usize, refuses: bool) -> (Receiving, Arc<Mutex<Vec<State>>>) {
    receiving_and_keeping(expects, refuses, usize::MAX)
}

fn receiving_and_keeping(
    expects: usize,
    refuses: bool,
    keeps: usize,
) -> (Receiving, Arc<Mutex<Vec<State>>>) {
    let (diary, came) = (Diary::default(), Arc::default());
    let inner = TestGuest::new(&diary);
    let guest = StateGuest { inner, expects, came: Arc::clone(&came), keeps, refuses };
    (Receiving::with_any_guest(2, NONE, Box::new(guest), diary), came)
}

/// The far ends of a main channel and two data channels, which have come.
struct Fars {
    main: Box<dyn Far>,
    data: [Box<dyn Far>; 2],
}

impl Fars {
    async fn connect(door: &UnboundedSender<Channel>, script: &Script) -> Self {
        let (near, main) = connection(Kind::Unix).await;
        door.send(near).unwrap();
        let mut data = Vec::new();
        for hello in &script.hellos {
            let (near, mut far) = connection(Kind::Unix).await;
            door.send(near).unwrap();
            far.write_all(hello).await.unwrap();
            data.push(far);
        }
        let Ok(data) = data.try_into() else { panic!("two data channels") };
        Self { main, data }
    }

    /// Hangs up once the verdict came.
    async fn listen(mut self) -> Option<u32> {
        listen(&mut self.main).await
    }
}

fn state_bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 / 3) as u8 ^ seed).collect()
}

/// A packet with state; its header's bytes may be changed before it goes.
fn put_with(
    script: &mut Script,
    channel: usize,
    (idstr, instance_id, bytes): &State,
    change: impl FnOnce(&mut [u8]),
) {
    let out = &mut script.data[channel];
    let start = out.len();
    let len = NonZeroU32::new(bytes.len() as u32).unwrap();
    multifd::encode::device_state_packet(out, name(idstr), *instance_id, len);
    change(&mut out[start..]);
    out.extend_from_slice(bytes);
}

fn put(script: &mut Script, channel: usize, state: &State) {
    put_with(script, channel, state, |_| {});
}

/// Some pages, and SWITCHOVER_START.
fn begin(mode: Mode) -> Script {
    let mut script = Script::new(2, mode, NONE);
    script.packet(0, 0, &[(1, 1), (2, 1)], &[]);
    script.packet(1, 1, &[(3, 1)], &[]);
    script.end_round();
    encode::command(&mut script.main, &Command::SwitchoverStart);
    script
}

fn vfio(instance_id: u32, seed: u8, len: usize) -> State {
    ("0000:00:05.0/vfio".into(), instance_id, state_bytes(seed, len))
}

#[tokio::test(flavor = "multi_thread")]
async fn state_reaches_the_guest_from_any_channel_before_it_starts() {
    for mode in [Mode::PerRound, Mode::PerSection] {
        // Shorter than a header, longer than a reader's buffer, and between.
        let states = [
            vfio(0, 1, 1),
            vfio(0, 2, 1000),
            vfio(7, 3, 5 << 20),
            ("disk".into(), u32::MAX, state_bytes(4, 2000)),
            vfio(1, 5, 70_000),
        ];
        let mut script = begin(mode);
        // Between pages, one after the other, before the last SYNC and behind it.
        put(&mut script, 0, &states[2]);
        script.packet(0, 0, &[(9, 4)], &[]);
        put(&mut script, 1, &states[0]);
        put(&mut script, 1, &states[1]);
        script.packet(1, 0, &[(12, 4)], &[13]);
        script.end();
        put(&mut script, 1, &states[3]);
        put(&mut script, 0, &states[4]);
        let (mut receiving, came) = receiving(states.len(), false);
        let (received, said) = receiving.run(&script, &BOTH, Kind::Tcp).await;
        let outcome = received.unwrap_or_else(|error| panic!("{mode:?}: {error}"));
        assert_eq!(said, Some(0));
        receiving.check(&script);
        let mut came = came.lock().unwrap().clone();
        came.sort();
        let mut expected = states.to_vec();
        expected.sort();
        assert!(came == expected, "{mode:?}");
        let entries = receiving.diary.entries();
        assert_eq!(entries.last().map(String::as_str), Some("start"), "{entries:?}");
        assert_eq!(entries.len(), states.len() + 3, "{entries:?}");
        let wire: usize = script.data.iter().map(|bytes| bytes.len() + 64).sum();
        assert_eq!(outcome.info.ram.multifd_bytes, wire as u64, "{mode:?}");
    }
}

/// Parts on one channel are handed over in the order in which they came: reordering others is the device's to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_channel_is_kept() {
    let states: Vec<_> = (0..40).map(|index| vfio(index, index as u8, 3000)).collect();
    let mut script = begin(Mode::PerRound);
    for (index, state) in states.iter().enumerate() {
        put(&mut script, index % 2, state);
    }
    script.end();
    let (mut receiving, came) = receiving(states.len(), false);
    let (received, _) = receiving.run(&script, &BOTH, Kind::Unix).await;
    received.unwrap();
    let came = came.lock().unwrap();
    for odd in [0, 1] {
        let of: Vec<_> = came.iter().map(|(_, id, _)| *id).filter(|id| id % 2 == odd).collect();
        assert_eq!(of, (0..40).filter(|id| id % 2 == odd).collect::<Vec<_>>());
    }
}

/// The main channel can be at its end long before.
#[tokio::test(flavor = "multi_thread")]
async fn the_guest_is_not_started_before_its_state_came() {
    let mut script = begin(Mode::PerRound);
    script.end();
    let before = script.data[0].len();
    put(&mut script, 0, &vfio(0, 1, 100_000));
    let (mut receiving, came) = receiving(1, false);
    let (door, diary) = (receiving.door.clone(), receiving.diary.clone());
    let source = async {
        let mut far = Fars::connect(&door, &script).await;
        far.main.write_all(&script.main).await.unwrap();
        far.data[0].write_all(&script.data[0][..before]).await.unwrap();
        far.data[1].write_all(&script.data[1]).await.unwrap();
        // The devices have loaded, and all of main is there.
        while !diary.has("load disk") {
            tokio::task::yield_now().await;
        }
        far.data[0].write_all(&script.data[0][before..]).await.unwrap();
        far.listen().await
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    received.unwrap();
    assert_eq!(said, Some(0));
    assert_eq!(
        receiving.diary.entries(),
        ["load clock", "load disk", "state of 0000:00:05.0/vfio", "start"]
    );
    assert_eq!(came.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_does_not_come_is_missed_by_the_idle_deadline() {
    let mut script = begin(Mode::PerRound);
    put(&mut script, 1, &vfio(0, 1, 100));
    script.end();
    let (mut receiving, _) = receiving(2, false);
    let mut short = deadlines();
    short.idle = Some(Duration::from_millis(300));
    receiving.destination = receiving.destination.with_deadlines(short);
    let (received, said) = receiving.run(&script, &BOTH, Kind::Unix).await;
    let error = received.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(error.to_string().contains("a device waits for more of its state"), "{error}");
    assert_eq!(said, Some(1));
    assert!(!receiving.diary.runs());
}

/// It may come on its channel before SWITCHOVER_START does on main: connections are not ordered. It waits there.
#[tokio::test(flavor = "multi_thread")]
async fn state_that_overtakes_switchover_start_waits_for_it() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.end_round();
    put(&mut script, 0, &vfio(0, 1, 100));
    let late = script.main.len();
    // A source goes on with pages before it switches over, as far as main is concerned.
    script.section(SectionKind::Part, "ram");
    script.end_ram();
    encode::command(&mut script.main, &Command::SwitchoverStart);
    script.end();
    let (mut receiving, came) = receiving(1, false);
    let door = receiving.door.clone();
    let source = async {
        let mut far = Fars::connect(&door, &script).await;
        far.data[0].write_all(&script.data[0]).await.unwrap();
        far.data[1].write_all(&script.data[1]).await.unwrap();
        far.main.write_all(&script.main[..late]).await.unwrap();
        far.main.write_all(&script.main[late..]).await.unwrap();
        far.listen().await
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    received.unwrap();
    assert_eq!(said, Some(0));
    assert_eq!(came.lock().unwrap()[..], [vfio(0, 1, 100)]);
}

/// Refused with these words; answers the error.
async fn refuse(script: &Script, refuses: bool, blame: Blame, words: &str) -> Error {
    // One more than comes: who does not notice the packet must not get to the end.
    let (mut receiving, _) = receiving(2, refuses);
    let (received, said) = receiving.run(script, &BOTH, Kind::Unix).await;
    let error = received.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(words), "{text}");
    assert_eq!(error.blame(), blame, "{text}");
    assert_eq!(error.owner(), Owner::Source, "{text}");
    assert_eq!(said, Some(1), "{text}");
    assert!(!receiving.diary.runs(), "{text}");
    error
}

/// Nobody knows whether SWITCHOVER_START is to come, until main proves that it comes too late.
#[tokio::test(flavor = "multi_thread")]
async fn state_before_switchover_start_is_refused() {
    // Main ends without one.
    let mut script = Script::new(2, Mode::PerRound, NONE);
    put(&mut script, 1, &vfio(0, 1, 100));
    script.end();
    refuse(&script, false, Blame::PeerMisbehaved, "came before SWITCHOVER_START").await;
    // In a round before: main waits for a SYNC that is behind it.
    for mode in [Mode::PerRound, Mode::PerSection] {
        let mut script = Script::new(2, mode, NONE);
        script.packet(1, 0, &[(1, 1)], &[]);
        put(&mut script, 1, &vfio(0, 1, 100));
        script.end_round();
        encode::command(&mut script.main, &Command::SwitchoverStart);
        script.end();
        let words = "data channel 1: state of device '0000:00:05.0/vfio' came before";
        refuse(&script, false, Blame::PeerMisbehaved, words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_breaks_a_rule_is_refused() {
    fn put32(header: &mut [u8], at: usize, value: u32) {
        header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    type Change = fn(&mut [u8]);
    let cases: [(Change, Blame, &str); 7] = [
        (|header| header[12..268].fill(b'x'), Blame::PeerMisbehaved, "device name of 256 bytes"),
        (|header| header[12] = 0, Blame::PeerMisbehaved, "without a name"),
        (|header| put32(header, 272, 0), Blame::PeerMisbehaved, "0 bytes of state for"),
        (
            |header| put32(header, 272, LONGEST + 1),
            Blame::PeerIncompatible,
            "67108865 bytes of state for \"0000:00:05.0/vfio\", expected 1 to 67108864",
        ),
        (|header| put32(header, 272, u32::MAX), Blame::PeerIncompatible, "4294967295 bytes"),
        (|header| put32(header, 8, 0x41), Blame::PeerMisbehaved, "cannot be a SYNC"),
        (|header| put32(header, 4, 3), Blame::PeerIncompatible, "version 3"),
    ];
    for (change, blame, words) in cases {
        let mut script = begin(Mode::PerRound);
        put_with(&mut script, 1, &vfio(0, 1, 2000), change);
        script.end();
        let error = refuse(&script, false, blame, words).await;
        assert!(error.to_string().contains("data channel 1: byte "), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_is_cut_is_refused() {
    for (cut, words) in [
        (2000 + 276 - 100, "ended inside a packet's header: 100 of 276 bytes came"),
        (10, "the state of device '0000:00:05.0/vfio': 10 of 2000 bytes are missing"),
    ] {
        let mut script = begin(Mode::PerRound);
        put(&mut script, 1, &vfio(0, 1, 2000));
        let len = script.data[1].len() - cut;
        script.end();
        script.data[1].truncate(len);
        let (mut receiving, _) = receiving(1, false);
        let door = receiving.door.clone();
        let source = async {
            let mut far = Fars::connect(&door, &script).await;
            far.data[0].write_all(&script.data[0]).await.unwrap();
            far.data[1].write_all(&script.data[1]).await.unwrap();
            far.data[1].shutdown().await.unwrap();
            far.main.write_all(&script.main).await.unwrap();
            far.listen().await
        };
        let (received, said) =
            tokio::join!(receiving.destination.run(&mut receiving.listener), source);
        let error = received.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(said, Some(1), "{error}");
        assert!(!receiving.diary.runs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_refuses_stays_with_the_source() {
    let mut script = begin(Mode::PerRound);
    put(&mut script, 0, &vfio(3, 1, 100));
    script.end();
    let words = "device 0000:00:05.0/vfio (instance 3) that came over a data channel";
    let error = refuse(&script, true, Blame::PeerIncompatible, words).await;
    assert_eq!(error.source().unwrap().to_string(), "the firmware is older");
}

/// A guest that never heard of it: `Guest::load_device_state` as it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_such_devices_refuses() {
    let mut script = begin(Mode::PerRound);
    put(&mut script, 0, &vfio(3, 1, 100));
    script.end();
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) = receiving.run(&script, &BOTH, Kind::Unix).await;
    let error = received.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    let words = "no device here takes state over data channels: 100 bytes";
    assert!(error.source().unwrap().to_string().contains(words), "{error}");
    assert_eq!(said, Some(1));
    assert!(!receiving.diary.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn state_over_channels_that_compress_is_refused() {
    for compression in [MultifdCompression::Zlib, MultifdCompression::Zstd] {
        let mut script = Script::new(2, Mode::PerRound, compression);
        encode::command(&mut script.main, &Command::SwitchoverStart);
        put(&mut script, 1, &vfio(0, 1, 100));
        script.end();
        let mut receiving = Receiving::new(2, compression);
        let (received, said) = receiving.run(&script, &BOTH, Kind::Unix).await;
        let error = received.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
        assert!(error.to_string().contains("over channels that compress"), "{error}");
        assert_eq!(said, Some(1));
    }
}

/// A stored stream has no place for it, and without it the guest would be incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_refuses_state() {
    let mut script = begin(Mode::PerRound);
    put(&mut script, 1, &vfio(0, 1, 100));
    script.end();
    let mut options = RecordOptions::default();
    options.deadlines = deadlines();
    options.multifd = Some(MultifdOptions::new(2));
    let mut listener = Arriving::new([]);
    let door = listener.door();
    let recorder = Recorder::new(options);
    let (recorded, said) = tokio::join!(
        recorder.run(&mut listener, Box::new(Discard), None),
        play(&script, door, &BOTH, Kind::Unix)
    );
    let error = recorded.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    let words = "state of device '0000:00:05.0/vfio' came over a data channel, which has no place";
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.to_string().contains("x-migration-multifd-transfer=off"), "{error}");
    assert_eq!(said, Some(1));
}

/// More than may be held at once goes through all the same: what was handed over is held no longer.
#[tokio::test(flavor = "multi_thread")]
async fn more_state_than_fits_at_once_goes_through() {
    let mut script = begin(Mode::PerRound);
    script.end();
    let (mut receiving, came) = receiving_and_keeping(6, false, 8192);
    let door = receiving.door.clone();
    let payload = page_bytes(1, 1).repeat(LONGEST as usize / 4096);
    let source = async {
        let mut far = Fars::connect(&door, &script).await;
        far.main.write_all(&script.main).await.unwrap();
        let mut header = Vec::new();
        let len = NonZeroU32::new(LONGEST).unwrap();
        multifd::encode::device_state_packet(&mut header, name("disk"), 0, len);
        let sending = far.data.iter_mut().zip(&script.data).map(|(far, data)| async {
            far.write_all(data).await.unwrap();
            for _ in 0..3 {
                far.write_all(&header).await.unwrap();
                far.write_all(&payload).await.unwrap();
            }
        });
        let [one, two] = sending.collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("two"));
        tokio::join!(one, two);
        far.listen().await
    };
    let (received, said) = tokio::join!(receiving.destination.run(&mut receiving.listener), source);
    received.unwrap();
    assert_eq!(said, Some(0));
    let came = came.lock().unwrap();
    assert!(came.iter().all(|(_, _, state)| *state == payload[..8192]));
}
