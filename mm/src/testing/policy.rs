//! Each policy does something, and what it does is what its name says: by entries, folios and counters.

use crate::counters::Event;
use crate::entry::{Entry, SoftKind};
use crate::exercise::generate;
use crate::inject::Site;
use crate::policy::{FlushPolicy, HugePages, MAX_BATCH_UNITS, MAX_FLUSH_PAGES, Policy};
use crate::space::Space;
use crate::testing::host::{Watch, run, shape};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Mood, Soft};
use crate::testing::shared::{check_shared, sharer};
use crate::types::{Level, Order, Place, VaRange};
use crate::vma::HugeAdvice::{self, Huge};

fn policy(kit: &Kit) -> &'static Policy {
    &kit.machine.state().mm.policy
}

/// Pages of `len` from page `start` that lie on a device.
fn on_device(space: &Space<Soft>, start: u64, len: u64) -> u64 {
    let is_there = |page: &u64| match space.entry_at(at(*page)).1 {
        Entry::NonPresent(soft) => soft.kind == SoftKind::DevicePrivate,
        _ => false,
    };
    (start..start + len).filter(is_there).count() as u64
}

/// A filled huge page on the device.
fn huge_on_device() -> Kit {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.fill(0, 512);
    let report = kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    assert_eq!(report.huge_pages, 512);
    kit
}

#[test]
fn a_touch_brings_its_granule_and_leaves_the_rest() {
    for (order, page) in
        [(0, 0), (0, 37), (0, 511), (1, 300), (4, 0), (4, 37), (4, 511), (8, 255), (8, 256), (9, 100)]
    {
        let kit = huge_on_device();
        policy(&kit).set_granule(Order::new(order));
        let before = kit.machine.counted(Event::DevicePagesOut);
        assert_eq!(kit.try_read(page), Ok(Kit::value(page)));
        let granule = 1_u64 << order;
        assert_eq!(
            kit.machine.counted(Event::DevicePagesOut) - before,
            granule,
            "order {order}, page {page}"
        );
        assert_eq!(kit.machine.counted(Event::DeviceFault), 1, "one touch is one fault-back");
        let start = page & !(granule - 1);
        let space = kit.space.space();
        assert_eq!(on_device(space, 0, 512), 512 - granule, "order {order}, page {page}");
        assert_eq!(on_device(space, start, granule), 0, "the granule is here");
        assert_eq!(kit.free(DEV), 7 * 512 + granule as u32, "and its memory there is free");
        assert_eq!(u64::from(kit.folio(page).order().pages()), granule);
        if order != 9 {
            // As few pieces as there can be: the largest of them is half of what there was.
            let largest = (0..512).map(|page| kit.folio(page).order().get()).max();
            assert_eq!(largest, Some(8));
        }
        kit.check_in_place(0, 512);
        kit.audit();
        // The rest comes granule by granule.
        kit.check(0, 512);
        assert_eq!(kit.machine.counted(Event::DevicePagesOut) - before, 512);
        assert_eq!(kit.machine.counted(Event::DeviceFault), 512 / granule);
        kit.audit();
    }
}

#[test]
fn a_granule_of_a_page_that_others_map_comes_for_all_of_them() {
    let kit = huge_on_device();
    let others: Vec<_> = (0..2).map(|_| sharer(&kit)).collect();
    policy(&kit).set_granule(Order::new(4));
    assert_eq!(kit.try_read(100), Ok(Kit::value(100)));
    for space in [kit.space.space(), others[0].space(), others[1].space()] {
        assert_eq!((on_device(space, 0, 512), on_device(space, 96, 16)), (496, 0));
        check_shared(&kit, space, 0, 512);
    }
    kit.audit();
}

#[test]
fn what_cannot_be_cut_comes_as_a_whole() {
    for site in [Site::Table, Site::Object] {
        let kit = huge_on_device();
        policy(&kit).set_granule(Order::BASE);
        kit.machine.mm.inject.arm(site as u32, 0, 0, 1);
        assert_eq!(kit.try_read(37), Ok(Kit::value(37)));
        kit.machine.mm.inject.disarm();
        assert_eq!(on_device(kit.space.space(), 0, 512), 0, "{site:?}");
        assert_eq!(kit.folio(37).order(), Order::PMD);
        kit.check(0, 512);
        kit.audit();
    }
}

