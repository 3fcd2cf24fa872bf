//! The kernel's ELF: its segments, its entry, and what it asks of its loader.

use crate::error::LoadError;
use crate::paging::Access;
use bootloader_api::BootloaderConfig;
use bootloader_api::info::TlsTemplate;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS};
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;

/// A kernel that has been read and found runnable.
pub struct Image<'a> {
    elf: ElfBytes<'a, LittleEndian>,
    data: &'a [u8],
    /// What the kernel asks for, from its `.bootloader-config` section.
    pub config: BootloaderConfig,
}

/// A part of the kernel that goes into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its address.
    pub virt: u64,
    /// Its bytes in the file; zeros follow up to `len_bytes`.
    pub data: &'a [u8],
    /// Its length in memory.
    pub len_bytes: u64,
    /// Its rights.
    pub access: Access,
}

impl<'a> Image<'a> {
    /// Reads an ELF.
    ///
    /// # Errors
    /// [`LoadError::BadKernel`] for a file that is no static x86-64 executable, [`LoadError::BadConfig`] if it was
    /// not written for `bootloader_api`.
    pub fn parse(data: &'a [u8]) -> Result<Self, LoadError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(data)
            .map_err(|_| LoadError::BadKernel("it is not a little-endian ELF file"))?;
        if elf.ehdr.class != elf::file::Class::ELF64 || elf.ehdr.e_machine != EM_X86_64 {
            return Err(LoadError::BadKernel("it is not an ELF for x86-64"));
        }
        if elf.ehdr.e_type != ET_EXEC {
            return Err(LoadError::BadKernel("it is not linked to a fixed address (ELF type EXEC)"));
        }
        let headers = elf.segments().ok_or(LoadError::BadKernel("it has no program headers"))?;
        if headers.iter().any(|header| matches!(header.p_type, PT_INTERP | PT_DYNAMIC)) {
            return Err(LoadError::BadKernel("it is dynamically linked"));
        }
        let config = elf
            .section_header_by_name(".bootloader-config")
            .ok()
            .flatten()
            .and_then(|header| elf.section_data(&header).ok())
            .ok_or(LoadError::BadConfig("there is none (is this a bootloader_api kernel?)"))?;
        let config = BootloaderConfig::deserialize(config.0).map_err(LoadError::BadConfig)?;
        Ok(Self { elf, data, config })
    }

    /// The address of the first instruction.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.elf.ehdr.e_entry
    }

    /// Length of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.data.len() as u64
    }

    /// The segments to load; empty ones are left out.
    pub fn segments(&self) -> impl Iterator<Item = Result<Segment<'a>, LoadError>> {
        let wanted = |header: &ProgramHeader| header.p_type == PT_LOAD && header.p_memsz != 0;
        self.headers().filter(wanted).map(|header| self.segment(&header))
    }

    /// The template for thread-local storage, if the kernel has one.
    #[must_use]
    pub fn tls_template(&self) -> Option<TlsTemplate> {
        let header = self.headers().find(|header| header.p_type == PT_TLS)?;
        Some(TlsTemplate { start_addr: header.p_vaddr, file_size: header.p_filesz, mem_size: header.p_memsz })
    }

    fn headers(&self) -> impl Iterator<Item = ProgramHeader> {
        self.elf.segments().into_iter().flat_map(|headers| headers.iter())
    }

    fn segment(&self, header: &ProgramHeader) -> Result<Segment<'a>, LoadError> {
        let virt = header.p_vaddr;
        let start = usize::try_from(header.p_offset).ok();
        let len = usize::try_from(header.p_filesz).ok();
        let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
        let data = range
            .and_then(|range| self.data.get(range))
            .ok_or(LoadError::BadKernel("a segment lies outside the file: it is cut short"))?;
        if header.p_filesz > header.p_memsz || virt.checked_add(header.p_memsz).is_none() {
            return Err(LoadError::BadKernel("a segment's sizes make no sense"));
        }
        let access = match (header.p_flags & PF_W != 0, header.p_flags & PF_X != 0) {
            (true, true) => return Err(LoadError::WritableCode { virt }),
            (true, false) => Access::ReadWrite,
            (false, true) => Access::ReadExecute,
            (false, false) => Access::ReadOnly,
        };
        Ok(Segment { virt, data, len_bytes: header.p_memsz, access })
    }
}
