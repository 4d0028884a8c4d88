//! Which pages of a mapping exist, exactly: a page said not to exist reads as zeros and may be left alone.
//!
//! `mincore` will not do: it calls a page in swap absent. Private memory is asked through the page tables, which know
//! swap; a memfd through its file, which also knows pages no page table of ours points to.

use std::io;

use mig_transport::RegionSlice;
use rustix::{fs::SeekFrom, io::Errno};

use crate::{
    error::{Error, Result},
    mapping::Mapping,
    uffd::{Pagemap, Scan},
};

/// Reports the parts of `whole` (the mapping from its start) that exist, as (byte offset, length); on error some may
/// have been reported.
pub(crate) fn touched(
    mapping: &Mapping,
    whole: &RegionSlice,
    mut each: impl FnMut(usize, usize),
) -> Result<()> {
    match mapping.fd() {
        Some(fd) => data_of_file(fd, whole.len(), each)
            .map_err(|source| Error::io("looking for data in a memfd", source)),
        None => {
            let pagemap = Pagemap::open()?;
            match pagemap.scan(whole, Scan::Existing, &mut each) {
                Ok(()) => Ok(()),
                // Before Linux 6.7.
                Err(_) => pagemap
                    .read_existing(whole, each)
                    .map_err(|source| Error::io("reading /proc/self/pagemap", source)),
            }
        }
    }
}

fn data_of_file(
    fd: std::os::fd::BorrowedFd<'_>,
    len: usize,
    mut each: impl FnMut(usize, usize),
) -> io::Result<()> {
    let len = len as u64;
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No more data.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if data >= len {
            return Ok(());
        }
        let hole = rustix::fs::seek(fd, SeekFrom::Hole(data))?.min(len);
        if hole <= data {
            return Err(Errno::IO.into());
        }
        each(data as usize, (hole - data) as usize);
        at = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
                touched(&mapping, &whole, |offset, len| {
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
            if backing == Backing::Anonymous {
                let mut slowly = Vec::new();
                let pagemap = Pagemap::open().unwrap();
                pagemap.read_existing(&whole, |at, _| slowly.push(at / page)).unwrap();
                assert_eq!(slowly, [0, 1, 7, 99]);
            }
        }
    }
}