#[test]
fn no_folio_is_larger_than_the_largest_order() {
    for order in [0, 3, 8] {
        let kit = Kit::new();
        policy(&kit).set_max_order(Order::new(order));
        kit.map(0, 512, Huge);
        kit.fill(0, 512);
        assert_eq!(kit.machine.counted(Event::ThpFaultAlloc), 0);
        policy(&kit).set_max_order(Order::PMD);
        kit.map(512, 512, Huge);
        kit.fill(512, 512);
        kit.map(1024, 512, Huge);
        policy(&kit).set_max_order(Order::new(order));
        let space = kit.space.space();
        // A huge page and a huge hole go to the device in pieces.
        let report = space.migrate(range(512, 1024), DEV).expect("it is mapped");
        assert_eq!((report.pages, report.torn, report.huge_pages, report.holes), (1024, 512, 0, 512));
        assert!((512..1024).all(|page| kit.folio(page).order().get() == order), "order {order}");
        assert!((1024..1536).all(|page| kit.folio(page).order().get() <= order), "order {order}");
        kit.check_in_place(512, 512);
        kit.audit();
        kit.check(512, 512);
        // A huge page that is there comes back in pieces, by a touch.
        policy(&kit).set_max_order(Order::PMD);
        kit.map(2048, 512, Huge);
        kit.fill(2048, 512);
        space.migrate(range(2048, 512), DEV).expect("it is mapped");
        assert_eq!(kit.folio(2048).order(), Order::PMD);
        policy(&kit).set_max_order(Order::new(order));
        assert_eq!(kit.try_read(2050), Ok(Kit::value(2050)));
        assert_eq!(on_device(space, 2048, 512), 0, "all of it");
        assert!((2048..2560).all(|page| kit.folio(page).order().get() == order), "order {order}");
        kit.check(2048, 512);
        kit.audit();
    }
}

#[test]
fn huge_pages_are_for_everybody_for_those_who_ask_or_for_nobody() {
    let expected = [
        (HugePages::Always, [true, true, false]),
        (HugePages::Madvise, [false, true, false]),
        (HugePages::Never, [false, false, false]),
    ];
    for (huge, expected) in expected {
        let kit = Kit::new();
        policy(&kit).set_huge(huge);
        for (advice, expected) in [HugeAdvice::Default, Huge, HugeAdvice::NoHuge].into_iter().zip(expected) {
            let start = 512 * (1 + advice as u64);
            kit.map(start, 512, advice);
            kit.try_write(start).expect("memory");
            let level = kit.space.entry_at(at(start)).0;
            assert_eq!(level == Level::Pmd, expected, "{huge:?}, {advice:?}");
        }
        kit.audit();
    }
}

#[test]
fn a_batch_has_so_many_units_and_one_flush_round() {
    for (units, pages, batches) in [(1, 20, 20), (7, 20, 3), (64, 600, 10), (65, 600, 10), (600, 600, 1)] {
        let kit = Kit::new();
        kit.map(0, 600, HugeAdvice::NoHuge);
        kit.fill(0, pages);
        policy(&kit).set_batch_units(units);
        let before = kit.machine.counted(Event::TlbFlush);
        let report = kit.space.space().migrate(range(0, pages), DEV).expect("it is mapped");
        assert_eq!((report.units, report.batches), (pages, batches), "{units} units");
        assert_eq!(kit.machine.counted(Event::TlbFlush) - before, batches);
        let back = kit.machine.mm.evict_range(DEV, 0..4096);
        // The last one of an eviction finds that there is no more.
        assert!(back.units == pages && (batches..=batches + 1).contains(&back.batches), "{units}: {back:?}");
        kit.check(0, pages);
        kit.audit();
    }
}

#[test]
fn huge_units_and_holes_fill_a_batch_too() {
    let kit = Kit::new();
    kit.map(0, 5 * 512, Huge);
    kit.fill(0, 4 * 512);
    policy(&kit).set_batch_units(2);
    let report = kit.space.space().migrate(range(0, 5 * 512), DEV).expect("it is mapped");
    assert_eq!((report.units, report.batches, report.holes), (5, 3, 512));
    kit.check_in_place(0, 4 * 512);
    kit.audit();
}

