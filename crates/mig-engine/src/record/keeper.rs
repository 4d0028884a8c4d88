//! Which bytes of a live stream belong into a stored one (docs/wire/stream.md §6, ram.md §1, §2).
//!
//! ```text
//!   OPEN_RETURN_PATH, PING, ADVISE      answered or noted, not stored: they speak to this one destination
//!   HOOK, MULTIFD_FLUSH                 not stored: they mean nothing in a plain stream
//!   block list after ADVISE             stored without the words that only ADVISE brings
//!   LISTEN, RUN, RAM_DISCARD, PACKAGED… refused: postcopy has no single plain stream
//!   everything else                     stored as it came
//! ```

use mig_proto::{BlockEntry, Command, Event, RamWord, encode};

use crate::{
    answers::Ask,
    error::{Error, Result},
    walk::Piece,
};

/// Decides piece by piece. Holds back at most a block list.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// ADVISE with page sizes came: the next block list may carry words to leave out.
    advised: bool,
    /// A `ram` section has begun and no record of it has ended yet.
    at_ram_start: bool,
    /// The front of a block list that may have to be written anew.
    held: Vec<u8>,
}

impl Keeper {
    /// Passes what is to be kept of `piece` to `keep`, and what is to be answered to `ask`.
    pub(super) fn handle(
        &mut self,
        piece: &Piece<'_>,
        keep: &mut Vec<u8>,
        mut ask: impl FnMut(Ask),
    ) -> Result<()> {
        let Some(event) = &piece.event else {
            if self.advised && self.at_ram_start {
                self.held.extend_from_slice(piece.bytes);
            } else {
                keep.extend_from_slice(piece.bytes);
            }
            return Ok(());
        };
        match event {
            Event::Command(command) => {
                if let Some(question) = self.command(command, piece.position)? {
                    ask(question);
                }
                if is_stored(command) {
                    keep.extend_from_slice(piece.bytes);
                }
            }
            Event::Hook(_) | Event::MultifdFlush(_) => {}
            Event::Section(header) => {
                self.at_ram_start = header.is_ram();
                keep.extend_from_slice(piece.bytes);
            }
            Event::BlockList { word, entries } => {
                self.at_ram_start = false;
                self.block_list(*word, entries, piece.bytes, keep);
            }
            // Not part of the stream; a file that ends where it says can be searched from its end.
            Event::Trailing(_) => {}
            _ => {
                self.at_ram_start = false;
                keep.append(&mut self.held);
                keep.extend_from_slice(piece.bytes);
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &Command<'_>, position: u64) -> Result<Option<Ask>> {
        match command {
            Command::OpenReturnPath => return Ok(Some(Ask::OpenReturnPath)),
            Command::Ping(value) => return Ok(Some(Ask::Pong(*value))),
            Command::PostcopyAdvise(Some(_)) => {
                self.advised = true;
                // Told now, while it can still be avoided: docs/wire/stream.md §8.4.
                tracing::warn!(
                    "the source has postcopy-ram on and may switch to postcopy, which a recording refuses; QEMU can \
                     then be left in postcopy-paused with its guest stopped: do not start postcopy \
                     (migrate-start-postcopy), or switch postcopy-ram off at the source"
                );
            }
            Command::PostcopyListen
            | Command::PostcopyRun
            | Command::PostcopyResume
            | Command::RamDiscard(_)
            | Command::RecvBitmap { .. }
            | Command::Packaged { .. } => {
                return Err(Error::peer_incompatible(format!(
                    "byte {position} ({position:#x}): the source switched to postcopy ({}), which cannot be kept as \
                     one plain stream: let the migration finish as precopy (no migrate-start-postcopy), or switch \
                     postcopy-ram off at the source",
                    command.name()
                ))
                .at(position));
            }
            _ => {}
        }
        Ok(None)
    }

    fn block_list(
        &mut self,
        word: RamWord,
        entries: &[BlockEntry],
        bytes: &[u8],
        keep: &mut Vec<u8>,
    ) {
        let front = std::mem::take(&mut self.held);
        if entries.iter().all(|entry| entry.host_page_size.is_none()) {
            keep.extend_from_slice(&front);
            keep.extend_from_slice(bytes);
            return;
        }
        encode::ram_word(keep, word);
        for entry in entries {
            let name = entry.name();
            keep.push(u8::try_from(name.len()).expect("a name came with a length byte"));
            keep.extend_from_slice(&name);
            keep.extend_from_slice(&entry.used_length.to_be_bytes());
            if let Some(address) = entry.address {
                keep.extend_from_slice(&address.to_be_bytes());
            }
        }
    }
}

fn is_stored(command: &Command<'_>) -> bool {
    !matches!(command, Command::OpenReturnPath | Command::Ping(_) | Command::PostcopyAdvise(_))
}
