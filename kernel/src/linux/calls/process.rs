//! Processes: clone, execve, exit, wait, pidfds.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use super::{Answer, write_u32};
use crate::arch::x86_64::uaccess::{USER_END, copy_from_user, copy_to_user};
use crate::arch::x86_64::user;
use crate::arch::x86_64::xstate::Area;
use crate::linux::errno::{Errno, Interrupted};
use crate::linux::exec::{self, Program};
use crate::linux::file::{File, OpenFile, Stat, open, poll};
use crate::linux::process::{self, End, Heritage, Process};
use crate::linux::signal::{self, Info};
use crate::linux::thread::{Caller, Next, Start, Thread};
use crate::linux::{limits, path, strings};
use crate::task::{Woken, timer};
use crate::vm::user::user_read_u64;

/// Flags of a clone (`uapi/linux/sched.h`).
mod flag {
    pub(super) const VM: u64 = 0x100;
    pub(super) const FILES: u64 = 0x400;
    pub(super) const SIGHAND: u64 = 0x800;
    pub(super) const PIDFD: u64 = 0x1000;
    pub(super) const VFORK: u64 = 0x4000;
    pub(super) const THREAD: u64 = 0x1_0000;
    pub(super) const SETTLS: u64 = 0x8_0000;
    pub(super) const PARENT_SETTID: u64 = 0x10_0000;
    pub(super) const CHILD_CLEARTID: u64 = 0x20_0000;
    pub(super) const CHILD_SETTID: u64 = 0x100_0000;
    pub(super) const CLEAR_SIGHAND: u64 = 1 << 32;
    /// What is meant by these is not here: PTRACE, PARENT, the name spaces, INTO_CGROUP.
    pub(super) const MISSING: u64 = 0x2000
        | 0x8000
        | 0x2_0000
        | 0x200_0000
        | 0x400_0000
        | 0x800_0000
        | 0x1000_0000
        | 0x2000_0000
        | 0x4000_0000
        | !0 << 33;
}

/// What `clone` and `clone3` are told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    /// The child's stack pointer; 0 for the parent's.
    stack: u64,
    tls: u64,
}

impl CloneArgs {
    /// As `clone` has them: flags with the signal, stack, parent's word, child's word, thread pointer.
    pub(super) fn of_clone([flags, stack, parent_tid, child_tid, tls]: [u64; 5]) -> Self {
        const SIGNAL: u64 = 0xff;
        let exit_signal = flags & SIGNAL;
        Self { flags: flags & !SIGNAL, pidfd: parent_tid, child_tid, parent_tid, exit_signal, stack, tls }
    }
}

pub(super) fn fork(caller: &mut Caller) -> Answer {
    clone(caller, &CloneArgs { exit_signal: u64::from(signal::CHLD), ..CloneArgs::default() })
}

pub(super) fn vfork(caller: &mut Caller) -> Answer {
    let flags = flag::VM | flag::VFORK;
    clone(caller, &CloneArgs { flags, exit_signal: u64::from(signal::CHLD), ..CloneArgs::default() })
}

/// The struct of 64 to 88 bytes, of which the last three words must be 0: there are no chosen numbers and no groups.
pub(super) fn clone3(caller: &mut Caller, at: u64, size: u64) -> Answer {
    const LEAST: u64 = 64;
    const MOST: u64 = 4096;
    if size > MOST {
        return Err(Errno::E2BIG);
    }
    if size < LEAST {
        return Err(Errno::EINVAL);
    }
    let mut words = [0; 11];
    for (n, word) in words.iter_mut().enumerate().take(size as usize / 8) {
        *word = user_read_u64(at + n as u64 * 8)?;
    }
    let [flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, _] =
        words;
    let bad_stack = (stack == 0) != (stack_size == 0) || stack.checked_add(stack_size).is_none();
    if exit_signal > u64::from(signal::LAST)
        || set_tid != 0
        || set_tid_size != 0
        || flags & 0xff != 0
        || bad_stack
    {
        return Err(Errno::EINVAL);
    }
    let stack = stack.wrapping_add(stack_size);
    clone(caller, &CloneArgs { flags, pidfd, child_tid, parent_tid, exit_signal, stack, tls })
}

