//! First touches, writes to zero pages, and accesses that are refused.

use farpage_mm::{Access, Event, FaultError, HugeAdvice, PAGE_SIZE, PMD_SIZE, Prot, VaRange, Vaddr};

use super::support::{
    BASE, Kinds, check, check_zero, counting, fill, frame_at, in_space, kinds, map, order_at, pages, pattern,
    refusal,
};
use crate::arch::x86_64::uaccess::{USER_END, copy_words_to_user, user_fill};
use crate::vm::user::{last_refusal, user_read_u64, user_touch_write, user_write_u64};

crate::ktest! {
    fn a_read_maps_the_zero_page_and_a_write_a_page_of_its_own() {
        in_space(|space| {
            let range = map(space, 4 * PAGE_SIZE, HugeAdvice::NoHuge)?;
            check_zero(pages(range, 0, 3))?;
            crate::check_eq!(kinds(space, range), Kinds { zero: 3, none: 1, ..Kinds::default() });
            let zero = frame_at(space, range.start.0);
            crate::check_eq!(frame_at(space, range.start.0 + PAGE_SIZE), zero);
            // The write gets another frame at this page alone; the other readers still see zeros.
            user_write_u64(range.start.0 + 8, 5)?;
            crate::check!(frame_at(space, range.start.0) != zero);
            crate::check_eq!(kinds(space, range), Kinds { present: 1, zero: 2, none: 1, ..Kinds::default() });
            crate::check_eq!(user_read_u64(range.start.0 + 8), Ok(5));
            crate::check_eq!(user_read_u64(range.start.0), Ok(0));
            check_zero(pages(range, 1, 3))
        })?;
    }
}

crate::ktest! {
    fn a_read_in_a_huge_vma_maps_the_zero_folio_and_a_write_two_mebibytes() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            let (read, mapped) = counting(Event::ThpZeroPageMapped, || check_zero(range));
            read?;
            crate::check_eq!(mapped, 2);
            crate::check_eq!(kinds(space, range), Kinds { huge_zero: 2, ..Kinds::default() });
            let zero = frame_at(space, range.start.0);
            crate::check_eq!(frame_at(space, range.start.0 + PMD_SIZE), zero);
            let written = range.start.0 + 77 * PAGE_SIZE;
            user_write_u64(written, 9)?;
            crate::check_eq!(kinds(space, range), Kinds { huge_present: 1, huge_zero: 1, ..Kinds::default() });
            crate::check!(frame_at(space, range.start.0) != zero);
            crate::check_eq!(user_read_u64(written), Ok(9));
            user_write_u64(written, 0)?;
            check_zero(range)
        })?;
    }
}

crate::ktest! {
    fn advice_decides_on_the_size_and_fresh_pages_are_clear() {
        in_space(|space| {
            // Dirty memory first, so that a page which is not cleared shows.
            let range = map(space, 4 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 21)?;
            space.space().unmap(range)?;
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::NoHuge)?;
            let huge = VaRange::new(range.start.0 + PMD_SIZE, PMD_SIZE);
            space.space().advise_huge(huge, HugeAdvice::Huge)?;
            user_touch_write(range.start.0 + PAGE_SIZE)?;
            user_touch_write(huge.start.0 + PAGE_SIZE)?;
            crate::check_eq!(kinds(space, range), Kinds { present: 1, huge_present: 1, none: 511, ..Kinds::default() });
            crate::check_eq!((order_at(space, range.start.0 + PAGE_SIZE), order_at(space, huge.start.0)), (Some(0), Some(9)));
            check_zero(range)
        })?;
    }
}

crate::ktest! {
    fn a_huge_page_is_not_mapped_where_its_vma_does_not_reach() {
        in_space(|space| {
            let range = VaRange::new(BASE + PAGE_SIZE, 2 * PMD_SIZE);
            space.space().map_anon(range, Prot::RW, HugeAdvice::Huge)?;
            fill(range, 22)?;
            crate::check_eq!(kinds(space, range), Kinds { present: 512, huge_present: 1, ..Kinds::default() });
            check(range, 22)
        })?;
    }
}

crate::ktest! {
    fn accesses_that_are_not_allowed_are_refused_with_their_reason() {
        in_space(|space| {
            let [read_only, none] = [VaRange::new(BASE, PMD_SIZE), VaRange::new(BASE + PMD_SIZE, PMD_SIZE)];
            space.space().map_anon(read_only, Prot::READ, HugeAdvice::Huge)?;
            space.space().map_anon(none, Prot::empty(), HugeAdvice::Huge)?;
            let refused = |addr, why| Err((addr, Some(why)));
            // Before anything is mapped there, and after.
            for _ in 0..2 {
                let at = read_only.start.0 + 8;
                let why = FaultError::Access(Vaddr(at), Access::Write);
                crate::check_eq!(refusal(user_write_u64(at, 1)), refused(at, why));
                crate::check_eq!(refusal(user_read_u64(at)), Ok(0));
            }
            let at = none.start.0 + 16;
            crate::check_eq!(refusal(user_read_u64(at)).map(drop), refused(at, FaultError::Access(Vaddr(at), Access::Read)));
            crate::check_eq!(refusal(user_write_u64(at, 1)), refused(at, FaultError::Access(Vaddr(at), Access::Write)));
            let at = none.end.0;
            crate::check_eq!(refusal(user_read_u64(at)).map(drop), refused(at, FaultError::NoVma(Vaddr(at))));
            crate::check_eq!(refusal(user_read_u64(0)).map(drop), refused(0, FaultError::NoVma(Vaddr(0))));
            crate::check_eq!(kinds(space, none), Kinds { none: 512, ..Kinds::default() });
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn addresses_outside_the_user_half_do_not_even_fault() {
        in_space(|_| {
            let _ = last_refusal();
            for at in [USER_END, u64::MAX - 7, 0xffff_8000_0000_0000] {
                crate::check_eq!(refusal(user_read_u64(at)).map_err(|(_, why)| why), Err(None));
                crate::check_eq!(refusal(user_write_u64(at, 1)).map_err(|(_, why)| why), Err(None));
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_bulk_access_that_runs_out_of_its_mapping_leaves_what_it_did_before() {
        in_space(|space| {
            let range = map(space, 2 * PAGE_SIZE, HugeAdvice::NoHuge)?;
            fill(range, 23)?;
            let tail = range.end.0 - 16;
            let end = (range.end.0, Some(FaultError::NoVma(range.end)));
            crate::check_eq!(refusal(copy_words_to_user(tail, &[1, 2, 3, 4])), Err(end));
            crate::check_eq!((user_read_u64(tail), user_read_u64(tail + 8)), (Ok(1), Ok(2)));
            crate::check_eq!(refusal(user_fill(tail, 4, 7)), Err(end));
            crate::check_eq!((user_read_u64(tail), user_read_u64(tail + 8)), (Ok(7), Ok(7)));
            for at in [tail, tail + 8] {
                user_write_u64(at, pattern(at, 23))?;
            }
            check(range, 23)
        })?;
    }
}

crate::ktest! {
    fn a_write_that_is_refused_changes_nothing() {
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 24)?;
            let guarded = VaRange::new(range.end.0, PAGE_SIZE);
            space.space().map_anon(guarded, Prot::READ, HugeAdvice::NoHuge)?;
            crate::check!(user_fill(guarded.start.0, 512, 1).is_err());
            crate::check!(user_touch_write(guarded.start.0 + 100).is_err());
            check_zero(guarded)?;
            crate::check_eq!(kinds(space, guarded), Kinds { zero: 1, ..Kinds::default() });
            check(range, 24)
        })?;
    }
}
