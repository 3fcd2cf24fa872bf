//! `/dev/hmm_dmirror*`: the commands of [`Dmirror`], for a program's memory.
//!
//! An opening mirrors the address space of the process that opened it, also for those that inherit the descriptor. When its last
//! descriptor goes, all that lies on the device comes back to RAM. Data passes through a piece of kernel memory that openings of a
//! device share, however much it is; so a command that fails may have given a part of it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use farpage_mm::dmirror::{Done, PAGE_WORDS};
use farpage_mm::{
    Access, Dmirror, DmirrorError, FaultInfo, HugeAdvice, Object, PAGE_SIZE, Prot, VaRange, Vaddr,
};

use super::command::{give, iowr, page_at, take};
use crate::arch::x86_64::uaccess::{copy_to_user, copy_words_from_user, copy_words_to_user};
use crate::linux::errno::Errno;
use crate::linux::file::{File, MapRequest, Stat};
use crate::linux::process::Process;
use crate::task::Mutex;
use crate::vm::Machine;
use crate::vm::devmem;
use crate::vm::user::user_touch_read;

/// Words of the structure that a command takes: addr, ptr, npages, cpages, faults.
const WORDS: usize = 5;
/// Pages that data passes through at a time.
const PIECE: usize = 64;
/// Pages of a piece of a snapshot.
const SNAPS: usize = 512;
/// The flag that refuses one 2 MiB page.
const FAIL_ALLOC: u64 = 1;

/// How many devices there can be.
const DEVICES: usize = 4;
/// What data passes through, by device; made at the first use.
static PIECES: [Mutex<Vec<u64>>; DEVICES] = [const { Mutex::new(Vec::new()) }; DEVICES];

/// An opening.
struct Opening {
    number: usize,
    stat: Stat,
    /// Taken when it is closed.
    device: Option<Dmirror<Machine>>,
}

/// Opens a device for a process; its minor number says which.
///
/// # Errors
/// ENODEV where there is no such device; ENOMEM.
pub(in crate::linux) fn open(process: &Process, stat: Stat) -> Result<Arc<dyn File>, Errno> {
    let number = (stat.rdev & 0xff) as usize;
    let device = devmem::device(number).filter(|_| number < DEVICES).ok_or(Errno::ENODEV)?;
    let device = Dmirror::open(device.place(), process.memory().owner())?;
    Ok(Arc::new(Opening { number, stat, device: Some(device) }))
}

