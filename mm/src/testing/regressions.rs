//! Lists that once failed, shrunk.

use std::cell::Cell;
use std::rc::Rc;

use crate::exercise::{Action::*, Step};
use crate::testing::host::{Watch, run};
use crate::testing::kit::{Kit, range};
use crate::testing::machine::{Config, Mood};
use crate::types::{Place, Prot};
use crate::vma::HugeAdvice;

/// Runs a list with everything watched.
fn passes(config: &Config, steps: &[Step]) {
    let watch = Watch { skip: None, no_stale: true };
    if let Err(failure) = run(config, steps, &watch) {
        panic!("step {}: {}", failure.step, failure.what);
    }
}

fn config() -> Config {
    Config {
        cpus: 2,
        ram: vec![545..1418, 1425..6656],
        devices: vec![4096, 998],
        chaos: 60,
        late_copies: false,
        coherent: Vec::new(),
        mood: Mood::Steady,
    }
}

#[test]
fn a_head_is_smaller_when_its_owner_hears_of_a_tail() {
    let steps = [
        Step(2622776991, Map { space: 0, start: 1024, len: 1024, prot: 7, huge: true }),
        Step(1183727789, Migrate { space: 0, start: 1024, len: 1024, to: 1 }),
        Step(681630009, Migrate { space: 0, start: 1024, len: 1, to: 0 }),
    ];
    passes(&config(), &steps);
}

#[test]
fn a_batch_of_exactly_the_inline_units_leaves_no_chunk_behind() {
    let steps = [
        Step(1, Map { space: 0, start: 0, len: 512, prot: 3, huge: false }),
        Step(2, Fill { cpu: 0, space: 0, start: 0, len: 8 }),
        Step(3, Migrate { space: 0, start: 0, len: 8, to: 1 }),
        Step(4, Migrate { space: 0, start: 0, len: 512, to: 0 }),
        Step(5, Chaos { n: 0 }),
        Step(6, Chaos { n: 0 }),
        Step(7, Chaos { n: 0 }),
        Step(8, Chaos { n: 0 }),
    ];
    passes(&config(), &steps);
}

#[test]
fn a_write_to_a_zero_folio_that_crosses_vmas_takes_small_pages() {
    let steps = [
        Step(1, Map { space: 0, start: 0, len: 512, prot: 3, huge: true }),
        Step(2, Read { cpu: 0, space: 0, page: 481 }),
        Step(3, Advise { space: 0, start: 0, len: 128, huge: false }),
        Step(4, Write { cpu: 0, space: 0, page: 255 }),
        Step(5, Write { cpu: 0, space: 0, page: 5 }),
        Step(6, Check { cpu: 0, space: 0, start: 0, len: 512 }),
        Step(7, Chaos { n: 0 }),
        Step(8, Chaos { n: 0 }),
    ];
    passes(&config(), &steps);
}

#[test]
fn a_hole_that_is_forbidden_while_its_page_is_on_the_way_gets_a_hidden_page() {
    let steps = [
        Step(2870701853, Map { space: 7, start: 1152, len: 512, prot: 7, huge: false }),
        Step(
            934290564,
            Park { space: 7, start: 1024, len: 512, to: 1, phases: 0, what: 1, gone: (0, 512), finish: true },
        ),
        Step(3, Read { cpu: 0, space: 7, page: 1152 }),
    ];
    passes(&config(), &steps);
}

#[test]
fn a_device_hears_of_a_zero_folio_that_becomes_zero_pages() {
    let steps = [
        Step(421867114, Hold { place: 0, order: 0, keep: 1100, reserve: false }),
        Step(2387625837, Mirror { space: 2, device: 1 }),
        Step(1159186614, Map { space: 5, start: 0, len: 512, prot: 3, huge: true }),
        Step(1572571997, Device { space: 2, start: 1536, len: 5, what: 0 }),
        Step(3921220272, Fill { cpu: 7, space: 2, start: 1536, len: 8 }),
        Step(1, Release),
        Step(2, Chaos { n: 0 }),
        Step(3, Chaos { n: 0 }),
    ];
    let config =
        Config { ram: vec![526..1044, 1051..20992], devices: vec![1024, 999], late_copies: true, ..config() };
    passes(&config, &steps);
}

