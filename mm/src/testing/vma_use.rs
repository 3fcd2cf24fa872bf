//! What mappings hold, as `smaps` tells it.

use crate::object::Object;
use crate::stats::VmaUse;
use crate::testing::clone::{fork, read, write};
use crate::testing::kit::{DEV, Kit, range};
use crate::testing::machine::Soft;
use crate::types::{PAGE_SIZE, PMD_SIZE, Prot};
use crate::vma::HugeAdvice::{Default as Small, Huge};

fn uses(kit: &Kit) -> Vec<VmaUse> {
    let mut all = Vec::new();
    kit.space.space().for_each_vma_use(|_, held| all.push(*held));
    all
}

#[test]
fn pages_count_by_what_they_are_wherever_they_lie() {
    let kit = Kit::new();
    kit.map(0, 1024, Huge);
    kit.fill(0, 1);
    kit.map(2048, 8, Small);
    kit.fill(2048, 3);
    kit.try_read(2052).expect("the zero page, which nobody has");
    let file = Object::<Soft>::file(8).expect("memory");
    kit.space.space().map_shared(range(4096, 8), Prot::RW, &file, 0).expect("nothing is in the way");
    write(&kit, &kit.space, 4096, 1);
    read(&kit, &kit.space, 4097);
    let [huge, small, shared] = uses(&kit)[..] else { panic!("three mappings") };
    assert_eq!(
        (huge.rss, huge.anonymous, huge.anon_huge, huge.private_dirty),
        (PMD_SIZE, PMD_SIZE, PMD_SIZE, PMD_SIZE)
    );
    assert_eq!((small.rss, small.anonymous, small.anon_huge), (3 * PAGE_SIZE, 3 * PAGE_SIZE, 0));
    assert_eq!((shared.rss, shared.anonymous, shared.device_private), (2 * PAGE_SIZE, 0, 0));
    kit.space.space().migrate(range(0, 512), DEV).expect("it is mapped");
    kit.space.space().migrate(range(2048, 1), DEV).expect("it is mapped");
    let after = uses(&kit);
    assert_eq!((after[0].rss, after[0].anon_huge, after[0].device_private), (PMD_SIZE, PMD_SIZE, PMD_SIZE));
    assert_eq!((after[1].rss, after[1].device_private), (3 * PAGE_SIZE, PAGE_SIZE));
    assert_eq!(after[0].plus(&after[1]).rss, PMD_SIZE + 3 * PAGE_SIZE);
}

#[test]
fn what_two_map_is_shared_and_each_has_half() {
    let kit = Kit::new();
    kit.map(0, 512, Huge);
    kit.map(1024, 4, Small);
    kit.fill(0, 1);
    kit.fill(1024, 2);
    let child = fork(&kit);
    write(&kit, &child, 1024, 1);
    let [huge, small] = uses(&kit)[..] else { panic!("two mappings") };
    assert_eq!((huge.pss, huge.shared_dirty, huge.private_dirty), (PMD_SIZE / 2, PMD_SIZE, 0));
    assert_eq!(
        (small.shared_dirty, small.private_dirty, small.pss),
        (PAGE_SIZE, PAGE_SIZE, PAGE_SIZE * 3 / 2)
    );
    drop(child);
    assert_eq!(uses(&kit)[0].private_dirty, PMD_SIZE);
    kit.audit();
}
