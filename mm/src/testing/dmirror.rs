//! The command set of the test device: what each command counts, and what it leaves behind.

use crate::advise::Advice;
use crate::entry::{Entry, SoftKind};
use crate::exercise::Rng;
use crate::mirror::dmirror::{Dmirror, DmirrorError, Done, PAGE_WORDS, Snap};
use crate::object::Object;
use crate::space::AddressSpace;
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Level, Place, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

const DEV1: Place = Place::device(1);
const COH: Place = Place::coherent(2);

fn kit() -> Kit {
    Kit::on(&Config { devices: vec![8 * 512; 3], coherent: vec![2], ..Config::default() })
}

fn open(kit: &Kit, device: Place) -> Dmirror<Soft> {
    Dmirror::open(device, &kit.space).expect("the device is there")
}

/// The first words of the pages that a command has read.
fn firsts(words: &[u64]) -> Vec<u64> {
    words.chunks(PAGE_WORDS).map(|page| page[0]).collect()
}

fn values(start: u64, len: u64) -> Vec<u64> {
    (start..start + len).map(Kit::value).collect()
}

fn buffer(pages: u64) -> Vec<u64> {
    vec![u64::MAX; pages as usize * PAGE_WORDS]
}

/// READ: the count and what was read.
fn read(device: &Dmirror<Soft>, start: u64, len: u64) -> Result<(Done, Vec<u64>), DmirrorError> {
    let mut words = buffer(len);
    let done = device.read(at(start), &mut words)?;
    Ok((done, firsts(&words)))
}

/// WRITE: page n gets n + `salt`.
fn write(device: &Dmirror<Soft>, start: u64, len: u64, salt: u64) -> Result<Done, DmirrorError> {
    let mut words = vec![0; len as usize * PAGE_WORDS];
    for (page, words) in (start..).zip(words.chunks_mut(PAGE_WORDS)) {
        words[0] = page + salt;
    }
    device.write(at(start), &words)
}

fn to_device(device: &Dmirror<Soft>, start: u64, len: u64) -> Result<(Done, Vec<u64>), DmirrorError> {
    let mut words = buffer(len);
    let done = device.migrate_to_device(at(start), &mut words)?;
    Ok((done, firsts(&words)))
}

fn snapshot(device: &Dmirror<Soft>, start: u64, len: u64) -> Vec<Snap> {
    let mut bytes = vec![0xee; len as usize];
    device.snapshot(at(start), &mut bytes).expect("a snapshot refuses nothing");
    bytes.into_iter().map(Snap::from_bits_retain).collect()
}

fn expect_word(kit: &Kit, page: u64, value: u64) {
    assert_eq!(kit.try_read(page), Ok(value), "page {page}");
}

const fn done(cpages: u64, faults: u64) -> Done {
    Done { cpages, faults }
}

#[test]
fn reads_and_writes_fault_once_and_count_pages() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 1024, Small);
    kit.fill(2, 1022);
    kit.space.space().protect(range(0, 1024), Prot::READ).expect("mapped");
    kit.try_read(1).expect("the zero page");
    let (counts, words) = read(&device, 0, 1024).expect("readable");
    assert_eq!(counts, done(1024, 1));
    assert_eq!((words[0], words[1], &words[2..]), (0, 0, &values(2, 1022)[..]));
    assert_eq!(read(&device, 0, 1024).expect("readable").0, done(1024, 0), "all of it is in its table");
    assert_eq!(write(&device, 5, 10, 7), Err(DmirrorError::Perm));
    kit.space.space().protect(range(0, 1024), Prot::RW).expect("mapped");
    assert_eq!(write(&device, 0, 1024, 7), Ok(done(1024, 1)));
    assert_eq!(write(&device, 0, 1024, 9), Ok(done(1024, 0)));
    (0..1024).for_each(|page| expect_word(&kit, page, page + 9));
    kit.audit();
    kit.space.space().protect(range(0, 1024), Prot::empty()).expect("mapped");
    assert_eq!(read(&device, 0, 1024), Err(DmirrorError::Fault));
    kit.space.space().protect(range(0, 1024), Prot::READ).expect("mapped");
    (0..1024).for_each(|page| expect_word(&kit, page, page + 9));
    kit.audit();
}

