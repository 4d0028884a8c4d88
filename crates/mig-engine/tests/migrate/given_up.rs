//! Whoever gives a migration up cuts its channel, and does not leave it to end in its own time: behind it may be a command,
//! which is to end at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mig_engine::{Capabilities, Event};
use mig_proto::state::MigrationStatus;
use mig_transport::{Blame, Channel, ChannelParts, ForceShutdown};

use crate::support::{Diary, Half, Pair, TestGuest, channels};

/// Whether the channel was cut.
#[derive(Clone, Default)]
struct Cut(Arc<AtomicBool>);

impl ForceShutdown for Cut {
    fn force_shutdown(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Cut {
    fn on(mut channel: Channel) -> (Channel, Self) {
        let cut = Self::default();
        let receiver = channel.take_receiver().unwrap();
        let sender = channel.take_sender().unwrap();
        let parts = ChannelParts {
            receive: Some(Box::new(Half(receiver))),
            send: Some(Box::new(Half(sender))),
            force: Some(Box::new(cut.clone())),
            capabilities: channel.capabilities(),
            ..ChannelParts::default()
        };
        (Channel::new(parts), cut)
    }

    fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_migration_is_cut_at_both_ends() {
    for at_the_source in [true, false] {
        let mut pair = Pair::new();
        let mut capabilities = Capabilities::default();
        capabilities.return_path = true;
        capabilities.pause_before_switchover = true;
        pair.source = pair.source.with_capabilities(capabilities);
        let (source, destination) = (pair.source.handle(), pair.destination.handle());
        let mut heard = source.subscribe();
        let (out, into) = channels();
        let ((out, cut_here), (into, cut_there)) = (Cut::on(out), Cut::on(into));
        let operator = async {
            while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
            if at_the_source { source.cancel() } else { destination.cancel() }
        };
        let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
        let (sent, received) = (sent.unwrap_err().blame(), received.unwrap_err().blame());
        assert_eq!(if at_the_source { sent } else { received }, Blame::Cancelled);
        assert!(cut_here.happened() && cut_there.happened());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_migration_is_cut_at_both_ends_once_both_know() {
    let mut guest = TestGuest::new(&Diary::default());
    guest.refuses = Some("disk");
    let mut pair = Pair::with_destination_guest(guest);
    let (out, into) = channels();
    let ((out, cut_here), (into, cut_there)) = (Cut::on(out), Cut::on(into));
    let (sent, received) = pair.run(out, into).await;
    let sent = sent.unwrap_err();
    assert!(sent.to_string().contains("SHUT 1"), "{sent}");
    received.unwrap_err();
    assert!(cut_here.happened() && cut_there.happened());
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_succeeds_ends_in_order() {
    let mut pair = Pair::new();
    let (out, into) = channels();
    let ((out, cut_here), (into, cut_there)) = (Cut::on(out), Cut::on(into));
    let (sent, received) = pair.run(out, into).await;
    assert!(sent.unwrap().confirmed && received.unwrap().confirmed);
    assert!(!cut_here.happened() && !cut_there.happened());
}
