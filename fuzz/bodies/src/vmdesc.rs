//! VMDESC: found in a tail, parsed, and what it describes decoded from a payload.
//!
//! ```text
//!   0 … JSON, up to the first NUL │ payload of each device      or any tail of a stream
//! ```

use mig_proto::vmdesc::{Located, VmDescription, decode_fields, locate, payload_len};

use crate::told::told;

/// Longest payload made for a device whose description asks for one.
const LONGEST_PAYLOAD: u64 = 4096;

/// The target.
pub fn vmdesc(data: &[u8]) {
    located(data);
    let nul = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (json, filler) = data.split_at(nul);
    let description = match VmDescription::parse(json) {
        Ok(description) => description,
        Err(error) => {
            return told(&error, data);
        }
    };
    for device in &description.devices {
        let Ok(len) = payload_len(device) else {
            assert!(decode_fields(device, filler).is_err());
            continue;
        };
        if len > LONGEST_PAYLOAD {
            assert!(decode_fields(device, filler).is_err());
            continue;
        }
        // What is missing of the payload is the byte that opens a subsection.
        let mut payload = filler.to_vec();
        payload.resize(len as usize, 5);
        if decode_fields(device, &payload).is_ok() && len > 0 {
            // One byte less can never be right.
            assert!(decode_fields(device, &payload[1..]).is_err());
        }
    }
}

fn located(tail: &[u8]) {
    let len = tail.len() as u64;
    let whole = locate(tail, len);
    match whole {
        Located::Found { item_at, json_at, json_len } => {
            assert!(item_at + 5 == json_at && json_at + u64::from(json_len) == len);
            // The same place from the end of a longer stream.
            let further = locate(tail, len + 1000);
            assert_eq!(
                further,
                Located::Found { item_at: item_at + 1000, json_at: json_at + 1000, json_len }
            );
        }
        Located::Absent => assert_eq!(locate(tail, len + 1000), Located::NotInTail),
        Located::NotInTail => panic!("the whole stream was looked at"),
    }
}
