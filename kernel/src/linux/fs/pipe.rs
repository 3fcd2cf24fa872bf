//! Pipes.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::copy::{self, CHUNK};
use super::{device, kind};
use crate::linux::errno::Errno;
use crate::linux::file::{File, OpenFile, Stat, UserRange, open, poll};
use crate::linux::sleep;
use crate::task::{Event, Mutex};

/// Bytes that a pipe holds.
pub(in crate::linux) const ROOM: usize = 64 << 10;
/// Bytes that are written at once or not at all (`PIPE_BUF`).
const ATOMIC: u64 = 4096;

struct Pipe {
    ino: u64,
    bytes: Mutex<VecDeque<u8>>,
    /// How many, for who may not take the lock.
    len: AtomicUsize,
    readers: AtomicUsize,
    writers: AtomicUsize,
    /// There is something to read, or nobody left to write it.
    filled: Event,
    /// There is room, or nobody left to read.
    emptied: Event,
}

impl Pipe {
    fn stat(&self) -> Stat {
        Stat { ino: self.ino, mode: kind::PIPE | 0o600, nlink: 1, dev: device::PIPES, ..Stat::default() }
    }

    /// Takes bytes out, as many as there are.
    fn take(&self, to: &mut [u8]) -> usize {
        let mut bytes = self.bytes.lock();
        let len = bytes.len().min(to.len());
        for (to, byte) in to.iter_mut().zip(bytes.drain(..len)) {
            *to = byte;
        }
        self.len.store(bytes.len(), Relaxed);
        len
    }

    /// Puts bytes back that could not be delivered.
    fn put_back(&self, from: &[u8]) {
        let mut bytes = self.bytes.lock();
        from.iter().rev().for_each(|&byte| bytes.push_front(byte));
        self.len.store(bytes.len(), Relaxed);
    }

    /// Puts bytes in, as many as there is room for; none if there is less room than `least`.
    fn put(&self, from: &[u8], least: usize) -> usize {
        let mut bytes = self.bytes.lock();
        let room = ROOM.saturating_sub(bytes.len());
        let len = if room < least { 0 } else { room.min(from.len()) };
        bytes.extend(&from[..len]);
        self.len.store(bytes.len(), Relaxed);
        len
    }
}

struct Reader {
    pipe: Arc<Pipe>,
    nonblock: AtomicBool,
}

struct Writer {
    pipe: Arc<Pipe>,
    nonblock: AtomicBool,
}

impl File for Reader {
    fn stat(&self) -> Stat {
        self.pipe.stat()
    }

    fn set_nonblock(&self, on: bool) {
        self.nonblock.store(on, Relaxed);
    }

    fn read(&self, _at: u64, to: UserRange) -> Result<u64, Errno> {
        let pipe = &*self.pipe;
        let mut buffer = alloc::vec![0; to.len.min(CHUNK) as usize];
        if buffer.is_empty() {
            return Ok(0);
        }
        let came = sleep::until(&pipe.filled, || match pipe.take(&mut buffer) {
            0 if pipe.writers.load(Relaxed) == 0 => Ok(Some(0)),
            0 if self.nonblock.load(Relaxed) => Err(Errno::EAGAIN),
            0 => Ok(None),
            came => Ok(Some(came)),
        })?;
        if came == 0 {
            return Ok(0);
        }
        let went = copy::put(to.addr, &buffer[..came]);
        if went < came {
            pipe.put_back(&buffer[went..came]);
        }
        pipe.emptied.happens();
        if went == 0 { Err(Errno::EFAULT) } else { Ok(went as u64) }
    }

    fn ready(&self) -> u16 {
        let something = if self.pipe.len.load(Relaxed) > 0 { poll::IN } else { 0 };
        something | if self.pipe.writers.load(Relaxed) == 0 { poll::HUP } else { 0 }
    }
}

impl File for Writer {
    fn stat(&self) -> Stat {
        self.pipe.stat()
    }

    fn set_nonblock(&self, on: bool) {
        self.nonblock.store(on, Relaxed);
    }

    fn write(&self, _at: Option<u64>, from: UserRange) -> Result<u64, Errno> {
        let pipe = &*self.pipe;
        if from.len != 0 && pipe.readers.load(Relaxed) == 0 {
            return Err(Errno::EPIPE);
        }
        let least = if from.len <= ATOMIC { from.len as usize } else { 1 };
        copy::write_by(from, |done, bytes| {
            let mut went = 0;
            let all = sleep::until(&pipe.emptied, || {
                if pipe.readers.load(Relaxed) == 0 {
                    return Err(Errno::EPIPE);
                }
                let now = pipe.put(&bytes[went..], least);
                went += now;
                if now != 0 {
                    pipe.filled.happens();
                }
                match went == bytes.len() {
                    true => Ok(Some(())),
                    false if self.nonblock.load(Relaxed) => Err(Errno::EAGAIN),
                    false => Ok(None),
                }
            });
            match all {
                Err(error) if went == 0 && done == 0 => Err(error),
                _ => Ok(went),
            }
        })
    }

    fn ready(&self) -> u16 {
        let room = if self.pipe.len.load(Relaxed) + ATOMIC as usize <= ROOM { poll::OUT } else { 0 };
        room | if self.pipe.readers.load(Relaxed) == 0 { poll::ERR } else { 0 }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.pipe.readers.fetch_sub(1, Relaxed);
        self.pipe.emptied.happens();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pipe.writers.fetch_sub(1, Relaxed);
        self.pipe.filled.happens();
    }
}

/// A new pipe: its end to read and its end to write.
pub(in crate::linux) fn pipe(flags: u32) -> (Arc<OpenFile>, Arc<OpenFile>) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let ino = LAST.fetch_add(1, Relaxed) + 1;
    let pipe = Arc::new(Pipe {
        ino,
        bytes: Mutex::new(VecDeque::new()),
        len: AtomicUsize::new(0),
        readers: AtomicUsize::new(1),
        writers: AtomicUsize::new(1),
        filled: Event::new(),
        emptied: Event::new(),
    });
    let nonblock = || AtomicBool::new(flags & open::NONBLOCK != 0);
    let kept = flags & open::NONBLOCK;
    let name = format!("pipe:[{ino}]");
    let reader = Reader { pipe: Arc::clone(&pipe), nonblock: nonblock() };
    let writer = Writer { pipe, nonblock: nonblock() };
    (
        OpenFile::new(Arc::new(reader), open::RDONLY | kept, &name),
        OpenFile::new(Arc::new(writer), open::WRONLY | kept, &name),
    )
}
