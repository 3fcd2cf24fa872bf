//! Files of a tmpfs: made, written, mapped, cut; directories; pipes; descriptors.
//!
//! They are made under `$TMPDIR`, or `/tmp`: Linux's `/tmp` need not be a tmpfs.

use std::env;
use std::ffi::CString;
use std::process;

use farpage_programs::memory::{RW, load, load_byte, mprotect, munmap, seen, store, written};
use farpage_programs::sys::Ret;
use farpage_programs::task::child;
use farpage_programs::{PAGE, fact, memory, sys, task};
use libc::{
    AT_EMPTY_PATH, AT_FDCWD, F_DUPFD, F_GETFD, F_GETFL, F_SETFD, F_SETFL, FD_CLOEXEC, MAP_PRIVATE,
    MAP_SHARED, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NONBLOCK, O_RDONLY, O_RDWR, O_TMPFILE, O_TRUNC,
    O_WRONLY, PROT_READ, SEEK_CUR, SEEK_END, SEEK_SET,
};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    let directory = format!("{}/farpage-{}", env::var("TMPDIR").unwrap_or("/tmp".into()), process::id());
    fact!("a directory", "{}", sys!(SYS_mkdir, path(&directory).as_ptr(), 0o755));
    temporary(&directory);
    reading(&directory);
    sizes(&directory);
    mapped(&directory);
    beyond(&directory);
    names(&directory);
    listing(&directory);
    descriptors(&directory);
    pipes();
    devices();
    fact!("the directory again", "{}", sys!(SYS_rmdir, path(&directory).as_ptr()));
}

fn path(text: &str) -> CString {
    CString::new(text).expect("no zero byte")
}

fn open(name: &str, flags: i32) -> Ret {
    let name = path(name);
    sys!(SYS_openat, AT_FDCWD, name.as_ptr(), flags, 0o644)
}

fn close(fd: u64) {
    sys!(SYS_close, fd).value("close");
}

/// A file without a name.
fn unnamed(directory: &str) -> u64 {
    open(directory, O_TMPFILE | O_EXCL | O_RDWR).value("O_TMPFILE")
}

fn write(fd: u64, text: &str) -> Ret {
    sys!(SYS_write, fd, text.as_ptr(), text.len())
}

/// What a read of up to `len` bytes gives.
fn read(fd: u64, len: usize) -> String {
    let mut bytes = vec![0_u8; len];
    let got = sys!(SYS_read, fd, bytes.as_mut_ptr(), len);
    if !got.is_ok() {
        return got.to_string();
    }
    format!("{got} {:?}", String::from_utf8_lossy(&bytes[..got.0 as usize]))
}

/// `struct stat`: size, kind and links.
fn stat(fd: u64) -> String {
    let mut words = [0_u64; 18];
    let empty = c"";
    let got = sys!(SYS_newfstatat, fd, empty.as_ptr(), words.as_mut_ptr(), AT_EMPTY_PATH);
    if !got.is_ok() {
        return got.to_string();
    }
    let mode = words[3] as u32;
    let kind = match mode & 0o170_000 {
        0o100_000 => "file",
        0o040_000 => "directory",
        0o010_000 => "pipe",
        0o020_000 => "device",
        _ => "other",
    };
    format!("{kind} {:o} size {} links {}", mode & 0o777, words[6], words[2])
}

fn map(fd: u64, offset: u64, len: u64, prot: i32, flags: i32) -> Ret {
    sys!(SYS_mmap, 0, len, prot, flags, fd, offset)
}

