//! Waiting for several files.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Answer;
use crate::arch::x86_64::uaccess::{copy_from_user, copy_to_user};
use crate::linux::errno::Errno;
use crate::linux::file::{MAX_FILES, OpenFile, poll as event};
use crate::linux::process::Process;
use crate::linux::sleep;
use crate::task::timer::NEVER;
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
        Ok(milliseconds) => sleep::after(milliseconds * 1_000_000),
        Err(_) => NEVER,
    };
    poll_until(process, at, count, deadline)
}

/// `timeout` is where seconds and nanoseconds stand; none is without end.
pub(super) fn ppoll(process: &Process, at: u64, count: u64, timeout: u64) -> Answer {
    poll_until(process, at, count, deadline_at(timeout, 1)?)
}

/// When the time is up that stands at `at` in seconds and in parts of `unit` nanoseconds; none is without end.
fn deadline_at(at: u64, unit: u64) -> Result<u64, Errno> {
    if at == 0 {
        return Ok(NEVER);
    }
    let (seconds, part) = (user_read_u64(at)?, user_read_u64(at.wrapping_add(8))?);
    if (seconds as i64) < 0 || part >= 1_000_000_000 / unit {
        return Err(Errno::EINVAL);
    }
    Ok(sleep::after(seconds.saturating_mul(1_000_000_000).saturating_add(part * unit)))
}

/// `timeout` is where seconds and microseconds stand. What is left of it is not told.
pub(super) fn select(process: &Process, count: u64, sets: [u64; 3], timeout: u64) -> Answer {
    select_until(process, count, sets, deadline_at(timeout, 1000)?)
}

/// `timeout` is where seconds and nanoseconds stand.
pub(super) fn pselect6(process: &Process, count: u64, sets: [u64; 3], timeout: u64) -> Answer {
    select_until(process, count, sets, deadline_at(timeout, 1)?)
}

/// What makes a descriptor ready for each of the three sets; nothing here is ever exceptional.
const WANTED: [u16; 3] = [event::IN | event::HUP | event::ERR, event::OUT | event::ERR, 0];

fn select_until(process: &Process, count: u64, at: [u64; 3], deadline: u64) -> Answer {
    let count = usize::try_from(count as u32).ok().filter(|&count| count <= i32::MAX as usize);
    let count = count.ok_or(Errno::EINVAL)?.min(MAX_FILES);
    let mut sets = at.map(|at| (at != 0).then(|| alloc::vec![0; count.div_ceil(64) * 8]));
    for (set, at) in sets.iter_mut().zip(at) {
        if let Some(set) = set {
            copy_from_user(set, at)?;
        }
    }
    let has =
        |set: &Option<Vec<u8>>, fd: usize| set.as_ref().is_some_and(|set| set[fd / 8] & 1 << (fd % 8) != 0);
    let files = process.files();
    let mut wanted = Vec::new();
    for fd in 0..count {
        if sets.iter().any(|set| has(set, fd)) {
            wanted.push((fd, files.get(fd as u64)?));
        }
    }
    let mut found: [Vec<usize>; 3] = Default::default();
    sleep::until_any(deadline, || {
        for ((found, set), bits) in found.iter_mut().zip(&sets).zip(WANTED) {
            let ready = wanted.iter().filter(|(fd, open)| has(set, *fd) && open.file.ready() & bits != 0);
            *found = ready.map(|(fd, _)| *fd).collect();
        }
        found.iter().any(|found| !found.is_empty())
    })?;
    for ((set, found), at) in sets.iter_mut().zip(&found).zip(at) {
        let Some(set) = set else { continue };
        set.fill(0);
        found.iter().for_each(|fd| set[fd / 8] |= 1 << (fd % 8));
        copy_to_user(at, set)?;
    }
    Ok(found.iter().map(Vec::len).sum::<usize>() as u64)
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
