//! Who is named when pages move: a holder of copies of translations leaves out its own moves, looks after those copies by itself,
//! and is never left with one that is stale. And how often it is told.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::entry::{Entry, SoftKind};
use crate::hmm::HmmWant;
use crate::migrate::MigrateOptions;
use crate::mirror::MirrorRef;
use crate::notifier::{NotifierOps, NotifierRef, NotifyEvent, Owner};
use crate::space::Space;
use crate::testing::clone::fork;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft, one};
use crate::types::{Frame, Level, PAGE_SIZE, Place, VaRange, Vaddr};
use crate::vma::HugeAdvice::{self, Default as Small, Huge};

const DEV1: Place = Place::device(1);
/// The driver under test, and another one for the same device.
const MINE: Owner = Owner::holder(DEV, 7);
const OTHERS: Owner = Owner::holder(DEV, 8);

/// Which moves a driver leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ignores {
    /// Its own.
    Own,
    /// All of its device: a mistake.
    ItsDevices,
    /// All: a mistake.
    All,
}

impl Ignores {
    fn ignores(self, event: NotifyEvent) -> bool {
        match (self, event) {
            (Self::Own, NotifyEvent::Migrate { owner }) => owner == Some(MINE),
            (Self::ItsDevices, NotifyEvent::Migrate { owner }) => {
                owner.is_some_and(|owner| owner.place() == MINE.place())
            }
            (Self::All, NotifyEvent::Migrate { .. }) => true,
            _ => false,
        }
    }
}

/// A driver with copies of single pages' translations.
struct Driver {
    ignores: Ignores,
    copies: Mutex<BTreeMap<u64, Frame>>,
    told: Mutex<Vec<(VaRange, NotifyEvent)>>,
}

impl NotifierOps<Soft> for Driver {
    fn invalidate(&self, range: VaRange, event: NotifyEvent) {
        self.told.lock().expect("one thread").push((range, event));
        if !self.ignores.ignores(event) {
            self.drop_copies(range);
        }
    }
}

impl Driver {
    /// A driver that copies for `space`, and what ends it.
    fn of(space: &'static Space<Soft>, ignores: Ignores) -> (&'static Self, NotifierRef<Soft>) {
        let driver: &'static Self =
            Box::leak(Box::new(Self { ignores, copies: Mutex::default(), told: Mutex::default() }));
        let everything = VaRange::between(Vaddr(0), Vaddr(crate::types::USER_END));
        (driver, space.register_notifier(everything, driver).expect("memory for a notifier"))
    }

    fn drop_copies(&self, range: VaRange) {
        self.copies.lock().expect("one thread").retain(|&addr, _| !range.contains(Vaddr(addr)));
    }

    /// Copies what the pages of `range` are mapped to now.
    fn copy(&self, space: &Space<Soft>, range: VaRange) {
        for addr in (range.start.0..range.end.0).step_by(PAGE_SIZE as usize) {
            if let Some(frame) = frame(space, Vaddr(addr)) {
                self.copies.lock().expect("one thread").insert(addr, frame);
            }
        }
    }

    /// The copies that are true no more.
    fn stale(&self, space: &Space<Soft>) -> usize {
        let copies = self.copies.lock().expect("one thread");
        copies.iter().filter(|&(&addr, &copy)| frame(space, Vaddr(addr)) != Some(copy)).count()
    }

    fn len(&self) -> usize {
        self.copies.lock().expect("one thread").len()
    }

    fn take_told(&self) -> Vec<(VaRange, NotifyEvent)> {
        core::mem::take(&mut *self.told.lock().expect("one thread"))
    }
}

fn frame(space: &Space<Soft>, addr: Vaddr) -> Option<Frame> {
    let (level, entry) = space.entry_at(addr);
    let first = match entry {
        Entry::Leaf(leaf) => leaf.frame,
        Entry::NonPresent(soft) if soft.kind == SoftKind::DevicePrivate => soft.frame,
        _ => return None,
    };
    let page = if level == Level::Pmd { addr.index(Level::Pte) as u32 } else { 0 };
    Some(first.offset(page))
}