fn temporary(directory: &str) {
    let fd = unnamed(directory);
    fact!("new", "{}", stat(fd).replace("links 0", "without a name"));
    fact!("write", "{} {}", write(fd, "first line\n"), write(fd, "second line\n"));
    fact!("position", "{}", sys!(SYS_lseek, fd, 0, SEEK_CUR));
    fact!("at the end", "{}", read(fd, 10));
    fact!("back", "{} {}", sys!(SYS_lseek, fd, 6, SEEK_SET), read(fd, 9));
    fact!("from the end", "{} {}", sys!(SYS_lseek, fd, -5_i64, SEEK_END), read(fd, 100));
    let mut bytes = [0_u8; 6];
    fact!(
        "pread",
        "{} {:?}",
        { sys!(SYS_pread64, fd, bytes.as_mut_ptr(), 6, 11) },
        String::from_utf8_lossy(&bytes)
    );
    fact!(
        "pwrite",
        "{} {}",
        sys!(SYS_pwrite64, fd, c"FIRST".as_ptr(), 5, 0),
        sys!(SYS_lseek, fd, 0, SEEK_CUR)
    );
    fact!("contents", "{} {}", sys!(SYS_lseek, fd, 0, SEEK_SET), read(fd, 100));
    fact!("stat", "{}", stat(fd));
    close(fd);
    fact!("closed", "{} {}", read(fd, 1), sys!(SYS_close, fd));
    fact!("to be read only", "{}", open(directory, O_TMPFILE | O_RDONLY));
}

fn reading(directory: &str) {
    let name = format!("{directory}/file");
    fact!("not there", "{}", open(&name, O_RDWR));
    let fd = open(&name, O_RDWR | O_CREAT | O_EXCL).value("create");
    fact!("there", "{}", open(&name, O_RDWR | O_CREAT | O_EXCL));
    fact!("write", "{}", write(fd, "0123456789"));
    let second = open(&name, O_RDONLY).value("open");
    fact!("positions of their own", "{} {}", read(second, 4), sys!(SYS_lseek, fd, 0, SEEK_CUR));
    fact!("write to what is read", "{}", write(second, "x"));
    fact!("cut what is read", "{}", sys!(SYS_ftruncate, second, 0));
    let third = open(&name, O_WRONLY | O_APPEND).value("open");
    fact!("append", "{} {}", write(third, "abc"), sys!(SYS_lseek, third, 0, SEEK_CUR));
    fact!("read from what is written", "{}", read(third, 1));
    fact!("the others see it", "{} {}", read(second, 100), stat(fd));
    let fourth = open(&name, O_RDWR | O_TRUNC).value("open");
    fact!("cut by an open", "{} {}", stat(fd), read(second, 10));
    fact!("write behind the end", "{}", sys!(SYS_pwrite64, fd, c"end".as_ptr(), 3, 9000));
    fact!("a hole reads", "{} {}", sys!(SYS_lseek, fd, 8998, SEEK_SET), read(fd, 10));
    fact!("stat", "{}", stat(fourth));
    let status = child(|| sys!(SYS_lseek, fd, 3, SEEK_SET).0 as i32);
    fact!("a child moves the position", "{status} {}", sys!(SYS_lseek, fd, 0, SEEK_CUR));
    [fd, second, third, fourth].into_iter().for_each(close);
    fact!("remove", "{} {}", sys!(SYS_unlink, path(&name).as_ptr()), open(&name, O_RDONLY));
}

fn sizes(directory: &str) {
    let fd = unnamed(directory);
    let block = vec![7_u8; 3 * PAGE as usize];
    fact!("three pages", "{}", sys!(SYS_write, fd, block.as_ptr(), block.len()));
    for len in [5000, 0, 100, 10_000] {
        fact!("ftruncate", "{len}: {} {}", sys!(SYS_ftruncate, fd, len), stat(fd));
        let mut byte = [9_u8; 2];
        let got = sys!(SYS_pread64, fd, byte.as_mut_ptr(), 2, 4998);
        fact!("there", "{got} {byte:?}");
    }
    fact!("a negative length", "{}", sys!(SYS_ftruncate, fd, -1_i64));
    fact!("seek before the start", "{}", sys!(SYS_lseek, fd, -1_i64, SEEK_SET));
    fact!("seek far", "{} {}", sys!(SYS_lseek, fd, 1_u64 << 40, SEEK_SET), read(fd, 1));
    fact!("seek strangely", "{}", sys!(SYS_lseek, fd, 0, 99));
    fact!("nothing", "{} {}", read(fd, 0), write(fd, ""));
    fact!("read into nowhere", "{}", { sys!(SYS_pread64, fd, 0x1000, 10, 0) });
    fact!("write from nowhere", "{}", sys!(SYS_pwrite64, fd, 0x1000, 10, 0));
    fact!("at a negative place", "{}", sys!(SYS_pread64, fd, block.as_ptr(), 1, -1_i64));
    close(fd);
}

