//! Memory: mmap, munmap, mprotect, mremap, madvise, brk.

use alloc::sync::Arc;

use farpage_mm::{
    Advice, HugeAdvice, Object, ObjectRef, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, Prot, RangeError, RemapFlags,
    RemapTarget, USER_END, VaRange, Vaddr, VmaKind,
};

use super::Answer;
use crate::linux::errno::Errno;
use crate::linux::file::{MapRequest, OpenFile, open};
use crate::linux::memory::{MappedFile, Memory, pages};
use crate::linux::process::Process;
use crate::vm::Machine;

/// Flags of mmap (`uapi/asm-generic/mman-common.h`).
mod map {
    pub(super) const SHARED: u64 = 1;
    pub(super) const PRIVATE: u64 = 2;
    pub(super) const SHARED_VALIDATE: u64 = 3;
    pub(super) const TYPE: u64 = 0xf;
    pub(super) const FIXED: u64 = 0x10;
    pub(super) const ANONYMOUS: u64 = 0x20;
    pub(super) const HUGETLB: u64 = 0x4_0000;
    /// Where the logarithm of the size of huge pages stands; 0 is the usual one.
    pub(super) const HUGE_SHIFT: u64 = 26;
    pub(super) const FIXED_NOREPLACE: u64 = 0x10_0000;
}

/// Flags of mremap.
mod remap {
    pub(super) const MAYMOVE: u64 = 1;
    pub(super) const FIXED: u64 = 2;
    pub(super) const DONTUNMAP: u64 = 4;
}

/// PROT_READ, PROT_WRITE and PROT_EXEC have the memory manager's numbers.
fn prot(bits: u64) -> Prot {
    Prot::from_bits_truncate(bits as u8)
}

fn is_aligned(addr: u64) -> bool {
    addr.is_multiple_of(PAGE_SIZE)
}

/// What is mapped.
enum What {
    Anon { shared: bool },
    Huge,
    File { open: Arc<OpenFile>, shared: bool },
}

pub(super) fn mmap(process: &Process, [addr, len, bits, flags, fd, off]: [u64; 6]) -> Answer {
    if !is_aligned(off) {
        return Err(Errno::EINVAL);
    }
    let file = if flags & map::ANONYMOUS == 0 { Some(process.files().get(fd)?) } else { None };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let what = what(file, bits, flags, off, len)?;
    let memory = process.memory();
    let len = if matches!(what, What::Huge) { huge_len(addr, len, flags)? } else { len };
    let range = place(&memory, addr, len, flags)?;
    let space = memory.space();
    let mut name = None;
    match what {
        What::Anon { shared: true } => {
            let object: ObjectRef<Machine> = Object::anon_shared(range.nr_pages())?;
            space.map_shared(range, prot(bits), &object, 0)?;
        }
        What::Anon { shared: false } => {
            space.map_anon(range, prot(bits), HugeAdvice::Default)?;
            return Ok(range.start.0);
        }
        What::Huge => {
            space.map_hugetlb(range, prot(bits))?;
            return Ok(range.start.0);
        }
        What::File { open, shared } => {
            let may_write = !shared || open.can_write();
            let request = MapRequest { range, prot: prot(bits), shared, may_write, page: off / PAGE_SIZE };
            open.file.map(process, &request)?;
            let stat = open.file.stat();
            name = Some(MappedFile { path: open.path(), dev: stat.dev, ino: stat.ino });
        }
    }
    memory.name_mapping(range.start, name);
    Ok(range.start.0)
}

