//! A destination that breaks each rule of docs/wire/rdma.md, against our source: the migration fails, and the guest's memory
//! is let go of.

use mig_transport::{Blame, Connector, Error, Result};
use mig_transport_rdma::{
    RdmaConnector,
    protocol::{
        header::{Frame, Header, Kind},
        message::{Element, Outgoing, Register, RegisterResult, RemoteBlock},
    },
};

use crate::{
    actor::{Actor, Listening, QEMU},
    guarded,
    migration::{Ends, Guest, MIB, options},
    on_a_device,
};

/// What the hostile destination does, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evil {
    /// In place of the first READY.
    First(Kind),
    ReadyTwice,
    NoBlocks,
    OneBlockMore,
    OtherLength,
    AddressWrapsAround,
    RamOffsetWrapsAround,
    CutElement,
    /// In place of RAM_BLOCKS_RESULT.
    InsteadOfBlocks(Kind),
    ReadyBeforeTheResult,
    /// In place of REGISTER_RESULT.
    InsteadOfKey(Kind),
    OtherHostAddress,
    ShortResult,
    /// A key that opens nothing.
    DeadKey,
    /// A second answer, before READY.
    AnswerTwice,
    /// A malformed header.
    Garbage,
}

/// What the source must say of it, and who is to blame.
fn expected(evil: Evil) -> (&'static str, Blame) {
    use Blame::{Io, PeerIncompatible, PeerMisbehaved};
    match evil {
        Evil::First(Kind::Error)
        | Evil::InsteadOfBlocks(Kind::Error)
        | Evil::InsteadOfKey(Kind::Error) => ("by an ERROR message", Io),
        Evil::First(_) => ("where only READY may come", PeerMisbehaved),
        Evil::ReadyTwice => ("twice for one message", PeerMisbehaved),
        Evil::NoBlocks => ("2 RAM blocks and the destination 0", PeerIncompatible),
        Evil::OneBlockMore => ("2 RAM blocks and the destination 3", PeerIncompatible),
        Evil::OtherLength => ("rdma cannot resize a block", PeerIncompatible),
        Evil::AddressWrapsAround | Evil::RamOffsetWrapsAround => {
            ("would wrap around", PeerMisbehaved)
        }
        Evil::CutElement => ("32 bytes for each block", PeerMisbehaved),
        Evil::InsteadOfBlocks(_) | Evil::ReadyBeforeTheResult => {
            ("where RAM_BLOCKS_RESULT is due", PeerMisbehaved)
        }
        Evil::InsteadOfKey(_) => ("where REGISTER_RESULT is due", PeerMisbehaved),
        Evil::OtherHostAddress => ("QEMU 8.2.x has a defect here", PeerMisbehaved),
        Evil::ShortResult => ("it has 16 bytes", PeerMisbehaved),
        Evil::DeadKey => ("has not opened the memory", Io),
        Evil::AnswerTwice => ("where only READY may come", PeerMisbehaved),
        Evil::Garbage => ("type 77", PeerMisbehaved),
    }
}

fn all() -> Vec<Evil> {
    use Evil::*;
    let mut all = vec![
        ReadyTwice,
        NoBlocks,
        OneBlockMore,
        OtherLength,
        AddressWrapsAround,
        RamOffsetWrapsAround,
        CutElement,
        ReadyBeforeTheResult,
        OtherHostAddress,
        ShortResult,
        DeadKey,
        AnswerTwice,
        Garbage,
    ];
    all.extend([Kind::Error, Kind::QemuFile, Kind::RegisterResult].map(First));
    all.extend([Kind::Error, Kind::RegisterResult].map(InsteadOfBlocks));
    all.extend([Kind::Error, Kind::RamBlocksResult, Kind::UnregisterFinished].map(InsteadOfKey));
    all
}