#[test]
fn a_write_to_nothing_makes_pages_huge_where_they_are_wanted() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 512, Huge);
    kit.map(512, 64, Small);
    assert_eq!(write(&device, 0, 576, 3), Ok(done(576, 1)));
    assert_eq!((kit.space.entry_at(at(7)).0, kit.space.entry_at(at(520)).0), (Level::Pmd, Level::Pte));
    (0..576).for_each(|page| expect_word(&kit, page, page + 3));
    kit.audit();
}

#[test]
fn a_migration_to_the_device_counts_what_the_device_finds_and_back_what_moved() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 512, Huge);
    kit.map(512, 100, Small);
    kit.fill(0, 612);
    let (counts, words) = to_device(&device, 0, 612).expect("room");
    assert_eq!((counts, words), (done(612, 0), values(0, 612)));
    assert_eq!(snapshot(&device, 3, 2), [Snap::DEV_PRIVATE_LOCAL | Snap::WRITE | Snap::PMD; 2]);
    assert_eq!(snapshot(&device, 512, 1), [Snap::DEV_PRIVATE_LOCAL | Snap::WRITE]);
    // The device's own accesses leave it there.
    assert_eq!(write(&device, 4, 1, 1000), Ok(done(1, 0)));
    assert_eq!(snapshot(&device, 4, 1), [Snap::DEV_PRIVATE_LOCAL | Snap::WRITE | Snap::PMD]);
    expect_word(&kit, 520, Kit::value(520));
    // Part of it came back: what is there stays, the rest goes again.
    assert_eq!(to_device(&device, 500, 112).expect("room").0, done(112, 0));
    assert_eq!(device.migrate_to_system(range(0, 612)), Ok(done(101, 0)), "a huge page is one");
    expect_word(&kit, 4, 1004);
    kit.check(5, 607);
    assert_eq!(kit.free(DEV), 8 * 512);
    kit.audit();
}

#[test]
fn what_cannot_move_is_not_found_and_what_is_no_mapping_is_invalid() {
    let kit = kit();
    let (device, other) = (open(&kit, DEV), open(&kit, DEV1));
    let shared = Object::anon_shared(8).expect("memory");
    kit.space.space().map_shared(range(64, 8), Prot::RW, &shared, 0).expect("free");
    assert_eq!(to_device(&device, 64, 8), Err(DmirrorError::NotThere));
    kit.map(0, 6, Small);
    kit.space.space().protect(range(0, 6), Prot::empty()).expect("mapped");
    assert_eq!(to_device(&device, 0, 6), Err(DmirrorError::Invalid));
    kit.space.space().unmap(range(1, 1)).expect("memory");
    assert_eq!(to_device(&device, 0, 3), Err(DmirrorError::Invalid));
    let space = kit.space.space();
    space.protect(range(2, 1), Prot::READ).expect("mapped");
    kit.try_read(2).expect("the zero page");
    space.protect(range(3, 3), Prot::RW).expect("mapped");
    kit.fill(3, 3);
    space.protect(range(3, 1), Prot::READ).expect("mapped");
    let (counts, words) = to_device(&other, 2, 4).expect("several VMAs");
    assert_eq!((counts, words[0], &words[1..]), (done(4, 0), 0, &values(3, 3)[..]));
    assert_eq!(to_device(&device, 5, 1), Err(DmirrorError::NotThere), "another's");
    kit.check(3, 3);
    drop(shared);
    kit.audit();
}

