//! Mapping objects: shared, privately, and a driver's pages.

use crate::entry::{Attrs, Entry, Leaf};
use crate::error::{OutOfMemory, RangeError};
use crate::machine::{FlushReason, Machine};
use crate::mm::Mm;
use crate::object::{Object, ObjectKind, ObjectRef};
use crate::rmap::{AnonSet, SetOf};
use crate::slab::NIL;
use crate::space::Space;
use crate::tlb::TlbGather;
use crate::types::{Level, PAGE_SIZE, Prot, VaRange, Vaddr};
use crate::vma::{HugeAdvice, Vma, VmaAttrs, VmaFlags, VmaKind};
use crate::zone::Need;

/// How a range maps an object.
struct Mapping<'a, M: Machine> {
    kind: VmaKind,
    prot: Prot,
    object: &'a ObjectRef<M>,
    /// Page of the object at the range's start.
    pgoff: u64,
    advice: HugeAdvice,
    flags: VmaFlags,
}

impl<M: Machine> Space<M> {
    /// Maps pages of an object from `pgoff` on at exactly `range`, to be shared with all who map them (`MAP_SHARED`). The range
    /// may reach beyond the object's end: a touch there finds no page, unless the object has grown.
    ///
    /// # Errors
    /// [`RangeError::Invalid`], also for page numbers beyond [`Object::MAX_PGOFF`]; [`RangeError::Exists`]; [`RangeError::Oom`].
    pub fn map_shared(
        &'static self,
        range: VaRange,
        prot: Prot,
        object: &ObjectRef<M>,
        pgoff: u64,
    ) -> Result<(), RangeError> {
        let mapping = Mapping {
            kind: VmaKind::Shared,
            prot,
            object,
            pgoff,
            advice: HugeAdvice::Default,
            flags: VmaFlags::empty(),
        };
        self.map_object(range, &mapping)
    }

    /// As [`Space::map_shared`], of what is open for reading only: no later protection allows writes.
    ///
    /// # Errors
    /// As [`Space::map_shared`]; [`RangeError::Invalid`] with [`Prot::WRITE`].
    pub fn map_shared_read_only(
        &'static self,
        range: VaRange,
        prot: Prot,
        object: &ObjectRef<M>,
        pgoff: u64,
    ) -> Result<(), RangeError> {
        if prot.contains(Prot::WRITE) {
            return Err(RangeError::Invalid(range));
        }
        let (kind, flags) = (VmaKind::Shared, VmaFlags::NEVER_WRITE);
        self.map_object(range, &Mapping { kind, prot, object, pgoff, advice: HugeAdvice::Default, flags })
    }

    /// As [`Space::map_shared`], but writes go to private copies (`MAP_PRIVATE` of a file).
    ///
    /// # Errors
    /// As [`Space::map_shared`].
    pub fn map_private(
        &'static self,
        range: VaRange,
        prot: Prot,
        object: &ObjectRef<M>,
        pgoff: u64,
        advice: HugeAdvice,
    ) -> Result<(), RangeError> {
        self.map_object(
            range,
            &Mapping { kind: VmaKind::Private, prot, object, pgoff, advice, flags: VmaFlags::empty() },
        )
    }

    /// Maps a driver's pages, all at once (`VM_MIXEDMAP`). The entries are not counted; the mapping keeps the object.
    ///
    /// # Errors
    /// As [`Space::map_shared`]; [`RangeError::Invalid`] for an object of another kind, or one that ends before the range.
    pub fn map_device_pages(
        &'static self,
        range: VaRange,
        prot: Prot,
        object: &ObjectRef<M>,
        pgoff: u64,
    ) -> Result<(), RangeError> {
        let mapping = Mapping {
            kind: VmaKind::Device,
            prot,
            object,
            pgoff,
            advice: HugeAdvice::Default,
            flags: VmaFlags::empty(),
        };
        self.map_object(range, &mapping)
    }