impl From<DmirrorError> for Errno {
    fn from(error: DmirrorError) -> Self {
        match error {
            DmirrorError::NotThere => Self::ENOENT,
            DmirrorError::Perm => Self::EPERM,
            DmirrorError::Fault => Self::EFAULT,
            DmirrorError::Busy => Self::EBUSY,
            DmirrorError::Invalid => Self::EINVAL,
            DmirrorError::NoMemory => Self::ENOMEM,
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.device.take().map(Dmirror::close) {
            log::warn!("hmm_dmirror{}: closed, but pages stayed on the device: {error:?}", self.number);
        }
    }
}

/// The pages that a command is about.
fn range_of(addr: u64, npages: u64) -> Result<VaRange, Errno> {
    let end = npages.checked_mul(PAGE_SIZE).and_then(|len| addr.checked_add(len));
    match end {
        Some(end) if addr.is_multiple_of(PAGE_SIZE) && addr < end => {
            Ok(VaRange::between(Vaddr(addr), Vaddr(end)))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// What the device reads goes to a program.
fn to_user(ptr: u64) -> impl FnMut(u64, &[u64]) -> Result<(), DmirrorError> {
    move |page, words| {
        let at = page_at(ptr, page).map_err(|_| DmirrorError::Fault)?;
        copy_words_to_user(at, words).map_err(|_| DmirrorError::Fault)
    }
}

impl Opening {
    fn device(&self) -> &Dmirror<Machine> {
        match &self.device {
            Some(device) => device,
            None => unreachable!("taken when it is dropped"),
        }
    }

    /// Lends `f` the memory that data passes through.
    fn with_piece(&self, f: impl FnOnce(&mut [u64]) -> Result<Done, DmirrorError>) -> Result<Done, Errno> {
        let mut piece = PIECES[self.number].lock();
        if piece.is_empty() {
            piece.try_reserve_exact(PIECE * PAGE_WORDS).map_err(|_| Errno::ENOMEM)?;
            piece.resize(PIECE * PAGE_WORDS, 0);
        }
        Ok(f(&mut piece)?)
    }

    fn write(&self, range: VaRange, ptr: u64) -> Result<Done, Errno> {
        // Before anything is written: memory that cannot be read writes nothing.
        for page in 0..range.nr_pages() {
            user_touch_read(page_at(ptr, page)?)?;
        }
        user_touch_read(page_at(ptr, range.nr_pages())? - 1)?;
        self.with_piece(|piece| {
            self.device().write_from(range, piece, &mut |page, words| {
                let at = page_at(ptr, page).map_err(|_| DmirrorError::Fault)?;
                copy_words_from_user(words, at).map_err(|_| DmirrorError::Fault)
            })
        })
    }

    fn snapshot(&self, range: VaRange, ptr: u64) -> Result<Done, Errno> {
        let mut bytes = [0; SNAPS];
        let mut cpages = 0;
        while cpages < range.nr_pages() {
            let count = (range.nr_pages() - cpages).min(SNAPS as u64);
            let bytes = &mut bytes[..count as usize];
            self.device().snapshot(range.start.add(cpages * PAGE_SIZE), bytes)?;
            copy_to_user(ptr.checked_add(cpages).ok_or(Errno::EFAULT)?, bytes)?;
            cpages += count;
        }
        Ok(Done { cpages, faults: 0 })
    }

    /// Does command `number`.
    fn command(&self, number: u32, range: VaRange, ptr: u64, npages: u64) -> Result<Done, Errno> {
        let (device, none) = (self.device(), Done::default());
        match number {
            0 => self.with_piece(|piece| device.read_to(range, piece, &mut to_user(ptr))),
            1 => self.write(range, ptr),
            2 => self.with_piece(|piece| device.migrate_and_read(range, piece, &mut to_user(ptr))),
            3 => Ok(device.migrate_to_system(range)?),
            4 => self.snapshot(range, ptr),
            5 => self.with_piece(|piece| device.exclusive_to(range, piece, &mut to_user(ptr))),
            6 => Ok(device.check_exclusive(range).map(|()| none)?),
            7 => Ok(device.release().map(|_| none)?),
            8 => {
                device.refuse_next_huge(npages & FAIL_ALLOC != 0);
                Ok(none)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

impl File for Opening {
    fn stat(&self) -> Stat {
        self.stat
    }

    fn ioctl(&self, _process: &Process, request: u32, arg: u64) -> Result<u64, Errno> {
        let [addr, ptr, npages, ..] = take::<WORDS>(arg)?;
        let range = range_of(addr, npages)?;
        let number = request & 0xff;
        if request != iowr(b'H', number, WORDS) {
            return Err(Errno::EINVAL);
        }
        let done = self.command(number, range, ptr, npages)?;
        give(arg, &[addr, ptr, npages, done.cpages, done.faults])
    }

    /// Pages of the driver's, new ones for each mapping. A private mapping has copies of its own of those that it writes.
    fn map(&self, process: &Process, request: &MapRequest) -> Result<(), Errno> {
        let memory = process.memory();
        let (space, range) = (memory.space(), request.range);
        if request.shared {
            space.map_device_pages(range, request.prot, &Object::driver(range.nr_pages())?, 0)?;
            return Ok(());
        }
        let pages = Object::file(range.nr_pages())?;
        space.map_private(range, request.prot, &pages, 0, HugeAdvice::NoHuge)?;
        if request.prot.contains(Prot::READ) {
            // They are there from the start, as a driver's are.
            for page in 0..range.nr_pages() {
                let at = range.start.add(page * PAGE_SIZE);
                space.handle_fault(&FaultInfo::new(at, Access::Read)).map_err(|_| Errno::ENOMEM)?;
            }
        }
        Ok(())
    }
}