/// What the flags ask for, if it may be had.
fn what(file: Option<Arc<OpenFile>>, bits: u64, flags: u64, off: u64, len: u64) -> Result<What, Errno> {
    let shared = match flags & map::TYPE {
        map::SHARED | map::SHARED_VALIDATE => true,
        map::PRIVATE => false,
        _ => return Err(Errno::EINVAL),
    };
    let huge = flags & map::HUGETLB != 0;
    let Some(open) = file else {
        // Shared ones are not here.
        return match (huge, shared) {
            (true, true) => Err(Errno::EINVAL),
            (true, false) => Ok(What::Huge),
            (false, shared) => Ok(What::Anon { shared }),
        };
    };
    if huge {
        return Err(Errno::EINVAL);
    }
    if off.checked_add(len).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    let writes = shared && prot(bits).contains(Prot::WRITE);
    if open.has(open::PATH) {
        return Err(Errno::EBADF);
    }
    if !open.can_read() || writes && !open.can_write() {
        return Err(Errno::EACCES);
    }
    Ok(What::File { open, shared })
}

/// The length of a mapping of huge pages, which are of one size.
fn huge_len(addr: u64, len: u64, flags: u64) -> Result<u64, Errno> {
    let size = flags >> map::HUGE_SHIFT & 0x3f;
    if size != 0 && size != u64::from(PMD_SHIFT) {
        return Err(Errno::EINVAL);
    }
    if flags & (map::FIXED | map::FIXED_NOREPLACE) != 0 && !addr.is_multiple_of(PMD_SIZE) {
        return Err(Errno::EINVAL);
    }
    len.checked_next_multiple_of(PMD_SIZE).ok_or(Errno::ENOMEM)
}

/// Where a new mapping goes.
fn place(memory: &Memory, addr: u64, len: u64, flags: u64) -> Result<VaRange, Errno> {
    let fixed = flags & (map::FIXED | map::FIXED_NOREPLACE) != 0;
    if fixed {
        if !is_aligned(addr) {
            return Err(Errno::EINVAL);
        }
        let range = pages(addr, len).ok_or(Errno::ENOMEM)?;
        if flags & map::FIXED_NOREPLACE != 0 {
            return if memory.is_free(range) { Ok(range) } else { Err(Errno::EEXIST) };
        }
        memory.space().unmap(range)?;
        return Ok(range);
    }
    let whole = if flags & map::HUGETLB != 0 { PMD_SIZE } else { PAGE_SIZE };
    let len = pages(0, len).ok_or(Errno::ENOMEM)?.len();
    // A hint that cannot be followed is none.
    let hint = pages(addr & !(whole - 1), len).filter(|hint| addr >= PAGE_SIZE && memory.is_free(*hint));
    hint.map_or_else(|| free_place(memory, len), Ok)
}

/// Where the kernel likes. Where huge pages fit, they are to be used.
fn free_place(memory: &Memory, len: u64) -> Result<VaRange, Errno> {
    let align = if len >= PMD_SIZE { PMD_SIZE } else { PAGE_SIZE };
    memory.free_range(len, align).ok_or(Errno::ENOMEM)
}

pub(super) fn munmap(memory: &Memory, addr: u64, len: u64) -> Answer {
    let range = pages(addr, len).filter(|range| is_aligned(addr) && !range.is_empty());
    memory.space().unmap(range.ok_or(Errno::EINVAL)?)?;
    Ok(0)
}

pub(super) fn mprotect(memory: &Memory, addr: u64, len: u64, bits: u64) -> Answer {
    if !is_aligned(addr) || bits & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let range = pages(addr, len).ok_or(Errno::ENOMEM)?;
    memory.space().protect(range, prot(bits))?;
    Ok(0)
}

/// What is asked of mremap, of whole pages.
struct Move {
    old: Vaddr,
    old_len: u64,
    len: u64,
    flags: u64,
}

