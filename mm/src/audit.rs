//! The invariants, checked from scratch: for a machine at rest, after every test.
//!
//! Counts are recomputed by walking every page table, and compared with what descriptors, zones and the frame map say. It
//! allocates nothing: the walk counts into one scratch word that every folio carries for this.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use crate::counters::Event;
use crate::entry::{Attrs, Entry, NON_PRESENT_CLEAR, SoftKind};
use crate::folio::Folio;
use crate::group::MAX_GROUPS;
use crate::machine::Machine;
use crate::mirror::{MirrorAttrs, MirrorEntry};
use crate::mm::Mm;
use crate::slab::NIL;
use crate::space::Space;
use crate::table::Table;
use crate::types::{Frame, Level, Order, Place, Vaddr};
use crate::vma::{Vma, VmaKind};

/// An invariant that does not hold, with the numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditError {
    /// What is wrong.
    pub what: &'static str,
    /// Where: an address, a frame, or an index.
    pub at: u64,
    /// What was found.
    pub found: u64,
    /// What it should be.
    pub expected: u64,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "audit: {} at {:#x}: found {:#x}, expected {:#x}",
            self.what, self.at, self.found, self.expected
        )
    }
}

type Audit = Result<(), AuditError>;

fn expect(what: &'static str, at: u64, found: u64, expected: u64) -> Audit {
    if found == expected { Ok(()) } else { Err(AuditError { what, at, found, expected }) }
}

/// One object's hold on a folio, in its scratch word; below it, entries are counted.
const HELD: u32 = 1 << 24;

/// What the machine's processors cannot tell us: how many physical address bits a speculating CPU uses.
const MIN_PHYS_BITS: u32 = 36;

