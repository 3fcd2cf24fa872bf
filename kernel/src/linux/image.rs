//! A program's file, and its first memory.
//!
//! Static ELF64 for x86-64: `ET_EXEC` where it says, `ET_DYN` without an interpreter (static-pie) at [`PIE_BASE`]. Segments
//! are private mappings of the file, with anonymous memory behind where a segment is longer than what the file has of it.

use alloc::vec::Vec;
use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PT_INTERP, PT_LOAD, PT_PHDR};
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;
use farpage_mm::{HugeAdvice, OutOfMemory, PAGE_SIZE, Prot, RangeError, USER_END, VaRange};

use super::memory::Memory;
use super::path::{Mapped, ProgramFile};
use crate::arch::x86_64::uaccess::copy_to_user;
use crate::vm::user::UserFault;

/// Where a program goes that can go anywhere: two thirds of the user half, as on Linux without randomisation.
const PIE_BASE: u64 = 0x5555_5555_4000;

/// A program in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Its first instruction.
    pub(super) entry: u64,
    /// Where its program headers lie, and how many they are.
    pub(super) phdrs: (u64, u64),
    /// Where its data ends and the heap begins.
    pub(super) end: u64,
}

/// Why a file cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadProgram {
    /// Not a static program for this machine.
    File(&'static str),
    /// It does not fit into memory.
    Range(RangeError),
    /// There is no memory for it at all.
    Memory(OutOfMemory),
    /// Its own memory could not be written.
    Fault(UserFault),
}

impl From<RangeError> for BadProgram {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<OutOfMemory> for BadProgram {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error)
    }
}

impl From<UserFault> for BadProgram {
    fn from(fault: UserFault) -> Self {
        Self::Fault(fault)
    }
}

impl fmt::Display for BadProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(why) => {
                write!(f, "the program cannot be run: {why}; link it statically for x86-64 Linux")
            }
            Self::Range(error) => write!(f, "the program does not fit into memory: {error}"),
            Self::Memory(error) => write!(f, "there is no memory for the program: {error}"),
            Self::Fault(fault) => write!(f, "the program's memory cannot be written: {fault}"),
        }
    }
}

fn bad<T>(why: &'static str) -> Result<T, BadProgram> {
    Err(BadProgram::File(why))
}

/// A program's file, looked at.
struct File<'a> {
    elf: ElfBytes<'a, LittleEndian>,
    segments: Vec<ProgramHeader>,
    base: u64,
}

/// Reads what can be known of a program before there is memory for it.
fn read(file: &[u8]) -> Result<File<'_>, BadProgram> {
    let Ok(elf) = ElfBytes::<LittleEndian>::minimal_parse(file) else { return bad("it is no ELF64 file") };
    let header = elf.ehdr;
    if header.e_machine != EM_X86_64 {
        return bad("it is for another machine");
    }
    let base = match header.e_type {
        ET_EXEC => 0,
        ET_DYN => PIE_BASE,
        _ => return bad("it is neither a program nor position-independent"),
    };
    let Some(segments) = elf.segments() else { return bad("it has no program headers") };
    let segments: Vec<_> = segments.iter().collect();
    if segments.iter().any(|segment| segment.p_type == PT_INTERP) {
        return bad("it wants a dynamic linker");
    }
    for segment in segments.iter().filter(|segment| is_loaded(segment)) {
        let end = base.checked_add(segment.p_vaddr).and_then(|start| start.checked_add(segment.p_memsz));
        if end.is_none_or(|end| end > USER_END) || elf.segment_data(segment).is_err() {
            return bad("a segment reaches beyond the file or the address space");
        }
        if segment.p_filesz > segment.p_memsz {
            return bad("a segment has more bytes in the file than in memory");
        }
    }
    Ok(File { elf, segments, base })
}

fn is_loaded(segment: &ProgramHeader) -> bool {
    segment.p_type == PT_LOAD && segment.p_memsz > 0
}

/// Can this file be run?
///
/// # Errors
/// Why not.
pub(super) fn check(file: &[u8]) -> Result<(), BadProgram> {
    read(file).map(drop)
}

/// Puts a program into an address space, which is loaded.
///
/// # Errors
/// What is wrong with the file; no memory. A part of it may be mapped then.
pub(super) fn load(memory: &Memory, file: &ProgramFile) -> Result<Image, BadProgram> {
    let File { elf, segments, base } = read(&file.contents)?;
    let space = memory.space();
    let header = elf.ehdr;
    let loads: Vec<_> = segments.iter().filter(|segment| is_loaded(segment)).collect();
    let mut image =
        Image { entry: base.wrapping_add(header.e_entry), phdrs: (0, u64::from(header.e_phnum)), end: 0 };
    for segment in &loads {
        let start = base + segment.p_vaddr;
        let end = start + segment.p_memsz;
        let Ok(bytes) = elf.segment_data(segment) else { return bad("a segment reaches beyond the file") };
        let range = pages(start, end);
        map(memory, segment, range, start, bytes, &file.mapped)?;
        image.end = image.end.max(range.end.0);
        let offsets = segment.p_offset..segment.p_offset.saturating_add(segment.p_filesz);
        if offsets.contains(&header.e_phoff) {
            image.phdrs.0 = start + (header.e_phoff - segment.p_offset);
        }
    }
    if let Some(own) = segments.iter().find(|segment| segment.p_type == PT_PHDR) {
        image.phdrs.0 = base.wrapping_add(own.p_vaddr);
    }
    // After the bytes are there: a segment need not be writable.
    for segment in &loads {
        let start = base.wrapping_add(segment.p_vaddr);
        space.protect(pages(start, start + segment.p_memsz), prot(segment.p_flags))?;
    }
    Ok(image)
}

/// Maps a segment, whose memory is `range` and whose bytes of the file begin at `start`; writable for now.
fn map(
    memory: &Memory,
    segment: &ProgramHeader,
    range: VaRange,
    start: u64,
    bytes: &[u8],
    mapped: &Mapped,
) -> Result<(), BadProgram> {
    let space = memory.space();
    let is_in_step = (segment.p_offset % PAGE_SIZE) == start % PAGE_SIZE;
    if bytes.is_empty() || !is_in_step {
        space.map_anon(range, Prot::RW, HugeAdvice::Default)?;
        copy_to_user(start, bytes)?;
        return Ok(());
    }
    let end = start + bytes.len() as u64;
    let of_file = pages(start, end);
    let page = segment.p_offset / PAGE_SIZE;
    space.map_private(of_file, Prot::RW, &mapped.object, page, HugeAdvice::Default)?;
    memory.name_mapping(of_file.start, Some(mapped.file.clone()));
    if segment.p_memsz > segment.p_filesz {
        // Behind the last byte the file goes on, but the segment is zero.
        const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        copy_to_user(end, &ZEROS[..(of_file.end.0 - end) as usize])?;
    }
    let rest = VaRange::between(of_file.end, range.end);
    if !rest.is_empty() {
        space.map_anon(rest, Prot::RW, HugeAdvice::Default)?;
    }
    Ok(())
}

fn pages(start: u64, end: u64) -> VaRange {
    let first = start & !(PAGE_SIZE - 1);
    VaRange::new(first, end.next_multiple_of(PAGE_SIZE) - first)
}

fn prot(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & PF_R != 0);
    prot.set(Prot::WRITE, flags & PF_W != 0);
    prot.set(Prot::EXEC, flags & PF_X != 0);
    prot
}
