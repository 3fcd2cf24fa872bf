//! Devices that are taken out while their memory is in use.

use farpage_mm::{Place, RangeError, VaRange};

use super::{PMD, PTE, SMALL, every_allocation_fails_beside, holds, still_filled};
use crate::mm_tests::support::{Seat, Space, fill, resident};
use crate::testing::Unmet;
use crate::vm::{clone_space, mm};

const DEV1: Place = Place::device(1);

/// Filled memory on the second device, which somebody else has too.
fn shared_there(space: &Space, range: VaRange) -> Result<(Space, Seat), Unmet> {
    fill(range, 81)?;
    crate::check_eq!(space.space().migrate(range, DEV1)?.pages, range.nr_pages());
    Ok((clone_space(space)?, Seat::of(DEV1)))
}

crate::ktest! {
    needs(devices = 2)
    fn taking_a_device_out_bears_every_failure() {
        for (memory, least) in [(PTE, SMALL + 2), (PMD, 3)] {
            every_allocation_fails_beside(memory, least, shared_there, |space, range, (child, _)| {
                let refused = mm().unregister_device(1).is_err();
                holds(child, range, 81)?;
                // It goes on, or is no more.
                crate::check_eq!(mm().device(1).memory().managed != 0, refused);
                if !refused {
                    crate::check_eq!(resident(1), 0);
                    crate::check_eq!(space.space().migrate(range, DEV1), Err(RangeError::NoDevice(1)));
                }
                Ok(refused)
            }, |_, range, (child, seat)| {
                holds(child, range, 81)?;
                still_filled(range)?;
                seat.take()?;
                crate::check_eq!(mm().device(1).memory().free, seat.pages());
                Ok(())
            })?;
        }
    }
}
