//! In-kernel tests of user access, on two user pages of a page table made for the occasion: one that may be written, one
//! that may only be read, and nothing behind.

use core::convert::Infallible;

use kernel_logic::PAGE_SIZE;
use kernel_logic::cover::PageSize;
use x86_64::PhysAddr;
use x86_64::structures::paging::PhysFrame;

use super::paging::{self, DIRECT_MAP, SCRATCH_FRAMES, Table, bits, scratch};
use super::tlb;
use super::uaccess::{
    USER_END, UserFault, copy_from_user, copy_to_user, copy_words_from_user, copy_words_to_user, user_chase,
    user_fill, user_find_other, user_read_u8, user_read_u64, user_touch_read, user_touch_write,
    user_write_u8, user_write_u64,
};
use crate::testing::Outcome;

/// A page that may be written.
const WRITABLE: u64 = 0x7fff_0000_0000;
/// The next one may only be read; behind it is nothing.
const READ_ONLY: u64 = WRITABLE + PAGE_SIZE;
const NOTHING: u64 = READ_ONLY + PAGE_SIZE;

/// Runs `body` on a page table with the two pages, both empty.
fn on_user_pages(body: fn() -> Outcome) -> Outcome {
    let mut frames = (0..SCRATCH_FRAMES).map(|n| scratch() + n * PAGE_SIZE);
    let mut next = || Ok::<_, Infallible>(frames.next().unwrap_or_default());
    let (Ok(root), Ok(written), Ok(read)) = (next(), next(), next());
    Table::in_frame(root).copy_kernel_half();
    for (virt, phys, rights) in [(WRITABLE, written, bits::WRITABLE), (READ_ONLY, read, 0)] {
        Table::in_frame(phys);
        let leaf = bits::PRESENT | bits::USER | rights | bits::NO_EXECUTE;
        let Ok(()) = paging::map(root, virt, phys, PageSize::Size4KiB, leaf, &mut next);
    }
    Table::at(root).into_iter().for_each(|table| table.open_to_user());
    let old = tlb::root();
    // SAFETY: the kernel half is the kernel's, and the table stays until the old one is back.
    unsafe { tlb::load_root(PhysFrame::containing_address(PhysAddr::new(root))) };
    let outcome = body();
    // SAFETY: the table that was loaded before.
    unsafe { tlb::load_root(old) };
    outcome
}

crate::ktest! {
    fn a_chain_is_followed_and_does_not_lead_into_the_kernel() {
        on_user_pages(|| {
            let at = |n: u64| WRITABLE + 64 * n;
            for n in 0..4 {
                user_write_u64(at(n), at((n + 1) % 4))?;
            }
            crate::check_eq!([0, 1, 3, 4, 4001].map(|steps| user_chase(at(0), steps)), [0, 1, 3, 0, 1].map(|n| Ok(at(n))));
            // What is cut off leaves an address that nobody has.
            user_write_u64(at(2), DIRECT_MAP)?;
            crate::check_eq!(user_chase(at(0), 3), Ok(DIRECT_MAP & ((1 << 47) - 1)));
            crate::check_eq!(user_chase(at(0), 4), Err(UserFault { addr: DIRECT_MAP & ((1 << 47) - 1) }));
            crate::check_eq!(user_chase(USER_END, 1).is_err(), true);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn words_and_bytes_come_back_as_written() {
        on_user_pages(|| {
            crate::check_eq!(user_write_u64(WRITABLE + 8, 0x0123_4567_89ab_cdef), Ok(()));
            crate::check_eq!(user_read_u64(WRITABLE + 8), Ok(0x0123_4567_89ab_cdef));
            crate::check_eq!(user_read_u8(WRITABLE + 8), Ok(0xef));
            crate::check_eq!(user_write_u8(WRITABLE + 15, 0x77), Ok(()));
            crate::check_eq!(user_touch_write(WRITABLE + 8), Ok(()));
            crate::check_eq!(user_read_u64(WRITABLE + 8), Ok(0x7723_4567_89ab_cdef));
            crate::check_eq!(user_touch_read(READ_ONLY), Ok(()));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn copies_of_odd_sizes_come_back() {
        on_user_pages(|| {
            let bytes: [u8; 333] = core::array::from_fn(|n| n as u8);
            let mut back = [0; 333];
            crate::check_eq!(copy_to_user(WRITABLE + 5, &bytes), Ok(()));
            crate::check_eq!(copy_from_user(&mut back, WRITABLE + 5), Ok(()));
            crate::check!(back == bytes);
            let words: [u64; 40] = core::array::from_fn(|n| n as u64 * 0x0101_0101);
            let mut back = [0; 40];
            crate::check_eq!(copy_words_to_user(WRITABLE + 1024, &words), Ok(()));
            crate::check_eq!(copy_words_from_user(&mut back, WRITABLE + 1024), Ok(()));
            crate::check!(back == words);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_fill_is_whole_and_the_odd_word_is_found() {
        on_user_pages(|| {
            crate::check_eq!(user_fill(WRITABLE, 512, 9), Ok(()));
            crate::check_eq!(user_find_other(WRITABLE, 512, 9), Ok(None));
            crate::check_eq!(user_find_other(WRITABLE, 513, 9), Ok(Some(512)));
            for odd in [0, 77, 511] {
                crate::check_eq!(user_write_u64(WRITABLE + odd * 8, 8), Ok(()));
                crate::check_eq!(user_find_other(WRITABLE, 512, 9), Ok(Some(odd)));
                crate::check_eq!(user_write_u64(WRITABLE + odd * 8, 9), Ok(()));
            }
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn a_refused_access_names_its_address() {
        on_user_pages(|| {
            let fault = |addr| UserFault { addr };
            crate::check_eq!(user_read_u64(NOTHING), Err(fault(NOTHING)));
            crate::check_eq!(user_read_u64(NOTHING - 4), Err(fault(NOTHING)));
            crate::check_eq!(user_write_u64(READ_ONLY + 16, 1), Err(fault(READ_ONLY + 16)));
            crate::check_eq!(user_touch_write(READ_ONLY), Err(fault(READ_ONLY)));
            crate::check_eq!(user_fill(WRITABLE, 600, 3), Err(fault(READ_ONLY)));
            crate::check_eq!(user_find_other(WRITABLE, 512, 3), Ok(None));
            crate::check_eq!(copy_to_user(READ_ONLY - 3, &[1; 8]).is_err(), true);
            crate::check_eq!(copy_from_user(&mut [0; 100], NOTHING - 64), Err(fault(NOTHING)));
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn an_address_that_is_not_a_users_is_refused_before_any_access() {
        on_user_pages(|| {
            for addr in [USER_END, USER_END - 4, 1 << 47, 0xdead << 48, DIRECT_MAP, u64::MAX - 3] {
                crate::check!(user_read_u64(addr).is_err(), "{addr:#x} was read");
                crate::check!(user_write_u64(addr, 0).is_err(), "{addr:#x} was written");
            }
            crate::check!(user_fill(WRITABLE, u64::MAX / 4, 0).is_err());
            Ok(())
        })?;
    }
}

crate::ktest! {
    destructive(expect = "page-fault")
    fn smap_stops_a_stray_access_to_a_user_page() {
        on_user_pages(|| {
            if !super::features::get().smap {
                panic!("this CPU has no SMAP");
            }
            // SAFETY: none: this is the mistake that SMAP must catch.
            core::hint::black_box(unsafe { (WRITABLE as *const u64).read_volatile() });
            Ok(())
        })?;
    }
}