#[test]
fn a_snapshot_tells_every_kind_of_page_apart() {
    let kit = kit();
    let (device, other) = (open(&kit, DEV), open(&kit, DEV1));
    kit.map(0, 8, Small);
    let space = kit.space.space();
    kit.fill(3, 5);
    kit.try_read(2).expect("the zero page");
    space.protect(range(0, 1), Prot::empty()).expect("mapped");
    space.protect(range(2, 2), Prot::READ).expect("mapped");
    space.unmap(range(1, 1)).expect("memory");
    to_device(&device, 5, 1).expect("room");
    to_device(&other, 6, 1).expect("room");
    space.migrate(range(7, 1), COH).expect("mapped");
    let expected = [
        Snap::ERROR,
        Snap::ERROR,
        Snap::ZERO | Snap::READ,
        Snap::READ,
        Snap::WRITE,
        Snap::DEV_PRIVATE_LOCAL | Snap::WRITE,
        Snap::empty(),
        Snap::DEV_COHERENT_REMOTE | Snap::WRITE,
    ];
    assert_eq!(snapshot(&device, 0, 8), expected);
    assert_eq!(snapshot(&open(&kit, COH), 7, 1), [Snap::DEV_COHERENT_LOCAL | Snap::WRITE]);
    kit.map(512, 512, Huge);
    kit.fill(512, 1);
    assert!(snapshot(&device, 512, 512).iter().all(|s| *s == Snap::WRITE | Snap::PMD));
    space.protect(range(512, 512), Prot::READ).expect("mapped");
    assert!(snapshot(&device, 512, 512).iter().all(|s| *s == Snap::READ | Snap::PMD));
    kit.audit();
}

#[test]
fn a_coherent_device_reads_and_writes_its_pages_where_they_lie() {
    let kit = kit();
    let device = open(&kit, COH);
    kit.map(0, 512, Huge);
    kit.map(512, 8, Small);
    kit.fill(0, 520);
    let (counts, words) = to_device(&device, 0, 520).expect("room");
    assert_eq!((counts, words), (done(520, 0), values(0, 520)));
    assert_eq!(write(&device, 513, 2, 5), Ok(done(2, 0)));
    expect_word(&kit, 514, 519);
    assert_eq!(
        snapshot(&device, 514, 1),
        [Snap::DEV_COHERENT_LOCAL | Snap::WRITE],
        "a CPU's touch does not move it"
    );
    assert_eq!(device.migrate_to_system(range(0, 520)), Ok(done(9, 0)));
    kit.check(0, 512);
    kit.audit();
}

#[test]
fn a_failed_huge_allocation_gives_single_pages_once() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 1024, Huge);
    kit.fill(0, 1024);
    device.fail_next_huge();
    assert_eq!(to_device(&device, 0, 512).expect("room"), (done(512, 0), values(0, 512)));
    assert_eq!(kit.space.entry_at(at(0)).0, Level::Pte);
    assert_eq!(to_device(&device, 512, 512).expect("room").0, done(512, 0));
    assert_eq!(kit.space.entry_at(at(512)).0, Level::Pmd, "once");
    device.fail_next_huge();
    assert_eq!(device.migrate_to_system(range(512, 512)), Ok(done(512, 0)), "one for each page");
    assert_eq!(kit.space.entry_at(at(512)).0, Level::Pte);
    kit.check(0, 1024);
    // Of a hole, and of the zero folio.
    for (start, touch) in [(1024, false), (1536, true)] {
        kit.map(start, 512, Huge);
        if touch {
            kit.try_read(start).expect("the zero folio");
        }
        device.fail_next_huge();
        let (counts, words) = to_device(&device, start, 512).expect("room");
        assert_eq!((counts, words), (done(512, 0), vec![0; 512]));
        (start..start + 512).for_each(|page| expect_word(&kit, page, 0));
    }
    kit.audit();
}

