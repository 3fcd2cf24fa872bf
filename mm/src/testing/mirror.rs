//! A device's page table: filled by range faults, emptied by notifiers, never more than the CPU's allows.

use crate::advise::Advice;
use crate::hmm::HmmWant;
use crate::inject::Site;
use crate::mirror::{MirrorAttrs, MirrorEntry, MirrorRef};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Access, Order, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const WRITE: HmmWant = HmmWant::FAULT.union(HmmWant::WRITE);

fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() })
}

fn mirror(kit: &Kit, owner: Place) -> MirrorRef<Soft> {
    MirrorRef::new(kit.space.space(), owner).expect("memory for a mirror")
}

fn entry(mirror: &MirrorRef<Soft>, page: u64) -> Option<MirrorEntry> {
    mirror.entry(at(page))
}

fn order(mirror: &MirrorRef<Soft>, page: u64) -> Option<u8> {
    entry(mirror, page).map(|e| e.order.get())
}

fn word(kit: &Kit, mirror: &MirrorRef<Soft>, page: u64) -> Option<u64> {
    mirror.access(at(page), Access::Read, |frame| kit.machine.data(frame)[0].get())
}

#[test]
fn a_mirror_has_what_was_faulted_in_huge_where_it_is_huge() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.map(512, 64, Small);
    kit.fill(0, 576);
    let mirror = mirror(&kit, DEV);
    assert_eq!(entry(&mirror, 3), None);
    mirror.fault(range(100, 440), HmmWant::FAULT).expect("memory");
    assert_eq!((order(&mirror, 0), order(&mirror, 511)), (Some(9), Some(9)), "all of it, for one page of it");
    assert_eq!((order(&mirror, 512), order(&mirror, 539), order(&mirror, 540)), (Some(0), Some(0), None));
    for page in (0..512).chain(512..540) {
        assert_eq!(word(&kit, &mirror, page), Some(Kit::value(page)), "page {page}");
    }
    kit.audit();
    drop(mirror);
    kit.audit();
    assert_eq!((kit.machine.mm.mirrors.live(), kit.machine.mm.mirror_nodes.live()), (0, 0));
}

#[test]
fn a_read_gives_no_write_that_is_not_noted() {
    let kit = kit();
    kit.map(0, 4, Small);
    kit.fill(0, 2);
    let mirror = mirror(&kit, DEV);
    mirror.fault(range(0, 4), HmmWant::FAULT).expect("memory");
    let allowed = |page| entry(&mirror, page).map(|e| e.attrs.contains(MirrorAttrs::WRITE));
    assert_eq!((allowed(0), allowed(2)), (Some(true), Some(false)), "written, and the zero page");
    // Cleaned: the copy that allows writes has to go, or they would be missed.
    kit.space.space().advise(range(0, 1), Advice::Free).expect("mapped");
    mirror.fault(range(0, 4), HmmWant::FAULT).expect("memory");
    assert_eq!(allowed(0), Some(false));
    assert!(mirror.access(at(0), Access::Write, |_| ()).is_none());
    mirror.fault(range(0, 4), WRITE).expect("memory");
    assert!((0..4).all(|page| allowed(page) == Some(true)));
    kit.audit();
}

#[test]
fn what_changes_is_dropped_and_the_rest_of_a_huge_entry_stays() {
    let kit = kit();
    let space = kit.space.space();
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    let mirror = mirror(&kit, DEV);
    mirror.fault(range(0, 1024), WRITE).expect("memory");
    space.unmap(range(100, 50)).expect("memory");
    assert_eq!(
        (order(&mirror, 99), order(&mirror, 100), order(&mirror, 149), order(&mirror, 150)),
        (Some(0), None, None, Some(0))
    );
    assert_eq!(order(&mirror, 512), Some(9), "the neighbour is whole");
    for page in (0..100).chain(150..1024) {
        assert_eq!(word(&kit, &mirror, page), Some(Kit::value(page)), "page {page}");
    }
    kit.audit();
    space.protect(range(150, 10), Prot::READ).expect("mapped");
    assert_eq!((order(&mirror, 149), order(&mirror, 150), order(&mirror, 160)), (None, None, Some(0)));
    space.advise(range(600, 3), Advice::DontNeed).expect("mapped");
    assert_eq!((order(&mirror, 599), order(&mirror, 600), order(&mirror, 603)), (Some(0), None, Some(0)));
    kit.audit();
}

