//! A receiver that throws away what comes: nothing of what a destination costs is in the contest.

use std::{io::Read, net::TcpListener};

use super::{Ready, say};
use crate::failure::Result;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

pub(super) fn live() -> Result<()> {
    let mut buffer = vec![1; CHUNK];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&Ready { address: Some(format!("tcp:{}", listener.local_addr()?)) })?;
    let (mut stream, _) = listener.accept()?;
    // Whoever gives up a migration may reset its connection: the end is the end.
    while stream.read(&mut buffer).is_ok_and(|got| got > 0) {}
    Ok(())
}