#[test]
fn exclusive_pages_are_the_devices_until_a_cpu_comes() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 512, Huge);
    kit.map(512, 16, Small);
    kit.fill(0, 528);
    let mut words = buffer(528);
    assert_eq!(device.exclusive(at(0), &mut words), Ok(done(528, 0)));
    assert_eq!(firsts(&words), values(0, 528));
    assert_eq!(device.check_exclusive(range(520, 1)), Err(DmirrorError::Perm));
    assert_eq!(write(&device, 513, 1, 50), Ok(done(1, 0)), "it may, and nothing is taken back");
    kit.audit();
    kit.check(0, 513);
    expect_word(&kit, 513, 563);
    kit.check(514, 14);
    assert_eq!(device.check_exclusive(range(0, 528)), Ok(()));
    kit.audit();
    // Protection takes it away.
    device.exclusive(at(0), &mut words).expect("memory");
    kit.space.space().protect(range(0, 528), Prot::READ).expect("mapped");
    assert_eq!(device.check_exclusive(range(0, 528)), Ok(()));
    assert_eq!(write(&device, 0, 528, 0), Err(DmirrorError::Perm));
    kit.audit();
}

#[test]
fn a_clone_takes_lent_pages_back_and_each_side_has_its_own() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 512, Huge);
    kit.map(512, 16, Small);
    kit.fill(0, 528);
    device.exclusive(at(0), &mut buffer(528)).expect("memory");
    let child = AddressSpace::clone_of(&kit.space, |_| {}).expect("memory");
    assert_eq!(device.check_exclusive(range(0, 528)), Ok(()));
    let of_child = Dmirror::open(DEV, &child).expect("the device is there");
    assert_eq!(write(&of_child, 500, 20, 3), Ok(done(20, 1)));
    assert_eq!(read(&of_child, 499, 22).expect("readable").1[1..21], (503..523).collect::<Vec<_>>());
    kit.check(0, 528);
    assert_eq!(write(&device, 0, 2, 8), Ok(done(2, 1)));
    assert_eq!(read(&of_child, 0, 2).expect("readable").1, values(0, 2));
    drop(of_child);
    drop(child);
    kit.audit();
}

#[test]
fn a_clone_of_device_pages_is_written_by_one_and_read_by_the_other() {
    for huge in [false, true] {
        let kit = kit();
        let device = open(&kit, DEV);
        kit.map(0, 512, if huge { Huge } else { Small });
        kit.fill(0, 512);
        to_device(&device, 0, 512).expect("room");
        let child = AddressSpace::clone_of(&kit.space, |_| {}).expect("memory");
        let of_child = Dmirror::open(DEV, &child).expect("the device is there");
        assert_eq!(read(&of_child, 0, 512).expect("readable"), (done(512, 1), values(0, 512)));
        assert!(
            snapshot(&of_child, 0, 512)
                .iter()
                .all(|s| s.contains(Snap::DEV_PRIVATE_LOCAL | Snap::READ) && !s.contains(Snap::WRITE))
        );
        // A write to a page that is shared copies it: the device's write permission did not survive the clone.
        assert_eq!(write(&of_child, 0, 512, 9), Ok(done(512, 1)));
        assert_eq!(read(&device, 0, 512).expect("readable").1, values(0, 512));
        drop(of_child);
        drop(child);
        kit.check(0, 512);
        kit.audit();
    }
}

#[test]
fn shared_memory_and_files_are_written_for_all() {
    let kit = kit();
    let device = open(&kit, DEV);
    let file = Object::file(16).expect("memory");
    kit.space.space().map_shared(range(0, 16), Prot::RW, &file, 0).expect("free");
    kit.space.space().map_shared(range(64, 16), Prot::READ, &file, 0).expect("free");
    assert_eq!(write(&device, 0, 16, 100), Ok(done(16, 1)));
    let (counts, words) = read(&device, 64, 16).expect("readable");
    assert_eq!((counts, words), (done(16, 1), (100..116).collect()));
    assert_eq!(write(&device, 64, 1, 0), Err(DmirrorError::Perm));
    assert_eq!(device.exclusive(at(0), &mut buffer(1)), Err(DmirrorError::Fault), "not anonymous");
    drop(file);
    kit.audit();
}

