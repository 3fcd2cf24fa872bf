//! Changes of protection, with the CPU as the judge: what is refused is refused by real page tables.

use farpage_mm::{
    Access, Attrs, Entry, Event, FaultError, FlushReason, HugeAdvice, Level, PAGE_SIZE, PMD_SIZE, Prot,
    RangeError, SoftKind, VaRange, Vaddr,
};

use super::stale::{probes, with_and_without};
use super::support::{
    DEV0, Kinds, Space, check, check_zero, counting, fill, in_space, kinds, map, pages, refusal, resident,
};
use crate::testing::Unmet;
use crate::vm::user::{user_read_u64, user_touch_write, user_write_u64};

/// Both sizes of pages.
const ADVICE: [HugeAdvice; 2] = [HugeAdvice::Huge, HugeAdvice::NoHuge];

fn attrs(space: &Space, addr: u64) -> Result<Attrs, Unmet> {
    match space.entry_at(Vaddr(addr)).1 {
        Entry::Leaf(leaf) => Ok(leaf.attrs),
        Entry::NonPresent(soft) => Ok(soft.attrs),
        other => crate::fail!("{addr:#x}: {other:?}"),
    }
}

fn check_refused(addr: u64, access: Access) -> Result<(), Unmet> {
    let done = match access {
        Access::Write => refusal(user_touch_write(addr)),
        _ => refusal(user_read_u64(addr)).map(drop),
    };
    crate::check_eq!(done, Err((addr, Some(FaultError::Access(Vaddr(addr), access)))));
    Ok(())
}

crate::ktest! {
    fn what_is_read_only_cannot_be_written_and_costs_one_flush_round() {
        for advice in ADVICE {
            in_space(|space| {
                let range = map(space, 2 * PMD_SIZE, advice)?;
                fill(range, 11)?;
                let (done, flushes) =
                    counting(Event::TlbFlush, || space.space().protect(range, Prot::READ));
                done?;
                crate::check_eq!(flushes, 1, "{advice:?}");
                for at in [range.start.0, range.start.0 + PMD_SIZE + 8 * PAGE_SIZE, range.end.0 - 8] {
                    check_refused(at, Access::Write)?;
                }
                check(range, 11)?;
                space.space().protect(range, Prot::RW)?;
                fill(range, 12)?;
                check(range, 12)
            })?;
        }
    }
}

crate::ktest! {
    fn a_part_of_a_huge_page_is_read_only_and_the_rest_is_not() {
        for on_device in [false, true] {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 13)?;
                if on_device {
                    space.space().migrate(range, DEV0)?;
                }
                let part = pages(range, 100, 300);
                let (done, flushes) = counting(Event::TlbFlush, || space.space().protect(part, Prot::READ));
                done?;
                // One to split what is present, one for the permission; a page on a device is in no TLB.
                crate::check_eq!(flushes, if on_device { 0 } else { 2 });
                if on_device {
                    crate::check_eq!(kinds(space, range), Kinds { device: 512, ..Kinds::default() });
                    crate::check_eq!(resident(0), 512);
                }
                for at in [part.start.0, part.end.0 - 8] {
                    check_refused(at, Access::Write)?;
                }
                for at in [range.start.0, part.start.0 - 8, part.end.0, range.end.0 - 8] {
                    let word = user_read_u64(at)?;
                    user_write_u64(at, word)?;
                }
                check(range, 13)
            })?;
        }
    }
}

