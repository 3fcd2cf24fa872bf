//! Processes: each scenario has its own, and some make more.

use crate::kit::{Outcome, RW, Unmet, failed};
use farpage_programs::area::{Area, Errno, PAGE};

/// Exit codes of a child.
const FAILED: i32 = 1;
const SKIPPED: i32 = 4;

/// A process that does something and ends.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    /// Shared with it: the length of a text, and the text.
    note: Area,
}

/// Begins `work` in a process of its own, a copy of this one.
#[track_caller]
pub(crate) fn fork(work: impl FnOnce() -> Outcome) -> Result<Child, Unmet> {
    let note = Area::map(PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: no other thread runs when a scenario forks, so that the copy is whole.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last().into()),
        0 => {
            let code = match work() {
                Ok(()) => 0,
                Err(Unmet::Failed(why)) => leave(note, &why, FAILED),
                Err(Unmet::Skip(why)) => leave(note, &why, SKIPPED),
            };
            // SAFETY: ends the process at once; what the parent has buffered is not written twice.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Child { pid, note }),
    }
}

/// Leaves the reason where the parent finds it.
fn leave(note: Area, why: &str, code: i32) -> i32 {
    let bytes = &why.as_bytes()[..why.len().min(PAGE - 16)];
    for (index, bytes) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        note.write(1 + index, u64::from_le_bytes(word));
    }
    note.write(0, bytes.len() as u64);
    code
}

impl Child {
    /// Ends it by a signal.
    pub(crate) fn kill(&self, signal: i32) -> Outcome {
        // SAFETY: a process of ours, which has not been waited for.
        if unsafe { libc::kill(self.pid, signal) } == -1 { Err(Errno::last().into()) } else { Ok(()) }
    }

    /// The signal that it ended by, or its exit code.
    fn status(&self) -> Result<Result<i32, i32>, Unmet> {
        let mut status = 0;
        loop {
            // SAFETY: the status is ours.
            if unsafe { libc::waitpid(self.pid, &raw mut status, 0) } == self.pid {
                break;
            }
            if Errno::last() != Errno(libc::EINTR) {
                return Err(Errno::last().into());
            }
        }
        Ok(if libc::WIFSIGNALED(status) {
            Err(libc::WTERMSIG(status))
        } else {
            Ok(libc::WEXITSTATUS(status))
        })
    }

    /// Waits for its end by `signal`.
    #[track_caller]
    pub(crate) fn dies_by(self, signal: i32) -> Outcome {
        match self.status()? {
            Err(found) if found == signal => Ok(()),
            end => Err(failed(&format_args!("a child was to end by signal {signal}, and ended so: {end:?}"))),
        }
    }

    /// Waits for its end: how what it did has come out.
    pub(crate) fn join(self) -> Outcome {
        let text = || {
            let words = (1..PAGE / 8).flat_map(|word| self.note.read(word).to_le_bytes());
            let bytes: Vec<u8> = words.take(self.note.read(0) as usize).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let outcome = match self.status()? {
            Ok(0) => Ok(()),
            Ok(FAILED) => Err(Unmet::Failed(text())),
            Ok(SKIPPED) => Err(Unmet::Skip(text())),
            Ok(code) => Err(Unmet::Failed(format!("it ended with status {code}"))),
            Err(signal) => Err(Unmet::Failed(format!("it was ended by signal {signal}"))),
        };
        self.note.unmap()?;
        outcome
    }
}
