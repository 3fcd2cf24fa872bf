//! The pool of large pages (hugetlb).

use std::fs;

use farpage_programs::area::{Area, Errno, HUGE};

use crate::kit::{RW, Unmet};

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// The pool's size before; dropping this gives it back.
#[derive(Debug)]
pub(crate) struct Reserved(Option<u64>);

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Makes sure that `pages` of the pool are free.
pub(crate) fn reserve(pages: u64) -> Result<Reserved, Unmet> {
    let none = || Unmet::Skip("there is no pool of large pages".into());
    let (count, free) = (number(COUNT).ok_or_else(none)?, number(FREE).ok_or_else(none)?);
    if free >= pages {
        return Ok(Reserved(None));
    }
    let grown = fs::write(COUNT, (count + pages - free).to_string()).is_ok();
    if grown && number(FREE).is_some_and(|free| free >= pages) {
        Ok(Reserved(Some(count)))
    } else {
        Err(Unmet::Skip("the pool of large pages cannot grow".into()))
    }
}

/// Maps pages of the pool.
pub(crate) fn map(len: usize) -> Result<Area, Unmet> {
    assert!(len.is_multiple_of(HUGE), "whole pages of the pool");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    match Area::map(len, RW, flags, -1) {
        Err(Errno(libc::ENOMEM)) => Err(Unmet::Skip("the pool of large pages is empty".into())),
        mapped => Ok(mapped?),
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            // A pool that stays larger harms nobody.
            let _ = fs::write(COUNT, count.to_string());
        }
    }
}