pub(super) fn clone(caller: &mut Caller, args: &CloneArgs) -> Answer {
    let has = |flag| args.flags & flag != 0;
    let nonsense = has(flag::THREAD) && !has(flag::SIGHAND)
        || has(flag::SIGHAND) && !has(flag::VM)
        || has(flag::PIDFD) && has(flag::THREAD)
        || has(flag::SETTLS) && args.tls >= USER_END
        || args.exit_signal > u64::from(signal::LAST)
        || has(flag::MISSING);
    if nonsense {
        return Err(Errno::EINVAL);
    }
    let (thread, child) = if has(flag::THREAD) {
        let signals = caller.thread.signals.copy(false);
        (Thread::new(caller.process(), false, signals), None)
    } else {
        let child = new_process(caller, args)?;
        if has(flag::CLEAR_SIGHAND) {
            child.signals.exec();
        }
        let signals = caller.thread.signals.copy(!has(flag::VM) || has(flag::VFORK));
        (Thread::new(&child, true, signals), Some(child))
    };
    let Some(child) = child else {
        begin(caller, args, &thread)?;
        return Ok(u64::from(thread.tid));
    };
    // What can fail comes before its first instruction.
    let done = pidfd_for_parent(caller, args, &child).and_then(|fd| {
        begin(caller, args, &thread).inspect_err(|_| {
            let _ = fd.map(|fd| caller.process().files().close(fd));
        })
    });
    if let Err(errno) = done {
        child.abandon();
        return Err(errno);
    }
    if has(flag::VFORK) {
        Process::wait_for_memory(&child, &caller.thread);
    }
    Ok(u64::from(child.pid))
}

fn new_process(caller: &Caller, args: &CloneArgs) -> Result<Arc<Process>, Errno> {
    let parent = caller.process();
    if process::are_too_many() || !limits::have_room() {
        return Err(Errno::EAGAIN);
    }
    let memory =
        if args.flags & flag::VM != 0 { Arc::clone(&caller.memory) } else { Arc::new(caller.memory.copy()?) };
    let files = parent.files();
    let files = if args.flags & flag::FILES != 0 { files } else { Arc::new(files.copy()) };
    let borrows = args.flags & flag::VFORK != 0;
    Ok(parent.child(Heritage { memory, files, exit_signal: args.exit_signal as u8, borrows }))
}

/// Lets the new thread begin behind the call, with 0 as its answer.
fn begin(caller: &Caller, args: &CloneArgs, thread: &Arc<Thread>) -> Result<(), Errno> {
    let has = |flag| args.flags & flag != 0;
    let mut context = caller.context.clone();
    context.regs.rax = 0;
    if args.stack != 0 {
        context.regs.rsp = args.stack;
    }
    if has(flag::CHILD_CLEARTID) {
        thread.clear_tid.store(args.child_tid, Relaxed);
    }
    if has(flag::PARENT_SETTID) {
        // As on Linux: if that cannot be written, nobody hears of it.
        let _ = write_u32(args.parent_tid, thread.tid);
    }
    thread.start(Start {
        context,
        state: Area::of_running()?,
        fs_base: if has(flag::SETTLS) { args.tls } else { user::fs_base() },
        set_tid: has(flag::CHILD_SETTID).then_some(args.child_tid),
        program: None,
    })
}

/// The descriptor that the parent gets, if it wants one.
fn pidfd_for_parent(caller: &Caller, args: &CloneArgs, child: &Arc<Process>) -> Result<Option<u64>, Errno> {
    if args.flags & flag::PIDFD == 0 {
        return Ok(None);
    }
    let files = caller.process().files();
    let fd = files.add(PidFd::open(child), 0, true)?;
    if let Err(fault) = write_u32(args.pidfd, fd as u32) {
        files.close(fd)?;
        return Err(fault.into());
    }
    Ok(Some(fd))
}

/// Bytes of all arguments and variables of a program, and of one of them.
const ARGS_MAX: usize = 2 << 20;
const ARG_MAX: usize = 128 << 10;
/// What one costs beside its bytes, here and on the program's stack.
const ARG_COST: usize = 64;

pub(super) fn execve(caller: &mut Caller, at: u64, args: u64, env: u64) -> Result<Next, Errno> {
    let path = strings::path(at)?;
    let mut room = ARGS_MAX;
    let mut args = list(args, &mut room)?;
    if args.is_empty() {
        args.push(Vec::new());
    }
    let env = list(env, &mut room)?;
    let file = path::program(caller.process(), &path)?;
    let program = Program::new(file, args, env)?;
    exec::exec(caller, program)
}