/// A message of this kind whose length fits it.
async fn say_kind(actor: &mut Actor, kind: Kind) {
    let len = match kind {
        Kind::RegisterResult => 16,
        Kind::RamBlocksResult => 32,
        Kind::QemuFile => 1,
        _ => 0,
    };
    let mut bytes = Header { kind, len, repeat: 1 }.encode().to_vec();
    bytes.resize(bytes.len() + len as usize, 0);
    actor.send(&bytes).await;
}

const BASE: u64 = 1 << 40;

fn blocks(guest: &Guest) -> Vec<RemoteBlock> {
    let lens = guest.memory.iter().map(|region| mig_transport::Region::len(&**region) as u64);
    (1..)
        .zip(lens)
        .map(|(n, length)| RemoteBlock {
            host_addr: n * BASE,
            ram_offset: n << 30,
            length,
            rkey: 0,
        })
        .collect()
}

/// Plays until the evil deed is done, or the source has hung up.
async fn play(actor: &mut Actor, evil: Evil, guest: &Guest) {
    match evil {
        Evil::First(kind) => return say_kind(actor, kind).await,
        Evil::Garbage => {
            return actor.send(&[0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0, 0]).await;
        }
        _ => actor.say(&Outgoing::Ready).await,
    }
    if evil == Evil::ReadyTwice {
        return actor.say(&Outgoing::Ready).await;
    }
    actor.expect(Kind::QemuFile).await;
    actor.say(&Outgoing::Ready).await;
    actor.expect(Kind::RamBlocksRequest).await;
    let mut blocks = blocks(guest);
    match evil {
        Evil::NoBlocks => blocks.clear(),
        Evil::OneBlockMore => blocks.push(blocks[0]),
        Evil::OtherLength => blocks[1].length += 4096,
        Evil::AddressWrapsAround => blocks[1].host_addr = u64::MAX - 4096,
        Evil::RamOffsetWrapsAround => blocks[1].ram_offset = u64::MAX - 4096,
        Evil::CutElement => {
            let mut bytes =
                Header { kind: Kind::RamBlocksResult, len: 63, repeat: 1 }.encode().to_vec();
            bytes.resize(16 + 63, 0);
            return actor.send(&bytes).await;
        }
        Evil::InsteadOfBlocks(kind) => return say_kind(actor, kind).await,
        Evil::ReadyBeforeTheResult => actor.say(&Outgoing::Ready).await,
        _ => {}
    }
    actor.say(&Outgoing::RamBlocksResult(&blocks)).await;
    if matches!(evil, Evil::ReadyBeforeTheResult) {
        return;
    }
    actor.say(&Outgoing::Ready).await;
    // REGISTER_FINISHED ends the first window, the next one begins with a registration, perhaps behind some COMPRESS.
    loop {
        let Some(message) = actor.message().await else { return };
        let kind = Frame::decode(&message).unwrap().header.kind;
        if kind == Kind::Error {
            return actor.put_back(message);
        }
        if kind != Kind::RegisterRequest {
            actor.say(&Outgoing::Ready).await;
            continue;
        }
        let request = Register::read(&message[16..]);
        let host_addr = blocks[request.block as usize].host_addr;
        let mut result = RegisterResult { rkey: 0x7777, host_addr };
        match evil {
            Evil::InsteadOfKey(kind) => return say_kind(actor, kind).await,
            Evil::OtherHostAddress => result.host_addr += MIB as u64,
            Evil::ShortResult => {
                let mut bytes =
                    Header { kind: Kind::RegisterResult, len: 8, repeat: 1 }.encode().to_vec();
                bytes.resize(16 + 8, 0);
                return actor.send(&bytes).await;
            }
            _ => {}
        }
        actor.say(&Outgoing::RegisterResult { result, repeat: 1 }).await;
        if evil == Evil::AnswerTwice {
            actor.say(&Outgoing::RegisterResult { result, repeat: 1 }).await;
        }
        actor.say(&Outgoing::Ready).await;
        if evil != Evil::DeadKey {
            return;
        }
    }
}