fn mapped(directory: &str) {
    let fd = unnamed(directory);
    let text = "mapped file contents";
    let _ = write(fd, text);
    let _ = sys!(SYS_ftruncate, fd, 3 * PAGE);
    let shared = map(fd, 0, 3 * PAGE, RW, MAP_SHARED).value("shared");
    let private = map(fd, 0, 3 * PAGE, RW, MAP_PRIVATE).value("private");
    let text_at = |at: u64| (at..at + 6).map(|at| load_byte(at).map_or('?', char::from)).collect::<String>();
    fact!("both", "{:?} {:?}", text_at(shared), text_at(private));
    let _ = sys!(SYS_pwrite64, fd, c"MAPPED".as_ptr(), 6, 0);
    fact!("a write is seen", "{:?} {:?}", text_at(shared), text_at(private));
    fact!("through shared", "{} {}", written(shared + PAGE, 0x41_4141), seen(private + PAGE));
    fact!("by a read", "{} {}", sys!(SYS_lseek, fd, PAGE, SEEK_SET), read(fd, 4));
    fact!(
        "through private",
        "{} {} {}",
        written(private + PAGE, 0x42),
        seen(private + PAGE),
        seen(shared + PAGE)
    );
    let status = child(|| {
        store(shared + 2 * PAGE, 5).expect("a page");
        store(private + 2 * PAGE, 6).expect("a page");
        (load(private + 2 * PAGE).unwrap_or(0) + load(shared + 2 * PAGE).unwrap_or(0)) as i32
    });
    fact!("a child's writes", "{status} {} {}", seen(shared + 2 * PAGE), seen(private + 2 * PAGE));
    close(fd);
    fact!("after the file is closed", "{} {}", seen(shared + PAGE), written(shared, 1));
    let _ = (munmap(shared, 3 * PAGE), munmap(private, 3 * PAGE));
    let name = format!("{directory}/rights");
    let made = open(&name, O_RDWR | O_CREAT).value("create");
    let _ = sys!(SYS_ftruncate, made, PAGE);
    let only_read = open(&name, O_RDONLY).value("open");
    let only_written = open(&name, O_WRONLY).value("open");
    fact!("shared and writable, of what is read", "{}", map(only_read, 0, PAGE, RW, MAP_SHARED).verdict());
    fact!("private and writable, of what is read", "{}", map(only_read, 0, PAGE, RW, MAP_PRIVATE).verdict());
    let at = map(only_read, 0, PAGE, PROT_READ, MAP_SHARED).value("shared");
    fact!("made writable later", "{} {}", mprotect(at, PAGE, RW), written(at, 1));
    fact!(
        "of what is written",
        "{} {}",
        map(only_written, 0, PAGE, PROT_READ, MAP_PRIVATE).verdict(),
        map(only_written, 0, PAGE, RW, MAP_SHARED).verdict()
    );
    fact!("an odd offset", "{}", map(made, 100, PAGE, RW, MAP_SHARED));
    fact!("no length", "{}", map(made, 0, 0, RW, MAP_SHARED));
    fact!("neither shared nor private", "{}", map(made, 0, PAGE, RW, 0));
    fact!("no file", "{}", map(999, 0, PAGE, RW, MAP_SHARED));
    fact!(
        "a directory",
        "{}",
        open(directory, O_RDONLY | O_DIRECTORY).is_ok()
            && !map(open(directory, O_RDONLY).0 as u64, 0, PAGE, PROT_READ, MAP_PRIVATE).is_ok()
    );
    [made, only_read, only_written].into_iter().for_each(close);
    let _ = sys!(SYS_unlink, path(&name).as_ptr());
}