#[test]
fn a_device_hears_of_lent_pages_that_move() {
    let steps = [
        Step(4196362290, Map { space: 7, start: 512, len: 512, prot: 3, huge: true }),
        Step(2164901963, Mirror { space: 7, device: 1 }),
        Step(664357016, Device { space: 1, start: 512, len: 7, what: 2 }),
        Step(4158220225, Track { space: 7, start: 512, len: 1, what: 1 }),
        Step(1690936834, Migrate { space: 1, start: 512, len: 512, to: 1 }),
        Step(1, Chaos { n: 0 }),
        Step(2, Chaos { n: 0 }),
        Step(3, Chaos { n: 0 }),
    ];
    let config =
        Config { cpus: 3, ram: vec![529..1091, 1098..5632], devices: vec![2048, 1006], chaos: 0, ..config() };
    passes(&config, &steps);
}

/// The destination begins in the 2 MiB in which the source ends: the table that it gets there is the source's too.
#[test]
fn what_moves_to_a_place_beside_itself_has_the_tables_it_needs() {
    let steps = [
        Step(1613007992, Map { space: 7, start: 1024, len: 1024, prot: 1, huge: true }),
        Step(208787985, Check { cpu: 3, space: 7, start: 1025, len: 2 }),
        Step(
            3749529253,
            Park { space: 1, start: 769, len: 667, to: 0, phases: 3, what: 10, gone: (0, 667), finish: true },
        ),
    ];
    let config = Config {
        ram: vec![513..1027, 1034..8704],
        devices: vec![1024, 1012, 3072],
        chaos: 0,
        late_copies: true,
        ..config()
    };
    passes(&config, &steps);
}

/// A huge page lies under two VMAs since a tracker has cut them: the one who is to write gets its copy all the same.
#[test]
fn a_copy_for_a_write_may_lie_under_two_vmas() {
    let steps = [
        Step(3834478261, Map { space: 2, start: 1536, len: 1024, prot: 3, huge: true }),
        Step(3446416578, Write { cpu: 3, space: 5, page: 101 }),
        Step(3988602091, Track { space: 2, start: 1536, len: 1, what: 1 }),
        Step(4039383331, Fork { from: 5, to: 1 }),
        Step(414849814, Fetch { space: 4, start: 1536, len: 512, to: 0, fault: true, write: true }),
    ];
    let config = Config {
        cpus: 2,
        ram: vec![514..1247, 1254..12800],
        devices: vec![4096, 1001, 3072],
        coherent: vec![0],
        chaos: 60,
        late_copies: false,
        mood: Mood::Steady,
    };
    passes(&config, &steps);
}

