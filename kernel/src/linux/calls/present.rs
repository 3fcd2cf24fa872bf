//! What lies in RAM, and what is to stay there: msync, mincore, mlock. Nothing is ever written out, so nothing has to be kept in.

use alloc::vec;

use farpage_mm::{PAGE_SIZE, Prot, VaRange, Vaddr};

use super::Answer;
use crate::arch::x86_64::uaccess::{copy_to_user, user_touch_read, user_touch_write};
use crate::linux::errno::Errno;
use crate::linux::memory::{Memory, pages};

/// The whole range, if all of it is mapped.
///
/// # Errors
/// ENOMEM where it is not.
fn mapped(memory: &Memory, addr: u64, len: u64) -> Result<VaRange, Errno> {
    let range = pages(addr, len).ok_or(Errno::ENOMEM)?;
    let mut at = range.start;
    memory.space().for_each_vma(|vma| {
        if vma.range().contains(at) {
            at = vma.end();
        }
    });
    if at >= range.end { Ok(range) } else { Err(Errno::ENOMEM) }
}

/// There is no place that anything would be written to.
pub(super) fn msync(memory: &Memory, addr: u64, len: u64, flags: u64) -> Answer {
    const ASYNC: u64 = 1;
    const INVALIDATE: u64 = 2;
    const SYNC: u64 = 4;
    if flags & !(ASYNC | INVALIDATE | SYNC) != 0
        || flags & (ASYNC | SYNC) == ASYNC | SYNC
        || !addr.is_multiple_of(PAGE_SIZE)
    {
        return Err(Errno::EINVAL);
    }
    mapped(memory, addr, len)?;
    Ok(0)
}

pub(super) fn mincore(memory: &Memory, addr: u64, len: u64, to: u64) -> Answer {
    const CHUNK: u64 = 1024 * PAGE_SIZE;
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let range = mapped(memory, addr, len)?;
    for start in (range.start.0..range.end.0).step_by(CHUNK as usize) {
        let part = VaRange::between(Vaddr(start), Vaddr((start + CHUNK).min(range.end.0)));
        let mut bytes = vec![0; part.nr_pages() as usize];
        memory.space().pagemap(part, |at, entry| {
            bytes[((at.0 - start) / PAGE_SIZE) as usize] = u8::from(entry.is_present());
        })?;
        copy_to_user(to + (start - range.start.0) / PAGE_SIZE, &bytes)?;
    }
    Ok(0)
}

/// Of mmap's flags, the one that wants every page brought in at once.
pub(super) const MAP_POPULATE: u64 = 0x8000;

/// Brings in what can be had of a new mapping.
pub(super) fn populate(memory: &Memory, addr: u64, len: u64) {
    if let Some(range) = pages(addr, len) {
        // As on Linux, who maps hears nothing of what could not be had.
        let _ = touch(memory, range);
    }
}

/// Touches every page as the mapping allows.
fn touch(memory: &Memory, range: VaRange) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let Some((vma, prot, _)) = memory.space().vma_at(at) else { return Err(Errno::ENOMEM) };
        let end = vma.end.min(range.end);
        while at < end {
            if prot.contains(Prot::WRITE) { user_touch_write(at.0) } else { user_touch_read(at.0) }
                .map_err(|_| Errno::ENOMEM)?;
            at = at.add(PAGE_SIZE);
        }
    }
    Ok(())
}

/// Brings every page in. What keeps it there is that nothing takes it away.
pub(super) fn mlock(memory: &Memory, addr: u64, len: u64) -> Answer {
    let first = addr & !(PAGE_SIZE - 1);
    touch(memory, mapped(memory, first, len.saturating_add(addr - first))?)?;
    Ok(0)
}

/// Those that are not there yet need not be brought in.
pub(super) fn mlock2(memory: &Memory, addr: u64, len: u64, flags: u64) -> Answer {
    const ON_FAULT: u64 = 1;
    match flags {
        0 => mlock(memory, addr, len),
        ON_FAULT => munlock(memory, addr, len),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn munlock(memory: &Memory, addr: u64, len: u64) -> Answer {
    let first = addr & !(PAGE_SIZE - 1);
    mapped(memory, first, len.saturating_add(addr - first))?;
    Ok(0)
}
