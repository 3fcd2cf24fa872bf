//! A device that reads while the process unmaps.

use alloc::sync::Arc;

use farpage_mm::HugeAdvice;

use super::kit::{Fixture, PAGES, TIMES, fill, ints, map, part, with_bounce};
use crate::mm_tests::support::Space;
use crate::task::{spawn, with_preemption_every};
use crate::testing::Unmet;
use crate::vm::user::user_read_u64;

/// Another thread unmaps the upper half while the device reads all of it: the device reads what was there, or is refused.
pub(super) fn anon_teardown(on: Fixture, space: &Arc<Space>) -> Result<(), Unmet> {
    let device = on.open(0, space)?;
    let mut refused = 0;
    for seed in 0..TIMES {
        let range = map(space, PAGES, HugeAdvice::Default)?;
        fill(range)?;
        let upper = part(range, PAGES / 2, PAGES / 2);
        // Turns are so long that the unmapping falls into another part of the read each time.
        let (result, preempted) = with_preemption_every(20_000 + 30_000 * seed as u32, seed, || {
            let there = Arc::clone(space);
            let other = spawn("teardown", move || there.space().unmap(upper));
            let result = with_bounce(PAGES, |words| {
                let done = device.read(range.start, words);
                let right = words.iter().enumerate().all(|(i, &word)| word == ints(i as u64, 0));
                done.map(|_| right)
            });
            other.join().map(|()| result)
        });
        match result? {
            Ok(right) => crate::check!(right, "round {seed}: read, but not what was there"),
            Err(_) => refused += 1,
        }
        crate::check!(preempted > 0, "round {seed}: nobody was interrupted");
        crate::check!(user_read_u64(upper.start.0).is_err());
        crate::check_eq!(
            device.mirror().entry(upper.start),
            None,
            "round {seed}: left in the device's table"
        );
        space.space().unmap(range)?;
    }
    crate::check!(refused > 0, "the unmapping never came first");
    Ok(())
}
