//! What is compared with what.

use std::{collections::BTreeMap, os::unix::fs::FileExt};

use ktest::{watch, wire::Record};

use super::View;

const PAGE: u64 = 4096;
const HUGE: u64 = 512 * PAGE;
/// End of the user half.
const USER_END: u64 = 1 << 47;

/// A run of equal entries of the guest's dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    start: u64,
    end: u64,
    huge: bool,
    present: bool,
    /// All entries name the same frame, that of the shared zero page or folio.
    zero: bool,
    frame: u64,
    write: bool,
    exec: bool,
}

/// A page in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnDevice {
    offset: u64,
    addr: u64,
    seed: u64,
}

impl Mapped {
    pub(super) fn read(record: &Record<'_>) -> Option<Self> {
        let is = |key| record.u64(key).map(|value| value != 0);
        Some(Self {
            start: record.u64("start")?,
            end: record.u64("end")?,
            huge: record.u64("level")? == 2,
            present: is("present")?,
            zero: is("zero")?,
            frame: record.u64("frame")?,
            write: is("write")?,
            exec: is("exec")?,
        })
    }

    /// Its entries: address, and where that leads.
    fn entries(self) -> impl Iterator<Item = (u64, Translation)> {
        let size = if self.huge { HUGE } else { PAGE };
        (self.start..self.end).step_by(size as usize).map(move |addr| {
            let offset = if self.zero { 0 } else { addr - self.start };
            let physical = self.frame * PAGE + offset;
            (addr, Translation { physical, huge: self.huge, user: true, write: self.write, exec: self.exec })
        })
    }
}

impl OnDevice {
    pub(super) fn read(record: &Record<'_>) -> Option<Self> {
        Some(Self { offset: record.u64("offset")?, addr: record.u64("addr")?, seed: record.u64("seed")? })
    }
}

/// Where a page-table entry leads, and what it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Translation {
    physical: u64,
    huge: bool,
    user: bool,
    write: bool,
    exec: bool,
}

/// A range of equal rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    start: u64,
    end: u64,
    write: bool,
}

/// Every page that the guest calls device-resident is in the file, where it says.
pub(super) fn device_file(view: &mut View<'_>) -> Result<(), String> {
    // What is on the device according to the dump is what is looked for in the file.
    let dumped: u64 =
        view.runs.iter().filter(|run| !run.present).map(|run| (run.end - run.start) / PAGE).sum();
    if view.bar.is_empty() || dumped != view.bar.len() as u64 {
        return Err(format!("{dumped} pages in the dump, {} in the list", view.bar.len()));
    }
    for page in &view.bar {
        let mut bytes = [0; PAGE as usize];
        view.file.read_exact_at(&mut bytes, page.offset).map_err(|error| format!("{page:x?}: {error}"))?;
        let expected: Vec<u8> = (0..PAGE)
            .step_by(8)
            .flat_map(|at| watch::pattern(page.addr + at, page.seed).to_le_bytes())
            .collect();
        if let Some(at) = (0..PAGE as usize).find(|&at| bytes[at] != expected[at]) {
            let (found, wanted) = (bytes[at], expected[at]);
            return Err(format!("byte {at} of {page:x?} is {found:#x} in the file, not {wanted:#x}"));
        }
    }
    Ok(())
}

/// The ranges of the user half and what they allow.
pub(super) fn info_mem(view: &mut View<'_>) -> Result<(), String> {
    let found = ranges(&view.monitor.human("info mem")?)?;
    let mut expected: Vec<Rights> = Vec::new();
    for run in view.runs.iter().filter(|run| run.present) {
        match expected.last_mut() {
            Some(last) if last.end == run.start && last.write == run.write => last.end = run.end,
            _ => expected.push(Rights { start: run.start, end: run.end, write: run.write }),
        }
    }
    if expected.is_empty() || found != expected {
        return Err(format!("QEMU finds {found:x?}, our dump says {expected:x?}"));
    }
    Ok(())
}

