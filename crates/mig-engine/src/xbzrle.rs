//! Applies XBZRLE deltas (docs/wire/ram.md §4).
//!
//! ```text
//!   delta := ( zrun nzrun )*      zrun: so many bytes stay      nzrun: so many bytes follow
//! ```

use mig_ram::PAGE_SIZE;

/// Changes `page` as `delta` says; on error it is changed in part. The rules are those of QEMU's receiver.
pub(crate) fn apply(page: &mut [u8; PAGE_SIZE], delta: &[u8]) -> Result<(), &'static str> {
    let (mut rest, mut at) = (delta, 0);
    while !rest.is_empty() {
        let same = length(&mut rest)?;
        if same == 0 && at > 0 {
            return Err("an empty run of equal bytes in the middle");
        }
        at += same;
        let changed = length(&mut rest)?;
        if changed == 0 {
            return Err("an empty run of changed bytes");
        }
        if changed > rest.len() {
            return Err("a run of changed bytes that is longer than the delta");
        }
        let Some(place) = page.get_mut(at..at + changed) else {
            return Err("a run beyond the end of the page");
        };
        let (bytes, behind) = rest.split_at(changed);
        place.copy_from_slice(bytes);
        rest = behind;
        at += changed;
    }
    Ok(())
}

/// ULEB128 of at most 14 bits; a byte at least must follow it.
fn length(rest: &mut &[u8]) -> Result<usize, &'static str> {
    match **rest {
        [low, _, ..] if low < 0x80 => {
            *rest = &rest[1..];
            Ok(usize::from(low))
        }
        [low, high, ..] if high < 0x80 => {
            *rest = &rest[2..];
            Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        [_, _, ..] => Err("a length of three bytes"),
        _ => Err("it ends in the middle of a run"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> [u8; PAGE_SIZE] {
        std::array::from_fn(|i| (i * 7) as u8)
    }

    #[test]
    fn the_worked_examples_of_the_specification() {
        let mut expected = old();
        expected[..3].copy_from_slice(&[0xaa, 0xbb, 0xcc]);
        let mut page = old();
        apply(&mut page, &[0, 3, 0xaa, 0xbb, 0xcc]).unwrap();
        assert_eq!(page, expected);

        let mut expected = old();
        (expected[16], expected[2048]) = (0x5a, 0xa5);
        let mut page = old();
        apply(&mut page, &[0x10, 1, 0x5a, 0xef, 0x0f, 1, 0xa5]).unwrap();
        assert_eq!(page, expected);

        let mut expected = old();
        expected[4094..].copy_from_slice(&[1, 2]);
        let mut page = old();
        apply(&mut page, &[0xfe, 0x1f, 2, 1, 2]).unwrap();
        assert_eq!(page, expected);
        apply(&mut page, &[]).unwrap();
        assert_eq!(page, expected);
        // Longer than need be, and taken all the same: 16 as two bytes.
        apply(&mut page, &[0x90, 0, 1, 9]).unwrap();
        assert_eq!(page[16], 9);
    }

    #[test]
    fn what_qemu_refuses_is_refused() {
        let bad: [&[u8]; 8] = [
            &[5],
            &[5, 0, 1],
            &[1, 1, 7, 0, 1, 7],
            &[0, 3, 1, 2],
            &[0xff, 0x1f, 2, 1, 2],
            &[0x80, 0x80, 1, 1],
            &[0, 1, 7, 3, 0],
            &[0, 1, 7, 9],
        ];
        for delta in bad {
            assert!(apply(&mut old(), delta).is_err(), "{delta:x?}");
        }
    }
}
