//! Small values of the wire, and the closed tables of states.

use mig_proto::globalstate::{GLOBAL_STATE_LEN, GlobalState};
use mig_proto::multifd::{Dialect, MachineVersion};
use mig_proto::state::{
    DestinationEvent, MigrationStatus, PostcopyEvent, PostcopyIncoming, SourceEvent,
};
use mig_proto::{Configuration, Name, peer};

use crate::told::told;

/// The target for values: what `globalstate` holds, names of machine types, numbers in PINGs.
///
/// ```text
///   0 what │ its bytes; `globalstate` is filled up with zeros
/// ```
pub fn values(data: &[u8]) {
    let Some((&what, bytes)) = data.split_first() else { return };
    match what % 4 {
        0 => global_state(bytes),
        1 => {
            let mut padded = [0; GLOBAL_STATE_LEN];
            let taken = bytes.len().min(GLOBAL_STATE_LEN);
            padded[..taken].copy_from_slice(&bytes[..taken]);
            global_state(&padded);
        }
        2 => {
            let _ = Dialect::of_machine(bytes);
            if let Some(version) = MachineVersion::of(bytes) {
                let text = format!("pc-{}.{}", version.major, version.minor);
                assert_eq!(MachineVersion::of(text.as_bytes()), Some(version));
            }
            assert_eq!(Name::new(bytes).is_ok(), (1..=255).contains(&bytes.len()));
            let _ = Configuration::new(bytes);
        }
        _ => {
            let Some(&value) = bytes.first_chunk() else { return };
            let value = u32::from_be_bytes(value);
            if let Some(channels) = peer::channels_said(value) {
                assert_eq!(peer::channels_from_here(channels), value);
                assert!(value != peer::MAY_CHANNELS_CHANGE && value != peer::CHANNELS_MAY_CHANGE);
            }
        }
    }
}

fn global_state(payload: &[u8]) {
    match GlobalState::decode(payload) {
        Ok(state) => assert_eq!(GlobalState::decode(&state.encode()), Ok(state)),
        Err(error) => {
            told(&error, payload);
            assert!(error.at() <= payload.len());
        }
    }
}

/// The target for the tables of states: events in any order at both ends.
///
/// ```text
///   each byte: which table, which event
/// ```
pub fn states(data: &[u8]) {
    let (mut source, mut destination) = (MigrationStatus::None, MigrationStatus::None);
    let mut postcopy = PostcopyIncoming::None;
    for &byte in data {
        let which = usize::from(byte / 3);
        match byte % 3 {
            0 => {
                let event = SourceEvent::ALL[which % SourceEvent::ALL.len()];
                match source.next_at_source(event) {
                    Ok(next) => {
                        // Whoever is done begins anew or not at all; nothing but its end follows a cancel.
                        assert!(!source.is_over() || next == MigrationStatus::Setup);
                        if source == MigrationStatus::Cancelling {
                            assert!(next == source || next.is_over());
                            assert!(next != MigrationStatus::Failed);
                        }
                        source = next;
                    }
                    Err(error) => assert_eq!(error.from, source.as_str()),
                }
            }
            1 => {
                let event = DestinationEvent::ALL[which % DestinationEvent::ALL.len()];
                match destination.next_at_destination(event) {
                    Ok(next) => {
                        assert!(!destination.is_over() || next == MigrationStatus::Setup);
                        assert!(destination != MigrationStatus::Completed);
                        destination = next;
                    }
                    Err(error) => assert_eq!(error.from, destination.as_str()),
                }
            }
            _ => {
                let event = PostcopyEvent::ALL[which % PostcopyEvent::ALL.len()];
                match postcopy.next(event) {
                    Ok(next) => {
                        assert!(postcopy != PostcopyIncoming::End);
                        assert!(!postcopy.restricts_ram() || next != PostcopyIncoming::Discard);
                        postcopy = next;
                    }
                    Err(error) => told(&error, data),
                }
            }
        }
    }
}
