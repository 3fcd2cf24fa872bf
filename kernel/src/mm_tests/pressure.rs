//! No 2 MiB of memory in one piece, and no memory at all, on either side.

use farpage_mm::{Cause, Event, FaultError, HugeAdvice, Order, PAGE_SIZE, PMD_SIZE, Place, Vaddr};

use super::support::{
    DEV0, Held, Kinds, check, check_zero, counted, counting, fill, huge_chunks, in_space, kinds, map,
    on_the_usual_machine, order_at, pages, pattern, refusal, resident,
};
use crate::vm::mm;
use crate::vm::user::{user_read_u64, user_write_u64};

crate::ktest! {
    fn a_full_device_takes_what_fits_and_the_rest_stays() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 34 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 61)?;
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (16384, 1024));
            crate::check_eq!(report.failed_pages(), 1024);
            crate::check_eq!(kinds(space, range), Kinds { huge_device: 32, huge_present: 2, ..Kinds::default() });
            check(range, 61)
        })?;
    }
}

crate::ktest! {
    fn too_few_small_pages_for_a_huge_one_are_given_back() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 62)?;
            let mut held = Held::all(DEV0, Order::BASE);
            held.give_back(300);
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::NoMemory as usize]), (0, 512));
            crate::check_eq!((kinds(space, range).huge_present, mm().device(0).memory().free), (1, 300));
            drop(held);
            check(range, 62)
        })?;
    }
}

crate::ktest! {
    fn without_two_mebibytes_in_one_piece_the_device_takes_pieces_of_every_order() {
        on_the_usual_machine()?;
        for order in 0..9 {
            in_space(|space| {
                let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 63)?;
                let held = Held::every_second(DEV0, Order::new(order));
                crate::check_eq!(huge_chunks(DEV0), 0);
                let before = resident(0);
                let (report, torn) = counting(Event::MigrateSplit, || space.space().migrate(range, DEV0));
                let report = report?;
                crate::check_eq!((report.pages, report.torn, report.huge_pages), (512, 512, 0), "order {order}");
                crate::check_eq!((report.failed_pages(), torn, resident(0) - before), (0, 1, 512));
                crate::check_eq!(kinds(space, range), Kinds { device: 512, ..Kinds::default() });
                crate::check_eq!(order_at(space, range.start.0), Some(order));
                check(range, 63)?;
                crate::check_eq!(resident(0), before);
                drop(held);
                Ok(())
            })?;
        }
    }
}

crate::ktest! {
    fn without_two_mebibytes_in_one_piece_a_fault_brings_back_pieces_of_every_order() {
        on_the_usual_machine()?;
        for order in 0..9 {
            in_space(|space| {
                let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
                fill(range, 64)?;
                space.space().migrate(range, DEV0)?;
                let held = Held::every_second(Place::RAM, Order::new(order));
                crate::check_eq!(huge_chunks(Place::RAM), 0);
                let at = range.start.0 + 5 * PAGE_SIZE;
                let (read, faults) = counting(Event::DeviceFault, || user_read_u64(at));
                crate::check_eq!((read, faults), (Ok(pattern(at, 64)), 1));
                crate::check_eq!(kinds(space, range), Kinds { present: 512, huge_device: 1, ..Kinds::default() });
                crate::check_eq!(order_at(space, at), Some(order));
                // The other one by a call.
                let report = space.space().migrate(range, Place::RAM)?;
                crate::check_eq!((report.pages, report.torn, report.failed_pages()), (512, 512, 0), "order {order}");
                check(range, 64)?;
                drop(held);
                Ok(())
            })?;
        }
    }
}

crate::ktest! {
    fn without_two_mebibytes_in_one_piece_first_touches_take_small_pages() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::Huge)?;
            check_zero(pages(range, 0, 1))?;
            crate::check_eq!(kinds(space, pages(range, 0, 512)).huge_zero, 1);
            let held = Held::every_second(Place::RAM, Order::new(4));
            let fallbacks = counted(Event::ThpFaultFallback);
            // Over the zero folio, and into nothing.
            user_write_u64(range.start.0 + 8, 1)?;
            user_write_u64(range.start.0 + PMD_SIZE + 8, 2)?;
            crate::check_eq!(counted(Event::ThpFaultFallback) - fallbacks, 2);
            let expected = Kinds { present: 2, zero: 511, none: 511, ..Kinds::default() };
            crate::check_eq!(kinds(space, range), expected);
            fill(range, 65)?;
            drop(held);
            check(range, 65)
        })?;
    }
}

crate::ktest! {
    fn with_no_page_left_a_touch_is_refused_and_nothing_is_lost() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::NoHuge)?;
            let (here, there, new) = (pages(range, 0, 8), pages(range, 8, 8), pages(range, 512, 1));
            fill(here, 66)?;
            fill(there, 66)?;
            space.space().migrate(there, DEV0)?;
            let held = Held::all(Place::RAM, Order::BASE);
            let at = new.start.0;
            crate::check_eq!(refusal(user_write_u64(at, 1)), Err((at, Some(FaultError::Oom(Vaddr(at))))));
            let at = there.start.0;
            crate::check_eq!(refusal(user_read_u64(at)).map(drop), Err((at, Some(FaultError::Oom(Vaddr(at))))));
            crate::check_eq!(kinds(space, there), Kinds { device: 8, ..Kinds::default() });
            check(here, 66)?;
            drop(held);
            user_write_u64(new.start.0, 1)?;
            check(there, 66)?;
            check(here, 66)
        })?;
    }
}

crate::ktest! {
    fn what_user_pages_may_not_take_is_there_for_pages_that_come_back() {
        on_the_usual_machine()?;
        in_space(|space| {
            let range = map(space, 2 * PMD_SIZE, HugeAdvice::NoHuge)?;
            let (there, new) = (pages(range, 0, 32), pages(range, 512, 1));
            fill(there, 67)?;
            space.space().migrate(there, DEV0)?;
            let held = Held::all_but_the_reserve();
            let at = new.start.0;
            crate::check_eq!(refusal(user_write_u64(at, 1)), Err((at, Some(FaultError::Oom(Vaddr(at))))));
            check(there, 67)?;
            crate::check_eq!(kinds(space, there), Kinds { present: 32, ..Kinds::default() });
            drop(held);
            Ok(())
        })?;
    }
}
