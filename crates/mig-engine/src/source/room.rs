//! Whether a guest may be too large for its channels: some fail after so many bytes (`Capabilities::most_bytes`).
//!
//! Nobody knows at the start how often pages are sent again, or how many of them are zero, so this is a warning.

/// Memory is not all that is sent: page headers, device state, pages that were written meanwhile, and records that are not full. A
/// guest is warned about from as much below what its channels carry.
const MARGIN_PERCENT: u64 = 5;

/// What to say about memory of `ram_bytes` over as many `channels`, each of which carries `most_bytes` at most.
pub(super) fn warning(ram_bytes: u64, channels: u64, most_bytes: Option<u64>) -> Option<String> {
    let most_bytes = most_bytes?;
    let carried = most_bytes.saturating_mul(channels);
    if ram_bytes <= carried - carried / 100 * MARGIN_PERCENT {
        return None;
    }
    let gib = |bytes: u64| bytes >> 30;
    Some(format!(
        "the guest has {} GiB of memory, and the keys of this connection are used up after about {} GiB{}: the migration will fail then; \
         use certificates and TLS 1.3, or more data channels (multifd-channels)",
        gib(ram_bytes),
        gib(most_bytes.next_multiple_of(1 << 30)),
        if channels > 1 { " on each channel" } else { "" },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_is_too_large_is_warned_about() {
        const MOST: u64 = (256 << 30) - (16 << 14);
        assert_eq!(warning(u64::MAX, 1, None), None);
        assert_eq!(warning(128 << 30, 1, Some(MOST)), None);
        assert_eq!(warning(512 << 30, 4, Some(MOST)), None);
        assert_eq!(warning(243 << 30, 1, Some(MOST)), None);
        let said = warning(244 << 30, 1, Some(MOST)).expect("all its memory once, and little else");
        assert!(said.contains("244 GiB") && said.contains("about 256 GiB:"), "{said}");
        let said = warning(512 << 30, 1, Some(MOST)).expect("too large");
        assert!(said.contains("512 GiB") && said.contains("about 256 GiB:"), "{said}");
        let said = warning(2048 << 30, 4, Some(MOST)).expect("too large");
        assert!(said.contains("256 GiB on each channel"), "{said}");
    }
}