#[test]
fn release_empties_the_device_and_the_data_is_in_ram() {
    let kit = kit();
    let device = open(&kit, DEV);
    kit.map(0, 1024, Huge);
    kit.map(1024, 64, Small);
    kit.fill(0, 1088);
    to_device(&device, 0, 1088).expect("room");
    device.release().expect("nobody holds a page");
    assert_eq!(kit.free(DEV), 8 * 512);
    assert!(snapshot(&device, 0, 1088).iter().all(|s| (*s - Snap::PMD) == Snap::WRITE));
    assert_eq!(read(&device, 0, 1088).expect("readable"), (done(1088, 1), values(0, 1088)));
    kit.check(0, 1088);
    kit.audit();
}

#[test]
fn a_close_brings_everything_back_also_what_others_put_there() {
    let kit = kit();
    let (device, other) = (open(&kit, DEV), open(&kit, DEV));
    kit.map(0, 512, Huge);
    kit.map(512, 64, Small);
    kit.fill(0, 576);
    to_device(&device, 0, 512).expect("room");
    to_device(&other, 512, 64).expect("room");
    let Entry::NonPresent(soft) = kit.space.entry_at(at(512)).1 else { panic!("it is on the device") };
    let held = kit.machine.mm.try_get_folio(soft.frame).expect("a folio");
    assert_eq!(other.close(), Err(DmirrorError::Busy), "a page that is held stays");
    assert_eq!(kit.free(DEV), 8 * 512 - 1);
    drop(held);
    to_device(&device, 0, 512).expect("room");
    let third = open(&kit, DEV);
    assert_eq!(third.close().map(|report| report.pages), Ok(512 + 1));
    assert_eq!(kit.free(DEV), 8 * 512);
    assert!(snapshot(&device, 0, 576).iter().all(|s| (*s - Snap::PMD) == Snap::WRITE));
    assert_eq!(read(&device, 0, 576).expect("readable"), (done(576, 1), values(0, 576)));
    assert_eq!(device.close().map(|report| report.pages), Ok(0));
    kit.audit();
}

#[test]
fn a_write_by_the_device_is_seen_by_the_trackers() {
    let kit = kit();
    let device = open(&kit, DEV);
    let space = kit.space.space();
    kit.map(0, 512, Huge);
    kit.map(512, 8, Small);
    kit.fill(0, 520);
    write(&device, 0, 520, 0).expect("memory");
    let soft_dirty = |page: u64| {
        let mut found = None;
        space.pagemap(range(page, 1), |_, entry| found = Some(entry.is_soft_dirty())).expect("mapped");
        found.expect("one page")
    };
    for place in [Place::RAM, DEV] {
        space.migrate(range(0, 520), place).expect("mapped");
        space.clear_soft_dirty(range(0, 520)).expect("mapped");
        assert!(!soft_dirty(3) && !soft_dirty(513));
        read(&device, 0, 520).expect("readable");
        assert!(!soft_dirty(3) && !soft_dirty(513), "{place}: a read is no write");
        assert_eq!(write(&device, 513, 1, 77), Ok(done(1, 1)), "{place}");
        assert_eq!(write(&device, 3, 1, 77), Ok(done(1, 1)), "{place}");
        assert!(soft_dirty(3) && soft_dirty(513) && !soft_dirty(514), "{place}");
        kit.audit();
    }
    expect_word(&kit, 513, 590);
    kit.audit();
}

#[test]
fn a_device_of_a_space_that_ended_does_nothing() {
    let Kit { space, machine } = kit();
    let device = Dmirror::open(DEV, &space).expect("the device is there");
    assert_eq!(Dmirror::open(Place::device(3), &space).err(), Some(DmirrorError::Invalid), "no such device");
    drop(space);
    assert_eq!(device.read(at(0), &mut buffer(1)), Err(DmirrorError::Fault));
    assert_eq!(device.migrate_to_system(range(0, 1)), Err(DmirrorError::Invalid));
    assert_eq!(device.exclusive(at(0), &mut buffer(1)), Err(DmirrorError::Invalid));
    drop(device);
    machine.mm.audit().expect("every invariant");
}

