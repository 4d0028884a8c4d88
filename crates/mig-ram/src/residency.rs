//! Which pages of a mapping exist, exactly: a page said not to exist reads as zeros and may be left alone.
//!
//! `mincore` will not do: it calls a page in swap absent. Private memory is asked through the page tables, which know
//! swap; a memfd through its file, which also knows pages no page table of ours points to.

use std::io;

use mig_transport::Region;
use rustix::{fs::SeekFrom, io::Errno};

use crate::{
    error::{Error, Result},
    mapping::Mapping,
    uffd::Pagemap,
};

/// Reports the parts of `len` bytes of the mapping from `offset` that exist, as (byte offset in the mapping, length), in
/// whole pages; on error some may have been reported.
pub(crate) fn touched(
    mapping: &Mapping,
    offset: usize,
    len: usize,
    mut each: impl FnMut(usize, usize),
) -> Result<()> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= mapping.len());
    if !fits {
        return Err(Error::misuse(format!("{len:#x} bytes at {offset:#x} of {mapping:?}")));
    }
    let page = rustix::param::page_size();
    let start = offset - offset % page;
    let len = offset + len - start;
    let each = move |at, len| each(start + at, len);
    match mapping.fd() {
        Some(fd) => data_of_file(fd, start, len, each)
            .map_err(|source| Error::io("looking for data in a memfd", source)),
        None => existing(mapping.as_ptr().addr().get() + start, len, each),
    }
}

fn existing(start: usize, len: usize, mut each: impl FnMut(usize, usize)) -> Result<()> {
    let pagemap = Pagemap::open()?;
    match pagemap.scan_existing(start, len, &mut each) {
        Ok(()) => Ok(()),
        // Before Linux 6.7.
        Err(_) => pagemap
            .read_existing(start, len, each)
            .map_err(|source| Error::io("reading /proc/self/pagemap", source)),
    }
}

fn data_of_file(
    fd: std::os::fd::BorrowedFd<'_>,
    start: usize,
    len: usize,
    mut each: impl FnMut(usize, usize),
) -> io::Result<()> {
    let (start, end) = (start as u64, (start + len) as u64);
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No more data.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if data >= end {
            return Ok(());
        }
        let hole = rustix::fs::seek(fd, SeekFrom::Hole(data))?.min(end);
        if hole <= data {
            return Err(Errno::IO.into());
        }
        each((data - start) as usize, (hole - data) as usize);
        at = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mig_transport::RegionSlice;

    use super::*;
    use crate::mapping::{Backing, HugePages};

    #[test]
    fn pages_that_were_written_exist_and_no_others() {
        let page = rustix::param::page_size();
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let mapping =
                Arc::new(Mapping::new("x", 100 * page, backing, HugePages::Never).unwrap());
            let whole = RegionSlice::whole(mapping.clone());
            let existing = || {
                let mut pages = Vec::new();
                touched(&mapping, 0, 100 * page, |offset, len| {
                    pages.extend(offset / page..(offset + len) / page);
                })
                .unwrap();
                pages
            };
            assert_eq!(existing(), [0usize; 0]);
            for number in [0, 1, 7, 99] {
                whole.sub(number * page, 1).unwrap().copy_in(&[1]);
            }
            assert_eq!(existing(), [0, 1, 7, 99], "{backing:?}");
            // A part, which may begin and end within a page.
            let mut part = Vec::new();
            let known =
                mapping.touched(page + 10, 7 * page, &mut |offset, len| part.push((offset, len)));
            assert!(known && part == [(page, page), (7 * page, page)], "{backing:?}: {part:?}");
            assert!(!mapping.touched(99 * page, 2 * page, &mut |_, _| {}), "beyond the end");
            if backing == Backing::Anonymous {
                let mut slowly = Vec::new();
                let pagemap = Pagemap::open().unwrap();
                let start = whole.as_ptr().addr().get();
                pagemap.read_existing(start, 100 * page, |at, _| slowly.push(at / page)).unwrap();
                assert_eq!(slowly, [0, 1, 7, 99]);
            }
        }
    }
}
