//! One address space on a quiet machine, for tests of one behaviour each.

use core::sync::atomic::Ordering::Relaxed;

use crate::advise::Advice;
use crate::entry::Entry;
use crate::error::FaultError;
use crate::exercise::mix;
use crate::folio::FolioRef;
use crate::machine::TableWords;
use crate::space::AddressSpace;
use crate::testing::machine::{Config, Session, Soft};
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Place, Prot, VaRange, Vaddr};
use crate::vma::HugeAdvice;

/// Where the tests' memory begins: page 0.
pub(crate) const BASE: u64 = 0x4000_0000;
/// The first device.
pub(crate) const DEV: Place = Place::device(0);

/// The half of a root table that is not the memory manager's: what it finds there it cannot read.
pub(crate) fn kernel_half(root: &'static TableWords) {
    root[root.len() / 2..].iter().for_each(|word| word.store(u64::MAX, Relaxed));
}

pub(crate) struct Kit {
    pub(crate) space: AddressSpace<Soft>,
    pub(crate) machine: Session,
}

/// The addresses of `len` pages from page `start`.
pub(crate) fn range(start: u64, len: u64) -> VaRange {
    VaRange::new(BASE + start * PAGE_SIZE, len * PAGE_SIZE)
}

/// The address of a page.
pub(crate) const fn at(page: u64) -> Vaddr {
    Vaddr(BASE + page * PAGE_SIZE)
}

impl Kit {
    pub(crate) fn new() -> Self {
        Self::on(&Config::default())
    }

    pub(crate) fn on(config: &Config) -> Self {
        let machine = Soft::boot(config);
        let space = AddressSpace::new(kernel_half).expect("memory for a space");
        for cpu in 0..config.cpus {
            space.loaded_on(cpu);
            machine.mmu.borrow_mut().load(cpu, space.root_pfn(), 0);
        }
        Self { space, machine }
    }

    pub(crate) fn map(&self, start: u64, len: u64, advice: HugeAdvice) {
        self.space.space().map_anon(range(start, len), Prot::RW, advice).expect("nothing is in the way");
    }

    /// What a filled page holds.
    pub(crate) const fn value(page: u64) -> u64 {
        mix(page + 1)
    }

    pub(crate) fn try_write(&self, page: u64) -> Result<(), FaultError> {
        for word in 0..2 {
            let value = Self::value(page) + word;
            self.machine.user_access(0, self.space.space(), at(page), word as usize, Some(value))?;
        }
        Ok(())
    }

    pub(crate) fn fill(&self, start: u64, len: u64) {
        (start..start + len).for_each(|page| self.try_write(page).expect("memory for the page"));
    }

    pub(crate) fn try_read(&self, page: u64) -> Result<u64, FaultError> {
        self.machine.user_access(0, self.space.space(), at(page), 0, None)
    }

    /// Reads filled pages, which comes with faults.
    pub(crate) fn check(&self, start: u64, len: u64) {
        for page in start..start + len {
            assert_eq!(self.try_read(page), Ok(Self::value(page)), "page {page}");
        }
    }

    /// Looks at filled pages wherever they lie.
    pub(crate) fn check_in_place(&self, start: u64, len: u64) {
        let mut found = 0;
        self.space.for_each_entry(
            &mut |addr, level, word| {
                let frame = match Entry::decode(word, level) {
                    Entry::Leaf(leaf) if !leaf.special => leaf.frame,
                    Entry::NonPresent(soft) => soft.frame,
                    _ => return,
                };
                for i in 0..level.order().pages() {
                    let page = ((addr.0 - BASE) >> PAGE_SHIFT) + u64::from(i);
                    if (start..start + len).contains(&page) {
                        let here = self.machine.data(frame.offset(i))[0].get();
                        assert_eq!(here, Self::value(page), "page {page} in {frame}");
                        found += 1;
                    }
                }
            },
            &mut |_, _, _| {},
        );
        assert_eq!(found, len, "all pages are somewhere");
    }

    /// Every invariant, and no rule broken so far.
    pub(crate) fn audit(&self) {
        self.machine.mm.audit().unwrap_or_else(|e| panic!("{e}"));
        self.machine.check_no_stale();
        assert_eq!(self.machine.failure(), None);
    }

    /// The folio that a page lies in.
    pub(crate) fn folio(&self, page: u64) -> FolioRef<Soft> {
        let frame = match self.space.entry_at(at(page)).1 {
            Entry::Leaf(leaf) => leaf.frame,
            Entry::NonPresent(soft) => soft.frame,
            other => panic!("page {page}: {other:?}"),
        };
        self.machine.mm.try_get_folio(frame).expect("a folio")
    }

    /// A huge page on the device of which the pages `dead` are mapped no more; somebody held it then, so that it stayed whole.
    pub(crate) fn with_dead_parts(dead: &[(u64, u64)]) -> Self {
        let kit = Self::new();
        kit.map(0, 512, HugeAdvice::Huge);
        kit.fill(0, 512);
        kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
        let held = kit.folio(0);
        for &(start, len) in dead {
            kit.space.space().advise(range(start, len), Advice::DontNeed).expect("it is mapped");
        }
        drop(held);
        assert_eq!(kit.free(DEV), 7 * 512, "nothing is free yet");
        kit
    }

    pub(crate) fn free(&self, place: Place) -> u32 {
        self.machine.mm.zone(place).stat().free
    }
}
