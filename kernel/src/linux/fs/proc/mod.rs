//! `/proc`: what the kernel knows of processes and of itself, as Linux writes it.

mod memory;
mod pagemap;
mod process;
mod system;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::text::Text;
use super::{Directory, Entry, Node, Place, Target, device, kind, tree::Fixed};
use crate::linux::errno::Errno;
use crate::linux::file::{File, Stat};
use crate::linux::process::{self as processes, Process};

/// Numbers of files: those of the root have one each, those of a process follow its number.
const ROOT_INO: u64 = 1;
const fn pid_ino(pid: u32, file: u64) -> u64 {
    (pid as u64 + 1) << 16 | file
}

/// The root of `/proc`.
pub(super) fn root() -> Arc<dyn Node> {
    let mut fixed = Fixed::new(device::PROC, ROOT_INO);
    let mut ino = ROOT_INO;
    let mut next = || {
        ino += 1;
        ino
    };
    for (name, make) in system::TEXTS {
        fixed.add(name, Text::node(device::PROC, next(), *make));
    }
    let mut sys = Fixed::new(device::PROC, next());
    for (name, settings) in system::SETTINGS {
        let mut below = Fixed::new(device::PROC, next());
        for (name, make) in *settings {
            below.add(name, Text::writable(device::PROC, next(), *make, |_| Ok(())));
        }
        sys.add(name, Arc::new(below));
    }
    fixed.add("sys", Arc::new(sys));
    fixed.add(
        "self",
        Arc::new(Link { ino: next(), target: |process| Ok(Target::Path(process.pid.to_string())) }),
    );
    fixed.add("mounts", Arc::new(Link { ino: next(), target: |_| Ok(Target::Path("self/mounts".into())) }));
    Arc::new(Root(fixed))
}

/// The fixed names, and the processes.
struct Root(Fixed);

impl Node for Root {
    fn stat(&self) -> Stat {
        self.0.stat()
    }

    fn directory(&self) -> Option<&dyn Directory> {
        Some(self)
    }
}

impl Directory for Root {
    fn find(&self, process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno> {
        if let Ok(node) = self.0.find(process, name) {
            return Ok(node);
        }
        let pid: u32 = name.parse().map_err(|_| Errno::ENOENT)?;
        if pid.to_string() != name || processes::find(pid).is_none() {
            return Err(Errno::ENOENT);
        }
        Ok(Arc::new(PidDirectory(pid)))
    }

    fn entries(&self, process: &Process) -> Vec<Entry> {
        let mut entries = self.0.entries(process);
        let pids = processes::all().into_iter().map(|process| Entry {
            ino: pid_ino(process.pid, 0),
            kind: kind::DIRECTORY,
            name: process.pid.to_string(),
        });
        entries.extend(pids);
        entries
    }

    fn make(&self, _name: Option<&str>, _what: super::New<'_>) -> Result<Arc<dyn Node>, Errno> {
        Err(Errno::ENOENT)
    }
}

/// A link that depends on who asks.
struct Link {
    ino: u64,
    target: fn(&Process) -> Result<Target, Errno>,
}

impl Node for Link {
    fn stat(&self) -> Stat {
        Stat { ino: self.ino, mode: kind::LINK | 0o777, nlink: 1, dev: device::PROC, ..Stat::default() }
    }

    fn link(&self, process: &Process) -> Option<Result<Target, Errno>> {
        Some((self.target)(process))
    }
}

/// A process's directory.
struct PidDirectory(u32);

/// What a name in it is.
#[derive(Clone, Copy)]
enum OfPid {
    Text(fn(&Process) -> Result<Vec<u8>, Errno>),
    Pagemap,
    Link(fn(&Process) -> Result<Target, Errno>),
    Descriptors,
    Tasks,
}

const OF_PID: &[(&str, OfPid)] = &[
    ("cmdline", OfPid::Text(process::cmdline)),
    ("comm", OfPid::Text(process::comm)),
    ("cwd", OfPid::Link(process::cwd)),
    ("exe", OfPid::Link(process::exe)),
    ("fd", OfPid::Descriptors),
    ("maps", OfPid::Text(memory::maps)),
    ("mounts", OfPid::Text(system::mounts)),
    ("pagemap", OfPid::Pagemap),
    ("root", OfPid::Link(process::root)),
    ("smaps", OfPid::Text(memory::smaps)),
    ("smaps_rollup", OfPid::Text(memory::smaps_rollup)),
    ("stat", OfPid::Text(process::stat)),
    ("statm", OfPid::Text(process::statm)),
    ("status", OfPid::Text(process::status)),
    ("task", OfPid::Tasks),
];

impl OfPid {
    const fn mode(self) -> u32 {
        match self {
            Self::Text(_) => kind::REGULAR | 0o444,
            Self::Pagemap => kind::REGULAR | 0o400,
            Self::Link(_) => kind::LINK | 0o777,
            Self::Descriptors => kind::DIRECTORY | 0o500,
            Self::Tasks => kind::DIRECTORY | 0o555,
        }
    }
}

fn directory_stat(ino: u64, mode: u32) -> Stat {
    Stat { ino, mode, nlink: 2, dev: device::PROC, ..Stat::default() }
}

impl Node for PidDirectory {
    fn stat(&self) -> Stat {
        directory_stat(pid_ino(self.0, 0), kind::DIRECTORY | 0o555)
    }