/// Every entry of the user half: where it leads, its size, its rights. And no entry of the kernel half is open to users.
pub(super) fn info_tlb(view: &mut View<'_>) -> Result<(), String> {
    let all = translations(&view.monitor.human("info tlb")?)?;
    if let Some(open) = all.iter().find(|(addr, entry)| *addr >= USER_END && entry.user) {
        return Err(format!("an entry of the kernel half is open to users: {open:x?}"));
    }
    let found: BTreeMap<_, _> = all.into_iter().filter(|&(addr, _)| addr < USER_END).collect();
    let present = view.runs.iter().filter(|run| run.present);
    let expected: BTreeMap<_, _> = present.flat_map(|run| run.entries()).collect();
    let differs = |addr: &&u64| found.get(addr) != expected.get(addr);
    if let Some(addr) = found.keys().chain(expected.keys()).find(differs) {
        let (found, expected) = (found.get(addr), expected.get(addr));
        return Err(format!("at {addr:#x} QEMU finds {found:x?}, our dump says {expected:x?}"));
    }
    if expected.is_empty() { Err("the dump is empty".to_owned()) } else { Ok(()) }
}

/// Lines like `0000001000000000-0000001000200000 0000000000200000 urw`, those of the user half.
fn ranges(text: &str) -> Result<Vec<Rights>, String> {
    let mut ranges = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let parsed = || {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let [start, end, length] = [start, end, words.next()?].map(|word| u64::from_str_radix(word, 16));
            let (start, end) = (start.ok()?, end.ok()?);
            let rights =
                words.next().filter(|rights| rights.len() == 3 && length == Ok(end.wrapping_sub(start)))?;
            Some((start, end, rights.starts_with('u'), rights.ends_with('w')))
        };
        let (start, end, user, write) = parsed().ok_or_else(|| format!("what is {line:?}?"))?;
        if start < USER_END {
            if !user {
                return Err(format!("a page of the user half is not open to users: {line}"));
            }
            ranges.push(Rights { start, end, write });
        }
    }
    Ok(ranges)
}

/// Lines like `0000001000000000: 0000000004400000 X-PDA--UW`.
fn translations(text: &str) -> Result<Vec<(u64, Translation)>, String> {
    let parse = |line: &str| {
        let (addr, rest) = line.split_once(':')?;
        let (physical, flags) = rest.trim().split_once(' ')?;
        let has = |flag| flags.contains(flag);
        let translation = Translation {
            physical: u64::from_str_radix(physical, 16).ok()?,
            huge: has('P'),
            user: has('U'),
            write: has('W'),
            exec: !has('X'),
        };
        Some((u64::from_str_radix(addr, 16).ok()?, translation)).filter(|_| flags.trim().len() == 9)
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| parse(line).ok_or_else(|| format!("what is {line:?}?"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_the_kernel_half_is_left_out() {
        let text = "0000001000000000-0000001000200000 0000000000200000 urw\r\n\
                    0000001100000000-0000001100003000 0000000000003000 ur-\r\n\
                    ffff888000000000-ffff888010000000 0000000010000000 -rw\r\n";
        let expected = [
            Rights { start: 0x10_0000_0000, end: 0x10_0020_0000, write: true },
            Rights { start: 0x11_0000_0000, end: 0x11_0000_3000, write: false },
        ];
        assert_eq!(ranges(text).unwrap(), expected);
        assert!(ranges("0000001000000000-0000001000200000 0000000000100000 urw").is_err());
        assert!(ranges("0000001000000000-0000001000200000 0000000000200000 -rw").is_err());
        assert!(ranges("PG disabled").is_err());
    }

    #[test]
    fn entries_are_read_with_their_size_and_rights() {
        let text = "0000001000000000: 0000000004400000 X-PDA--UW\r\nffffffff80000000: 0000000000200000 -G--A----\r\n";
        let user = Translation { physical: 0x440_0000, huge: true, user: true, write: true, exec: false };
        let kernel = Translation { physical: 0x20_0000, huge: false, user: false, write: false, exec: true };
        assert_eq!(translations(text).unwrap(), [(0x10_0000_0000, user), (0xffff_ffff_8000_0000, kernel)]);
        assert!(translations("0000001000000000: 0000000004400000 X-PDA").is_err());
    }

    #[test]
    fn a_run_of_zero_pages_names_one_frame() {
        let record = |zero| {
            format!("@run start=0x1000 end=0x3000 level=1 present=1 zero={zero} frame=7 write=0 exec=1")
        };
        let frames = |zero: u8| {
            let line = record(zero);
            let run = Mapped::read(&Record::parse(&line).unwrap()).unwrap();
            run.entries().map(|(addr, entry)| (addr, entry.physical)).collect::<Vec<_>>()
        };
        assert_eq!(frames(0), [(0x1000, 0x7000), (0x2000, 0x8000)]);
        assert_eq!(frames(1), [(0x1000, 0x7000), (0x2000, 0x7000)]);
    }
}