    /// Maps at exactly `range` once more what is mapped shared at `from` (`mremap` of an old length of 0).
    ///
    /// # Errors
    /// [`RangeError::NotMapped`]; [`RangeError::Invalid`] where it is not shared; else as [`Space::map_shared`].
    pub fn map_again(&'static self, from: Vaddr, range: VaRange) -> Result<(), RangeError> {
        let vmas = self.vmas.read();
        let vma = vmas.find(from).ok_or(RangeError::NotMapped(from))?;
        if vma.kind() != VmaKind::Shared {
            return Err(RangeError::Invalid(range));
        }
        let object = M::mm().objects.get(vma.object()).handle();
        let mapping = Mapping {
            kind: VmaKind::Shared,
            prot: vma.prot(),
            object: &object,
            pgoff: vma.page_index(from),
            advice: vma.advice(),
            flags: vma.flags(),
        };
        drop(vmas);
        self.map_object(range, &mapping)
    }

    fn map_object(&'static self, range: VaRange, mapping: &Mapping<'_, M>) -> Result<(), RangeError> {
        let Mapping { object, pgoff, .. } = *mapping;
        let is_driver = object.kind() == ObjectKind::Driver;
        let most = if is_driver { object.pages() } else { Object::<M>::MAX_PGOFF };
        let fits = pgoff.checked_add(range.nr_pages()).is_some_and(|end| end <= most);
        if !range.is_user_pages() || !fits || is_driver != (mapping.kind == VmaKind::Device) {
            return Err(RangeError::Invalid(range));
        }
        let mm = M::mm();
        let oom = |_| RangeError::Oom(range.start);
        let mut vmas = self.vmas.write();
        if vmas.first_after(range.start).is_some_and(|vma| vma.start() < range.end) {
            return Err(RangeError::Exists(range));
        }
        vmas.reserve(mm).map_err(oom)?;
        let vma = new_vma(mm, self, range, mapping).map_err(oom)?;
        self.link_vma(vma, None);
        vmas.insert(vma);
        if is_driver && let Err(e) = self.fill_device_pages(vma, object) {
            let mut gather = TlbGather::new(FlushReason::Unmap);
            self.zap(range, &mut gather);
            gather.flush();
            self.drop_vma(&mut vmas, vma);
            return Err(oom(e));
        }
        Ok(())
    }

    /// Installs the entries of a driver's mapping.
    fn fill_device_pages(&'static self, vma: &Vma, object: &Object<M>) -> Result<(), OutOfMemory> {
        let mut attrs = Attrs::empty();
        attrs.set(Attrs::WRITE, vma.prot().contains(Prot::WRITE));
        attrs.set(Attrs::EXEC, vma.prot().contains(Prot::EXEC));
        let mut addr = vma.start();
        while addr < vma.range().end {
            let page = object.page_or_alloc(vma.page_index(addr))?;
            let Some(table) = self.pte_table_or_alloc(addr, Need::User)? else {
                unreachable!("nothing was mapped here");
            };
            let leaf = Leaf { special: true, ..Leaf::ram(page.frame(), attrs) };
            self.cursor_in(table, Level::Pte, addr).install(Entry::Leaf(leaf));
            addr = addr.add(PAGE_SIZE);
        }
        Ok(())
    }
}

fn new_vma<M: Machine>(
    mm: &Mm<M>,
    space: &Space<M>,
    range: VaRange,
    mapping: &Mapping<'_, M>,
) -> Result<&'static Vma, OutOfMemory> {
    let vma = mm.vmas.alloc(mm)?;
    // Copies of a private mapping are anonymous memory, with a set of their own.
    let anon = if mapping.kind == VmaKind::Private {
        match AnonSet::alloc(mm, SetOf::Anon) {
            Ok(set) => set.slab_index(),
            Err(oom) => {
                mm.vmas.free(vma);
                return Err(oom);
            }
        }
    } else {
        NIL
    };
    vma.set(&VmaAttrs {
        range,
        pgoff: mapping.pgoff,
        prot: mapping.prot,
        advice: mapping.advice,
        anon,
        space: space.slab_index(),
        kind: mapping.kind,
        flags: mapping.flags,
        object: mapping.object.key(),
    });
    Ok(vma)
}
