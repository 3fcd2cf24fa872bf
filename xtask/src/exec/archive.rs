//! What a run of `exec` brings along: the program and files, behind the kernel in the boot archive.

use super::ExecArgs;
use crate::build::{self, Built};
use crate::cpio;
use crate::error::{Error, at};
use crate::size::Size;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the host under the name that the program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestFile {
    host: PathBuf,
    /// Without the slash that it begins with.
    guest: String,
}

impl GuestFile {
    /// What `--file` takes.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let wanted = "say HOST:GUEST, like data.txt:/tmp/data";
        let (host, guest) = text.rsplit_once(':').ok_or(wanted)?;
        let name = guest.strip_prefix('/').filter(|name| !name.is_empty() && !name.ends_with('/'));
        match name {
            Some(name) if !host.is_empty() => Ok(Self { host: host.into(), guest: name.to_owned() }),
            _ => Err(format!("{wanted}: the second is the whole path of a file")),
        }
    }
}

/// The archive's files: names and contents.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Reads all that the run brings along, and refuses what cannot be run.
pub(super) fn read(args: &ExecArgs, memory: Size) -> Result<Files, Error> {
    let path = program(&args.program)?;
    let program = fs::read(&path).map_err(at(&path))?;
    check(&program).map_err(|why| Error::NoProgram { path: path.clone(), why })?;
    let name = args.program.display().to_string();
    let mut files = vec![
        ("exec/program".to_owned(), program),
        ("exec/arguments".to_owned(), texts(std::iter::once(&name).chain(&args.args))),
        ("exec/environment".to_owned(), texts(&args.env)),
    ];
    for file in &args.file {
        let contents = fs::read(&file.host).map_err(at(&file.host))?;
        files.push((format!("root/{}", file.guest), contents));
    }
    let bytes: u64 = files.iter().map(|(_, contents)| contents.len() as u64).sum();
    // The archive stays where it is, the program is copied, and neither is of use without memory to work in.
    if bytes > memory.bytes() / 2 {
        let mib = bytes >> 20;
        let why = format!(
            "with its files it has {mib} MiB, more than half of {memory} of RAM; use a larger --memory"
        );
        return Err(Error::NoProgram { path, why });
    }
    Ok(files)
}

/// The program's file. A name that is no path may be that of a program of ours, which is built then.
fn program(given: &Path) -> Result<PathBuf, Error> {
    let is_name = given.components().count() == 1 && !given.as_os_str().to_string_lossy().contains('/');
    if !is_name || given.is_file() {
        return Ok(given.to_path_buf());
    }
    let ours = build::programs()?.join(given);
    if ours.is_file() {
        return Ok(ours);
    }
    let why =
        "there is no such file, and no program of this name in programs/; give the path of a static program";
    Err(Error::NoProgram { path: given.to_path_buf(), why: why.into() })
}

/// Is it a program that the kernel can run?
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    const STATIC: &str = "link it statically, like `cc -static` or `-C target-feature=+crt-static`";
    if !file.starts_with(&elf::ELFMAG) {
        return Err(format!("it is no ELF file, so no program of its own; {STATIC}"));
    }
    let broken = |why: object::Error| format!("its ELF header makes no sense ({why}); build it again");
    let header = match FileHeader64::<Endianness>::parse(file) {
        Ok(header) if header.e_machine(Endianness::Little) == EM_X86_64 => header,
        _ => return Err("it is for another machine; build it for x86-64".into()),
    };
    let endian = header.endian().map_err(broken)?;
    if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
        return Err("it is an object file or a core dump; link it".into());
    }
    let segments = header.program_headers(endian, file).map_err(broken)?;
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err(format!("it wants a dynamic linker, which is not here; {STATIC}"));
    }
    if !segments.iter().any(|segment| segment.p_type(endian) == PT_LOAD) {
        return Err("it has nothing to load; link it".into());
    }
    let mut loads = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
    if loads.any(|segment| segment.data(endian, file).is_err()) {
        return Err("it ends in the middle of a segment; copy or build it again".into());
    }
    Ok(())
}

/// Each text, ended by a zero byte.
fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    texts.into_iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect()
}

/// The boot archive of one run; deleted with it.
pub(super) struct Archive(PathBuf);

impl Archive {
    pub(super) fn write(built: &Built, files: &Files) -> Result<Self, Error> {
        let kernel = fs::read(&built.archive).map_err(at(&built.archive))?;
        let path = built.archive.with_extension(format!("{}.cpio", std::process::id()));
        let files = files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice()));
        fs::write(&path, cpio::extended(&kernel, files)).map_err(at(&path))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Nothing depends on it; the next build cleans up.
        let _ = fs::remove_file(&self.0);
    }
}