fn kit(advice: HugeAdvice) -> Kit {
    let kit = Kit::on(&Config { devices: vec![8 * 512; 2], ..Config::default() });
    kit.map(0, 512, advice);
    kit.map(512, 8, Small);
    kit.fill(0, 520);
    kit
}

const fn moved_by(owner: Option<Owner>) -> NotifyEvent {
    NotifyEvent::Migrate { owner }
}

#[test]
fn its_own_moves_are_left_out_both_ways_and_the_last_write_arrives() {
    for advice in [Huge, Small] {
        let kit = kit(advice);
        let space = kit.space.space();
        let (driver, _end) = Driver::of(space, Ignores::Own);
        for (round, to) in [DEV, Place::RAM, DEV].into_iter().enumerate() {
            driver.copy(space, range(0, 520));
            driver.take_told();
            let options = MigrateOptions::to(to).by(MINE);
            let mut all = 0;
            let report = space.migrate_as(range(0, 520), to, &options, &mut |taken| {
                // The walk is over, and every copy is still there: the device writes through one of them once more.
                assert_eq!(driver.len() as u64, 520 - all);
                all += taken.nr_pages();
                for page in [0, 512, 519].map(at).into_iter().filter(|&page| taken.contains(page)) {
                    let copy = driver.copies.lock().expect("one thread")[&page.0];
                    kit.machine.data(copy)[3].set(1000 + round as u64);
                }
                driver.drop_copies(taken);
            });
            assert_eq!((report.expect("mapped").pages, all, driver.len()), (520, 520, 0));
            assert_eq!(driver.take_told(), [(range(0, 520), moved_by(Some(MINE)))], "{advice:?} to {to}");
            for page in [0, 512, 519] {
                let now = frame(space, at(page)).expect("it is mapped");
                assert_eq!((now.place(), kit.machine.data(now)[3].get()), (to, 1000 + round as u64));
            }
            kit.audit();
        }
        kit.check(0, 520);
        kit.audit();
    }
}

#[test]
fn copies_of_pages_that_stay_stand() {
    let kit = kit(Small);
    let space = kit.space.space();
    let (driver, _end) = Driver::of(space, Ignores::Own);
    space.migrate(range(100, 50), DEV).expect("mapped");
    space.migrate(range(200, 10), DEV1).expect("mapped");
    driver.copy(space, range(0, 520));
    let held = crate::testing::migrate_gaps::lock(&kit, 300);
    let options = MigrateOptions::to(DEV).by(MINE);
    let report = space.migrate_as(range(0, 520), DEV, &options, &mut |taken| driver.drop_copies(taken));
    let report = report.expect("mapped");
    assert_eq!((report.pages, report.failed_pages()), (520 - 50 - 10 - 1, 11));
    assert_eq!((driver.len(), driver.stale(space)), (50 + 10 + 1, 0), "there already, elsewhere, and held");
    drop(held.unlock());
    kit.audit();
}

