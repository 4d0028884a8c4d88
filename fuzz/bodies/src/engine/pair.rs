//! Source and destination against each other, over a link on which things go wrong: never two owners.
//!
//! ```text
//!   0 options │ 1 rounds of writes │ … │ faults: which │ be16 after so many bytes │ value
//! ```

use std::{cell::RefCell, sync::Arc};

use mig_engine::{Capabilities, Destination, Owner, Parameters, Source};
use mig_ram::RamBlocks;

use super::{
    Clock,
    destination::placing,
    faulty::{Fault, Handles, What, link},
    guest::{Diary, FuzzGuest, Memory},
    meeting::{Arriving, Ready},
    next, next16, take, wait,
};

/// The target.
pub fn pair(data: &[u8]) {
    thread_local! {
        static RAM: RefCell<[Arc<RamBlocks>; 2]> = RefCell::new({
            let rams = [Memory::block(), Memory::block()];
            Memory::fill(&rams[0]);
            rams
        });
    }
    let Some((&[options, rounds], mut script)) = data.split_first_chunk() else { return };
    let writes = take(&mut script, usize::from(rounds % 16));
    let rams = RAM.with_borrow(Clone::clone);
    let (source_diary, destination_diary) = (Diary::default(), Diary::default());
    let return_path = options & 1 != 0;
    let mut capabilities = Capabilities::default();
    capabilities.return_path = return_path;
    capabilities.xbzrle = options & 4 != 0;
    capabilities.auto_converge = options & 8 != 0;
    let mut parameters = Parameters::default();
    if options & 16 != 0 {
        parameters.max_bandwidth = 1 << 20;
        parameters.downtime_limit = 1;
    }
    parameters.xbzrle_cache_size = 16 * 1024;
    let source_memory = Memory::new(Arc::clone(&rams[0]), writes);
    let mut source = Source::new(source_memory, FuzzGuest::new(&source_diary))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    let mut guest = FuzzGuest::new(&destination_diary);
    guest.refuses = options & 32 != 0;
    let destination_memory = Memory::new(Arc::clone(&rams[1]), &[]);
    let mut destination = Destination::new(destination_memory, guest).with_placing(placing());

    let Faults { there, back, flips } = Faults::read(script);
    let unharmed = there.is_empty() && back.is_empty() && !guest_refuses(options);
    let handles = Handles { source: source.handle(), destination: destination.handle() };
    let buffer_bytes = if options & 128 == 0 { 64 * 1024 } else { 100 };
    let (out, into, carrying) = link(buffer_bytes, there, back, handles);
    let connector = Ready::new(vec![out]);
    let (mut listener, door) = Arriving::new();
    door.send(into).expect("the listener is there");
    let (sent, received) = Clock::Paused.run(async {
        let both = async { tokio::join!(source.run(&connector), destination.run(&mut listener)) };
        let link = async {
            carrying.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            both = both => both,
            () = link => unreachable!("it waits for ever"),
        }
    });
    let (here, there) = (source_diary.source_runs(), destination_diary.destination_runs());
    assert!(!(here && there), "two owners: {sent:?} and {received:?}");
    if unharmed {
        assert!(sent.is_ok() && received.is_ok(), "nothing happened: {sent:?}, {received:?}");
    }
    match &sent {
        Ok(outcome) => {
            assert!(!here);
            assert_eq!(outcome.confirmed, return_path);
            let unknown = received.as_ref().is_err_and(|error| error.owner() == Owner::Unknown);
            assert!(there || unknown || !return_path, "a yes that nobody said: {received:?}");
        }
        Err(error) => assert_eq!(here, error.owner() == Owner::Source, "{error}"),
    }
    assert_eq!(there, received.is_ok(), "{received:?}");
    if there && !flips {
        assert!(Memory::content(&rams[0]) == Memory::content(&rams[1]), "another memory");
    }
}

fn guest_refuses(options: u8) -> bool {
    options & 32 != 0
}

/// What goes wrong in each direction, in the order of its bytes.
struct Faults {
    there: Vec<Fault>,
    back: Vec<Fault>,
    /// Some byte is changed, so that nothing can be said of the memory.
    flips: bool,
}

impl Faults {
    fn read(mut script: &[u8]) -> Self {
        let mut all = Self { there: Vec::new(), back: Vec::new(), flips: false };
        while let Some(which) = next(&mut script) {
            let (after, value) = (next16(&mut script), next(&mut script).unwrap_or(0));
            let is_back = which & 0x80 != 0;
            let what = match which % 5 {
                0 => What::Break,
                1 => What::Stall(wait(value)),
                2 if !is_back => {
                    all.flips = true;
                    What::Flip(value | 1)
                }
                3 => What::CancelSource,
                _ => What::CancelDestination,
            };
            let direction = if is_back { &mut all.back } else { &mut all.there };
            // A direction back has few bytes.
            let after = if is_back { after % 64 } else { after };
            direction.push(Fault { after: after.into(), what });
        }
        for direction in [&mut all.there, &mut all.back] {
            direction.sort_by_key(|fault| fault.after);
        }
        all
    }
}
