//! Waiting for several files.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Answer;
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::linux::errno::Errno;
use crate::linux::file::{MAX_FILES, OpenFile, poll as event};
use crate::linux::process::Process;
use crate::linux::sleep;
use crate::task::timer::{NEVER, after_nanoseconds};
use crate::vm::user::user_read_u64;

/// An element of the array: descriptor, what is wanted, what there is.
struct Wanted {
    file: Option<Result<Arc<OpenFile>, Errno>>,
    events: u16,
    found: u16,
}

/// Bytes of a `struct pollfd`.
const LEN: usize = 8;

impl Wanted {
    fn look(&mut self) -> bool {
        self.found = match &self.file {
            None => 0,
            Some(Err(_)) => event::NVAL,
            Some(Ok(open)) => {
                let ready = open.file.ready();
                let reads = if ready & event::IN != 0 { event::RDNORM } else { 0 };
                let writes = if ready & event::OUT != 0 { event::WRNORM } else { 0 };
                (ready | reads | writes) & (self.events | event::ERR | event::HUP)
            }
        };
        self.found != 0
    }
}

/// `timeout` in milliseconds; below zero: without end.
pub(super) fn poll(process: &Process, at: u64, count: u64, timeout: u64) -> Answer {
    let timeout = timeout as i32;
    let deadline = match u64::try_from(timeout) {
        Ok(milliseconds) => after_nanoseconds(milliseconds * 1_000_000),
        Err(_) => NEVER,
    };
    poll_until(process, at, count, deadline)
}

/// `timeout` is where seconds and nanoseconds stand; none is without end.
pub(super) fn ppoll(process: &Process, at: u64, count: u64, timeout: u64) -> Answer {
    let mut deadline = NEVER;
    if timeout != 0 {
        let (seconds, nanoseconds) = (user_read_u64(timeout)?, user_read_u64(timeout.wrapping_add(8))?);
        if (seconds as i64) < 0 || nanoseconds >= 1_000_000_000 {
            return Err(Errno::EINVAL);
        }
        let all = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        deadline = after_nanoseconds(all);
    }
    poll_until(process, at, count, deadline)
}

fn poll_until(process: &Process, at: u64, count: u64, deadline: u64) -> Answer {
    let count = usize::try_from(count as u32).unwrap_or(usize::MAX);
    if count > MAX_FILES {
        return Err(Errno::EINVAL);
    }
    let mut bytes = alloc::vec![0; count * LEN];
    copy_from_user(&mut bytes, at)?;
    let files = process.files();
    let mut wanted: Vec<Wanted> = Vec::with_capacity(count);
    for one in bytes.chunks_exact(LEN) {
        let fd = i32::from_le_bytes([one[0], one[1], one[2], one[3]]);
        let file = (fd >= 0).then(|| files.get(u64::from(fd as u32)));
        wanted.push(Wanted { file, events: u16::from_le_bytes([one[4], one[5]]), found: 0 });
    }
    let mut ready = 0;
    sleep::until_any(deadline, || {
        ready = wanted.iter_mut().filter_map(|one| one.look().then_some(())).count();
        ready != 0
    })?;
    for (bytes, one) in bytes.chunks_exact_mut(LEN).zip(&wanted) {
        bytes[6..8].copy_from_slice(&one.found.to_le_bytes());
    }
    copy_to_user(at, &bytes)?;
    Ok(ready as u64)
}
