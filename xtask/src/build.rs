//! Building the guest: loader and kernel, in one cargo call of their own; and the programs for ring 3, in another.
//!
//! A call of its own because features, `RUSTFLAGS` and linker of the host side must not reach the kernel (see
//! `docs/decisions/0001-two-cargo-calls.md`). Whatever the user's environment says about flags is dropped here.
//! When nothing changed this costs one freshness check, and nothing is printed.

use crate::cpio;
use crate::error::{Error, at};
use object::build::elf::Builder;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target that the kernel is built for, on every host.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The files of a built guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The loader: QEMU's `-kernel`.
    pub boot: PathBuf,
    /// The kernel with its debug information: for backtraces and gdb.
    pub kernel: PathBuf,
    /// The archive with the stripped kernel: QEMU's `-initrd`.
    pub archive: PathBuf,
}

/// The root of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Builds what is not fresh, and says where everything is.
///
/// # Errors
/// [`Error::Cargo`], [`Error::Build`] when it does not compile, or an error about one of the files.
pub fn kernel() -> Result<Built, Error> {
    let root = root();
    let target_dir = root.join("target").join("kernel");
    KERNEL.build(&root, &target_dir)?;
    let out = target_dir.join(TARGET).join("kernel");
    let built = Built {
        boot: out.join("farpage-boot"),
        kernel: out.join("farpage-kernel"),
        archive: out.join("kernel.cpio"),
    };
    if !is_newer(&built.archive, &built.kernel) {
        write_archive(&built)?;
    }
    Ok(built)
}

/// Builds the static programs for ring 3 (`programs/`) that are not fresh; the directory they are in.
///
/// # Errors
/// As [`kernel`].
pub fn programs() -> Result<PathBuf, Error> {
    let root = root();
    let target_dir = root.join("target").join("programs");
    PROGRAMS.build(&root, &target_dir)?;
    Ok(target_dir.join(TARGET).join(PROGRAMS.profile))
}

/// What one nested call builds, and how.
struct Call {
    /// As the person is told.
    what: &'static str,
    profile: &'static str,
    packages: &'static [&'static str],
    flags: &'static str,
    /// What the error calls it.
    failed: fn() -> Error,
}

const KERNEL: Call = Call {
    what: "the loader and the kernel",
    profile: "kernel",
    packages: &["farpage-boot", "farpage-kernel"],
    flags: "-Cforce-frame-pointers=yes",
    failed: || Error::Build("the kernel"),
};

const PROGRAMS: Call = Call {
    what: "the programs for ring 3",
    profile: "programs",
    packages: &["farpage-programs"],
    flags: "-Ctarget-feature=+crt-static",
    failed: || Error::Build("a program of programs/"),
};

impl Call {
    /// Its output goes to standard error, beginning with the first thing it compiles.
    fn build(&self, root: &Path, target_dir: &Path) -> Result<(), Error> {
        let mut command = cargo_command();
        command.args(["build", "--profile", self.profile, "--target", TARGET, "--target-dir"]);
        command.arg(target_dir).current_dir(root);
        command.args(self.packages.iter().flat_map(|package| ["--package", *package]));
        command.env("RUSTFLAGS", self.flags);
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "cc");
        if console::colors_enabled_stderr() {
            command.args(["--color", "always"]);
        }
        if run(command, self.what)? { Ok(()) } else { Err((self.failed)()) }
    }
}

/// Did it succeed?
fn run(mut command: Command, what: &str) -> Result<bool, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Cargo(name.clone(), source))?;
    let stderr = child.stderr.take().map(BufReader::new);
    let mut held = Vec::new();
    let mut announced = false;
    for line in stderr.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        match Said::by(&line) {
            Said::Finished => {}
            Said::Waiting => eprintln!("{line}"),
            Said::Compiling if !announced => {
                eprintln!("Building {what}");
                held.drain(..).for_each(|held| eprintln!("{held}"));
                eprintln!("{line}");
                announced = true;
            }
            _ if announced => eprintln!("{line}"),
            // When all is fresh, cargo repeats the warnings of the last build: not shown again.
            _ => held.push(line),
        }
    }
    let status = child.wait().map_err(|source| Error::Cargo(name, source))?;
    if !status.success() {
        held.iter().for_each(|line| eprintln!("{line}"));
    }
    Ok(status.success())
}

