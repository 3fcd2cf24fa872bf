//! Backtraces with names: `@pc` records expanded from the kernel's debug information.

use crate::error::Error;
use addr2line::Loader;
use ktest::wire::Record;
use std::path::{Path, PathBuf};

/// Reads the kernel's debug information when the first frame is to be named, not before.
#[derive(Default)]
pub struct Symbolizer {
    elf: PathBuf,
    loader: Option<Loader>,
}

impl Symbolizer {
    /// For the kernel in this file.
    #[must_use]
    pub fn new(elf: &Path) -> Self {
        Self { elf: elf.to_path_buf(), loader: None }
    }

    /// The line as it should be shown: a `@pc` record becomes one line per function, inlined ones first; any other
    /// line stays as it is.
    pub fn expand(&mut self, line: &str) -> Vec<String> {
        let record = Record::parse(line).filter(|record| record.kind() == "pc");
        let Some((record, addr)) = record.and_then(|record| Some((record, record.u64("addr")?))) else {
            return vec![line.to_string()];
        };
        let n = record.u64("n").unwrap_or(0);
        // Above the innermost frame an address is where a call returns to: the call itself stands before it.
        let lookup = if n == 0 { addr } else { addr.saturating_sub(1) };
        let mut frames = self.frames(lookup).unwrap_or_default();
        if frames.is_empty() {
            // A call that never returns may be the last instruction of its function.
            frames = self.frames(addr.saturating_sub(1)).unwrap_or_default();
        }
        if frames.is_empty() {
            return vec![format!("{n:4}: {addr:#018x} (no symbol)")];
        }
        let numbered = |(index, frame): (usize, &Frame)| {
            let place = frame.place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
            let head = if index == 0 { format!("{n:4}: {addr:#018x}") } else { " ".repeat(24) };
            format!("{head} {}{place}", frame.function)
        };
        frames.iter().enumerate().map(numbered).collect()
    }

    /// The functions that `addr` is in, innermost first.
    ///
    /// # Errors
    /// [`Error::Elf`] if the kernel's file cannot be read.
    pub fn frames(&mut self, addr: u64) -> Result<Vec<Frame>, Error> {
        if self.loader.is_none() {
            let fail =
                |why: Box<dyn std::error::Error>| Error::Elf { path: self.elf.clone(), why: why.to_string() };
            self.loader = Some(Loader::new(&self.elf).map_err(fail)?);
        }
        let Some(loader) = &self.loader else { return Ok(Vec::new()) };
        let mut frames = Vec::new();
        if let Ok(mut found) = loader.find_frames(addr) {
            while let Ok(Some(frame)) = found.next() {
                let function =
                    frame.function.and_then(|function| Some(function.demangle().ok()?.into_owned()));
                let place =
                    frame.location.and_then(|place| Some(format!("{}:{}", short(place.file?), place.line?)));
                frames.push(Frame { function: function.unwrap_or_else(|| "?".into()), place });
            }
        }
        if frames.iter().all(|frame| frame.function == "?")
            && let Some(symbol) = loader.find_symbol(addr)
        {
            let function = rustc_demangle::demangle(symbol).to_string();
            let place = frames.pop().and_then(|frame| frame.place);
            frames = vec![Frame { function, place }];
        }
        Ok(frames)
    }
}

/// One function of a backtrace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its name.
    pub function: String,
    /// File and line.
    pub place: Option<String>,
}

/// Paths from the workspace's root where they lie inside; the library's own from `library/`.
fn short(path: &str) -> &str {
    let root = crate::build::root();
    let inside =
        root.to_str().and_then(|root| path.strip_prefix(root)).map(|rest| rest.trim_start_matches('/'));
    inside.or_else(|| path.find("/library/").map(|at| &path[at + 1..])).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_pass_and_unknown_addresses_say_so() {
        let mut symbolizer = Symbolizer::new(Path::new("/nonexistent"));
        assert_eq!(symbolizer.expand("plain text"), ["plain text"]);
        assert_eq!(symbolizer.expand("@step n=1"), ["@step n=1"]);
        assert_eq!(symbolizer.expand("@pc n=2 addr=0x1234"), ["   2: 0x0000000000001234 (no symbol)"]);
    }

    #[test]
    fn paths_are_shortened() {
        let inside = crate::build::root().join("kernel/src/main.rs");
        assert_eq!(short(inside.to_str().unwrap()), "kernel/src/main.rs");
        assert_eq!(short("/rustc/abc/library/core/src/fmt/mod.rs"), "library/core/src/fmt/mod.rs");
        assert_eq!(short("/elsewhere/x.rs"), "/elsewhere/x.rs");
    }

    /// The address of a function of this very test program.
    #[test]
    fn functions_are_found_in_a_real_elf() {
        let exe = std::env::current_exe().unwrap();
        let loader = Loader::new(&exe).unwrap();
        let mut symbolizer = Symbolizer { elf: exe.clone(), loader: None };
        let data = std::fs::read(&exe).unwrap();
        let file = object::read::elf::ElfFile64::<object::Endianness>::parse(&*data).unwrap();
        use object::{Object, ObjectSymbol};
        let symbol = file.symbols().find(|symbol| {
            symbol.name().is_ok_and(|name| name.contains("symbolize") && name.contains("expand"))
        });
        let frames = symbolizer.frames(symbol.unwrap().address()).unwrap();
        drop(loader);
        assert!(frames.iter().any(|frame| frame.function.contains("expand")), "{frames:?}");
    }
}
