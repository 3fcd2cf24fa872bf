//! The memory of a process: its address space, and where its heap ends (Linux: `mm_struct`). Shared by threads, and by processes
//! after a clone with `CLONE_VM`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use farpage_mm::{AddressSpace, OutOfMemory, PAGE_SIZE, Space, VaRange, Vaddr};

use crate::task::Mutex;

use crate::vm::{Machine, clone_space, new_space};

/// The end of a program's stack, below a page that stays free.
pub(super) const STACK_TOP: u64 = 0x7fff_ffff_e000;
/// Bytes of the stack (`RLIMIT_STACK`).
pub(super) const STACK_LEN: u64 = 8 << 20;
/// Mappings are placed below this, the highest first.
const MMAP_TOP: u64 = STACK_TOP - STACK_LEN - (128 << 20);
/// Nothing is placed below (`vm.mmap_min_addr`).
const MMAP_MIN: u64 = 64 << 10;

/// Names of files beyond which those are looked for that are not mapped any more.
const MANY_FILES: usize = 64;

/// The memory of a process.
pub(super) struct Memory {
    space: AddressSpace<Machine>,
    /// Where the heap begins, and where it ends (`brk`).
    pub(super) heap: Mutex<(u64, u64)>,
    /// Held from the choice of a place to the mapping there.
    placing: Mutex<()>,
    /// What the objects are called that it maps, by their keys. One that is not mapped any more may still stand here.
    pub(super) files: Mutex<BTreeMap<u32, MappedFile>>,
}

/// What `/proc/self/maps` says of a file.
#[derive(Clone, Debug)]
pub(super) struct MappedFile {
    pub(super) path: String,
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl Memory {
    /// One with nothing in it.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            space: new_space()?,
            heap: Mutex::new((0, 0)),
            placing: Mutex::new(()),
            files: Mutex::default(),
        })
    }

    /// A copy of it, with all pages shared until they are written.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn copy(&self) -> Result<Self, OutOfMemory> {
        let files = Mutex::new(self.files.lock().clone());
        let heap = Mutex::new(*self.heap.lock());
        Ok(Self { space: clone_space(&self.space)?, heap, placing: Mutex::new(()), files })
    }

    /// The address space, to be loaded.
    pub(super) fn owner(&self) -> &AddressSpace<Machine> {
        &self.space
    }

    pub(super) fn space(&self) -> &'static Space<Machine> {
        self.space.space()
    }

    /// The highest free range of `len` bytes below [`MMAP_TOP`] that begins at a multiple of `align`.
    pub(super) fn free_range(&self, len: u64, align: u64) -> Option<VaRange> {
        let mut best = None;
        let mut free_from = MMAP_MIN;
        let mut look = |from: u64, to: u64| {
            let start = to.checked_sub(len).map(|start| start & !(align - 1));
            if let Some(start) = start.filter(|start| *start >= from) {
                best = Some(VaRange::new(start, len));
            }
        };
        self.space().for_each_vma(|vma| {
            look(free_from, vma.start().0.min(MMAP_TOP));
            free_from = free_from.max(vma.end().0);
        });
        look(free_from, MMAP_TOP);
        best
    }

    /// Keeps what the object is called that is mapped at `addr`. Shared memory without a file is called nothing.
    pub(super) fn name_mapping(&self, addr: Vaddr, file: Option<MappedFile>) {
        let mut key = None;
        self.space().for_each_vma(|vma| {
            if vma.range().contains(addr) {
                key = vma.object_key();
            }
        });
        let Some(key) = key else { return };
        let mut files = self.files.lock();
        match file {
            Some(file) => drop(files.insert(key, file)),
            None => drop(files.remove(&key)),
        }
        if files.len() > MANY_FILES {
            drop(files);
            self.forget_files();
        }
    }

    /// Forgets the names of objects that are not mapped any more.
    fn forget_files(&self) {
        let mut mapped = BTreeSet::new();
        self.space().for_each_vma(|vma| mapped.extend(vma.object_key()));
        self.files.lock().retain(|key, _| mapped.contains(key));
    }

    /// Does what chooses a place and maps something there, with no other thread doing the same.
    pub(super) fn placing<T>(&self, work: impl FnOnce() -> T) -> T {
        let _alone = self.placing.lock();
        work()
    }

    /// Is nothing mapped in `range`?
    pub(super) fn is_free(&self, range: VaRange) -> bool {
        let mut free = true;
        self.space().for_each_vma(|vma| free &= vma.end() <= range.start || range.end <= vma.start());
        free
    }
}

/// The range of whole pages, or `None` if it wraps or leaves the user half.
pub(super) fn pages(addr: u64, len: u64) -> Option<VaRange> {
    let len = len.checked_next_multiple_of(PAGE_SIZE)?;
    let end = addr.checked_add(len)?;
    (end <= farpage_mm::USER_END).then(|| VaRange::between(Vaddr(addr), Vaddr(end)))
}