fn beyond(directory: &str) {
    let fd = unnamed(directory);
    let _ = sys!(SYS_ftruncate, fd, PAGE + 100);
    let at = map(fd, 0, 4 * PAGE, RW, MAP_SHARED).value("shared");
    let own = map(fd, 0, 4 * PAGE, RW, MAP_PRIVATE).value("private");
    fact!("inside", "{} {}", written(at + PAGE + 8, 1), seen(own + PAGE + 8));
    fact!("behind the end, in its page", "{} {}", written(at + PAGE + 200, 2), seen(at + PAGE + 200));
    fact!("in a page behind", "{}; {}", seen(at + 2 * PAGE), written(own + 3 * PAGE, 3));
    fact!("longer", "{} {} {}", sys!(SYS_ftruncate, fd, 3 * PAGE), seen(at + 2 * PAGE), seen(own + 3 * PAGE));
    fact!("a private copy", "{} {}", written(own, 9), seen(at));
    let _ = store(at, 4);
    let _ = store(at + 2 * PAGE, 5);
    fact!("shorter", "{} {}; {}", sys!(SYS_ftruncate, fd, 8), seen(at), seen(at + PAGE));
    fact!("the copy is cut too", "{}; {}", seen(own), seen(own + PAGE));
    fact!(
        "longer again",
        "{} {} {}",
        sys!(SYS_ftruncate, fd, 4 * PAGE),
        seen(at + PAGE + 8),
        seen(at + 2 * PAGE)
    );
    let behind = map(fd, 16 * PAGE, PAGE, RW, MAP_SHARED);
    fact!("a mapping behind the end", "{} {}", behind.verdict(), seen(behind.0 as u64));
    fact!("a call into it", "{}", sys!(SYS_pread64, fd, behind.0, 8, 0));
    let offset = map(fd, 2 * PAGE, PAGE, RW, MAP_SHARED).value("shared");
    fact!("at an offset", "{} {}", written(offset + 16, 0x77), seen(at + 2 * PAGE + 16));
    close(fd);
}

fn names(directory: &str) {
    let name = |name: &str| format!("{directory}/{name}");
    let fd = open(&name("a"), O_RDWR | O_CREAT).value("create");
    let _ = write(fd, "hello");
    fact!(
        "rename",
        "{} {}",
        sys!(SYS_rename, path(&name("a")).as_ptr(), path(&name("b")).as_ptr()),
        open(&name("a"), O_RDONLY)
    );
    fact!("the same file", "{}", open(&name("b"), O_RDONLY).is_ok());
    fact!(
        "a file as a directory",
        "{} {}",
        open(&name("b/c"), O_RDONLY),
        open(&name("b"), O_RDONLY | O_DIRECTORY)
    );
    fact!("a directory to be written", "{} {}", open(directory, O_RDWR), open(directory, O_WRONLY));
    fact!("to be made where there is none", "{}", open(&name("none/c"), O_RDWR | O_CREAT));
    fact!("dots", "{} {}", open(&name("./../x"), O_RDONLY), open(&name("../"), O_RDONLY).is_ok());
    fact!("a name too long", "{}", open(&name(&"n".repeat(256)), O_RDONLY));
    fact!("a path too long", "{}", open(&name(&"n/".repeat(2500)), O_RDONLY));
    fact!("no name", "{}", open("", O_RDONLY));
    fact!("a wild name", "{}", sys!(SYS_openat, AT_FDCWD, 0x1000, O_RDONLY));
    fact!(
        "from a wrong directory",
        "{} {}",
        sys!(SYS_openat, 999, c"b".as_ptr(), O_RDONLY),
        sys!(SYS_openat, fd, c"b".as_ptr(), O_RDONLY)
    );
    let dir = open(directory, O_RDONLY | O_DIRECTORY).value("open");
    fact!("from a directory", "{}", sys!(SYS_openat, dir, c"b".as_ptr(), O_RDONLY).is_ok());
    let mut words = [0_u64; 18];
    fact!(
        "stat by name",
        "{} {}",
        { sys!(SYS_newfstatat, dir, c"b".as_ptr(), words.as_mut_ptr(), 0) },
        words[6]
    );
    fact!("stat of nothing", "{}", sys!(SYS_newfstatat, dir, c"zz".as_ptr(), words.as_mut_ptr(), 0));
    fact!("stat into nowhere", "{}", sys!(SYS_newfstatat, dir, c"b".as_ptr(), 0x1000, 0));
    fact!("remove a directory as a file", "{}", sys!(SYS_unlink, path(directory).as_ptr()));
    fact!("remove a file as a directory", "{}", sys!(SYS_rmdir, path(&name("b")).as_ptr()));
    fact!("remove what is not empty", "{}", sys!(SYS_rmdir, path(directory).as_ptr()));
    fact!("make what is there", "{}", sys!(SYS_mkdir, path(directory).as_ptr(), 0o755));
    fact!(
        "remove",
        "{} {}",
        sys!(SYS_unlink, path(&name("b")).as_ptr()),
        sys!(SYS_unlink, path(&name("b")).as_ptr())
    );
    fact!("still open", "{} {}", sys!(SYS_lseek, fd, 0, SEEK_SET), read(fd, 10));
    [fd, dir].into_iter().for_each(close);
}

