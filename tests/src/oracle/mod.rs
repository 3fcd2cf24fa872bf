//! What a host program sees of a guest that is stopped in the middle of its work: QEMU's own walk of the page tables, over
//! its machine protocol, and the file behind the device's memory.
//!
//! The guest's side is one in-kernel test; how the two meet is said in [`ktest::watch`]. The guest's own dump of its
//! table is the expectation, QEMU's code and the file's bytes are the finding: three programs that share nothing but the
//! machine have to agree.

mod looks;

use std::{
    env, fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ktest::{
    catalog::Needs,
    exit::Exit,
    stream::{Ending, Outcome, Stream},
    watch,
    wire::Record,
};
use libtest_mimic::{Failed, Trial};
use xtask::qemu::{Device, Qemu, QmpPlace, qmp::Monitor};

use crate::{
    guest::{QemuMachine, qemu},
    host,
};
use looks::{Mapped, OnDevice};

/// The in-kernel test that is watched.
const TEST: &str = "kernel::mm_tests::oracle::other_walkers_find_the_same_in_the_tables";

/// A question takes a millisecond; a machine that hangs must not hang the tests.
const LIMIT: Duration = Duration::from_secs(60);

/// What the guest says of its table and its device, and the ways to look for oneself.
struct View<'a> {
    /// The dump: runs of equal entries, in order.
    runs: Vec<Mapped>,
    /// The pages on the device.
    bar: Vec<OnDevice>,
    /// The file behind the device's memory.
    file: &'a fs::File,
    monitor: Monitor,
}

/// What a trial looks for. An error says what it found.
type Look = fn(&mut View<'_>) -> Result<(), String>;

const LOOKS: [(&str, Look); 3] = [
    ("the_device_file_holds_the_pages_byte_for_byte", looks::device_file),
    ("qemus_ranges_are_those_of_our_dump", looks::info_mem),
    ("qemus_entries_are_those_of_our_dump", looks::info_tlb),
];

/// One trial for each thing to look at.
#[must_use]
pub fn trials(machine: &Arc<QemuMachine>) -> Vec<Trial> {
    let trial = |&(name, look): &(&str, Look)| {
        let machine = Arc::clone(machine);
        Trial::test(format!("oracle::{name}"), move || watch_guest(&machine, look).map_err(Failed::from))
    };
    LOOKS.iter().map(trial).collect()
}

/// Files of one run, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = from_here(&host::workspace().join("target/oracle").join(name));
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it cannot be removed it lies under target/, where nothing is kept.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A path as short as can be: the name of a Unix socket holds only 107 bytes.
fn from_here(path: &Path) -> PathBuf {
    let workspace = host::workspace();
    let (Ok(below), Ok(here)) = (path.strip_prefix(&workspace), env::current_dir()) else {
        return path.into();
    };
    match here.strip_prefix(&workspace) {
        Ok(depth) => depth.components().map(|_| "..").collect::<PathBuf>().join(below),
        Err(_) => path.into(),
    }
}

/// Boots the test with a host that watches, looks when it is time, and lets it go on to its end.
fn watch_guest(machine: &QemuMachine, look: Look) -> Result<(), String> {
    let scratch = Scratch::new()?;
    let (memory, socket) = (scratch.0.join("bar"), scratch.0.join("qmp"));
    let plain = qemu(&Needs::NONE, &format!("run=test exact=1 filter={TEST}"));
    let device = plain.devices.first().ok_or("the usual machine has no device")?;
    let size = device.size.bytes();
    let file = greeting(&memory, size).map_err(|error| format!("{}: {error}", memory.display()))?;
    let devices = vec![Device { file: Some(memory), ..device.clone() }];
    let qemu = Qemu { devices, qmp: Some(QmpPlace::Socket(socket.clone())), ..plain };

    let mut run = qemu.spawn(machine.built()).map_err(|error| error.to_string())?;
    let mut stream = Stream::new([TEST]);
    let (mut runs, mut bar) = (Vec::new(), Vec::new());
    let mut found = Err("the guest never asked to look".to_owned());
    while let Some(line) = run.next_line() {
        stream.feed(&line.text);
        let Some(record) = Record::parse(&line.text) else { continue };
        match record.kind() {
            watch::RUN => runs.push(Mapped::read(&record).ok_or_else(|| line.text.clone())?),
            watch::BAR => bar.push(OnDevice::read(&record).ok_or_else(|| line.text.clone())?),
            watch::LOOK => {
                let (runs, bar) = (std::mem::take(&mut runs), std::mem::take(&mut bar));
                let monitor = Monitor::connect(&socket, LIMIT)?;
                found = look(&mut View { runs, bar, file: &file, monitor });
                // Whatever was found, the guest shall come to its own end.
                file.write_all_at(&watch::GO.to_le_bytes(), size - 8).map_err(|error| error.to_string())?;
            }
            _ => {}
        }
    }
    let ending = run.finish();
    found?;
    match stream.finish(&ending).tests.first().map(|test| &test.outcome) {
        Some(Outcome::Pass) if ending == Ending::Exit(Exit::Success) => Ok(()),
        outcome => Err(format!("the guest did not go on well: {outcome:?}; {ending}")),
    }
}

/// The file behind the device's memory, with the greeting in its last word.
fn greeting(path: &Path, size: u64) -> std::io::Result<fs::File> {
    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(size)?;
    file.write_all_at(&watch::HELLO.to_le_bytes(), size - 8)?;
    Ok(file)
}