/// The texts that an array of pointers names, which a null pointer ends.
fn list(at: u64, room: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut texts = Vec::new();
    if at == 0 {
        return Ok(texts);
    }
    loop {
        let pointer = user_read_u64(at.wrapping_add(texts.len() as u64 * 8))?;
        if pointer == 0 {
            return Ok(texts);
        }
        if !limits::have_room() {
            return Err(Errno::ENOMEM);
        }
        let text = strings::text(pointer, ARG_MAX)?.ok_or(Errno::E2BIG)?;
        *room = room.checked_sub(text.len() + ARG_COST).ok_or(Errno::E2BIG)?;
        texts.push(text);
    }
}

pub(super) fn exit(caller: &Caller, status: u8) -> Next {
    caller.process().note_exit(caller.thread.tid, status);
    Next::End
}

pub(super) fn exit_group(caller: &Caller, status: u8) -> Next {
    caller.process().end(End::Exited(status));
    Next::End
}

/// Options of waiting.
mod wait {
    pub(super) const NOHANG: u64 = 1;
    pub(super) const EXITED: u64 = 4;
    pub(super) const NOWAIT: u64 = 0x0100_0000;
    /// `WUNTRACED`, `WCONTINUED`, and what only clones of threads know: nothing ever stops.
    pub(super) const OTHERS: u64 = 2 | 8 | 0x2000_0000 | 0x4000_0000 | 0x8000_0000;
}

/// Which children are waited for.
#[derive(Clone, Copy, Debug)]
enum Which {
    Any,
    Pid(u32),
    Group(u32),
}

impl Which {
    fn has(self, child: &Process) -> bool {
        match self {
            Self::Any => true,
            Self::Pid(pid) => child.pid == pid,
            Self::Group(group) => child.group.load(Relaxed) == group,
        }
    }
}

/// A child that has ended, waited for if need be; `None` if none has and nobody wants to wait.
fn wait_for(caller: &Caller, which: Which, hang: bool) -> Result<Option<(Arc<Process>, End)>, Errno> {
    let parent = caller.process();
    let found = || {
        let children = parent.children();
        let mut of_these = children.into_iter().filter(|child| which.has(child)).peekable();
        of_these.peek().is_some().then(|| of_these.find_map(|child| Some((child.ended()?, child))))
    };
    loop {
        let seen = parent.child_ended.seen();
        match found() {
            None => return Err(Errno::ECHILD),
            Some(Some((how, child))) => return Ok(Some((child, how))),
            Some(None) if !hang => return Ok(None),
            Some(None) => {}
        }
        if parent.child_ended.wait(seen, timer::NEVER) == Woken::Noticed {
            return Err(Interrupted::Restart.into());
        }
    }
}

pub(super) fn wait4(caller: &Caller, pid: u64, status: u64, options: u64, usage: u64) -> Answer {
    if options & !(wait::NOHANG | wait::OTHERS) & 0xffff_ffff != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match pid as i32 {
        i32::MIN => return Err(Errno::ESRCH),
        -1 => Which::Any,
        0 => Which::Group(caller.process().group.load(Relaxed)),
        pid @ 1.. => Which::Pid(pid as u32),
        group => Which::Group(group.unsigned_abs()),
    };
    let (child, how) = loop {
        let Some(found) = wait_for(caller, which, options & wait::NOHANG == 0)? else { return Ok(0) };
        if caller.process().let_go(&found.0) {
            break found;
        }
    };
    if status != 0 {
        write_u32(status, how.status())?;
    }
    if usage != 0 {
        copy_to_user(usage, &[0; 144])?;
    }
    Ok(u64::from(child.pid))
}