/// Flushes of all translations, and pages flushed one by one, when `pages` pages are unmapped.
fn flushes_of(pages: u64, set: impl Fn(&Policy)) -> (u64, u64) {
    let kit = Kit::new();
    policy(&kit).set_flush(FlushPolicy::Auto);
    set(policy(&kit));
    kit.map(0, 600, HugeAdvice::NoHuge);
    // One page more than goes: the table stays.
    kit.fill(0, pages + 1);
    let count = || (kit.machine.counted(Event::TlbFlushAll), kit.machine.counted(Event::TlbFlushOne));
    let before = count();
    kit.space.space().advise(range(0, pages), crate::advise::Advice::DontNeed).expect("it is mapped");
    let after = count();
    kit.audit();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn a_range_is_flushed_page_by_page_up_to_the_threshold() {
    assert_eq!(flushes_of(32, |_| {}), (0, 32), "the default");
    assert_eq!(flushes_of(33, |_| {}), (1, 0), "the default");
    assert_eq!(flushes_of(33, |policy| policy.set_flush_threshold(33)), (0, 33));
    assert_eq!(flushes_of(1, |policy| policy.set_flush_threshold(0)), (1, 0));
    assert_eq!(flushes_of(1, |policy| policy.set_flush(FlushPolicy::Full)), (1, 0));
    assert_eq!(flushes_of(500, |policy| policy.set_flush(FlushPolicy::Ranged)), (0, 500));
    // The threshold is kept while another policy has its way.
    let back = |policy: &Policy| {
        policy.set_flush(FlushPolicy::Full);
        policy.set_flush_threshold(7);
        policy.set_flush(FlushPolicy::Auto);
    };
    assert_eq!((flushes_of(7, back), flushes_of(8, back)), ((0, 7), (1, 0)));
}

#[test]
fn what_would_take_seconds_is_flushed_at_once() {
    let policy = Policy::new();
    policy.set_flush(FlushPolicy::Ranged);
    let most = u64::from(MAX_FLUSH_PAGES) * 4096;
    let scope = |len| crate::machine::FlushScope::Range { range: VaRange::new(0, len), stride: 4096 };
    assert_eq!(policy.flush_scope(scope(most)), scope(most));
    assert_eq!(policy.flush_scope(scope(most + 4096)), crate::machine::FlushScope::All);
    policy.set_flush(FlushPolicy::Auto);
    policy.set_flush_threshold(u32::MAX);
    assert_eq!(policy.flush_scope(scope(most + 4096)), crate::machine::FlushScope::All);
    policy.set_batch_units(0);
    assert_eq!(policy.batch_units(), 1);
    policy.set_batch_units(u32::MAX);
    assert_eq!(policy.batch_units(), MAX_BATCH_UNITS as usize);
}

#[test]
fn a_reset_brings_the_defaults_back() {
    let (policy, fresh) = (Policy::new(), Policy::new());
    policy.set_huge(HugePages::Always);
    policy.set_max_order(Order::new(3));
    policy.set_granule(Order::BASE);
    policy.set_batch_units(1);
    policy.set_flush(FlushPolicy::Full);
    policy.set_flush_threshold(1);
    policy.set_break_before_make(false);
    assert_ne!(format!("{policy:?}"), format!("{fresh:?}"));
    policy.reset();
    assert_eq!(format!("{policy:?}"), format!("{fresh:?}"));
}

/// With nobody in between, the wrong order leaves the right thing behind: a split, a copy and a replaced zero folio.
#[test]
fn the_new_before_the_old_is_right_where_nobody_looks() {
    let kit = Kit::on(&Config { mood: Mood::MakeFirst, ..Config::default() });
    kit.map(0, 1024, Huge);
    kit.fill(0, 512);
    assert_eq!(kit.try_read(600), Ok(0));
    let other = sharer(&kit);
    kit.space.space().unmap(range(500, 12)).expect("memory");
    kit.try_write(7).expect("memory");
    kit.check(0, 500);
    check_shared(&kit, other.space(), 0, 512);
    policy(&kit).set_max_order(Order::new(8));
    kit.space.space().migrate(range(512, 512), DEV).expect("it is mapped");
    assert_eq!(kit.try_read(600), Ok(0));
    kit.audit();
    drop(other);
    assert_eq!(
        kit.space.space().migrate(range(0, 500), Place::RAM).map(|report| report.failed_pages()),
        Ok(0)
    );
    kit.audit();
}

/// With CPUs that walk at any moment it is not: the host's TLBs see two live translations of one address.
#[test]
fn the_new_before_the_old_is_noticed_where_somebody_looks() {
    let watch = Watch { skip: None, no_stale: false };
    let failure = (0..120).find_map(|seed| {
        let config = Config { mood: Mood::MakeFirst, ..shape(seed) };
        if config.chaos == 0 {
            return None;
        }
        run(&config, &generate(seed, 1000), &watch).err()
    });
    let what = failure.expect("somebody notices").what;
    assert!(what.contains("two live sizes") || what.contains("two live frames"), "{what}");
}