pub(super) fn mremap(memory: &Memory, old: u64, old_len: u64, new_len: u64, flags: u64, new: u64) -> Answer {
    let known = remap::MAYMOVE | remap::FIXED | remap::DONTUNMAP;
    let moves = flags & (remap::FIXED | remap::DONTUNMAP) != 0;
    let len = pages(0, new_len).filter(|to| !to.is_empty()).ok_or(Errno::EINVAL)?.len();
    let old_len = old_len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let asked = Move { old: Vaddr(old), old_len, len, flags };
    if flags & !known != 0
        || (moves && !asked.has(remap::MAYMOVE))
        || !is_aligned(old)
        || (asked.has(remap::DONTUNMAP) && old_len != len)
    {
        return Err(Errno::EINVAL);
    }
    let target = if asked.has(remap::FIXED) { Some(asked.target(new)?) } else { None };
    if old_len == 0 {
        return asked.map_again(memory, target);
    }
    let from = asked.shrunk(memory, pages(old, old_len).ok_or(Errno::EFAULT)?)?;
    if let Some(target) = target {
        return asked.move_to_fixed(memory, from, target);
    }
    if !asked.has(remap::DONTUNMAP) {
        match asked.move_to(memory, from, from.start) {
            Err(Errno::EEXIST) if asked.has(remap::MAYMOVE) => {}
            Err(Errno::EEXIST) => return Err(Errno::ENOMEM),
            done => return done,
        }
    }
    asked.move_to(memory, from, free_place(memory, len)?.start)
}

impl Move {
    const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Where MREMAP_FIXED wants it, if it may be there.
    fn target(&self, new: u64) -> Result<VaRange, Errno> {
        let target = pages(new, self.len).filter(|_| is_aligned(new)).ok_or(Errno::EINVAL)?;
        let overlap = self.old < target.end && new < self.old.0.saturating_add(self.old_len);
        if overlap { Err(Errno::EINVAL) } else { Ok(target) }
    }

    /// What becomes shorter is cut first. It need not be one mapping for that, nor mapped behind its start.
    fn shrunk(&self, memory: &Memory, from: VaRange) -> Result<VaRange, Errno> {
        if self.len >= from.len() {
            return Ok(from);
        }
        let kept = VaRange::new(from.start.0, self.len);
        next_mapped(memory, from.start, kept.end)
            .filter(|part| part.start == from.start)
            .ok_or(Errno::EFAULT)?;
        memory.space().unmap(VaRange::between(kept.end, from.end))?;
        Ok(kept)
    }

    fn move_to(&self, memory: &Memory, from: VaRange, to: Vaddr) -> Answer {
        let target = RemapTarget { addr: to, len: self.len };
        match memory.space().remap(from, target, self.keep()) {
            Ok(()) => Ok(to.0),
            // What is not mapped is a bad address here.
            Err(RangeError::NotMapped(_)) => Err(Errno::EFAULT),
            Err(error) => Err(error.into()),
        }
    }

    fn keep(&self) -> RemapFlags {
        if self.has(remap::DONTUNMAP) { RemapFlags::KEEP_OLD } else { RemapFlags::empty() }
    }

    /// One mapping; or, where nothing becomes longer or shorter, all that there are, each to where it belongs.
    fn move_to_fixed(&self, memory: &Memory, from: VaRange, target: VaRange) -> Answer {
        match self.move_to(memory, from, target.start) {
            Err(Errno::EFAULT) if from.len() == target.len() => {}
            done => return done,
        }
        let mut at = from.start;
        while let Some(part) = next_mapped(memory, at, from.end) {
            if at == from.start && part.start != from.start {
                return Err(Errno::EFAULT);
            }
            let to =
                RemapTarget { addr: Vaddr(target.start.0 + (part.start.0 - from.start.0)), len: part.len() };
            memory.space().remap(part, to, self.keep())?;
            at = part.end;
        }
        if at == from.start { Err(Errno::EFAULT) } else { Ok(target.start.0) }
    }