pub(super) fn waitid(caller: &Caller, kind: u64, id: u64, info: u64, options: u64) -> Answer {
    if options & !(wait::NOHANG | wait::EXITED | wait::NOWAIT | wait::OTHERS) != 0
        || options & (wait::EXITED | 2 | 8) == 0
    {
        return Err(Errno::EINVAL);
    }
    let which = match kind {
        0 => Which::Any,
        1 if id as i32 > 0 => Which::Pid(id as u32),
        2 if id == 0 => Which::Group(caller.process().group.load(Relaxed)),
        2 if id as i32 > 0 => Which::Group(id as u32),
        3 => Which::Pid(caller.process().files().get(id)?.file.process().ok_or(Errno::EBADF)?.pid),
        _ => return Err(Errno::EINVAL),
    };
    let Some((child, how)) = wait_for(caller, which, options & wait::NOHANG == 0)? else {
        if info != 0 {
            copy_to_user(info, &[0; 128])?;
        }
        return Ok(0);
    };
    if options & wait::NOWAIT == 0 {
        caller.process().let_go(&child);
    }
    if info != 0 {
        copy_to_user(info, &Info::of_child(signal::CHLD, child.pid, how).bytes())?;
    }
    Ok(0)
}

/// The process that a call means by `pid`: 0 is the caller's own.
fn meant(process: &Arc<Process>, pid: u64) -> Result<Arc<Process>, Errno> {
    match pid as i32 {
        0 => Ok(Arc::clone(process)),
        pid => process::find(pid as u32).ok_or(Errno::ESRCH),
    }
}

pub(super) fn setpgid(process: &Arc<Process>, pid: u64, group: u64) -> Answer {
    if (group as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let of = meant(process, pid)?;
    if of.pid != process.pid && of.ppid.load(Relaxed) != process.pid {
        return Err(Errno::ESRCH);
    }
    let session = process.session.load(Relaxed);
    if of.session.load(Relaxed) != session || of.session.load(Relaxed) == of.pid {
        return Err(Errno::EPERM);
    }
    let group = if group == 0 { of.pid } else { group as u32 };
    let has_it =
        |other: &Arc<Process>| other.group.load(Relaxed) == group && other.session.load(Relaxed) == session;
    if group != of.pid && !process::all().iter().any(has_it) {
        return Err(Errno::EPERM);
    }
    of.group.store(group, Relaxed);
    Ok(0)
}

pub(super) fn getpgid(process: &Arc<Process>, pid: u64) -> Answer {
    Ok(u64::from(meant(process, pid)?.group.load(Relaxed)))
}

pub(super) fn getsid(process: &Arc<Process>, pid: u64) -> Answer {
    Ok(u64::from(meant(process, pid)?.session.load(Relaxed)))
}

pub(super) fn setsid(process: &Arc<Process>) -> Answer {
    if process::all().iter().any(|other| other.group.load(Relaxed) == process.pid) {
        return Err(Errno::EPERM);
    }
    process.group.store(process.pid, Relaxed);
    process.session.store(process.pid, Relaxed);
    Ok(u64::from(process.pid))
}

/// A descriptor that stands for a process, whatever becomes of its number.
struct PidFd(Arc<Process>);

impl PidFd {
    fn open(process: &Arc<Process>) -> Arc<OpenFile> {
        OpenFile::new(Arc::new(Self(Arc::clone(process))), open::RDWR, "anon_inode:[pidfd]")
    }
}

impl File for PidFd {
    fn stat(&self) -> Stat {
        Stat { mode: 0o600, nlink: 1, ..Stat::default() }
    }

    fn ready(&self) -> u16 {
        if self.0.ended().is_some() { poll::IN } else { 0 }
    }

    fn process(&self) -> Option<Arc<Process>> {
        Some(Arc::clone(&self.0))
    }
}

pub(super) fn pidfd_open(process: &Arc<Process>, pid: u64, flags: u64) -> Answer {
    if flags & !u64::from(open::NONBLOCK) != 0 || pid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let of = process::find(pid as u32).ok_or(Errno::ESRCH)?;
    process.files().add(PidFd::open(&of), 0, true)
}

pub(super) fn pidfd_send_signal(caller: &Caller, fd: u64, number: u64, info: u64, flags: u64) -> Answer {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let process = caller.process().files().get(fd)?.file.process().ok_or(Errno::EBADF)?;
    let number = u8::try_from(number).ok().filter(|number| *number <= signal::LAST).ok_or(Errno::EINVAL)?;
    if info != 0 {
        copy_from_user(&mut [0; 128], info)?;
    }
    if process.ended().is_some() {
        return Err(Errno::ESRCH);
    }
    if number != 0 {
        signal::send(&process, Info::of_sender(number, 0, caller.process().pid));
    }
    Ok(0)
}
