//! What is told of a process.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use farpage_mm::PAGE_SIZE;

use super::super::{Place, Target, root as root_place};
use crate::linux::errno::Errno;
use crate::linux::process::Process;

/// Bytes of a name, without its zero (`TASK_COMM_LEN`).
const COMM_MAX: usize = 15;

pub(super) fn cmdline(process: &Process) -> Result<Vec<u8>, Errno> {
    Ok(process.cmdline.lock().to_vec())
}

/// The program's name, from its path.
fn name(process: &Process) -> String {
    let path = process.exe.lock();
    let name = path.rsplit('/').next().unwrap_or_default();
    name.chars().take(COMM_MAX).collect()
}

pub(super) fn comm(process: &Process) -> Result<Vec<u8>, Errno> {
    Ok(format!("{}\n", name(process)).into_bytes())
}

pub(super) fn cwd(process: &Process) -> Result<Target, Errno> {
    Ok(magic(process.place.directory.lock().clone()))
}

pub(super) fn root(_process: &Process) -> Result<Target, Errno> {
    Ok(magic(root_place()))
}

fn magic(place: Place) -> Target {
    let path = place.path();
    Target::Place(place, path)
}

pub(super) fn exe(process: &Process) -> Result<Target, Errno> {
    Ok(Target::Path(process.exe.lock().clone()))
}

/// The numbers of its threads.
pub(super) fn threads(process: &Process) -> Vec<u32> {
    process.threads().iter().map(|thread| thread.tid).collect()
}

/// Bytes that it maps, and pages that are there.
fn sizes(process: &Process) -> (u64, u64) {
    let Some(memory) = process.memory_if_alive() else { return (0, 0) };
    let mut mapped = 0;
    memory.space().for_each_vma(|vma| mapped += vma.range().len());
    (mapped, memory.space().resident().pages())
}

fn state(process: &Process) -> (char, &'static str) {
    if process.ended().is_some() { ('Z', "zombie") } else { ('R', "running") }
}

pub(super) fn statm(process: &Process) -> Result<Vec<u8>, Errno> {
    let (mapped, pages) = sizes(process);
    Ok(format!("{} {pages} 0 0 0 {} 0\n", mapped / PAGE_SIZE, mapped / PAGE_SIZE).into_bytes())
}

pub(super) fn stat(process: &Process) -> Result<Vec<u8>, Errno> {
    let (mapped, pages) = sizes(process);
    let (pid, ppid, group, session) =
        (process.pid, process.ppid.load(Relaxed), process.group.load(Relaxed), process.session.load(Relaxed));
    let mut out = format!("{pid} ({}) {} {ppid} {group} {session} 0 -1", name(process), state(process).0);
    // Flags, faults, times, priorities.
    out.push_str(" 0 0 0 0 0 0 0 0 0 20 0");
    let threads = threads(process).len().max(1);
    let _ = write!(out, " {threads} 0 0 {mapped} {pages} 18446744073709551615");
    // Code, stack, signals, processors, and what came later.
    out.push_str(" 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
    Ok(out.into_bytes())
}

pub(super) fn status(process: &Process) -> Result<Vec<u8>, Errno> {
    let (mapped, pages) = sizes(process);
    let (letter, word) = state(process);
    let mut out = String::new();
    let _ = writeln!(out, "Name:\t{}\nUmask:\t{:04o}", name(process), process.place.umask.load(Relaxed));
    let _ = writeln!(out, "State:\t{letter} ({word})\nTgid:\t{0}\nNgid:\t0\nPid:\t{0}", process.pid);
    let _ = writeln!(out, "PPid:\t{}\nTracerPid:\t0", process.ppid.load(Relaxed));
    out.push_str("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t \n");
    if process.ended().is_none() {
        let _ = writeln!(out, "VmSize:\t{:>8} kB\nVmRSS:\t{:>8} kB", mapped >> 10, (pages * PAGE_SIZE) >> 10);
    }
    let _ = writeln!(out, "Threads:\t{}", threads(process).len().max(1));
    Ok(out.into_bytes())
}
