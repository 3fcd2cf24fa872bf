//! `maps` and `smaps`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use farpage_mm::{HugeAdvice, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Prot, Vma, VmaKind, VmaUse};

use super::kib;
use crate::linux::errno::Errno;
use crate::linux::memory::{MappedFile, Memory, STACK_TOP};
use crate::linux::process::Process;

/// Where the name stands in a line of `maps`.
const NAME_COLUMN: usize = 73;

/// What does not change from line to line.
struct Names<'a> {
    memory: &'a Memory,
    heap: (u64, u64),
}

impl<'a> Names<'a> {
    fn of(memory: &'a Memory) -> Self {
        Self { memory, heap: *memory.heap.lock() }
    }

    /// The file that a VMA maps; shared memory without one has a file nobody sees.
    fn file(&self, vma: &Vma) -> Option<MappedFile> {
        let key = vma.object_key()?;
        let known = self.memory.files.lock().get(&key).cloned();
        let unseen = || MappedFile { path: "/dev/zero (deleted)".into(), dev: 1, ino: u64::from(key) };
        Some(known.unwrap_or_else(unseen))
    }

    /// A line of `maps`.
    fn line(&self, out: &mut String, vma: &Vma) {
        let (range, prot) = (vma.range(), vma.prot());
        let flag = |which, letter| if prot.contains(which) { letter } else { '-' };
        let shared = matches!(vma.kind(), VmaKind::Shared | VmaKind::Device);
        let file = self.file(vma);
        let (offset, dev, ino) = match &file {
            Some(file) => (vma.page_offset() << PAGE_SHIFT, file.dev, file.ino),
            None => (0, 0, 0),
        };
        let mut line = format!(
            "{:08x}-{:08x} {}{}{}{} {offset:08x} {:02x}:{:02x} {ino} ",
            range.start.0,
            range.end.0,
            flag(Prot::READ, 'r'),
            flag(Prot::WRITE, 'w'),
            flag(Prot::EXEC, 'x'),
            if shared { 's' } else { 'p' },
            dev >> 8 & 0xfff,
            dev & 0xff,
        );
        let name = match file {
            Some(file) => file.path,
            None if vma.kind() == VmaKind::Hugetlb => "/anon_hugepage (deleted)".into(),
            None if range.start.0 <= self.heap.1
                && range.end.0 > self.heap.0
                && self.heap.0 != self.heap.1 =>
            {
                "[heap]".into()
            }
            None if range.start.0 < STACK_TOP && range.end.0 >= STACK_TOP => "[stack]".into(),
            None => String::new(),
        };
        if !name.is_empty() {
            while line.len() < NAME_COLUMN {
                line.push(' ');
            }
            // A line is a line.
            line.push_str(&name.replace('\n', "\\012"));
        }
        out.push_str(&line);
        out.push('\n');
    }
}

pub(super) fn maps(process: &Process) -> Result<Vec<u8>, Errno> {
    let mut out = String::new();
    if let Some(memory) = process.memory_if_alive() {
        let names = Names::of(&memory);
        memory.space().for_each_vma(|vma| names.line(&mut out, vma));
    }
    Ok(out.into_bytes())
}

/// The lines of numbers.
fn numbers(out: &mut String, held: &VmaUse, pool: u64) {
    for (name, bytes) in [
        ("Rss", held.rss),
        ("Pss", held.pss),
        ("Pss_Dirty", held.private_dirty),
        ("Shared_Clean", held.shared_clean),
        ("Shared_Dirty", held.shared_dirty),
        ("Private_Clean", held.private_clean),
        ("Private_Dirty", held.private_dirty),
        ("Referenced", held.referenced),
        ("Anonymous", held.anonymous),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", held.anon_huge),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", pool),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", 0),
    ] {
        kib(out, name, bytes);
    }
}

/// `VmFlags`, as far as they are known.
fn flags(vma: &Vma) -> String {
    let prot = vma.prot();
    let shared = matches!(vma.kind(), VmaKind::Shared | VmaKind::Device);
    let all = [
        (prot.contains(Prot::READ), "rd"),
        (prot.contains(Prot::WRITE), "wr"),
        (prot.contains(Prot::EXEC), "ex"),
        (shared, "sh"),
        (true, "mr"),
        (true, "mw"),
        (true, "me"),
        (shared, "ms"),
        (vma.kind() == VmaKind::Device, "mm"),
        (vma.advice() == HugeAdvice::Huge, "hg"),
        (vma.advice() == HugeAdvice::NoHuge, "nh"),
    ];
    let mut out = String::from("VmFlags:");
    for (_, flag) in all.iter().filter(|(has, _)| *has) {
        let _ = write!(out, " {flag}");
    }
    out.push_str(" \n");
    out
}

pub(super) fn smaps(process: &Process) -> Result<Vec<u8>, Errno> {
    let mut out = String::new();
    let Some(memory) = process.memory_if_alive() else { return Ok(Vec::new()) };
    let names = Names::of(&memory);
    memory.space().for_each_vma_use(|vma, held| {
        names.line(&mut out, vma);
        kib(&mut out, "Size", vma.range().len());
        // Linux keeps these apart from all other pages.
        let is_pool = vma.kind() == VmaKind::Hugetlb;
        let page = if is_pool { PMD_SIZE } else { PAGE_SIZE };
        kib(&mut out, "KernelPageSize", page);
        kib(&mut out, "MMUPageSize", page);
        let (held, pool) = if is_pool { (VmaUse::default(), held.rss) } else { (*held, 0) };
        numbers(&mut out, &held, pool);
        let fits = vma.start().align_up(PMD_SIZE).0.saturating_add(PMD_SIZE) <= vma.end().0;
        let eligible = u32::from(fits && vma.kind() == VmaKind::Anon && vma.advice() != HugeAdvice::NoHuge);
        let _ = writeln!(out, "THPeligible:    {eligible:>8}");
        out.push_str(&flags(vma));
    });
    Ok(out.into_bytes())
}

pub(super) fn smaps_rollup(process: &Process) -> Result<Vec<u8>, Errno> {
    let Some(memory) = process.memory_if_alive() else { return Ok(Vec::new()) };
    let mut sum = VmaUse::default();
    let mut ends = None;
    memory.space().for_each_vma_use(|vma, held| {
        sum = sum.plus(held);
        let (start, _) = ends.get_or_insert((vma.start().0, 0));
        ends = Some((*start, vma.end().0));
    });
    let Some((start, end)) = ends else { return Ok(Vec::new()) };
    let mut out = format!("{start:08x}-{end:08x} ---p 00000000 00:00 0 ");
    while out.len() < NAME_COLUMN {
        out.push(' ');
    }
    out.push_str("[rollup]\n");
    numbers(&mut out, &sum, 0);
    Ok(out.into_bytes())
}