    /// An old length of 0: shared memory is mapped once more.
    fn map_again(&self, memory: &Memory, target: Option<VaRange>) -> Answer {
        if !self.has(remap::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let mut kind = None;
        memory.space().for_each_vma(|vma| {
            if vma.range().contains(self.old) {
                kind = Some(vma.kind());
            }
        });
        match kind {
            Some(VmaKind::Shared) => {}
            Some(_) => return Err(Errno::EINVAL),
            None => return Err(Errno::EFAULT),
        }
        let range = match target {
            Some(target) => {
                memory.space().unmap(target)?;
                target
            }
            None => free_place(memory, self.len)?,
        };
        match memory.space().map_again(self.old, range) {
            Ok(()) => Ok(range.start.0),
            // Where the target was the only mapping of it.
            Err(RangeError::NotMapped(_)) => Err(Errno::EFAULT),
            Err(error) => Err(error.into()),
        }
    }
}

/// The part between `at` and `end` of the first mapping that is there.
fn next_mapped(memory: &Memory, at: Vaddr, end: Vaddr) -> Option<VaRange> {
    let mut found = None;
    memory.space().for_each_vma(|vma| {
        let (from, to) = (vma.start().max(at), vma.end().min(end));
        if found.is_none() && from < to {
            found = Some(VaRange::between(from, to));
        }
    });
    found
}

pub(super) fn madvise(memory: &Memory, addr: u64, len: u64, advice: u64) -> Answer {
    let advice = match advice {
        0..=3 => None,
        4 => Some(Advice::DontNeed),
        8 => Some(Advice::Free),
        14 => Some(Advice::Huge),
        15 => Some(Advice::NoHuge),
        20 => Some(Advice::Cold),
        21 => Some(Advice::PageOut),
        25 => Some(Advice::Collapse),
        _ => return Err(Errno::EINVAL),
    };
    let len = len.checked_next_multiple_of(PAGE_SIZE).filter(|_| is_aligned(addr)).ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(len).ok_or(Errno::EINVAL)?;
    if len == 0 {
        return Ok(0);
    }
    // Beyond the user half nothing is mapped.
    let range = VaRange::between(Vaddr(addr.min(USER_END)), Vaddr(end.min(USER_END)));
    let done = match advice {
        _ if range.is_empty() => Ok(0),
        Some(Advice::Free) => free(memory, range),
        Some(advice) => memory.space().advise(range, advice).map(|()| 0).map_err(Errno::from),
        None => Ok(0),
    };
    if done.is_ok() && end > USER_END { Err(Errno::ENOMEM) } else { done }
}

/// Only private memory without a file can be freed lazily. What lies before the first other mapping is.
fn free(memory: &Memory, range: VaRange) -> Answer {
    let mut other = None;
    memory.space().for_each_vma(|vma| {
        let inside = vma.start() < range.end && range.start < vma.end();
        if inside && other.is_none() && vma.kind() != VmaKind::Anon {
            other = Some(vma.start().max(range.start));
        }
    });
    let end = other.unwrap_or(range.end);
    if end > range.start {
        let done = memory.space().advise(VaRange::between(range.start, end), Advice::Free);
        if other.is_none() {
            done?;
        }
    }
    if other.is_some() { Err(Errno::EINVAL) } else { Ok(0) }
}

/// What cannot be done changes nothing: the answer is always where the heap ends.
pub(super) fn brk(memory: &Memory, wanted: u64) -> Answer {
    let mut heap = memory.heap.lock();
    let (start, end) = *heap;
    if wanted < start {
        return Ok(end);
    }
    let up = |addr: u64| addr.checked_next_multiple_of(PAGE_SIZE);
    let (Some(old), Some(new)) = (up(end), up(wanted)) else { return Ok(end) };
    let done = match new.cmp(&old) {
        core::cmp::Ordering::Equal => Ok(()),
        core::cmp::Ordering::Less => memory.space().unmap(VaRange::new(new, old - new)),
        core::cmp::Ordering::Greater => {
            memory.space().map_anon(VaRange::new(old, new - old), Prot::RW, HugeAdvice::Default)
        }
    };
    if done.is_ok() {
        heap.1 = wanted;
    }
    Ok(heap.1)
}