impl<M: Machine> Mm<M> {
    /// Checks everything that can be checked on a machine at rest: no migration under way, no handle held outside, no flush
    /// owed.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn audit(&self) -> Audit {
        self.for_each_folio(&mut |folio| {
            folio.scratch().store(0, Relaxed);
            Ok(())
        })?;
        let mut tables = Ok(0);
        self.spaces.for_each(self, &mut |space| {
            if let Ok(n) = &mut tables
                && space.is_live()
            {
                match self.audit_space(space) {
                    Ok(more) => *n += more,
                    Err(error) => tables = Err(error),
                }
            }
        });
        let tables = tables?;
        self.audit_objects()?;
        expect("page tables in use", 0, u64::from(self.tables.live()), tables)?;
        let at_work = self.batches.live() + self.units.live() + self.pieces.live() + self.held.live();
        expect("work records in use at rest", 0, u64::from(at_work), 0)?;
        self.audit_mirrors()?;
        self.audit_folios()?;
        self.audit_groups()?;
        self.audit_huge_pool()?;
        self.audit_zone(Place::RAM, tables)?;
        for n in 0..self.devices.len() {
            if self.devices[n].zone.is_registered() {
                self.audit_zone(self.devices[n].zone.place(), 0)?;
            }
        }
        self.audit_counters()
    }

    /// What objects hold: counted in the upper bits of their folios' scratch words.
    fn audit_objects(&self) -> Audit {
        let (mut live, mut middles, mut leaves) = (0, 0, 0);
        let mut result = Ok(());
        self.objects.for_each(self, &mut |object| {
            if !object.is_live() || result.is_err() {
                return;
            }
            live += 1;
            let nodes = object.nodes();
            middles += nodes.0;
            leaves += nodes.1;
            let set = object.set();
            object.for_each_page(&mut |index, page| {
                page.scratch().fetch_add(HELD, Relaxed);
                let link = page.link();
                if result.is_ok() {
                    let at = page.frame().raw();
                    result = expect("page of an object", at, u64::from(page.order().get()), 0)
                        .and_then(|()| {
                            expect("set of an object's page", at, u64::from(link.anon), set.into())
                        })
                        .and_then(|()| expect("index of an object's page", at, link.index, index));
                }
            });
        });
        result?;
        expect("objects in use", 0, u64::from(self.objects.live()), live)?;
        expect("middle nodes of objects", 0, u64::from(self.index_middles.live()), u64::from(middles))?;
        expect("lowest nodes of objects", 0, u64::from(self.index_leaves.live()), u64::from(leaves))
    }

    fn for_each_folio(&self, f: &mut dyn FnMut(&'static Folio) -> Audit) -> Audit {
        let mut result = Ok(());
        self.folios.for_each(self, &mut |folio| {
            if result.is_ok() && folio.refs() != 0 {
                result = f(folio);
            }
        });
        result
    }

    /// Walks one space; the number of its tables.
    fn audit_space(&self, space: &'static Space<M>) -> Result<u64, AuditError> {
        let mut tables = 0;
        expect("flushes owed", u64::from(space.root_pfn()), space.flush.pending(), 0)?;
        let note = core::cell::Cell::new(Ok(()));
        let check = |r: Audit| {
            if note.get().is_ok() {
                note.set(r);
            }
        };
        space.for_each_entry(
            &mut |addr, level, word| check(self.audit_entry(space, addr, level, word)),
            &mut |pfn, level, base| {
                tables += 1;
                check(self.audit_table(pfn, level, base));
            },
        );
        note.get().map(|()| tables)
    }

    fn audit_table(&self, pfn: u32, level: Level, base: Vaddr) -> Audit {
        let index = self.ram.table_index(pfn);
        if index.is_none() {
            return Err(AuditError {
                what: "table that the frame map does not know",
                at: u64::from(pfn),
                found: 0,
                expected: 1,
            });
        }
        let table: &Table<M> = self.table(pfn);
        expect("frame of a table", u64::from(pfn), u64::from(table.pfn()), u64::from(pfn))?;
        expect("level of a table", u64::from(pfn), table.level() as u64, level as u64)?;
        expect("base of a table", u64::from(pfn), table.base().0, base.0)?;
        expect("lock of a table held", u64::from(pfn), u64::from(table.lock.is_locked()), 0)?;
        let entries = if level == Level::Pgd { 256 } else { 512 };
        let live = table.words()[..entries].iter().filter(|w| w.load(Relaxed) != 0).count();
        expect("live entries of a table", u64::from(pfn), u64::from(*table.lock.lock()), live as u64)
    }

    fn audit_entry(&self, space: &'static Space<M>, addr: Vaddr, level: Level, word: u64) -> Audit {
        let bad = |what, expected| Err(AuditError { what, at: addr.0, found: word, expected });
        let Ok(entry) = Entry::try_decode(word, level) else { return bad("entry that nobody encoded", 0) };
        let Some(vma) = space.vmas.read().find(addr) else { return bad("entry outside every VMA", 0) };
        match entry {
            Entry::None | Entry::Table(_) => Ok(()),
            Entry::Leaf(leaf) if leaf.special && vma.kind() == VmaKind::Device => {
                let page = self.objects.get(vma.object()).page(vma.page_index(addr));
                let named = page.is_some_and(|page| level == Level::Pte && page.frame() == leaf.frame);
                if named { Ok(()) } else { bad("entry of a driver's mapping", 0) }
            }
            Entry::Leaf(leaf) if leaf.special => {
                let zeros = self.zero_frames();
                let expected = if level == Level::Pmd { zeros[1] } else { zeros[0] };
                if expected != Some(leaf.frame) || leaf.attrs.contains(Attrs::WRITE) {
                    return bad("zero page entry", expected.map_or(0, |f| u64::from(f.index())));
                }
                Ok(())
            }
            Entry::Leaf(leaf) if !leaf.frame.place().is_mappable() => {
                bad("present entry for private memory", 0)
            }
            Entry::Leaf(leaf) => {
                self.audit_mapping(space, addr, level, leaf.frame)?;
                self.audit_sharing(vma, addr, level, leaf.frame, leaf.attrs)
            }
            Entry::NonPresent(soft) => {
                if word & NON_PRESENT_CLEAR != 0 {
                    return bad("bits that must be clear in a non-present entry", 0);
                }
                self.audit_l1tf(addr, word)?;
                if soft.kind == SoftKind::Migration {
                    return bad("migration entry at rest", 0);
                }
                if (soft.kind == SoftKind::DevicePrivate) == soft.frame.place().is_mappable()
                    || soft.kind == SoftKind::ProtNone && !soft.attrs.contains(Attrs::NO_ACCESS)
                {
                    return bad("kind and place of a non-present entry", 0);
                }
                self.audit_mapping(space, addr, level, soft.frame)?;
                self.audit_sharing(vma, addr, level, soft.frame, soft.attrs)
            }
        }
    }

    /// What a device may do through its own page table, the CPU's table allows too, in the same frame.
    fn audit_mirrors(&self) -> Audit {
        let mut result = Ok(());
        self.mirrors.for_each(self, &mut |mirror| {
            mirror.for_each(&mut |space, addr, entry| {
                if result.is_ok() {
                    result = self.audit_mirror_entry(space, addr, entry);
                }
            });
        });
        result
    }

    fn audit_mirror_entry(&self, space: u32, addr: Vaddr, mirrored: MirrorEntry) -> Audit {
        expect("entry of a mirror without a space", addr.0, u64::from(space == NIL), 0)?;
        if mirrored.frame.place().private_device().is_some() {
            return Ok(()); // looked at again when it is used
        }
        let (level, entry) = self.spaces.get(space).entry_at(addr);
        let (frame, attrs, lent) = match entry {
            Entry::Leaf(leaf) => (leaf.frame, leaf.attrs, false),
            Entry::NonPresent(soft) if soft.kind == SoftKind::DeviceExclusive => {
                (soft.frame, soft.attrs, true)
            }
            _ => (mirrored.frame.offset(1), Attrs::empty(), false),
        };
        let page = (addr.0 & (level.size() - 1)) >> crate::types::PAGE_SHIFT;
        expect("frame of a mirror's entry", addr.0, mirrored.frame.raw(), frame.offset(page as u32).raw())?;
        let writes = mirrored.attrs.contains(MirrorAttrs::WRITE) && !attrs.contains(Attrs::WRITE);
        expect("a device may write, a CPU may not", addr.0, u64::from(writes), 0)?;
        expect("atomic", addr.0, u64::from(mirrored.attrs.contains(MirrorAttrs::ATOMIC)), u64::from(lent))
    }

    /// Bits 51:12 of a non-present entry, cut to any number of physical bits that a CPU may have, name no RAM and no device
    /// memory that is cached.
    fn audit_l1tf(&self, addr: Vaddr, word: u64) -> Audit {
        let cached = |pfn| self.zones().any(|zone| zone.place().is_mappable() && zone.contains(pfn));
        for bits in MIN_PHYS_BITS..=52 {
            let pfn = (word & ((1 << bits) - 1)) >> 12;
            if pfn <= u64::from(u32::MAX) && cached(pfn as u32) {
                return Err(AuditError {
                    what: "non-present entry that names cacheable memory (L1TF)",
                    at: addr.0,
                    found: word,
                    expected: 0,
                });
            }
        }
        Ok(())
    }

    fn audit_mapping(&self, space: &'static Space<M>, addr: Vaddr, level: Level, frame: Frame) -> Audit {
        let at = addr.0;
        let Some(index) = self.zone(frame.place()).folio_index(frame.index()) else {
            return Err(AuditError {
                what: "entry that names a frame without a folio",
                at,
                found: frame.raw(),
                expected: 0,
            });
        };
        let folio = self.folios.get(index);
        expect("entry that names a free folio", at, u64::from(folio.refs() == 0), 0)?;
        expect("entry outside its folio", at, u64::from(folio.covers(frame)), 1)?;
        let page = u64::from(frame.index() - folio.frame().index());
        expect("huge entry for a smaller folio", at, u64::from(folio.order() < level.order()), 0)?;
        folio.scratch().fetch_add(1, Relaxed);
        // The reverse map leads back here.
        let link = folio.link();
        expect("folio without a reverse map", at, u64::from(link.anon == NIL), 0)?;
        let mut found = false;
        self.for_each_mapping(folio, &mut |place| {
            let first = place.range.start.0.wrapping_sub(u64::from(place.first_page) << 12);
            found |= *place.space == *space
                && place.range.contains(addr)
                && first.wrapping_add(page << 12) == addr.0;
            true
        });
        expect("mapping that the reverse map does not find", at, u64::from(found), 1)
    }

    /// Who may write need not copy: nobody else maps the page. An object's pages are never anybody's own.
    fn audit_sharing(&self, vma: &Vma, addr: Vaddr, level: Level, frame: Frame, attrs: Attrs) -> Audit {
        let folio = self.mapped_folio(frame);
        let own = attrs.contains(Attrs::EXCLUSIVE);
        if vma.kind() != VmaKind::Shared {
            let shared_write = attrs.contains(Attrs::WRITE) && !own;
            expect("writable entry that is not exclusive", addr.0, u64::from(shared_write), 0)?;
        }
        if own && folio.order() == level.order() {
            expect("mappings of an exclusive page", addr.0, u64::from(folio.map_count()), 1)?;
        }
        let foreign = own && folio.link().anon != vma.anon();
        expect("exclusive page of another family", addr.0, u64::from(foreign), 0)
    }

    fn audit_folios(&self) -> Audit {
        let zeros = self.zero_frames();
        let mut live = 0;
        self.for_each_folio(&mut |folio| {
            let at = folio.frame().raw();
            live += 1;
            let counted = folio.scratch().load(Relaxed);
            let (maps, held) = (counted % HELD, counted / HELD);
            expect("map count of a folio", at, u64::from(folio.map_count()), u64::from(maps))?;
            expect("migration entries of a folio at rest", at, u64::from(folio.migration_entries()), 0)?;
            expect("lock of a folio held at rest", at, u64::from(folio.is_locked()), 0)?;
            let own = u32::from(zeros.contains(&Some(folio.frame()))) + held + folio.pins();
            expect("references of a folio", at, u64::from(folio.refs()), u64::from(maps + own))?;
            let zone = self.zone(folio.place());
            let noted = folio.is_partial() && folio.order() != Order::BASE;
            let forgotten = noted && !zone.deferred.is_noted();
            expect("folio mapped in part of which its zone knows nothing", at, u64::from(forgotten), 0)?;
            for i in 0..folio.order().pages() {
                let owner = zone.folio_index(folio.frame().index() + i);
                expect(
                    "owner of a folio's frame",
                    at + u64::from(i),
                    owner.map_or(!0, u64::from),
                    u64::from(folio.slab_index()),
                )?;
            }
            Ok(())
        })?;
        expect("folio descriptors in use", 0, u64::from(self.folios.live()), live)
    }

    /// Each group is charged exactly for the folios that name it.
    fn audit_groups(&self) -> Audit {
        let mut pages = [0; MAX_GROUPS + 1];
        self.for_each_folio(&mut |folio| {
            pages[folio.group() as usize] += u64::from(folio.order().pages());
            Ok(())
        })?;
        for (n, (group, &held)) in self.groups.iter().zip(&pages[1..]).enumerate() {
            expect("pages charged to a group", n as u64 + 1, group.charged(), held)?;
        }
        Ok(())
    }

    /// Every frame is free, or part of exactly one folio, a table, or holds objects: the sums add up.
    fn audit_zone(&self, place: Place, tables: u64) -> Audit {
        let zone = self.zone(place);
        let mut free = 0;
        zone.for_each_free(&mut |_, order| free += u64::from(order.pages()));
        let stat = zone.stat();
        expect("free frames", u64::from(place.raw()), u64::from(stat.free), free)?;
        let mut folios = 0;
        self.for_each_folio(&mut |folio| {
            if folio.place() == place {
                folios += u64::from(folio.order().pages());
            }
            Ok(())
        })?;
        let pooled = if place.is_ram() { u64::from(self.huge_pool().free) << Order::PMD.get() } else { 0 };
        let mut objects = 0;
        zone.for_each_object_frame(&mut |_, _| objects += 1);
        expect(
            "frames of a zone",
            u64::from(place.raw()),
            free + folios + tables + objects + pooled,
            u64::from(stat.managed),
        )?;
        if let Some(n) = place.device_number() {
            expect("pages resident on a device", n as u64, self.device(n).stat().resident, folios)?;
        }
        Ok(())
    }

    /// Every page of the pool is free or a folio's, and every promise is a mapping's.
    fn audit_huge_pool(&self) -> Audit {
        let stat = self.huge_pool();
        let mut used = 0;
        self.for_each_folio(&mut |folio| {
            used += u64::from(folio.is_pooled());
            Ok(())
        })?;
        expect("pages of the pool", 0, used + u64::from(stat.free), stat.total.into())?;
        let mut reserved = 0;
        self.spaces.for_each(self, &mut |space| {
            if space.is_live() {
                space.for_each_vma(|vma| reserved += u64::from(space.reserved_in(vma, vma.range())));
            }
        });
        expect("reserved pages of the pool", 0, stat.reserved.into(), reserved)
    }

    /// What each device counts adds up by itself, and over the devices to what the machine counts.
    fn audit_devices(&self) -> Audit {
        let (mut came, mut left, mut dropped) = (0, 0, 0);
        // Those that are gone too: their counts stay.
        for (n, device) in self.devices.iter().enumerate() {
            let (at, stat) = (n as u64, device.stat());
            let stays = stat.pages_in.wrapping_sub(stat.out.pages() + stat.pages_dropped);
            expect("in - out - dropped = resident, of a device", at, stays, stat.resident)?;
            expect("folios of a device by order", at, device.folios().pages(), stat.resident)?;
            came += stat.pages_in;
            left += stat.out.pages();
            dropped += stat.pages_dropped;
        }
        expect("pages that came to devices", 0, came, M::counted(Event::DevicePagesIn))?;
        expect("pages that left devices", 0, left, M::counted(Event::DevicePagesOut))?;
        expect("pages dropped on devices", 0, dropped, M::counted(Event::DevicePagesDropped))
    }

    fn audit_counters(&self) -> Audit {
        let at = 0;
        let c = |event| M::counted(event);
        let outcomes = c(Event::PgFaultSpurious)
            + c(Event::PgFaultError)
            + c(Event::ZeroPageMapped)
            + c(Event::ThpZeroPageMapped)
            + c(Event::AnonFaultAlloc)
            + c(Event::ThpFaultAlloc)
            + c(Event::HugetlbFault)
            + c(Event::WriteUpgrade)
            + c(Event::CowCopy)
            + c(Event::ObjectFault)
            + c(Event::DeviceFault)
            + c(Event::ExclusiveFault);
        expect("faults are the sum of their outcomes", at, c(Event::PgFault), outcomes)?;
        let resident: u64 =
            self.devices.iter().filter(|d| d.zone.is_registered()).map(|d| d.stat().resident).sum();
        let came = c(Event::DevicePagesIn);
        let went = c(Event::DevicePagesOut) + c(Event::DevicePagesDropped);
        expect("to device - from device - dropped = resident", at, came - went, resident)?;
        self.audit_devices()
    }
}
