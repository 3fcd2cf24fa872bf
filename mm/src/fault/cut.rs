//! Faults on folios of a device that are cut first: those that are mapped only in part, and those that are larger than what a
//! touch is to bring back.

use crate::cursor::Peek;
use crate::entry::{Entry, SoftKind};
use crate::error::FaultError;
use crate::fault::{FaultInfo, Seen, Step};
use crate::folio::LockedFolio;
use crate::machine::Machine;
use crate::space::Space;
use crate::split::{SplitError, split_pmd};
use crate::types::{Level, Vaddr};
use crate::zone::Need;

impl<M: Machine> Space<M> {
    /// A folio larger than what a touch brings back, of which page `page` was touched: a cut closer around that page's granule, then
    /// look again at what is left. At most two cuts leave the granule; the rest of the folio stays in as few pieces as it can.
    /// Where it cannot be cut, all of it comes.
    #[cold]
    #[inline(never)]
    pub(super) fn fault_granule<const TRACED: bool>(
        &'static self,
        fault: &FaultInfo,
        level: Level,
        folio: LockedFolio<M>,
        page: u32,
    ) -> Result<Step, FaultError> {
        let cut = self.cut_granule(fault.addr, level, &folio, page);
        drop(folio.unlock());
        if cut.is_ok() {
            return Ok(Step::Again);
        }
        let (table, level, entry) = match self.peek(fault.addr) {
            Peek::Pmd(table, entry) => (table, Level::Pmd, entry),
            Peek::Pte(table, entry) => (table, Level::Pte, entry),
            Peek::NoTable => return Ok(Step::Again),
        };
        match entry {
            Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate => {
                let seen = Seen { table, level, word: entry.encode(level) };
                self.fault_device::<true, true, TRACED>(fault, &seen, soft.frame)
            }
            _ => Ok(Step::Again),
        }
    }

    /// One cut: before the granule of page `page`, or behind it when it is the folio's first.
    fn cut_granule(
        &'static self,
        addr: Vaddr,
        level: Level,
        folio: &LockedFolio<M>,
        page: u32,
    ) -> Result<(), SplitError> {
        let mm = M::mm();
        let granule = mm.policy.granule().pages();
        let start = page & !(granule - 1);
        if level == Level::Pmd {
            split_pmd(self, addr, mm.spare_pte_table(addr, Need::Reserve)?);
        }
        self.split_folio(folio, addr, if start != 0 { start } else { granule })
    }

    /// A folio that is mapped only in part: split as far as that goes, then look again at what is left.
    #[cold]
    pub(super) fn fault_cut(
        &'static self,
        fault: &FaultInfo,
        folio: &LockedFolio<M>,
        at: u32,
    ) -> Result<Step, FaultError> {
        match self.split_folio(folio, fault.addr, at) {
            Ok(()) => Ok(Step::Again),
            Err(SplitError::Busy) => Err(FaultError::Held(fault.addr)),
            Err(SplitError::Oom) => Err(FaultError::Oom(fault.addr)),
        }
    }
}