#[test]
fn without_memory_to_split_a_huge_entry_it_goes_whole() {
    let kit = kit();
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    let mirror = mirror(&kit, DEV);
    mirror.fault(range(0, 1024), WRITE).expect("memory");
    // By hand: the CPU's own tables need memory too.
    kit.machine.mm.inject.arm(Site::Object as u32, 0, 0, u64::MAX);
    drop(kit.space.space().invalidate(range(100, 50), crate::notifier::NotifyEvent::Clear));
    kit.machine.mm.inject.disarm();
    assert_eq!((order(&mirror, 0), order(&mirror, 150), order(&mirror, 512)), (None, None, Some(9)));
    kit.audit();
}

#[test]
fn a_fault_that_runs_out_of_memory_leaves_a_mirror_that_holds() {
    for n in 0..12 {
        let kit = kit();
        kit.map(0, 512, Huge);
        kit.map(512, 64, Small);
        kit.fill(0, 512);
        let mirror = mirror(&kit, DEV);
        kit.machine.mm.inject.arm(Site::ALL, 0, n, 1);
        let result = mirror.fault(range(0, 576), WRITE);
        if kit.machine.mm.inject.disarm() > n {
            assert!(result.is_err(), "failure {n} is told of");
        }
        kit.audit();
        mirror.fault(range(0, 576), WRITE).expect("memory again");
        assert!((0..576).all(|page| entry(&mirror, page).is_some()));
        kit.audit();
        drop(mirror);
        assert_eq!(kit.machine.mm.mirror_nodes.live(), 0);
    }
}

#[test]
fn two_devices_mirror_one_space_and_each_knows_its_own_pages() {
    let kit = kit();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let (first, second) = (mirror(&kit, DEV), mirror(&kit, Place::device(1)));
    for m in [&first, &second] {
        m.fault(range(0, 512), HmmWant::FAULT).expect("memory");
    }
    kit.space.space().migrate(range(0, 512), DEV).expect("mapped");
    assert_eq!((entry(&first, 0), entry(&second, 0)), (None, None), "it moved");
    first.enter_own(range(0, 512)).expect("memory");
    second.enter_own(range(0, 512)).expect("memory");
    assert!(entry(&first, 9).is_some_and(|e| e.frame.place() == DEV && e.order == Order::PMD));
    assert_eq!(entry(&second, 9), None, "another's");
    second.fault(range(9, 1), HmmWant::FAULT).expect("memory");
    assert_eq!(entry(&first, 9), None, "it came back");
    assert_eq!(word(&kit, &second, 9), Some(Kit::value(9)));
    kit.audit();
}

#[test]
fn the_end_of_a_space_empties_its_mirror() {
    let Kit { space, machine } = {
        let kit = kit();
        kit.map(0, 512, Huge);
        kit.fill(0, 512);
        kit
    };
    let mirror = MirrorRef::new(space.space(), DEV).expect("memory");
    mirror.fault(range(0, 512), WRITE).expect("memory");
    drop(space);
    assert_eq!(mirror.entry(at(0)), None);
    assert!(mirror.space().is_none());
    assert!(mirror.fault(range(0, 1), HmmWant::FAULT).is_err());
    machine.mm.audit().expect("every invariant");
    drop(mirror);
    assert_eq!(
        (machine.mm.mirrors.live(), machine.mm.notifiers.live(), machine.mm.mirror_nodes.live()),
        (0, 0, 0)
    );
}
