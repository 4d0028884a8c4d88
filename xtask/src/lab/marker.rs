//! Knowing where a stream ends that has no end of its own: everything up to the marker.

/// Passes bytes on until the marker.
#[derive(Debug)]
pub(crate) struct UntilMarker {
    marker: Vec<u8>,
    /// Bytes that may be the marker's beginning.
    held: Vec<u8>,
}

impl UntilMarker {
    /// The first byte of `marker` must not be in it again.
    pub(crate) fn new(marker: &[u8]) -> Self {
        debug_assert!(!marker[1..].contains(&marker[0]), "see above");
        Self { marker: marker.to_vec(), held: Vec::new() }
    }

    /// Takes a piece of the stream; gives what may be passed on, and whether the marker has come.
    pub(crate) fn push(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(self.held.len() + piece.len());
        for &byte in piece {
            if self.held.is_empty() && byte != self.marker[0] {
                passed.push(byte);
                continue;
            }
            if byte != self.marker[self.held.len()] {
                passed.append(&mut self.held);
            }
            if byte == self.marker[self.held.len()] {
                self.held.push(byte);
            } else {
                passed.push(byte);
            }
            if self.held == self.marker {
                return (passed, true);
            }
        }
        (passed, false)
    }

    /// What is held back, for a stream that ends without its marker.
    pub(crate) fn rest(self) -> Vec<u8> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_found_however_the_stream_is_cut() {
        let stream = b"a<b<<end<en<end>rest";
        for cut in 0..stream.len() {
            let mut until = UntilMarker::new(b"<end>");
            let (mut passed, ended) = until.push(&stream[..cut]);
            if !ended {
                let (more, ended) = until.push(&stream[cut..]);
                passed.extend(more);
                assert!(ended, "cut at {cut}");
            }
            assert_eq!(passed, b"a<b<<end<en", "cut at {cut}");
        }
    }

    #[test]
    fn what_only_looked_like_the_marker_is_not_lost() {
        let mut until = UntilMarker::new(b"<end>");
        assert_eq!(until.push(b"x<en"), (b"x".to_vec(), false));
        assert_eq!(until.rest(), b"<en");
    }
}
