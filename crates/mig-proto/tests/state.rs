//! Every (state, event) pair of every table, as a picture that a reviewer can read: a change of a
//! table is a change of the protocol and must show in the diff.

use mig_proto::state::{
    BadMove, DestinationEvent, MigrationStatus, OnLinkError, PostcopyEvent, PostcopyIncoming,
    SourceEvent,
};

/// One line a pair that moves, and the refused events of each state on one line.
fn table<S: Copy, E: Copy>(
    states: &[S],
    events: &[E],
    state_name: fn(S) -> &'static str,
    event_name: fn(E) -> &'static str,
    next: fn(S, E) -> Result<S, BadMove>,
) -> String {
    let mut out = String::new();
    for &state in states {
        let mut refused = Vec::new();
        out += &format!("{}\n", state_name(state));
        for &event in events {
            match next(state, event) {
                Ok(to) => out += &format!("  {} -> {}\n", event_name(event), state_name(to)),
                Err(error) => {
                    assert_eq!((error.from, error.event), (state_name(state), event_name(event)));
                    refused.push(event_name(event));
                }
            }
        }
        out += &format!("  refused: {}\n", refused.join(" "));
    }
    out
}

#[test]
fn source_table() {
    insta::assert_snapshot!(table(
        &MigrationStatus::ALL,
        &SourceEvent::ALL,
        MigrationStatus::as_str,
        SourceEvent::as_str,
        MigrationStatus::next_at_source,
    ));
}

#[test]
fn destination_table() {
    insta::assert_snapshot!(table(
        &MigrationStatus::ALL,
        &DestinationEvent::ALL,
        MigrationStatus::as_str,
        DestinationEvent::as_str,
        MigrationStatus::next_at_destination,
    ));
}

#[test]
fn postcopy_incoming_table() {
    insta::assert_snapshot!(table(
        &PostcopyIncoming::ALL,
        &PostcopyEvent::ALL,
        PostcopyIncoming::as_str,
        PostcopyEvent::as_str,
        PostcopyIncoming::next,
    ));
}

#[test]
fn lists_of_all_values_have_no_repeats() {
    use std::collections::HashSet;
    fn distinct<T: std::hash::Hash + Eq + Copy>(all: &[T]) -> bool {
        all.iter().copied().collect::<HashSet<_>>().len() == all.len()
    }
    assert!(distinct(&MigrationStatus::ALL.map(MigrationStatus::as_str)));
    assert!(distinct(&SourceEvent::ALL.map(SourceEvent::as_str)));
    assert!(distinct(&DestinationEvent::ALL.map(DestinationEvent::as_str)));
    assert!(distinct(&PostcopyIncoming::ALL.map(PostcopyIncoming::as_str)));
    assert!(distinct(&PostcopyEvent::ALL.map(PostcopyEvent::as_str)));
}

fn walk_source(events: &[SourceEvent]) -> Result<MigrationStatus, BadMove> {
    events.iter().try_fold(MigrationStatus::None, |state, &event| state.next_at_source(event))
}

#[test]
fn the_usual_walks_arrive() {
    use SourceEvent as E;
    let precopy = [E::Start, E::Ready, E::Converged, E::Complete];
    assert_eq!(walk_source(&precopy), Ok(MigrationStatus::Completed));
    let paused = [E::Start, E::Ready, E::ConvergedPausing, E::Continue, E::Complete];
    assert_eq!(walk_source(&paused), Ok(MigrationStatus::Completed));
    let recovered = [
        E::Start,
        E::Ready,
        E::StartPostcopy,
        E::PostcopyRunning,
        E::Interrupted,
        E::Resume,
        E::Interrupted,
        E::Resume,
        E::Reconnected,
        E::Resumed,
        E::Complete,
    ];
    assert_eq!(walk_source(&recovered), Ok(MigrationStatus::Completed));
}

#[test]
fn an_ended_migration_only_starts_again() {
    for status in MigrationStatus::ALL.into_iter().filter(|status| status.is_over()) {
        for event in SourceEvent::ALL {
            let moved = status.next_at_source(event);
            assert_eq!(moved.is_ok(), event == SourceEvent::Start, "{status} {event:?}");
        }
    }
}

#[test]
fn the_destinations_word_outranks_a_cancel_under_way() {
    let cancelling = MigrationStatus::Device.next_at_source(SourceEvent::Cancel).unwrap();
    assert_eq!(cancelling.next_at_source(SourceEvent::Complete), Ok(MigrationStatus::Completed));
}

#[test]
fn cancel_in_postcopy_is_refused_and_names_both() {
    let error = MigrationStatus::PostcopyActive.next_at_source(SourceEvent::Cancel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "migration status at the source: cancel is not possible in state postcopy-active"
    );
    assert!(!error.peer_is_to_blame());
}

#[test]
fn breaking_the_postcopy_order_is_the_peers_fault() {
    let error = PostcopyIncoming::None.next(PostcopyEvent::Listen).unwrap_err();
    assert!(error.peer_is_to_blame());
    assert!(error.to_string().contains("POSTCOPY_LISTEN is not possible in state none"));
    assert_eq!(PostcopyIncoming::Listening.on_link_error(), OnLinkError::Abort);
    assert_eq!(PostcopyIncoming::Running.on_link_error(), OnLinkError::Pause);
}

/// docs/wire/ram.md §7 and docs/wire/stream.md §5.
#[test]
fn what_a_destination_may_expect_follows_from_its_state() {
    use PostcopyIncoming as S;
    for state in S::ALL {
        assert_eq!(state.restricts_ram(), matches!(state, S::Listening | S::Running), "{state}");
        assert_eq!(state.expects_vmdescription(), matches!(state, S::None | S::Advise), "{state}");
    }
}
