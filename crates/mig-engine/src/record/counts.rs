//! Records of a stream, counted.

use mig_proto::Event;

/// How many records of each kind came. Pages count as often as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PageCounts {
    /// Pages in full.
    pub normal: u64,
    /// Pages of zeros.
    pub zero: u64,
    /// Deltas.
    pub xbzrle: u64,
    /// Pages as a zlib stream.
    pub compressed: u64,
}

impl PageCounts {
    /// Counts an event, if it is about a page.
    #[inline]
    pub fn count(&mut self, event: &Event<'_>) {
        match event {
            Event::Page(_) => self.normal += 1,
            Event::Zero(_) => self.zero += 1,
            Event::Xbzrle { .. } => self.xbzrle += 1,
            Event::CompressedPage { .. } => self.compressed += 1,
            _ => {}
        }
    }
}