async fn channel_to(listening: &mut Listening) -> (Ends, Actor) {
    let address = mig_transport::address::InetAddress::new(
        listening.at.ip().to_string(),
        listening.at.port(),
    );
    let connector = RdmaConnector::new(address, options());
    guarded("connecting", async {
        let (channel, actor) = tokio::join!(connector.connect(), Actor::accept(listening, QEMU));
        (Ends::of(channel.unwrap()), actor)
    })
    .await
}

/// What our source says in the end. It has the guest: nothing of it is registered any more.
async fn fails(source: Ends, guest: &Guest) -> Error {
    let outcome: Result<()> = guarded("the source", source.source(guest)).await;
    let error = outcome.expect_err("the destination is hostile");
    guarded("letting go of the memory", async {
        while !guest.is_free() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    error
}

#[test]
fn each_false_answer_fails_the_migration_for_its_reason() {
    on_a_device(|| async {
        let mut listening = Listening::new();
        let guest = Guest::full();
        let before = guest.bytes();
        for evil in all() {
            let (source, mut actor) = channel_to(&mut listening).await;
            let (error, told) = tokio::join!(fails(source, &guest), async {
                play(&mut actor, evil, &guest).await;
                actor.told_of_failure().await
            });
            println!("{evil:?}: {error}");
            let (text, blame) = expected(evil);
            assert!(error.to_string().contains(text), "{evil:?}: {error}");
            assert_eq!(error.blame(), blame, "{evil:?}: {error}");
            // A dead connection cannot say so, and who says ERROR gets none back.
            if blame != Blame::Io {
                assert!(told, "{evil:?}: no ERROR");
            }
        }
        assert!(guest.bytes() == before);
    });
}

#[test]
fn hanging_up_at_each_moment_leaves_the_guest_with_the_source() {
    on_a_device(|| async {
        let mut listening = Listening::new();
        let guest = Guest::full();
        for moment in 0..5 {
            let (source, mut actor) = channel_to(&mut listening).await;
            let ((), error) = tokio::join!(
                async {
                    if moment > 0 {
                        actor.say(&Outgoing::Ready).await;
                        actor.expect(Kind::QemuFile).await;
                        actor.say(&Outgoing::Ready).await;
                    }
                    if moment > 1 {
                        actor.expect(Kind::RamBlocksRequest).await;
                    }
                    if moment > 2 {
                        let blocks = blocks(&guest);
                        actor.say(&Outgoing::RamBlocksResult(&blocks)).await;
                        actor.say(&Outgoing::Ready).await;
                        actor.expect(Kind::RegisterFinished).await;
                    }
                    if moment > 3 {
                        actor.say(&Outgoing::Ready).await;
                        actor.message().await.unwrap();
                    }
                    drop(actor);
                },
                fails(source, &guest)
            );
            println!("{moment}: {error}");
            assert_eq!(error.blame(), Blame::Io, "{moment}: {error}");
            let text = error.to_string();
            assert!(text.contains("hung up") || text.contains("failed:"), "{moment}: {text}");
        }
    });
}

#[test]
fn an_error_behind_the_last_byte_fails_the_migration_and_hanging_up_does_not() {
    on_a_device(|| async {
        let mut listening = Listening::new();
        for says_error in [true, false] {
            let (mut source, mut actor) = channel_to(&mut listening).await;
            let closing = async move {
                let outcome = source.finish().await;
                drop(source);
                outcome
            };
            let (outcome, ()) = tokio::join!(guarded("the source", closing), async move {
                actor.say(&Outgoing::Ready).await;
                actor.expect(Kind::QemuFile).await;
                if says_error {
                    actor.say(&Outgoing::Error).await;
                    // Until the source hangs up: whoever says ERROR gets none back.
                    assert!(!actor.told_of_failure().await);
                }
            });
            match outcome {
                Ok(()) => assert!(!says_error, "the destination's verdict is lost"),
                Err(error) => {
                    assert!(
                        says_error && error.to_string().contains("by an ERROR message"),
                        "{error}"
                    );
                }
            }
        }
    });
}
