//! Files without a program: names, contents, mappings, pipes, and what `/proc` says.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::{HugeAdvice, PAGE_SIZE, Prot, VaRange};

use super::super::file::{Descriptors, File, MAX_FILES, MapRequest, OpenFile, UserRange, open, poll};
use super::super::memory::{MappedFile, Memory};
use super::super::process::{End, Process, init};
use super::{Last, New, Path, Place, Walk, copy, pipe, root};
use crate::linux::errno::Errno;
use crate::testing::{Outcome, Unmet};
use crate::vm::activate;
use crate::vm::user::{user_read_u64, user_write_u64};

impl From<Errno> for Unmet {
    fn from(error: Errno) -> Self {
        Self::Failed(alloc::format!("{error:?}"))
    }
}

/// Where the tests' process has memory, and how much.
const BASE: u64 = 0x10_0000_0000;
const LEN: u64 = 32 * PAGE_SIZE;
/// Where files are mapped.
const MAPPED: u64 = BASE + (1 << 30);

/// Does `test` with a process whose memory is loaded.
fn with(test: impl FnOnce(&Arc<Process>) -> Outcome) -> Outcome {
    let process = Process::first(Memory::new()?, Descriptors::default());
    let memory = process.memory();
    memory.space().map_anon(VaRange::new(BASE, LEN), Prot::RW, HugeAdvice::NoHuge)?;
    let active = activate(memory.owner());
    let outcome = test(&process);
    drop(active);
    drop(memory);
    process.finish(End::Exited(0));
    init().let_go(&process);
    outcome
}

fn path(text: &str) -> Path<'_> {
    Path { from: Ok(root()), text }
}

fn open_file(process: &Process, text: &str, flags: u32) -> Result<Arc<OpenFile>, Errno> {
    super::open(process, &path(text), flags, 0o644)
}

/// A file that is made anew.
fn make(process: &Process, text: &str) -> Result<Arc<OpenFile>, Errno> {
    open_file(process, text, open::RDWR | open::CREAT | open::EXCL)
}

fn find(process: &Process, text: &str) -> Result<Place, Errno> {
    Walk::of(process, &path(text))?.follow(process)
}

fn remove(process: &Process, text: &str, directory: bool) -> Result<(), Errno> {
    let Last::Name { parent, name, .. } = Walk::of(process, &path(text))?.last(process)? else {
        return Err(Errno::EBUSY);
    };
    parent.node().directory().ok_or(Errno::ENOTDIR)?.remove(&name, directory)
}

fn write(file: &dyn File, at: u64, bytes: &[u8]) -> Result<u64, Errno> {
    copy::put(BASE, bytes);
    file.write(Some(at), UserRange { addr: BASE, len: bytes.len() as u64 })
}

fn read(file: &dyn File, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let came = file.read(at, UserRange { addr: BASE, len })?;
    let mut bytes = alloc::vec![0; came as usize];
    copy::get(&mut bytes, BASE);
    Ok(bytes)
}

fn text(process: &Process, name: &str) -> Result<String, Unmet> {
    let open = open_file(process, name, open::RDONLY)?;
    let bytes = read(&*open.file, 0, LEN)?;
    String::from_utf8(bytes).map_err(|_| Unmet::Failed("it is no text".into()))
}

