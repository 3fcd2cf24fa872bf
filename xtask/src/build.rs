//! Building the guest: loader and kernel, in one cargo call of their own.
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
    cargo(&root, &target_dir)?;
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

/// The nested call. Its output goes to standard error, beginning with the first thing it compiles.
fn cargo(root: &Path, target_dir: &Path) -> Result<(), Error> {
    let mut command = cargo_command();
    command.args(["build", "--profile", "kernel", "-p", "farpage-boot", "-p", "farpage-kernel"]);
    command.args(["--target", TARGET, "--target-dir"]).arg(target_dir).current_dir(root);
    command.env("RUSTFLAGS", "-Cforce-frame-pointers=yes");
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "cc");
    if console::colors_enabled_stderr() {
        command.args(["--color", "always"]);
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Cargo(name.clone(), source))?;
    let mut announced = false;
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let Ok(line) = line else { break };
        if console::strip_ansi_codes(&line).trim_start().starts_with("Finished") {
            continue;
        }
        if !announced && line.contains("Compiling") {
            eprintln!("Building the loader and the kernel");
            announced = true;
        }
        eprintln!("{line}");
    }
    let status = child.wait().map_err(|source| Error::Cargo(name, source))?;
    if status.success() { Ok(()) } else { Err(Error::Build) }
}

/// Cargo, without what an outer cargo or the user's environment says about flags and places.
#[must_use]
pub fn cargo_command() -> Command {
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
