//! A run whose time is up: what each CPU was doing, before QEMU is ended.
//!
//! The runner listens at a socket in a directory of its own and QEMU connects to it at its start; the directory is gone as soon
//! as the guest has said its first line. So no other program finds the socket, and a runner that is killed leaves nothing behind.
//! Nothing is asked until the time is up: a run that ends well is the same with or without.
//!
//! The report is more lines of the console, backtraces as the same `@pc` records that the kernel prints. Whoever shows a console
//! gives them names and lines already: tour, bench, shell, boot, and the tests.

use super::qmp::Monitor;
use crate::build::Built;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSegment, SegmentFlags, elf};
use std::fs::DirBuilder;
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// All questions together; a QEMU that takes longer is ended without an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many as the kernel's own backtraces have.
const MAX_FRAMES: usize = 48;

/// The runner's own line to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Watch {
    listener: UnixListener,
    dir: PathBuf,
    stream: Option<UnixStream>,
}

impl Watch {
    /// A socket in a new directory that only this user can enter.
    pub(super) fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("farpage-{}-{n}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        let listening = UnixListener::bind(dir.join("qmp")).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match listening {
            Ok(listener) => Ok(Self { listener, dir, stream: None }),
            Err(error) => {
                // An empty directory more; the error is what counts.
                let _ = std::fs::remove_dir(&dir);
                Err(error)
            }
        }
    }

    /// What QEMU is told.
    pub(super) fn args(&self) -> [String; 4] {
        let path = super::machine::quoted(&self.dir.join("qmp").to_string_lossy());
        ["-chardev", &format!("socket,id=farpage,path={path}"), "-mon", "chardev=farpage,mode=control"]
            .map(str::to_owned)
    }

    /// QEMU has connected if it ever will: the socket needs no name any more.
    pub(super) fn settle(&mut self) {
        if self.stream.is_none() {
            self.stream = self.listener.accept().ok().map(|(stream, _)| stream);
            self.remove();
        }
    }

    fn remove(&self) {
        // It may be gone already.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Stops the machine and looks at each of its CPUs.
    pub(super) fn report(&mut self, built: &Built) -> Vec<String> {
        self.settle();
        let mut lines = vec![String::new(), "stuck: the time is up; what each CPU was doing:".to_owned()];
        if let Err(why) = self.look(built, &mut lines) {
            lines.push(format!("no more is known of the machine: {why}"));
        }
        lines
    }

    fn look(&mut self, built: &Built, lines: &mut Vec<String>) -> Result<(), String> {
        let stream = self.stream.take().ok_or("QEMU has not opened its monitor")?;
        stream.set_nonblocking(false).map_err(|error| error.to_string())?;
        let mut monitor = Monitor::over(stream, PATIENCE)?;
        monitor.execute("stop")?;
        let text = [&built.kernel, &built.boot].into_iter().flat_map(|elf| text_of(elf)).collect::<Vec<_>>();
        let cpus = monitor.execute("query-cpus-fast")?.as_array().map_or(0, Vec::len);
        for cpu in 0..cpus as u64 {
            let registers = Registers::read(&monitor.human_on(cpu, "info registers")?);
            lines.extend(registers.lines(cpu));
            let memory = |address| words(&monitor.human_on(cpu, &format!("x /2gx {address:#x}")).ok()?);
            lines.extend(registers.backtrace(&text, memory));
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What the monitor says of a CPU.
#[derive(Debug, Default, PartialEq, Eq)]
struct Registers {
    /// Lines of general and control registers, as they come.
    text: Vec<String>,
    rip: Option<u64>,
    rbp: Option<u64>,
    interrupts: bool,
    halted: bool,
}

impl Registers {
    fn read(text: &str) -> Self {
        let value = |names: [&str; 2]| {
            let words = || text.split_whitespace();
            let found = names.iter().find_map(|name| words().find_map(|word| word.strip_prefix(name)));
            u64::from_str_radix(found?, 16).ok()
        };
        let floating = |line: &&str| line.starts_with("FCW") || line.starts_with("XMM");
        let lines = text.lines().map(str::trim_end).take_while(|line| !floating(line));
        // Flat segments and debug registers tell nobody anything.
        let dull = ["CPU#", "ES ", "SS ", "DS ", "FS ", "LDT", "DR"];
        let lines = lines.filter(|line| !line.is_empty() && !dull.iter().any(|dull| line.starts_with(dull)));
        Self {
            text: lines.map(|line| format!("  {line}")).collect(),
            rip: value(["RIP=", "EIP="]),
            rbp: value(["RBP=", "EBP="]),
            interrupts: value(["RFL=", "EFL="]).is_some_and(|flags| flags & 1 << 9 != 0),
            halted: value(["HLT=", "HLT="]) == Some(1),
        }
    }

    fn lines(&self, cpu: u64) -> Vec<String> {
        let what = if self.halted { "halted" } else { "running" };
        let interrupts = if self.interrupts { "on" } else { "off" };
        let head = format!("cpu {cpu}: {what}, interrupts {interrupts}, rip {:#x}", self.rip.unwrap_or(0));
        [head].into_iter().chain(self.text.iter().cloned()).collect()
    }

    /// The instruction and the chain of frames, as the kernel prints its own. The chain ends where it leads out of the
    /// program's `text`, or where `memory`, two words at an address, cannot be read.
    fn backtrace(&self, text: &[Range<u64>], mut memory: impl FnMut(u64) -> Option<[u64; 2]>) -> Vec<String> {
        let mut lines = vec!["backtrace:".to_owned()];
        let mut push = |address: u64| {
            let n = lines.len() - 1;
            lines.push(format!("@pc n={n} addr={address:#x}"));
        };
        let Some(rip) = self.rip else { return lines };
        push(rip);
        let mut frame = self.rbp;
        for _ in 1..MAX_FRAMES {
            let Some([next, back]) = frame.and_then(&mut memory) else { break };
            if !text.iter().any(|range| range.contains(&back)) {
                break;
            }
            push(back);
            frame = Some(next);
        }
        lines
    }
}

/// The two words of `x /2gx`: an address, a colon, and they.
fn words(answer: &str) -> Option<[u64; 2]> {
    let mut words = answer.split_once(':')?.1.split_whitespace();
    let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    Some([next()?, next()?])
}

/// Where a program has code; nothing if its file cannot be read.
fn text_of(elf: &Path) -> Vec<Range<u64>> {
    let Ok(data) = std::fs::read(elf) else { return Vec::new() };
    let Ok(file) = ElfFile64::<Endianness>::parse(&*data) else { return Vec::new() };
    let is_code = |flags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.0 & elf::PF_X.0 != 0);
    let code = file.segments().filter(|segment| is_code(segment.flags()));
    code.map(|segment| segment.address()..segment.address() + segment.size()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 prints them, shortened.
    const REGISTERS: &str = "\r\nCPU#0\r\n\
        RAX=0000000000000000 RBX=ffffffff80098000 RCX=0000000000000010 RDX=0000000000000000\r\n\
        RSI=0000000000000001 RDI=ffffffff8021ffa0 RBP=ffffffff80220f80 RSP=ffffffff80220f70\r\n\
        RIP=ffffffff80012ab2 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\
        CR0=80050033 CR2=0000000000000000 CR3=0000000000001000 CR4=00300ef0\r\n\
        EFER=0000000000000d01\r\n\
        FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r\n\
        XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000\r\n";

    #[test]
    fn registers_are_read_and_shown_without_the_floating_ones() {
        let found = Registers::read(REGISTERS);
        assert_eq!((found.rip, found.rbp), (Some(0xffff_ffff_8001_2ab2), Some(0xffff_ffff_8022_0f80)));
        let lines = found.lines(3);
        assert_eq!(lines[0], "cpu 3: running, interrupts off, rip 0xffffffff80012ab2");
        assert_eq!((lines.len(), lines[5].as_str()), (6, "  EFER=0000000000000d01"));
        let idle = Registers::read("EIP=0000fff0 EFL=00000202 [-------] CPL=0 HLT=1\n");
        assert_eq!(idle.lines(0)[0], "cpu 0: halted, interrupts on, rip 0xfff0");
        assert_eq!(Registers::read("nonsense").lines(0).len(), 2, "whatever it says, it is shown");
    }

    #[test]
    fn a_chain_of_frames_ends_where_it_leads_nowhere() {
        let at = |rbp| Registers { rip: Some(0x1005), rbp: Some(rbp), ..Registers::default() };
        let memory = |address| match address {
            0x10 => Some([0x20, 0x1111]),
            0x20 => Some([0x30, 0x1fff]),
            0x30 => Some([0x40, 0x2000]),
            0x50 => Some([0x50, 0x1234]),
            _ => None,
        };
        let trace = |rbp| at(rbp).backtrace(std::slice::from_ref(&(0x1000..0x2000)), memory);
        let expected = ["backtrace:", "@pc n=0 addr=0x1005", "@pc n=1 addr=0x1111", "@pc n=2 addr=0x1fff"];
        assert_eq!(trace(0x10), expected);
        assert_eq!(trace(0x60), expected[..2]);
        assert_eq!(trace(0x50).len(), 1 + MAX_FRAMES, "a ring is followed so far and no further");
        assert_eq!(Registers::default().backtrace(&[], memory), expected[..1]);
    }

    #[test]
    fn words_of_memory_are_told_from_complaints() {
        assert_eq!(words("ffffffff80220f80: 0xffffffff80220fa0 0xffffffff80012ac7\r\n"), {
            Some([0xffff_ffff_8022_0fa0, 0xffff_ffff_8001_2ac7])
        });
        for answer in ["", "Cannot access memory\r\n", "0000: 0x1\r\n", "0000: 12 13\r\n"] {
            assert_eq!(words(answer), None, "{answer}");
        }
    }

    fn built() -> Built {
        Built { boot: "/b/boot".into(), kernel: "/b/kernel".into(), archive: "/b/kernel.cpio".into() }
    }

    #[test]
    fn a_qemu_that_never_connects_leaves_a_sentence_and_no_directory() {
        let mut watch = Watch::new().unwrap();
        let dir = watch.dir.clone();
        assert!(dir.join("qmp").exists());
        assert!(watch.args()[1].contains(&format!("path={}/qmp", dir.display())));
        let lines = watch.report(&built());
        assert!(lines[2].starts_with("no more is known"), "{lines:?}");
        assert!(!dir.exists());
        drop(watch);
    }

    #[test]
    fn a_qemu_that_connects_and_says_nothing_is_not_waited_for() {
        let mut watch = Watch::new().unwrap();
        let silent = UnixStream::connect(watch.dir.join("qmp")).unwrap();
        let lines = watch.report(&built());
        assert_eq!(lines[2], "no more is known of the machine: the monitor does not answer in time");
        drop(silent);
    }
}