/// Random commands of two devices, and what programs and the kernel do meanwhile; every page's contents are known.
#[test]
fn random_commands_never_see_or_leave_anything_stale() {
    for seed in 0..8 {
        random_commands(seed, 300);
    }
}

const PAGES: u64 = 1024;

fn random_commands(seed: u64, steps: u64) {
    let kit = kit();
    let devices = [open(&kit, DEV), open(&kit, DEV1), open(&kit, COH)];
    let space = kit.space.space();
    let mut rng = Rng::new(seed);
    kit.map(0, 512, Huge);
    kit.map(512, 512, Small);
    let mut pages = vec![0_u64; PAGES as usize];
    for step in 0..steps {
        // Kept short, and now and then long enough for a huge page.
        let len = if rng.one_in(4) { 512 } else { 1 + rng.below(24) };
        let start = if len == 512 { rng.below(2) * 512 } else { rng.below(PAGES - len) };
        let part = range(start, len);
        let device = &devices[rng.below(3) as usize];
        let salt = mix_salt(seed, step);
        match rng.below(12) {
            0 | 1 => {
                let (counts, words) = read(device, start, len).expect("readable");
                assert_eq!(words, pages[start as usize..(start + len) as usize], "seed {seed}, step {step}");
                // A page that comes back from another device takes its neighbours along, whose copies go again.
                assert!(counts.faults <= 3, "seed {seed}, step {step}: {counts:?}");
            }
            2 | 3 => {
                write(device, start, len, salt).expect("writable");
                (start..start + len).for_each(|page| pages[page as usize] = page + salt);
            }
            4 => drop(device.migrate_to_device(at(start), &mut buffer(len))),
            5 => drop(device.migrate_to_system(part)),
            6 => drop(device.exclusive(at(start), &mut buffer(len)).expect("memory")),
            7 => {
                space.protect(part, Prot::READ).expect("mapped");
                assert_eq!(write(device, start, 1, 0), Err(DmirrorError::Perm));
                space.protect(part, Prot::RW).expect("mapped");
            }
            8 => {
                space.advise(part, Advice::DontNeed).expect("mapped");
                pages[start as usize..(start + len) as usize].fill(0);
            }
            9 if rng.one_in(3) => {
                space.unmap(part).expect("memory");
                kit.map(start, len, if rng.one_in(2) { Huge } else { Small });
                pages[start as usize..(start + len) as usize].fill(0);
            }
            9 => space.clear_soft_dirty(part).expect("mapped"),
            10 => {
                let (device, from) = (device.mirror().owner(), rng.below(8) as u32 * 512);
                let first = kit.machine.mm.zone(device).frames().start;
                let _report = kit.machine.mm.evict_range(device, first + from..first + from + 512);
            }
            _ => {
                for page in (start..start + len).step_by(1 + len as usize / 8) {
                    expect_word(&kit, page, pages[page as usize]);
                    let value = page ^ salt;
                    kit.machine.user_access(0, space, at(page), 0, Some(value)).expect("writable");
                    pages[page as usize] = value;
                }
            }
        }
        if let Err(e) = kit.machine.mm.audit() {
            panic!("seed {seed}, step {step}: {e}");
        }
    }
    for device in &devices {
        assert_eq!(read(device, 0, PAGES).expect("readable").1, pages, "seed {seed}, at the end");
    }
    (0..PAGES).for_each(|page| expect_word(&kit, page, pages[page as usize]));
    let lent = |page| matches!(space.entry_at(at(page)).1, Entry::NonPresent(s) if s.kind == SoftKind::DeviceExclusive);
    assert!(!(0..PAGES).any(lent), "the programs took everything back");
    drop(devices);
    kit.audit();
}

const fn mix_salt(seed: u64, step: u64) -> u64 {
    crate::exercise::mix(seed << 32 | step) << 16
}
