//! The 104 bytes of `globalstate`, against the capture of docs/wire/stream.md §15.1 and by rule.

use mig_proto::globalstate::{GLOBAL_STATE_LEN, GlobalState, GlobalStateError, RunState};
use proptest::prelude::*;

/// QEMU 10.0.2, a guest stopped before `migrate` (docs/wire/stream.md §15.1, offset 0x33228).
fn captured() -> [u8; GLOBAL_STATE_LEN] {
    let mut bytes = [0; GLOBAL_STATE_LEN];
    bytes[3] = 7;
    bytes[4..10].copy_from_slice(b"paused");
    bytes[36] = 1;
    bytes
}

#[test]
fn the_captured_payload_both_ways() {
    let state = GlobalState { run_state: RunState::Paused, vm_was_suspended: Some(false) };
    assert_eq!(GlobalState::decode(&captured()), Ok(state));
    assert_eq!(state.encode(), captured());
}

#[test]
fn every_state_survives_the_trip() {
    for &run_state in RunState::ALL {
        for vm_was_suspended in [None, Some(false), Some(true)] {
            let state = GlobalState { run_state, vm_was_suspended };
            assert_eq!(GlobalState::decode(&state.encode()), Ok(state));
        }
    }
}

#[test]
fn the_size_field_is_not_checked_and_flags_may_be_any_non_zero() {
    let mut bytes = captured();
    bytes[..4].copy_from_slice(&[0xff; 4]);
    bytes[36] = 2;
    bytes[37] = 255;
    let state = GlobalState::decode(&bytes).unwrap();
    assert_eq!(state.vm_was_suspended, Some(true));
}

#[test]
fn an_unknown_name_is_named_and_cut_to_31() {
    let mut bytes = captured();
    bytes[4..36].fill(b'x');
    match GlobalState::decode(&bytes) {
        Err(GlobalStateError::UnknownRunState { at: 4, name }) => assert_eq!(name, "x".repeat(31)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_length_is_refused() {
    for len in [0, 4, 103, 105] {
        let error = GlobalState::decode(&vec![0; len]).unwrap_err();
        assert_eq!(error, GlobalStateError::WrongLength { actual: len });
        assert!(error.peer_is_to_blame());
    }
}

#[test]
fn only_running_and_suspended_start_the_guest() {
    let live: Vec<_> = RunState::ALL.iter().filter(|state| state.is_live()).collect();
    assert_eq!(live, [&RunState::Running, &RunState::Suspended]);
    assert_eq!(GlobalState::default().run_state, RunState::Running);
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = GlobalState::decode(&bytes);
    }
}
