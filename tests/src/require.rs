//! Programs that some trials use and not every machine has.
//!
//! Without its program a trial is skipped, by name. Where all have to run, `FARPAGE_REQUIRE` lists the programs that must be there,
//! with commas (`FARPAGE_REQUIRE=gdb,setpriv`); a trial whose program is on the list and missing fails. `.ci/run` does so.

use std::{env, path::PathBuf};

use libtest_mimic::{Completion, Failed};

/// The list of programs that must be there.
const VARIABLE: &str = "FARPAGE_REQUIRE";

/// Runs `trial` with the program's path if there is such a program in the path.
pub(crate) fn with(
    program: &str,
    trial: impl FnOnce(PathBuf) -> Result<(), String>,
) -> Result<Completion, Failed> {
    let required = env::var(VARIABLE).unwrap_or_default();
    if let Some(path) = found(program) {
        return trial(path).map(|()| Completion::Completed).map_err(Failed::from);
    }
    missing(program, &required)
}

fn found(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn missing(program: &str, required: &str) -> Result<Completion, Failed> {
    if required.split(',').any(|name| name.trim() == program) {
        return Err(format!("{program} is not installed, and {VARIABLE} asks for it").into());
    }
    Ok(Completion::ignored_with(format!("{program} is not installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_skips_unless_it_is_required() {
        assert!(missing("gdb", "").is_ok() && missing("gdb", "gdbserver,chromium").is_ok());
        assert!(missing("gdb", "gdb").is_err() && missing("gdb", "chromium, gdb").is_err());
        assert!(with("no-such-program", |_| Err("never run".to_owned())).is_ok());
        assert!(with("sh", |path| Err(path.display().to_string())).is_err());
    }
}
