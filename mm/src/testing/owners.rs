//! A device's number in several hands, one after the other.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::device::{CopyEngine, DeviceKind, PagemapOps};
use crate::error::RangeError;
use crate::migrate::Cause;
use crate::mm::MapStorage;
use crate::testing::kit::{DEV, Kit, range};
use crate::testing::machine::{Soft, SoftDevice, coherent_base};
use crate::types::{Frame, Order, Place};
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// An owner that counts what it is told and asked; the copying is done by the first device's engine.
#[derive(Default)]
struct Counting {
    freed: AtomicU64,
    asked: AtomicU64,
}

impl PagemapOps<Soft> for Counting {
    fn folio_free(&self, _first: Frame, order: Order, _driver_word: u64) {
        self.freed.fetch_add(u64::from(order.pages()), Relaxed);
    }
    fn engine(&self) -> &dyn CopyEngine {
        self.asked.fetch_add(1, Relaxed);
        SoftDevice::number(0)
    }
}

impl Counting {
    fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }
    fn counts(&self) -> (u64, u64) {
        (self.freed.load(Relaxed), self.asked.load(Relaxed))
    }
}

fn storage(frames: u32) -> MapStorage {
    MapStorage::new(Box::leak((0..MapStorage::words_for(frames)).map(|_| AtomicU64::new(0)).collect()))
}

/// Registers device 0 once more, with the map that it has.
fn register(
    kit: &Kit,
    pages: u32,
    kind: DeviceKind,
    owner: &'static dyn PagemapOps<Soft>,
) -> Result<Place, RangeError> {
    kit.machine.mm.register_device(0, pages, kind, MapStorage::new(&[]), owner)
}

fn round_trip(kit: &Kit, to: Place, pages: u64) {
    let space = kit.space.space();
    let there = space.migrate(range(0, 512), to).expect("it is mapped");
    let back = space.migrate(range(0, 512), Place::RAM).expect("it is mapped");
    assert_eq!((there.pages, back.pages), (pages, pages));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_number_that_was_given_back_can_have_another_owner_and_the_first_one_again() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let (mm, owner) = (&kit.machine.mm, Counting::leaked());
    assert_eq!(register(&kit, 512, DeviceKind::Private, owner), Err(RangeError::NoDevice(0)), "it is taken");
    round_trip(&kit, DEV, 512);
    for n in 1..3 {
        mm.unregister_device(0).expect("it is empty");
        assert_eq!(register(&kit, 8 * 512, DeviceKind::Private, owner), Ok(DEV));
        let freed = kit.machine.freed_pages.get();
        round_trip(&kit, DEV, 512);
        assert_eq!(
            (owner.counts(), kit.machine.freed_pages.get()),
            ((512 * n, 1), freed),
            "the new one's alone"
        );
        mm.unregister_device(0).expect("it is empty");
        kit.machine.register_again(0);
        round_trip(&kit, DEV, 512);
        assert_eq!((owner.counts(), kit.machine.freed_pages.get()), ((512 * n, 1), freed + 512));
    }
}

#[test]
fn a_number_that_was_given_back_can_be_the_other_kind() {
    let kit = Kit::new();
    kit.machine.mm.unregister_device(0).expect("it is empty");
    let kind = DeviceKind::Coherent { base_pfn: coherent_base(0) };
    assert_eq!(register(&kit, 512, kind, SoftDevice::number(0)), Ok(Place::coherent(0)));
    assert_eq!(kit.machine.mm.device(0).memory().free, 512);
    assert_eq!(kit.machine.mm.zone(DEV).frames().start, coherent_base(0));
    kit.audit();
    kit.machine.mm.unregister_device(0).expect("it is empty");
    kit.machine.register_again(0);
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    round_trip(&kit, DEV, 512);
}