/// A move that is not the driver's own, and that the driver with this mistake gets wrong.
type Foreign = (&'static str, Option<Owner>, fn(&Kit));

const FOREIGN: [Foreign; 6] = [
    ("by nobody", None, |kit| {
        kit.space.space().migrate(range(0, 512), DEV).expect("mapped");
    }),
    ("by another holder on the device", Some(OTHERS), |kit| {
        let options = MigrateOptions::to(DEV).by(OTHERS);
        kit.space.space().migrate_as(range(0, 512), DEV, &options, &mut |_| {}).expect("mapped");
    }),
    ("by another device", Some(Owner::device(DEV1)), |kit| {
        let options =
            MigrateOptions::to(DEV1).from(crate::migrate::Sources::RAM.and(DEV)).by(Owner::device(DEV1));
        kit.space.space().migrate_as(range(0, 512), DEV1, &options, &mut |_| {}).expect("mapped");
    }),
    ("by a CPU's touch", Some(Owner::device(DEV)), |kit| kit.check(0, 512)),
    ("by an eviction", Some(Owner::device(DEV)), |kit| {
        assert_eq!(kit.machine.mm.evict_range(DEV, 0..8 * 512).failed_pages(), 0);
    }),
    ("by a merge", None, |kit| {
        let report = kit.space.space().merge_device(range(0, 512)).expect("mapped");
        assert_eq!((report.copied, report.in_place), (1, 0));
    }),
];

/// Pages 0..512 where such a move can take them, with copies of all; then the move.
fn after(foreign: &Foreign, advice: HugeAdvice, ignores: Ignores) -> (usize, Vec<NotifyEvent>) {
    let (what, _, act) = foreign;
    let kit = kit(advice);
    let space = kit.space.space();
    if what.contains("touch") || what.contains("eviction") || what.contains("merge") {
        space.migrate(range(0, 512), DEV).expect("mapped");
        if what.contains("merge") {
            // One that is cut off and comes anew, so that a merge has to copy.
            kit.check(3, 1);
            let hole = kit.machine.mm.alloc_folio(DEV, crate::types::Order::BASE, crate::zone::Need::User);
            space.migrate(range(0, 512), DEV).expect("mapped");
            drop(hole);
        }
    }
    let (driver, end) = Driver::of(space, ignores);
    driver.copy(space, range(0, 520));
    act(&kit);
    kit.audit();
    let stale = driver.stale(space);
    assert!(ignores != Ignores::Own || driver.len() >= 8, "{what}: what it does not touch is let alone");
    drop(end);
    (stale, driver.take_told().into_iter().map(|(_, event)| event).collect())
}

#[test]
fn everybody_elses_moves_are_told_and_name_whose_they_are() {
    for advice in [Huge, Small] {
        for foreign in &FOREIGN {
            let (what, owner, _) = foreign;
            if *what == "by a merge" && advice == Huge {
                continue; // it is whole
            }
            let (stale, told) = after(foreign, advice, Ignores::Own);
            assert_eq!(stale, 0, "{what}, {advice:?}");
            assert!(
                !told.is_empty() && told.iter().all(|event| *event == moved_by(*owner)),
                "{what}: {told:?}"
            );
        }
    }
}

#[test]
fn to_leave_out_a_foreign_move_is_a_mistake_that_shows() {
    for foreign in &FOREIGN {
        let (what, owner, _) = foreign;
        assert_ne!(after(foreign, Small, Ignores::All).0, 0, "{what}");
        let of_its_device = owner.is_some_and(|owner| owner.place() == DEV);
        assert_eq!(after(foreign, Small, Ignores::ItsDevices).0 != 0, of_its_device, "{what}");
    }
}

#[test]
fn what_goes_along_in_a_clone_is_nobodys_own_there() {
    for advice in [Huge, Small] {
        let kit = kit(advice);
        let space = kit.space.space();
        let child = fork(&kit);
        let (mine, _end) = Driver::of(space, Ignores::Own);
        let (of_child, _end_too) = Driver::of(child.space(), Ignores::Own);
        for to in [DEV, Place::RAM] {
            mine.copy(space, range(0, 520));
            of_child.copy(child.space(), range(0, 520));
            let options = MigrateOptions::to(to).by(MINE);
            let report = space.migrate_as(range(0, 520), to, &options, &mut |taken| mine.drop_copies(taken));
            assert_eq!(report.expect("mapped").pages, 520);
            assert_eq!((mine.stale(space), of_child.stale(child.space()), of_child.len()), (0, 0, 0));
            assert!(of_child.take_told().iter().all(|(_, event)| *event == moved_by(None)));
            kit.audit();
        }
    }
}

#[test]
fn a_zero_page_that_the_device_finds_in_a_hole_on_its_way_is_dropped() {
    let kit = kit(Small);
    kit.map(1024, 4, Small);
    let space = kit.space.space();
    let mirror = MirrorRef::<Soft>::new(space, DEV).expect("memory");
    let (driver, _end) = Driver::of(space, Ignores::Own);
    let options = MigrateOptions::to(DEV).by(MINE);
    let report = space.migrate_as(range(1024, 4), DEV, &options, &mut |taken| {
        driver.drop_copies(taken);
        // Nothing holds a hole back: it is read after the walk, and before it gets memory.
        kit.try_read(1024).expect("the zero page");
        driver.copy(space, range(1024, 1));
    });
    assert_eq!(report.expect("mapped").holes, 4);
    assert_eq!((driver.len(), driver.stale(space)), (0, 0));
    drop(mirror);
    kit.audit();
}

#[test]
fn a_mirror_leaves_out_its_own_moves_and_no_other_mirrors() {
    for advice in [Huge, Small] {
        let kit = kit(advice);
        let space = kit.space.space();
        let open = |owner| MirrorRef::<Soft>::new(space, owner).expect("memory for a mirror");
        let (mine, same_device, other) = (open(DEV), open(DEV), open(DEV1));
        let fault = |mirror: &MirrorRef<Soft>| mirror.fault(range(0, 520), HmmWant::FAULT).expect("memory");
        let count =
            |mirror: &MirrorRef<Soft>| (0..520).filter(|&page| mirror.entry(at(page)).is_some()).count();
        for to in [DEV, Place::RAM] {
            // Some are there already: their entries stand, where nobody else has any.
            mine.migrate(range(512, 4), to).expect("mapped");
            fault(&mine);
            fault(&same_device);
            let (at_other, stays) = if to.is_ram() { (0, 4) } else { (520, 4) };
            if !to.is_ram() {
                // This one would fetch pages from the device, and what is mapped by the others with them.
                other.fault(range(0, 512), HmmWant::FAULT).expect("memory");
                other.fault(range(516, 4), HmmWant::FAULT).expect("memory");
                assert_eq!(count(&other), at_other - 4);
            }
            assert_eq!((count(&mine), count(&same_device)), (520, 520));
            mine.migrate(range(0, 520), to).expect("mapped");
            assert_eq!((count(&mine), count(&same_device), count(&other)), (stays, 0, 0), "{advice:?}, {to}");
            kit.audit();
            fault(&mine);
            assert!((0..520).all(|page| mine.entry(at(page)).is_some_and(|e| e.frame.place() == to)));
            kit.audit();
        }
        // A touch of its own page, and an eviction, are not its own doing.
        mine.migrate(range(0, 520), DEV).expect("mapped");
        fault(&mine);
        kit.check(512, 1);
        assert_eq!(mine.entry(at(512)), None);
        kit.audit();
        let report = kit.machine.mm.evict_range(DEV, 0..8 * 512);
        assert_eq!((report.failed_pages(), count(&mine)), (0, 0));
        kit.audit();
    }
}

#[test]
fn a_batch_is_told_of_once() {
    let pages = |mib: u32| mib * 256;
    let config = Config { ram: one(512..512 + pages(80)), devices: vec![pages(72)], ..Config::default() };
    let kit = Kit::on(&config);
    let space = kit.space.space();
    for (mib, batches) in [(32, 1), (64, 2)] {
        let all = range(0, u64::from(pages(mib)));
        kit.map(0, all.nr_pages(), Huge);
        for page in (0..all.nr_pages()).step_by(512) {
            kit.fill(page, 1);
        }
        let (driver, end) = Driver::of(space, Ignores::Own);
        for to in [DEV, Place::RAM] {
            driver.take_told();
            let report = space.migrate(all, to).expect("mapped");
            assert_eq!((report.pages, report.batches), (all.nr_pages(), batches));
            let told = driver.take_told();
            assert_eq!(told.len() as u64, batches, "{mib} MiB to {to}: {told:?}");
            assert!(told.iter().all(|(_, event)| *event == moved_by(None)));
            let mut end = all.start;
            for (range, _) in told {
                assert!(range.start <= end, "without a gap");
                end = range.end;
            }
            assert_eq!(end, all.end);
        }
        drop(end);
        space.unmap(all).expect("memory");
    }
    // Nothing there, and nothing to fill: told of in large parts.
    kit.map(0, 256 * 1024, Huge);
    let (driver, _end) = Driver::of(space, Ignores::Own);
    space.migrate(range(0, 256 * 1024), Place::RAM).expect("mapped");
    let told = driver.take_told().len();
    assert!(told <= 32, "1 GiB of nothing: {told}");
    kit.audit();
}