fn listing(directory: &str) {
    for name in ["one", "two", "three"] {
        close(open(&format!("{directory}/{name}"), O_RDWR | O_CREAT).value("create"));
    }
    let inner = path(&format!("{directory}/inner"));
    let _ = sys!(SYS_mkdir, inner.as_ptr(), 0o700);
    let fd = open(directory, O_RDONLY | O_DIRECTORY).value("open");
    fact!("the directory", "{}", stat(fd).split(" size").next().unwrap_or_default());
    let mut found = Vec::new();
    let mut bytes = [0_u64; 64];
    loop {
        let len = sys!(SYS_getdents64, fd, bytes.as_mut_ptr(), 512).value("getdents64") as usize;
        if len == 0 {
            break;
        }
        let data: Vec<u8> = bytes.iter().flat_map(|word| word.to_le_bytes()).take(len).collect();
        let mut at = 0;
        while at < len {
            let record = usize::from(u16::from_le_bytes([data[at + 16], data[at + 17]]));
            let name: Vec<u8> =
                data[at + 19..at + record].iter().copied().take_while(|byte| *byte != 0).collect();
            found.push(format!("{} {}", String::from_utf8_lossy(&name), data[at + 18]));
            at += record;
        }
    }
    found.sort();
    fact!("entries", "{}", found.join(", "));
    fact!(
        "no room",
        "{} {}",
        sys!(SYS_lseek, fd, 0, SEEK_SET),
        sys!(SYS_getdents64, fd, bytes.as_mut_ptr(), 8)
    );
    fact!("read a directory", "{}", read(fd, 10));
    close(fd);
    for name in ["one", "two", "three"] {
        let _ = sys!(SYS_unlink, path(&format!("{directory}/{name}")).as_ptr());
    }
    fact!("an empty one", "{}", sys!(SYS_rmdir, inner.as_ptr()));
}

fn descriptors(directory: &str) {
    let fd = unnamed(directory);
    let _ = write(fd, "shared position");
    let other = sys!(SYS_dup, fd).value("dup");
    fact!("dup", "{} {} {}", other > fd, sys!(SYS_lseek, other, 7, SEEK_SET), read(fd, 3));
    fact!("dup2", "{} {}", sys!(SYS_dup2, fd, 100), sys!(SYS_dup2, fd, fd) == Ret(fd as i64));
    fact!("by fcntl", "{}", sys!(SYS_fcntl, fd, F_DUPFD, 200));
    fact!(
        "flags of a descriptor",
        "{} {} {}",
        sys!(SYS_fcntl, fd, F_GETFD),
        sys!(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC),
        sys!(SYS_fcntl, fd, F_GETFD)
    );
    fact!("of the other one", "{}", sys!(SYS_fcntl, other, F_GETFD));
    let flags =
        |fd: u64| Ret(sys!(SYS_fcntl, fd, F_GETFL).0 & i64::from(libc::O_ACCMODE | O_APPEND | O_NONBLOCK));
    fact!("flags of the file", "{} {} {}", flags(fd), sys!(SYS_fcntl, fd, F_SETFL, O_APPEND), flags(other));
    fact!("append now", "{} {}", write(other, "!"), sys!(SYS_lseek, fd, 0, SEEK_CUR));
    fact!("a strange question", "{}", sys!(SYS_fcntl, fd, 9999));
    fact!(
        "of nothing",
        "{} {} {}",
        sys!(SYS_fcntl, 777, F_GETFD),
        sys!(SYS_dup, 777),
        sys!(SYS_dup2, 777, 3)
    );
    fact!("far away", "{} {}", sys!(SYS_dup2, fd, 1 << 30), sys!(SYS_fcntl, fd, F_DUPFD, 1 << 30));
    fact!(
        "no terminal",
        "{} {}",
        sys!(SYS_ioctl, fd, libc::TCGETS, 0x1000),
        sys!(SYS_ioctl, 777, libc::TCGETS, 0)
    );
    fact!("the lowest is taken", "{}", {
        close(other);
        sys!(SYS_dup, fd) == Ret(other as i64)
    });
    [fd, other, 100, 200].into_iter().for_each(close);
}