    fn directory(&self) -> Option<&dyn Directory> {
        Some(self)
    }
}

impl Directory for PidDirectory {
    fn find(&self, _process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno> {
        let index = OF_PID.iter().position(|(known, _)| *known == name).ok_or(Errno::ENOENT)?;
        Ok(Arc::new(PidFile { pid: self.0, index }))
    }

    fn entries(&self, _process: &Process) -> Vec<Entry> {
        let entry = |(index, (name, what)): (usize, &(&str, OfPid))| Entry {
            ino: pid_ino(self.0, index as u64 + 1),
            kind: what.mode() & kind::MASK,
            name: String::from(*name),
        };
        OF_PID.iter().enumerate().map(entry).collect()
    }
}

/// A file of a process's directory.
struct PidFile {
    pid: u32,
    index: usize,
}

impl PidFile {
    fn what(&self) -> OfPid {
        OF_PID[self.index].1
    }

    fn process(&self) -> Result<Arc<Process>, Errno> {
        processes::find(self.pid).ok_or(Errno::ESRCH)
    }
}

impl Node for PidFile {
    fn stat(&self) -> Stat {
        let ino = pid_ino(self.pid, self.index as u64 + 1);
        Stat { nlink: 1, ..directory_stat(ino, self.what().mode()) }
    }

    fn directory(&self) -> Option<&dyn Directory> {
        matches!(self.what(), OfPid::Descriptors | OfPid::Tasks).then_some(self)
    }

    fn link(&self, _process: &Process) -> Option<Result<Target, Errno>> {
        let OfPid::Link(target) = self.what() else { return None };
        Some(self.process().and_then(|process| target(&process)))
    }

    fn open(self: Arc<Self>, _process: &Process, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        let process = self.process()?;
        match self.what() {
            OfPid::Text(make) => Ok(super::text::opened(self.stat(), make(&process)?)),
            OfPid::Pagemap => pagemap::open(&process, self.stat()),
            _ => Err(Errno::ENXIO),
        }
    }
}

/// `fd` and `task`: numbers.
impl Directory for PidFile {
    fn find(&self, _process: &Process, name: &str) -> Result<Arc<dyn Node>, Errno> {
        let number: u32 = name.parse().map_err(|_| Errno::ENOENT)?;
        let process = self.process()?;
        if number.to_string() != name {
            return Err(Errno::ENOENT);
        }
        if matches!(self.what(), OfPid::Descriptors) {
            process.files().get(number.into()).map_err(|_| Errno::ENOENT)?;
            return Ok(Arc::new(DescriptorLink { pid: self.pid, fd: number }));
        }
        if !process::threads(&process).contains(&number) {
            return Err(Errno::ENOENT);
        }
        Ok(Arc::new(PidDirectory(self.pid)))
    }

    fn entries(&self, _process: &Process) -> Vec<Entry> {
        let Ok(process) = self.process() else { return Vec::new() };
        let (numbers, kind) = if matches!(self.what(), OfPid::Descriptors) {
            (process.files().numbers(), kind::LINK)
        } else {
            (process::threads(&process), kind::DIRECTORY)
        };
        let entry = |number: u32| Entry {
            ino: pid_ino(self.pid, 0x100 + u64::from(number)),
            kind,
            name: number.to_string(),
        };
        numbers.into_iter().map(entry).collect()
    }
}

/// An open descriptor, as a link to what it is open for.
struct DescriptorLink {
    pid: u32,
    fd: u32,
}

impl Node for DescriptorLink {
    fn stat(&self) -> Stat {
        let ino = pid_ino(self.pid, 0x100 + u64::from(self.fd));
        Stat { ino, mode: kind::LINK | 0o700, nlink: 1, size: 64, dev: device::PROC, ..Stat::default() }
    }

    fn link(&self, _process: &Process) -> Option<Result<Target, Errno>> {
        let open = processes::find(self.pid)
            .ok_or(Errno::ENOENT)
            .and_then(|process| process.files().get(self.fd.into()).map_err(|_| Errno::ENOENT));
        Some(open.map(|open| match open.place() {
            Some(place) => Target::Place(Place::clone(place), open.path()),
            None => Target::Path(open.path()),
        }))
    }
}

/// A line of `name:` and a number of kB, as wide as Linux has it.
fn kib(out: &mut String, name: &str, bytes: u64) {
    use core::fmt::Write;
    let _ = writeln!(out, "{:<16}{:>8} kB", format!("{name}:"), bytes >> 10);
}
