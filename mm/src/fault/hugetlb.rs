//! First touches of huge pages of the pool.

use crate::counters::Event;
use crate::error::FaultError;
use crate::fault::{FaultInfo, FaultOutcome, Step, map_fresh};
use crate::folio::RmapLink;
use crate::machine::Machine;
use crate::space::Space;
use crate::table::Table;
use crate::types::{Level, Order, PMD_SIZE, VaRange};
use crate::vma::{Vma, VmaFlags};

impl<M: Machine> Space<M> {
    /// The first touch of 2 MiB of such a mapping, by a read too.
    #[cold]
    pub(super) fn fault_hugetlb(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pmd: &'static Table<M>,
    ) -> Result<Step, FaultError> {
        let mm = M::mm();
        let start = fault.addr.align_down(PMD_SIZE);
        if !vma.range().covers(VaRange::new(start.0, PMD_SIZE)) {
            return Err(FaultError::NoPage(fault.addr));
        }
        let promised = vma.flags().contains(VmaFlags::HUGE_RESERVED);
        let folio = mm.alloc_from_pool(promised).map_err(|_| FaultError::NoPage(fault.addr))?;
        let Some(folio) = folio else {
            if !promised {
                return Err(FaultError::NoPage(fault.addr));
            }
            // Somebody who touches the same page has the block that was promised for it, for a moment.
            M::relax();
            return Ok(Step::Again);
        };
        M::zero(folio.frame(), Order::PMD);
        folio.set_link(RmapLink { anon: vma.anon(), index: vma.page_index(start) });
        let mut cursor = self.cursor_in(pmd, Level::Pmd, start);
        if !cursor.is_still(0) {
            drop(cursor);
            drop(folio);
            return Ok(Step::Again);
        }
        if promised {
            mm.huge_pool.keep(1);
        }
        cursor.install(map_fresh(vma, folio));
        M::count(Event::HugetlbFault, 1);
        Ok(Step::Done(FaultOutcome::Allocated(Order::PMD)))
    }
}