fn pipes() {
    let mut ends = [0_i32; 2];
    fact!("pipe", "{}", sys!(SYS_pipe2, ends.as_mut_ptr(), 0));
    let [from, to] = ends.map(|end| end as u64);
    fact!("through it", "{} {}", write(to, "through a pipe"), read(from, 100));
    fact!(
        "what it is",
        "{} {}",
        stat(from).split(' ').next().unwrap_or_default(),
        sys!(SYS_lseek, from, 0, SEEK_CUR)
    );
    fact!("the wrong way", "{} {}", read(to, 1), write(from, "x"));
    let mut polled = libc::pollfd { fd: ends[0], events: libc::POLLIN, revents: 0 };
    fact!("nothing to read", "{} {}", { sys!(SYS_poll, &raw mut polled, 1, 0) }, polled.revents);
    let status = child(|| {
        close(from);
        write(to, "from a child").0 as i32
    });
    fact!("from a child", "{status} {} {}", { sys!(SYS_poll, &raw mut polled, 1, 1000) }, polled.revents);
    fact!("read", "{}", read(from, 100));
    // More than a pipe holds: the writer has to wait for the reader.
    let pid = task::spawn(|| {
        let big = vec![3_u8; 200_000];
        close(from);
        (sys!(SYS_write, to, big.as_ptr(), big.len()).0 / 1000) as i32
    });
    let mut total = 0;
    let mut bytes = vec![0_u8; 30_000];
    while total < 200_000 {
        total += sys!(SYS_read, from, bytes.as_mut_ptr(), bytes.len()).value("read");
    }
    fact!("more than it holds", "{total} {}", task::wait(pid));
    close(to);
    fact!("all writers are gone", "{} {}", read(from, 100), { sys!(SYS_poll, &raw mut polled, 1, 0) });
    fact!("as poll says", "{:#x}", polled.revents);
    close(from);
    let mut ends = [0_i32; 2];
    let _ = sys!(SYS_pipe2, ends.as_mut_ptr(), 0);
    close(ends[0] as u64);
    let status = child(|| {
        // SAFETY: the default of a signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        write(ends[1] as u64, "x").0 as i32
    });
    fact!("nobody reads", "{status} {}", write(ends[1] as u64, "x"));
    close(ends[1] as u64);
    fact!("pipe with strange flags", "{}", sys!(SYS_pipe2, ends.as_mut_ptr(), 0x7777));
    fact!("pipe into nowhere", "{}", sys!(SYS_pipe2, 0x1000, 0));
}

fn devices() {
    let null = open("/dev/null", O_RDWR).value("null");
    fact!(
        "null",
        "{} {} {}",
        write(null, "gone"),
        read(null, 10),
        stat(null).split(' ').next().unwrap_or_default()
    );
    let zero = open("/dev/zero", O_RDWR).value("zero");
    fact!("zero", "{} {}", read(zero, 3), write(zero, "gone"));
    let at = map(zero, 0, PAGE, RW, MAP_PRIVATE);
    fact!("zero mapped", "{} {} {}", at.verdict(), written(at.0 as u64, 5), seen(at.0 as u64));
    let random = open("/dev/urandom", O_RDONLY).value("urandom");
    let mut words = [0_u64; 4];
    let got = sys!(SYS_read, random, words.as_mut_ptr(), 32);
    fact!("urandom", "{got} {}", words.iter().all(|word| *word != 0));
    fact!("not there", "{}", open("/dev/nothing", O_RDONLY));
    fact!("null mapped", "{}", map(null, 0, PAGE, RW, MAP_SHARED).verdict());
    [null, zero, random].into_iter().for_each(close);
}
