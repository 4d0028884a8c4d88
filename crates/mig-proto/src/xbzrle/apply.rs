//! A delta onto a page.

use core::ops::Range;

/// Bytes that are no delta of a page, by the rules of QEMU's receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadDelta {
    /// It goes on, with nothing between two runs of changed bytes.
    #[error("an empty run of equal bytes in the middle")]
    EmptyEqualRun,
    /// A run of changed bytes without bytes.
    #[error("an empty run of changed bytes")]
    EmptyChangedRun,
    /// Fewer bytes follow than the run has.
    #[error("a run of changed bytes that is longer than the delta")]
    RunLongerThanDelta,
    /// The page ends before the run.
    #[error("a run beyond the end of the page")]
    RunBeyondPage,
    /// The second byte of a length announces a third.
    #[error("a length of three bytes")]
    LongLength,
    /// No run of changed bytes at the end.
    #[error("it ends in the middle of a run")]
    Truncated,
}

/// Changes `page` as `delta` says; on error it is changed in part.
///
/// ```
/// let mut page = [0; 4096];
/// mig_proto::xbzrle::apply(&mut page, &[0x10, 1, 0x5a])?;
/// assert_eq!(page[16], 0x5a);
/// # Ok::<(), mig_proto::xbzrle::BadDelta>(())
/// ```
pub fn apply(page: &mut [u8], delta: &[u8]) -> Result<(), BadDelta> {
    walk(page.len(), delta, |at, bytes| page[at..at + bytes.len()].copy_from_slice(bytes))
}

/// The part of a page of `page_len` bytes that a delta changes, from its first changed byte to its last; empty for a delta
/// that changes nothing. The rules are those of [`apply`].
pub fn changed(page_len: usize, delta: &[u8]) -> Result<Range<usize>, BadDelta> {
    let mut changed: Option<Range<usize>> = None;
    walk(page_len, delta, |at, bytes| {
        let start = changed.as_ref().map_or(at, |before| before.start);
        changed = Some(start..at + bytes.len());
    })?;
    Ok(changed.unwrap_or(0..0))
}

/// Shows each run of changed bytes, and where it goes; all of them lie within the page.
fn walk(
    page_len: usize,
    delta: &[u8],
    mut changed_run: impl FnMut(usize, &[u8]),
) -> Result<(), BadDelta> {
    let (mut rest, mut at) = (delta, 0);
    while !rest.is_empty() {
        let same = length(&mut rest)?;
        if same == 0 && at > 0 {
            return Err(BadDelta::EmptyEqualRun);
        }
        at += same;
        let changed = length(&mut rest)?;
        if changed == 0 {
            return Err(BadDelta::EmptyChangedRun);
        }
        let Some((bytes, behind)) = rest.split_at_checked(changed) else {
            return Err(BadDelta::RunLongerThanDelta);
        };
        if at + changed > page_len {
            return Err(BadDelta::RunBeyondPage);
        }
        changed_run(at, bytes);
        rest = behind;
        at += changed;
    }
    Ok(())
}

/// A length of one or two bytes; at least one more byte must follow it or be its second.
fn length(rest: &mut &[u8]) -> Result<usize, BadDelta> {
    match **rest {
        [low, _, ..] if low < 0x80 => {
            *rest = &rest[1..];
            Ok(usize::from(low))
        }
        [low, high, ..] if high < 0x80 => {
            *rest = &rest[2..];
            Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        [_, _, ..] => Err(BadDelta::LongLength),
        _ => Err(BadDelta::Truncated),
    }
}
