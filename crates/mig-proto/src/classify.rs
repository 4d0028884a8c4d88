//! Which channel is this? A connection tells by its first four bytes (docs/wire/ram.md §9.2).

/// What the first bytes of a fresh connection say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBytes {
    /// So few bytes that nothing is certain yet; what is there fits [`Main`](Self::Main) or
    /// [`Multifd`](Self::Multifd). Four bytes always decide.
    TooFew,
    /// `QEVM`: the main channel.
    Main,
    /// `11 22 33 44`: the hello of a multifd data channel.
    Multifd,
    /// Neither. A preempt channel and a resumed main channel look like this, and so do strangers:
    /// only the state of the migration can tell.
    Other,
}

/// Classifies a connection by the first bytes that came over it, after any decryption.
///
/// ```
/// use mig_proto::{FirstBytes, classify};
/// assert_eq!(classify(b"QEVM\0\0\0\x03"), FirstBytes::Main);
/// assert_eq!(classify(b"QE"), FirstBytes::TooFew);
/// assert_eq!(classify(b"GET / HTTP/1.1"), FirstBytes::Other);
/// ```
pub fn classify(first: &[u8]) -> FirstBytes {
    let head = &first[..first.len().min(4)];
    for (magic, kind) in [(b"QEVM", FirstBytes::Main), (b"\x11\x22\x33\x44", FirstBytes::Multifd)] {
        if head == magic {
            return kind;
        }
        if magic.starts_with(head) {
            return FirstBytes::TooFew;
        }
    }
    FirstBytes::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_always_decide() {
        assert_eq!(classify(b""), FirstBytes::TooFew);
        assert_eq!(classify(b"Q"), FirstBytes::TooFew);
        assert_eq!(classify(b"QX"), FirstBytes::Other);
        assert_eq!(classify(&[0x11, 0x22, 0x33]), FirstBytes::TooFew);
        assert_eq!(classify(&[0x11, 0x22, 0x33, 0x44, 0]), FirstBytes::Multifd);
        assert_eq!(classify(&[0x11, 0x22, 0x33, 0x45]), FirstBytes::Other);
    }
}
