//! Tracking by the kernel alone: userfaultfd in asynchronous write-protect mode, collected with `PAGEMAP_SCAN`.
//!
//! A write to a protected page clears the protection inside the kernel's own fault handler, whoever writes: a vCPU, or
//! the kernel on behalf of a `read`. A scan reports unprotected pages and protects them again under the page table
//! lock, so there is no moment in which a write could slip through. Nothing ever waits for this process.

use std::{io, sync::Arc};

use mig_transport::RegionSlice;

use super::Sink;
use crate::{
    error::{Error, Result},
    uffd::{Pagemap, Privilege, Registration, Scan, Userfaultfd, feature},
};

#[derive(Debug)]
pub(super) struct AsyncWriteProtect {
    ranges: Vec<RegionSlice>,
    pagemap: Pagemap,
    // Ends with the value; the scan needs the ranges registered.
    _registrations: Vec<Registration>,
}

impl AsyncWriteProtect {
    pub(super) fn start(ranges: &[RegionSlice], privilege: Privilege) -> Result<Self> {
        let uffd = Userfaultfd::open(
            feature::WRITE_PROTECT
                | feature::WRITE_PROTECT_SHARED
                | feature::WRITE_PROTECT_UNPOPULATED
                | feature::WRITE_PROTECT_ASYNC,
            0,
            privilege,
        )?;
        let pagemap = Pagemap::open()?;
        let registrations = protect_all(&uffd, ranges)?;
        // Shows now, not in the middle of a migration, if this kernel has no PAGEMAP_SCAN. Nothing was written since
        // protecting, or the guest runs already: then a page reported here would be lost, so it must not be protected.
        // A page is enough to ask: going through a terabyte takes seconds.
        for range in ranges {
            let page = range.sub(0, range.len().min(rustix::param::page_size()));
            let page = page.expect("no longer than the range");
            pagemap.scan(&page, Scan::Existing, |_, _| {}).map_err(|failure| {
                Error::Unavailable {
                    what: format!("PAGEMAP_SCAN does not work: {}", failure.source),
                    remedy: "Linux 6.7 has it".into(),
                }
            })?;
        }
        Ok(Self { ranges: ranges.to_vec(), pagemap, _registrations: registrations })
    }

    pub(super) fn sync(&self, index: usize, sink: &Sink<'_>) -> io::Result<u64> {
        let range = &self.ranges[index];
        let mut newly = 0;
        let scanned = self.pagemap.scan(range, Scan::WrittenAndProtect, |offset, len| {
            newly += sink.mark(offset, len);
        });
        match scanned {
            Ok(()) => Ok(newly),
            Err(failure) => {
                // What was protected without a report counts as written.
                sink.mark(failure.from, range.len() - failure.from);
                Err(failure.source)
            }
        }
    }
}

/// Registers every range and protects every page in it.
pub(super) fn protect_all(
    uffd: &Arc<Userfaultfd>,
    ranges: &[RegionSlice],
) -> Result<Vec<Registration>> {
    let mut registrations = Vec::with_capacity(ranges.len());
    for range in ranges {
        let registration = uffd
            .register_write_protect(range.clone())
            .map_err(|source| Error::io("registering guest memory with userfaultfd", source))?;
        registration
            .write_protect(0, range.len(), true)
            .map_err(|source| Error::io("write-protecting guest memory", source))?;
        registrations.push(registration);
    }
    Ok(registrations)
}