/// What a line of cargo's output is.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Compiling,
    Waiting,
    Finished,
    Other,
}

impl Said {
    fn by(line: &str) -> Self {
        let plain = console::strip_ansi_codes(line);
        match plain.split_whitespace().next() {
            Some("Compiling" | "Downloading") => Self::Compiling,
            Some("Blocking") => Self::Waiting,
            Some("Finished") => Self::Finished,
            _ => Self::Other,
        }
    }
}

/// Cargo, without what an outer cargo or the user's environment says about flags and places.
fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let dropped = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let prefixes = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_PKG_", "CARGO_MANIFEST_"];
        if dropped.contains(&name.as_ref()) || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// Is `file` at least as new as `source`?
fn is_newer(file: &Path, source: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    modified(file).zip(modified(source)).is_some_and(|(file, source)| file > source)
}

/// Written under another name first: a second runner may read the archive at this moment.
fn write_archive(built: &Built) -> Result<(), Error> {
    let elf = fs::read(&built.kernel).map_err(at(&built.kernel))?;
    let stripped =
        strip(&elf).map_err(|why| Error::Elf { path: built.kernel.clone(), why: why.to_string() })?;
    let bytes = cpio::archive([("kernel", stripped.as_slice())]);
    let temporary = built.archive.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes).map_err(at(&temporary))?;
    fs::rename(&temporary, &built.archive).map_err(at(&built.archive))
}

/// The ELF without debug information and symbols: what is loaded, and the sections that describe it.
fn strip(elf: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut builder = Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let is_debug = name.starts_with(b".debug") || name.starts_with(b".comment");
        section.delete = is_debug;
    }
    for symbol in &mut builder.symbols {
        symbol.delete = true;
    }
    builder.delete_orphans();
    let mut out = Vec::new();
    builder.write(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_lines_are_told_apart_in_colour_too() {
        assert_eq!(Said::by("   Compiling x v0.1.0"), Said::Compiling);
        assert_eq!(Said::by("\u{1b}[1m\u{1b}[32m   Compiling\u{1b}[0m x"), Said::Compiling);
        assert_eq!(Said::by("    Blocking waiting for file lock on artifact directory"), Said::Waiting);
        assert_eq!(Said::by("    Finished `kernel` profile"), Said::Finished);
        assert_eq!(Said::by("warning: unused: Compiling"), Said::Other);
    }

    #[test]
    fn a_stripped_program_keeps_what_is_loaded_and_loses_the_rest() {
        use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
        use object::{Endianness, Object, ObjectSection};
        let elf = fs::read(std::env::current_exe().unwrap()).unwrap();
        let stripped = strip(&elf).unwrap();
        let parse = |data| ElfFile64::<Endianness>::parse(data).unwrap();
        let (before, after) = (parse(elf.as_slice()), parse(stripped.as_slice()));
        assert!(after.sections().all(|section| !section.name().unwrap().starts_with(".debug")));
        assert_eq!(after.entry(), before.entry());
        let loads = |file: &ElfFile64<'_>, data| {
            let headers = file.elf_header().program_headers(Endianness::Little, data).unwrap();
            let loads =
                headers.iter().filter(|header| header.p_type(Endianness::Little) == object::elf::PT_LOAD);
            let fields = |header: &object::elf::ProgramHeader64<Endianness>| {
                (header.p_vaddr(Endianness::Little), header.p_memsz(Endianness::Little))
            };
            loads.map(fields).collect::<Vec<_>>()
        };
        assert_eq!(loads(&before, elf.as_slice()), loads(&after, stripped.as_slice()));
        let text = |file: &ElfFile64<'_>| file.section_by_name(".text").unwrap().data().unwrap().to_vec();
        assert_eq!(text(&before), text(&after));
        assert!(stripped.len() < elf.len() / 2);
    }
}
