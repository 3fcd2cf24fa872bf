//! Pages lent for atomic access: at both levels, taken back by every change.

use crate::counters::Event;
use crate::entry::{Attrs, Entry, SoftKind, SoftLeaf};
use crate::fault::{FaultInfo, FaultOutcome};
use crate::hmm::HmmError;
use crate::machine::FlushReason;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::Config;
use crate::types::{Access, Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

fn kit() -> Kit {
    let kit = Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() });
    kit.map(0, 512, Huge);
    kit.map(512, 16, Small);
    kit.fill(0, 528);
    kit
}

fn soft(kit: &Kit, page: u64) -> Option<(Level, SoftLeaf)> {
    match kit.space.entry_at(at(page)) {
        (level, Entry::NonPresent(soft)) => Some((level, soft)),
        _ => None,
    }
}

fn is_lent(kit: &Kit, page: u64) -> bool {
    soft(kit, page).is_some_and(|(_, soft)| soft.kind == SoftKind::DeviceExclusive)
}

fn lend(kit: &Kit, page: u64) {
    drop(kit.space.space().make_exclusive(at(page), DEV).expect("memory"));
}

#[test]
fn a_page_is_lent_whole_flushed_and_noted_as_written() {
    let kit = kit();
    for (page, level) in [(77, Level::Pmd), (513, Level::Pte)] {
        let flushes = kit.machine.flushed(FlushReason::Exclusive);
        let lent = kit.space.space().make_exclusive(at(page), DEV).expect("memory");
        assert_eq!(kit.machine.flushed(FlushReason::Exclusive) - flushes, 1);
        assert!(lent.folio().is_locked() && lent.folio().is_dirty() && lent.stands());
        assert_eq!((lent.level(), lent.range().len()), (level, level.size()));
        let (at_level, soft) = soft(&kit, page).expect("no CPU reaches it");
        assert_eq!((at_level, soft.kind, soft.frame), (level, SoftKind::DeviceExclusive, lent.frame()));
        let kept = Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::DIRTY | Attrs::SOFT_DIRTY;
        assert!(soft.attrs.contains(kept) && !soft.attrs.contains(Attrs::YOUNG));
        assert_eq!((lent.folio().map_count(), lent.folio().refs()), (1, 2), "it counts as a mapping");
        kit.machine.check_no_stale();
        drop(lent);
        kit.audit();
    }
}

#[test]
fn a_touch_takes_it_back_old_and_with_its_permission() {
    let kit = kit();
    for (page, access) in [(77, Access::Read), (513, Access::Write)] {
        lend(&kit, page);
        let fault = FaultInfo::new(at(page), access);
        assert_eq!(kit.space.space().handle_fault(&fault), Ok(FaultOutcome::TakenBack));
        let Entry::Leaf(leaf) = kit.space.entry_at(at(page)).1 else { panic!("it is back") };
        assert!(leaf.attrs.contains(Attrs::WRITE | Attrs::EXCLUSIVE | Attrs::DIRTY | Attrs::SOFT_DIRTY));
        assert!(!leaf.attrs.contains(Attrs::YOUNG));
    }
    assert_eq!(kit.machine.counted(Event::ExclusiveFault), 2);
    kit.check(0, 528);
    kit.audit();
}

#[test]
fn it_is_faulted_in_for_writing_first() {
    let kit = kit();
    kit.map(1024, 512, Huge);
    kit.map(1536, 4, Small);
    let space = kit.space.space();
    lend(&kit, 1024);
    assert_eq!(soft(&kit, 1024).map(|(level, _)| level), Some(Level::Pmd), "a hole got a huge page");
    kit.try_read(1536).expect("the zero page");
    lend(&kit, 1536);
    space.migrate(range(512, 8), DEV).expect("mapped");
    lend(&kit, 514);
    assert!(soft(&kit, 514).is_some_and(|(_, soft)| soft.frame.place().is_ram()), "it came back for this");
    // Lent already: to somebody else from now on.
    lend(&kit, 514);
    assert!(is_lent(&kit, 514));
    kit.audit();
    kit.check(0, 528);
}

#[test]
fn what_may_not_be_written_is_not_lent() {
    let kit = kit();
    let space = kit.space.space();
    space.protect(range(512, 1), Prot::READ).expect("mapped");
    assert_eq!(space.make_exclusive(at(512), DEV).err(), Some(HmmError::Perm(at(512))));
    assert_eq!(space.make_exclusive(at(600), DEV).err(), Some(HmmError::Fault(at(600))));
    kit.map(1536, 1, Small);
    kit.machine.mm.inject.arm(crate::inject::Site::RamFolio as u32, 0, 0, 1);
    assert_eq!(space.make_exclusive(at(1536), DEV).err(), Some(HmmError::Oom(at(1536))));
    kit.machine.mm.inject.disarm();
    kit.audit();
}

#[test]
fn unmap_protect_remap_and_split_treat_it_as_a_mapping() {
    let kit = kit();
    let space = kit.space.space();
    lend(&kit, 0);
    lend(&kit, 515);
    // A cut through the huge one: 512 lent pages of one folio.
    space.unmap(range(100, 10)).expect("memory");
    assert!(is_lent(&kit, 99) && is_lent(&kit, 110) && soft(&kit, 99).is_some_and(|(l, _)| l == Level::Pte));
    kit.audit();
    space.unmap(range(512, 4)).expect("memory");
    kit.audit();
    space.protect(range(200, 8), Prot::READ).expect("mapped");
    assert!(!is_lent(&kit, 200) && is_lent(&kit, 208), "protection takes it back");
    assert!(matches!(kit.space.entry_at(at(200)).1, Entry::Leaf(l) if !l.attrs.contains(Attrs::WRITE)));
    kit.audit();
    kit.check(0, 100);
    kit.check(110, 402);
    kit.audit();
}

#[test]
fn a_loan_that_is_unmapped_does_not_stand_and_frees_its_page_at_the_end() {
    let kit = kit();
    let free = kit.free(Place::RAM);
    let lent = kit.space.space().make_exclusive(at(520), DEV).expect("memory");
    kit.space.space().unmap(range(520, 1)).expect("memory");
    assert!(!lent.stands() && lent.folio().refs() == 1);
    drop(lent);
    assert_eq!(kit.free(Place::RAM), free + 1);
    kit.audit();
}

#[test]
fn a_lent_page_moves_but_not_while_its_folio_is_locked() {
    let kit = kit();
    let space = kit.space.space();
    let lent = space.make_exclusive(at(0), DEV).expect("memory");
    let report = space.migrate(range(0, 512), DEV).expect("mapped");
    assert_eq!((report.pages, report.failed_pages()), (0, 512), "busy");
    assert!(lent.stands());
    drop(lent);
    lend(&kit, 513);
    let report = space.migrate(range(0, 528), Place::device(1)).expect("mapped");
    assert_eq!((report.pages, report.huge_pages), (528, 512));
    kit.audit();
    kit.check(0, 528);
    kit.audit();
}

#[test]
fn a_migration_that_is_dropped_gives_a_lent_page_back_to_the_cpu() {
    let kit = kit();
    lend(&kit, 0);
    lend(&kit, 513);
    let (migration, _) = kit.space.space().migrate_collect(range(0, 528), DEV).expect("mapped");
    drop(migration);
    assert!(!is_lent(&kit, 0) && !is_lent(&kit, 513));
    kit.audit();
    kit.check(0, 528);
}