/// Another CPU writes between the look at an entry and the moment from which nobody can: the write is in the clone too.
#[test]
fn a_clone_knows_of_a_write_that_came_while_it_was_made() {
    let steps = [
        Step(3683308903, Write { cpu: 2, space: 4, page: 512 }),
        Step(2257915953, Write { cpu: 1, space: 3, page: 763 }),
        Step(1296373356, Write { cpu: 0, space: 1, page: 1970 }),
        Step(462768500, Write { cpu: 2, space: 1, page: 1613 }),
        Step(774729164, Map { space: 1, start: 0, len: 2, prot: 3, huge: true }),
        Step(759855310, Write { cpu: 5, space: 3, page: 0 }),
        Step(2784329657, Read { cpu: 1, space: 3, page: 1092 }),
        Step(2244409414, Fill { cpu: 7, space: 4, start: 0, len: 8 }),
        Step(1000272853, Fork { from: 7, to: 2 }),
        Step(2688875439, Map { space: 4, start: 512, len: 1024, prot: 3, huge: true }),
        Step(352180766, Read { cpu: 3, space: 6, page: 1199 }),
        Step(2932250791, Map { space: 4, start: 0, len: 512, prot: 7, huge: true }),
        Step(1845725630, Write { cpu: 3, space: 4, page: 512 }),
        Step(3557374339, Map { space: 3, start: 1024, len: 512, prot: 1, huge: true }),
        Step(4172287626, Map { space: 7, start: 512, len: 1024, prot: 1, huge: true }),
        Step(536562186, Advise { space: 6, start: 0, len: 1024, huge: false }),
        Step(976881409, Device { space: 7, start: 512, len: 8, what: 0 }),
        Step(3034672115, Unmap { space: 2, start: 0, len: 512 }),
        Step(2024794849, Contents { space: 6, start: 1024, len: 512, advice: 0 }),
        Step(1390414307, Migrate { space: 5, start: 512, len: 1024, to: 0 }),
        Step(2205612527, Unmap { space: 0, start: 1024, len: 512 }),
        Step(2417196973, Map { space: 7, start: 512, len: 512, prot: 3, huge: true }),
        Step(2860156883, Map { space: 0, start: 1536, len: 1024, prot: 3, huge: true }),
        Step(379550734, Write { cpu: 2, space: 4, page: 0 }),
        Step(381698711, Fill { cpu: 1, space: 6, start: 64, len: 8 }),
        Step(248891047, Map { space: 0, start: 0, len: 512, prot: 3, huge: true }),
        Step(1658712887, Contents { space: 3, start: 1536, len: 1024, advice: 1 }),
        Step(1806201888, Write { cpu: 5, space: 3, page: 283 }),
        Step(3557621237, Fork { from: 3, to: 2 }),
    ];
    let config = Config {
        cpus: 3,
        ram: vec![540..1056, 1063..10752],
        devices: vec![6144, 1009, 1024],
        coherent: vec![2],
        chaos: 20,
        ..config()
    };
    passes(&config, &steps);
}

/// A private mapping of an object takes the place of the mapping whose hole was found, and inherits its set.
#[test]
fn a_hole_that_an_object_has_taken_is_not_filled_with_zeros() {
    let steps = [
        Step(
            3406272325,
            MapObject { space: 2, start: 512, len: 479, prot: 3, object: 0, index: 0, shared: true },
        ),
        Step(3167352781, Fill { cpu: 5, space: 2, start: 512, len: 574 }),
        Step(2877681964, Map { space: 0, start: 1536, len: 256, prot: 3, huge: true }),
        Step(
            1370294463,
            Park { space: 3, start: 512, len: 304, to: 1, phases: 0, what: 17, gone: (0, 304), finish: true },
        ),
    ];
    let config = Config {
        cpus: 3,
        ram: vec![526..1082, 1089..12800],
        devices: vec![6144, 1001, 3072],
        coherent: vec![0, 2],
        chaos: 0,
        ..config()
    };
    passes(&config, &steps);
}

/// A run of one folio's entries that begins with one that is not present: the rest of it waits for the flush all the same.
#[test]
fn a_page_whose_mapping_is_partly_hidden_outlives_its_translations() {
    let kit = Kit::on(&Config { coherent: vec![0], ..Config::default() });
    let coherent = Place::coherent(0);
    kit.map(0, 512, HugeAdvice::Huge);
    kit.fill(0, 512);
    let space = kit.space.space();
    assert_eq!(space.migrate(range(0, 512), coherent).map(|report| report.huge_pages), Ok(512));
    space.protect(range(0, 1), Prot::empty()).expect("mapped");
    let freed = Rc::new(Cell::new(0));
    let note = Rc::clone(&freed);
    *kit.machine.on_free.borrow_mut() = Some(Box::new(move |_, order| {
        note.set(note.get() + order.pages());
        assert_eq!(space.flush.pending(), 0, "a translation may live yet");
    }));
    space.unmap(range(0, 512)).expect("memory for the work");
    *kit.machine.on_free.borrow_mut() = None;
    assert_eq!((freed.get(), kit.free(coherent)), (512, 8 * 512));
    kit.audit();
}
