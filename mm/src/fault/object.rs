//! First touches of mappings of objects.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, Leaf};
use crate::error::FaultError;
use crate::fault::{FaultInfo, FaultOutcome, Step, exec_of, map_fresh};
use crate::folio::{FolioRef, RmapLink};
use crate::group::NoPage;
use crate::machine::Machine;
use crate::object::Object;
use crate::space::Space;
use crate::table::Table;
use crate::trace::copied_if_traced;
use crate::types::{Access, Level, Order, Place, Prot};
use crate::vma::{Vma, VmaKind};
use crate::zone::Need;

impl<M: Machine> Space<M> {
    /// An empty PTE of a mapping of an object.
    #[cold]
    pub(super) fn fault_object(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pte: &'static Table<M>,
    ) -> Result<Step, FaultError> {
        if vma.kind() == VmaKind::Hugetlb {
            return Err(FaultError::NoPage(fault.addr)); // a table of small pages stands in its way
        }
        let object = M::mm().objects.get(vma.object());
        let index = vma.page_index(fault.addr);
        if vma.kind() == VmaKind::Device || index >= object.pages() {
            // The driver has put no page there, or the mapping is longer than the object.
            return Err(FaultError::NoPage(fault.addr));
        }
        if vma.kind() == VmaKind::Private && fault.access == Access::Write {
            return self.fault_private_write(vma, fault, pte, object);
        }
        let page = match object.page_or_alloc_for(index, |page| self.charge(page)) {
            Ok(page) => page,
            Err(_) if index >= object.pages() => return Ok(Step::Again),
            Err(no_page) => return Err(no_page.at(fault.addr)),
        };
        copied_if_traced::<M>(Place::RAM, &page);
        let mut attrs = Attrs::YOUNG | exec_of(vma);
        if vma.kind() == VmaKind::Shared && vma.prot().contains(Prot::WRITE) {
            // Nothing would be learnt from another fault.
            attrs |= Attrs::WRITE | Attrs::SOFT_DIRTY;
            attrs.set(Attrs::DIRTY, fault.access == Access::Write);
        }
        let mut cursor = self.cursor_in(pte, Level::Pte, fault.addr);
        // Who makes the object shorter says so first, and then empties the entries, under this lock.
        if !cursor.is_still(0) || index >= object.pages() {
            return Ok(Step::Again);
        }
        page.add_maps(1);
        cursor.install(Entry::Leaf(Leaf::ram(page.frame(), attrs)));
        drop(cursor);
        M::count(Event::ObjectFault, 1);
        Ok(Step::Done(FaultOutcome::Mapped))
    }

    /// A private mapping is written before it was read: a copy at once. The object need not have the page.
    fn fault_private_write(
        &'static self,
        vma: &'static Vma,
        fault: &FaultInfo,
        pte: &'static Table<M>,
        object: &'static Object<M>,
    ) -> Result<Step, FaultError> {
        let index = vma.page_index(fault.addr);
        let page = object.page(index);
        let copy = self.private_copy(page.as_ref()).map_err(|no_page| no_page.at(fault.addr))?;
        copy.set_link(RmapLink { anon: vma.anon(), index });
        copied_if_traced::<M>(Place::RAM, &copy);
        let mut cursor = self.cursor_in(pte, Level::Pte, fault.addr);
        if !cursor.is_still(0) || index >= object.pages() {
            return Ok(Step::Again);
        }
        cursor.install(map_fresh(vma, copy));
        drop(cursor);
        if page.is_none() {
            M::count(Event::AnonFaultAlloc, 1);
            return Ok(Step::Done(FaultOutcome::Allocated(Order::BASE)));
        }
        M::count(Event::CowCopy, 1);
        Ok(Step::Done(FaultOutcome::Copied(Order::BASE)))
    }

    /// A page with the contents of `page`, or cleared.
    fn private_copy(&self, page: Option<&FolioRef<M>>) -> Result<FolioRef<M>, NoPage> {
        let copy = self.charge(M::mm().alloc_folio(Place::RAM, Order::BASE, Need::User)?)?;
        match page {
            Some(page) => M::copy(page.frame(), copy.frame(), Order::BASE),
            None => M::zero(copy.frame(), Order::BASE),
        }
        Ok(copy)
    }
}
