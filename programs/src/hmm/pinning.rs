//! Pages of a device for others: got where they may stay, pinned for long in RAM.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use farpage_programs::area::{Area, Errno, PAGE};
use farpage_programs::dmirror::{iowr, snap};

use crate::kit::{Fixture, Outcome, RW, Unmet, check, equal, fill, snapshot, to_device};

/// What the pin test device is told.
#[repr(C)]
#[derive(Default)]
struct Pin {
    get_delta_usec: u64,
    put_delta_usec: u64,
    addr: u64,
    size: u64,
    nr_pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which_pages: [u32; 8],
}

const WRITE: u32 = 1;
const LONGTERM: u32 = 0x100;

/// Its commands.
const FAST_GET: u64 = 1;
const LONGTERM_PIN: u64 = 3;
const BASIC_GET: u64 = 4;
const FAST_PIN: u64 = 2;

/// Four pages on the device: got, got without locks, pinned for long without locks, pinned for long. Private memory comes to RAM
/// for all of them, coherent memory only for the last two.
pub(crate) fn hmm_gup_test(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let Ok(pins) = OpenOptions::new().read(true).write(true).open("/sys/kernel/debug/gup_test") else {
        return Err(Unmet::Skip("there is no /sys/kernel/debug/gup_test".into()));
    };
    let area = Area::anon(4 * PAGE, RW)?;
    fill(area);
    to_device(&device, area)?;
    let commands = [
        (BASIC_GET, WRITE),
        (FAST_GET, WRITE),
        (FAST_PIN, WRITE | LONGTERM),
        (LONGTERM_PIN, WRITE | LONGTERM),
    ];
    for (page, (command, gup_flags)) in commands.into_iter().enumerate() {
        let (addr, size) = (area.page(page).start() as u64, PAGE as u64);
        let mut pin = Pin { addr, size, nr_pages_per_call: 1, gup_flags, ..Pin::default() };
        let number = iowr(b'g', command, size_of::<Pin>());
        // SAFETY: the structure is ours and as long as the number says.
        if unsafe { libc::ioctl(pins.as_raw_fd(), number, &raw mut pin) } == -1 {
            return Err(Errno::last().into());
        }
        equal(pin.size, PAGE as u64, "bytes that were had")?;
    }
    let first = if on.is_coherent() { on.local() | snap::WRITE } else { snap::WRITE };
    equal(snapshot(&device, area)?, vec![first, first, snap::WRITE, snap::WRITE], "the snapshot")?;
    check(area)
}