#[test]
fn there_is_room_for_so_many_owners_and_then_an_error() {
    let kit = Kit::new();
    let mm = &kit.machine.mm;
    let owners: Vec<_> = (0..7).map(|_| Counting::leaked()).collect();
    for owner in &owners {
        mm.unregister_device(0).expect("it is empty");
        assert_eq!(register(&kit, 512, DeviceKind::Private, *owner), Ok(DEV));
    }
    mm.unregister_device(0).expect("it is empty");
    let ninth = register(&kit, 512, DeviceKind::Private, Counting::leaked());
    assert_eq!(ninth, Err(RangeError::Owners(0)));
    assert!(!mm.zone(DEV).is_registered());
    // Those who were there may come back.
    assert_eq!(register(&kit, 512, DeviceKind::Private, owners[3]), Ok(DEV));
    kit.audit();
}

#[test]
fn memory_grows_within_the_map_of_the_first_time_and_no_further() {
    let kit = Kit::new();
    let mm = &kit.machine.mm;
    let owner = SoftDevice::number(1);
    let register = |pages, map| mm.register_device(1, pages, DeviceKind::Private, map, owner);
    assert_eq!(register(513, storage(512)), Err(RangeError::NoRoom(1, 512)));
    assert_eq!(register(512, MapStorage::new(&[])), Err(RangeError::NoRoom(1, 0)));
    assert_eq!(register(700, storage(1536)), Ok(Place::device(1)));
    let memory = || (mm.device(1).memory().managed, mm.device(1).memory().free);
    assert_eq!(memory(), (700, 700));
    kit.audit();
    for pages in [1536, 3, 1024] {
        mm.unregister_device(1).expect("it is empty");
        assert_eq!(register(1537, storage(2048)), Err(RangeError::NoRoom(1, 1536)));
        assert_eq!(register(pages, MapStorage::new(&[])), Ok(Place::device(1)));
        assert_eq!(memory(), (pages, pages));
        kit.audit();
    }
}

#[test]
fn what_was_on_its_way_to_a_device_that_is_taken_out_stays() {
    let kinds = [DeviceKind::Private, DeviceKind::Coherent { base_pfn: coherent_base(0) }];
    for kind in kinds {
        let kit = Kit::new();
        kit.map(0, 1024, Huge);
        kit.map(1024, 48, Small);
        kit.fill(0, 512); // and 2 MiB of nothing
        kit.fill(1024, 40);
        let (mm, space, owner) = (&kit.machine.mm, kit.space.space(), Counting::leaked());
        let (migration, _) = space.migrate_collect(range(0, 1072), DEV).expect("it is mapped");
        let unmapped = migration.unmap();
        mm.unregister_device(0).expect("nothing has come there yet");
        let place = register(&kit, 8 * 512, kind, owner).expect("the number is free");
        let report = unmapped.copy().commit().finalize();
        assert_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, 1072), "{report:?}");
        assert_eq!(kit.free(place), 8 * 512);
        kit.check_in_place(0, 512);
        kit.check_in_place(1024, 40);
        kit.audit();
        // Asked again, all of it goes.
        let report = space.migrate(range(0, 1072), place).expect("it is mapped");
        assert_eq!((report.pages, report.failed_pages()), (1072, 0), "{report:?}");
        kit.audit();
        kit.check_in_place(0, 512);
        kit.check_in_place(1024, 40);
        mm.unregister_device(0).expect("nothing is held");
        kit.check(0, 512);
        kit.check(1024, 40);
        kit.audit();
    }
}

#[test]
fn a_map_that_reaches_beyond_the_last_frame_is_refused() {
    let kit = Kit::new();
    let mm = &kit.machine.mm;
    let base_pfn = u32::MAX - 511;
    let kind = DeviceKind::Coherent { base_pfn };
    let one = |map| mm.register_device(1, 1, kind, map, SoftDevice::number(1));
    assert_eq!(one(storage(1024)), Err(RangeError::Frames(base_pfn)));
    assert!(!mm.zone(Place::device(1)).is_registered());
    // Nor with the map of a former registration, whatever comes with the call.
    assert_eq!(
        mm.register_device(1, 1024, DeviceKind::Private, storage(1024), SoftDevice::number(1)),
        Ok(Place::device(1))
    );
    mm.unregister_device(1).expect("it is empty");
    assert_eq!(one(storage(0)), Err(RangeError::Frames(base_pfn)));
    kit.audit();
}
