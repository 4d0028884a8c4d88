//! Source and destination of a live migration over any transport