crate::ktest! {
    fn paths_lead_where_linux_leads_them() {
        with(|process| {
            let tmp = find(process, "/tmp")?;
            let Some(directory) = tmp.node().directory() else { crate::fail!("/tmp is a directory") };
            directory.make(Some("a"), New::Directory(0o755))?;
            directory.make(Some("link"), New::Link("a/../a"))?;
            directory.make(Some("loop"), New::Link("loop"))?;
            drop(make(process, "/tmp/a/file")?);
            for name in ["/tmp/a/file", "//tmp//./a/file", "/tmp/link/file", "/tmp/a/../../tmp/a/file", "/../tmp/a/file"] {
                crate::check_eq!(find(process, name)?.path(), "/tmp/a/file", "{name}");
            }
            crate::check_eq!(find(process, "/tmp/link/..")?.path(), "/tmp");
            for (name, error) in [
                ("", Errno::ENOENT),
                ("/tmp/b", Errno::ENOENT),
                ("/tmp/b/c", Errno::ENOENT),
                ("/tmp/a/file/c", Errno::ENOTDIR),
                ("/tmp/a/file/..", Errno::ENOTDIR),
                ("/tmp/a/file/", Errno::ENOTDIR),
                ("/tmp/loop", Errno::ELOOP),
                ("/tmp/loop/a", Errno::ELOOP),
            ] {
                crate::check_eq!(find(process, name).err(), Some(error), "{name}");
            }
            let long = "x".repeat(256);
            crate::check_eq!(find(process, &long).err(), Some(Errno::ENAMETOOLONG));
            crate::check_eq!(make(process, "/tmp/a/file").err(), Some(Errno::EEXIST));
            crate::check_eq!(open_file(process, "/tmp/a", open::RDWR).err(), Some(Errno::EISDIR));
            crate::check_eq!(open_file(process, "/tmp/b/", open::RDWR | open::CREAT).err(), Some(Errno::EISDIR));
            crate::check_eq!(remove(process, "/tmp/a", true).err(), Some(Errno::ENOTEMPTY));
            crate::check_eq!(remove(process, "/tmp/a", false).err(), Some(Errno::EISDIR));
            crate::check_eq!(remove(process, "/tmp/a/file", true).err(), Some(Errno::ENOTDIR));
            for (name, directory) in [("/tmp/a/file", false), ("/tmp/a", true), ("/tmp/link", false), ("/tmp/loop", false)] {
                remove(process, name, directory)?;
            }
            crate::check!(directory.is_empty());
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_file_is_the_same_read_written_and_mapped() {
        with(|process| {
            let open = make(process, "/tmp/file")?;
            let file = &*open.file;
            crate::check_eq!(write(file, PAGE_SIZE - 3, b"abcdef")?, 6);
            crate::check_eq!((file.stat().size, file.stat().pages), (PAGE_SIZE + 3, 2));
            crate::check_eq!(read(file, PAGE_SIZE - 4, 100)?, b"\0abcdef");
            crate::check_eq!(read(file, PAGE_SIZE + 3, 100)?, b"");
            let map = |addr, shared| {
                let range = VaRange::new(addr, 4 * PAGE_SIZE);
                file.map(process, &MapRequest { range, prot: Prot::RW, shared, may_write: true, page: 0 })
            };
            map(MAPPED, true)?;
            map(MAPPED + (1 << 20), false)?;
            user_write_u64(MAPPED + 8, 0x1122)?;
            crate::check_eq!(read(file, 8, 2)?, [0x22, 0x11]);
            write(file, 16, &[7; 8])?;
            crate::check_eq!(user_read_u64(MAPPED + 16)?, 0x0707_0707_0707_0707);
            user_write_u64(MAPPED + (1 << 20), 1)?;
            crate::check_eq!(read(file, 0, 1)?, [0], "a private write is nobody else's");
            crate::check!(user_read_u64(MAPPED + 2 * PAGE_SIZE).is_err(), "beyond the end");
            // Shorter: the rest is gone, also of the last page, and does not come back.
            write(file, 2 * PAGE_SIZE, &[9; 64])?;
            user_read_u64(MAPPED + 2 * PAGE_SIZE)?;
            file.set_len(10)?;
            crate::check!(user_read_u64(MAPPED + PAGE_SIZE).is_err());
            file.set_len(3 * PAGE_SIZE)?;
            for (at, word) in [(8, 0x1122), (16, 0), (2 * PAGE_SIZE, 0)] {
                crate::check_eq!(user_read_u64(MAPPED + at)?, word, "byte {at}");
            }
            // It lives without a name.
            remove(process, "/tmp/file", false)?;
            crate::check_eq!((file.stat().nlink, read(file, 8, 2)?), (0, [0x22, 0x11].to_vec()));
            crate::check_eq!(open.path(), "/tmp/file (deleted)");
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_copy_stops_at_the_first_byte_that_is_not_there() {
        with(|process| {
            let open = open_file(process, "/tmp", open::RDWR | open::TMPFILE)?;
            let end = BASE + LEN;
            let at_end = |len, more| UserRange { addr: end - len, len: len + more };
            crate::check_eq!(open.file.write(Some(0), at_end(5, 100))?, 5);
            crate::check_eq!(open.file.write(Some(0), at_end(PAGE_SIZE + 3, 1 << 20))?, PAGE_SIZE + 3);
            crate::check_eq!(open.file.stat().size, PAGE_SIZE + 3);
            crate::check_eq!(open.file.read(0, at_end(13, 100))?, 13);
            crate::check_eq!(open.file.read(0, at_end(0, 8)).err(), Some(Errno::EFAULT));
            crate::check_eq!(open.file.write(Some(0), at_end(0, 8)).err(), Some(Errno::EFAULT));
            crate::check_eq!(UserRange { addr: u64::MAX, len: 2 }.check().err(), Some(Errno::EFAULT));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn descriptors_are_the_lowest_numbers_and_close_what_they_led_to() {
        with(|process| {
            let files = Descriptors::default();
            let null = open_file(process, "/dev/null", open::RDWR)?;
            for fd in 0..4 {
                crate::check_eq!(files.add(Arc::clone(&null), 0, fd == 2)?, fd);
            }
            files.close(1)?;
            crate::check_eq!(files.close(1).err(), Some(Errno::EBADF));
            crate::check_eq!((files.add(Arc::clone(&null), 0, false)?, files.add(Arc::clone(&null), 9, false)?), (1, 9));
            crate::check_eq!(files.replace(MAX_FILES as u64, Arc::clone(&null), false).err(), Some(Errno::EBADF));
            let copy = files.copy();
            copy.exec();
            crate::check!(copy.get(2).is_err() && copy.get(3).is_ok() && files.get(2).is_ok());
            crate::check_eq!(copy.numbers(), [0, 1, 3, 9]);
            for fd in 4..MAX_FILES as u64 - 1 {
                crate::check_eq!(files.add(Arc::clone(&null), 0, false)?, if fd < 9 { fd } else { fd + 1 });
            }
            crate::check_eq!(files.add(Arc::clone(&null), 0, false).err(), Some(Errno::EMFILE));
            drop((files, copy));
            crate::check_eq!(Arc::strong_count(&null), 1);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_pipe_ends_with_its_last_writer_and_breaks_with_its_last_reader() {
        with(|_| {
            let (reader, writer) = pipe(open::NONBLOCK);
            crate::check_eq!(reader.file.read(0, UserRange { addr: BASE, len: 8 }).err(), Some(Errno::EAGAIN));
            crate::check_eq!((reader.file.ready(), writer.file.ready()), (0, poll::OUT));
            crate::check_eq!(write(&*writer.file, 0, b"hello")?, 5);
            crate::check_eq!(reader.file.ready(), poll::IN);
            crate::check_eq!(read(&*reader.file, 0, 3)?, b"hel");
            // What cannot be delivered is not lost.
            crate::check_eq!(reader.file.read(0, UserRange { addr: BASE + LEN, len: 8 }).err(), Some(Errno::EFAULT));
            let rest = read(&*reader.file, 0, 8)?;
            crate::check_eq!(rest, b"lo");
            let all = UserRange { addr: BASE, len: LEN };
            crate::check_eq!(writer.file.write(None, all)?, super::PIPE_ROOM as u64);
            crate::check_eq!(writer.file.write(None, all).err(), Some(Errno::EAGAIN));
            crate::check_eq!(writer.file.ready(), 0);
            drop(writer);
            crate::check_eq!(reader.file.ready(), poll::IN | poll::HUP);
            crate::check_eq!(reader.file.read(0, all)?, super::PIPE_ROOM as u64);
            crate::check_eq!(reader.file.read(0, all)?, 0);
            let (reader, writer) = pipe(0);
            drop(reader);
            crate::check_eq!(write(&*writer.file, 0, b"x").err(), Some(Errno::EPIPE));
            crate::check_eq!(writer.file.ready() & poll::ERR, poll::ERR);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn proc_tells_what_is_mapped() {
        with(|process| {
            let open = open_file(process, "/tmp", open::RDWR | open::TMPFILE)?;
            open.file.set_len(PAGE_SIZE)?;
            let range = VaRange::new(MAPPED, PAGE_SIZE);
            let request = MapRequest { range, prot: Prot::READ, shared: true, may_write: false, page: 0 };
            open.file.map(process, &request)?;
            let stat = open.file.stat();
            let file = MappedFile { path: open.path(), dev: stat.dev, ino: stat.ino };
            process.memory().name_mapping(range.start, Some(file));
            user_write_u64(BASE, 1)?;
            let maps = text(process, &alloc::format!("/proc/{}/maps", process.pid))?;
            let mut lines = maps.lines();
            crate::check_eq!(lines.next(), Some("1000000000-1000020000 rw-p 00000000 00:00 0 "));
            crate::check!(lines.next().is_some_and(|line| line.starts_with("1040000000-1040001000 r--s 00000000 00:07 ") && line.ends_with(" (deleted)")));
            let smaps = text(process, "/proc/self/smaps")?;
            crate::check!(smaps.contains("\nSize:                128 kB\n"), "{smaps}");
            crate::check!(text(process, "/proc/meminfo")?.contains("\nHugepagesize:       2048 kB\n"));
            let pagemap = open_file(process, "/proc/self/pagemap", open::RDONLY)?;
            let words = read(&*pagemap.file, MAPPED / PAGE_SIZE * 8, 8)?;
            crate::check_eq!(words, [0; 8], "nothing is there yet");
            user_write_u64(BASE + 2 * PAGE_SIZE, 2)?;
            let words = read(&*pagemap.file, (BASE + 2 * PAGE_SIZE) / PAGE_SIZE * 8, 8)?;
            crate::check_eq!(words[7] >> 7, 1, "it is present");
            crate::check_eq!(pagemap.file.read(4, UserRange { addr: BASE, len: 8 }).err(), Some(Errno::EINVAL));
            crate::check_eq!(find(process, "/proc/999999/maps").err(), Some(Errno::ENOENT));
            Ok(())
        })?;
    }
}