crate::ktest! {
    fn a_huge_page_on_the_device_stays_there_and_is_not_flushed() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 14)?;
            space.space().migrate(range, DEV0)?;
            for prot in [Prot::READ, Prot::RW, Prot::empty(), Prot::RW] {
                let (done, flushes) = counting(Event::TlbFlush, || space.space().protect(range, prot));
                done?;
                crate::check_eq!(flushes, 0, "{prot:?}");
                crate::check_eq!(kinds(space, range), Kinds { huge_device: 1, ..Kinds::default() });
                crate::check_eq!(attrs(space, range.start.0)?.contains(Attrs::NO_ACCESS), prot.is_empty());
            }
            // It comes back without the write, which one more fault grants.
            check(range, 14)?;
            crate::check!(!attrs(space, range.start.0)?.contains(Attrs::WRITE));
            let (done, upgrades) = counting(Event::WriteUpgrade, || user_touch_write(range.start.0));
            done?;
            crate::check_eq!(upgrades, 1);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn without_access_nothing_is_present_and_nothing_is_lost() {
        for advice in ADVICE {
            in_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                fill(range, 15)?;
                space.space().protect(range, Prot::empty())?;
                for at in probes(range) {
                    check_refused(at & !7, Access::Read)?;
                    let (_, entry) = space.entry_at(Vaddr(at));
                    let hidden = matches!(entry, Entry::NonPresent(soft) if soft.kind == SoftKind::ProtNone);
                    crate::check!(hidden, "{at:#x}: {entry:?}");
                }
                crate::check_eq!(
                    space.space().migrate(range, DEV0),
                    Err(RangeError::NotMigratable(range.start))
                );
                let (done, flushes) = counting(Event::TlbFlush, || space.space().protect(range, Prot::READ));
                done?;
                crate::check_eq!(flushes, 0, "what was not present is in no TLB");
                check(range, 15)?;
                check_refused(range.start.0, Access::Write)?;
                space.space().protect(range, Prot::RW)?;
                let huge = advice == HugeAdvice::Huge;
                crate::check_eq!(space.entry_at(range.start).0 == Level::Pmd, huge, "a huge page stays one");
                fill(range, 16)?;
                check(range, 16)
            })?;
        }
    }
}

crate::ktest! {
    fn zero_pages_are_read_only_however_they_are_protected() {
        for advice in ADVICE {
            in_space(|space| {
                let range = map(space, PMD_SIZE, advice)?;
                check_zero(range)?;
                space.space().protect(range, Prot::READ)?;
                check_refused(range.start.0, Access::Write)?;
                space.space().protect(range, Prot::empty())?;
                crate::check_eq!(space.entry_at(range.start).1, Entry::None);
                check_refused(range.start.0, Access::Read)?;
                space.space().protect(range, Prot::RW)?;
                check_zero(range)?;
                user_write_u64(range.start.0, 1)?;
                crate::check_eq!(user_read_u64(range.start.0), Ok(1));
                Ok(())
            })?;
        }
    }
}

crate::ktest! {
    fn a_change_of_protection_ends_at_the_first_hole() {
        in_space(|space| {
            let range = map(space, 20 * PAGE_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 17)?;
            space.space().unmap(pages(range, 10, 2))?;
            let hole = pages(range, 10, 2).start;
            crate::check_eq!(space.space().protect(range, Prot::READ), Err(RangeError::NotMapped(hole)));
            check_refused(range.start.0, Access::Write)?;
            user_touch_write(pages(range, 12, 1).start.0)?;
            let mut mappings = alloc::vec::Vec::new();
            space.for_each_vma(|vma| mappings.push((vma.range(), vma.prot())));
            let expected =
                [(pages(range, 0, 10), Prot::READ), (VaRange::between(pages(range, 12, 1).start, range.end), Prot::RW)];
            crate::check_eq!(mappings.as_slice(), expected.as_slice());
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn without_the_flush_of_a_change_of_protection_writes_go_on() {
        with_and_without(FlushReason::Protect, |space, range, flushing| {
            fill(range, 18)?;
            let mut written = 0;
            flushing(&mut || {
                space.space().protect(range, Prot::READ)?;
                written = probes(range).filter(|&at| user_touch_write(at).is_ok()).count() as u64;
                Ok(())
            })?;
            Ok(written)
        })?;
    }
}
