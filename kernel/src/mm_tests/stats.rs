//! Counters of devices and spaces on the real machine.

use farpage_mm::{HugeAdvice, PMD_SIZE, Place};

use super::support::{DEV0, check, fill, in_space, map, pages, resident};
use crate::vm::mm;

crate::ktest! {
    fn a_device_and_a_space_tell_what_came_and_what_left() {
        let before = mm().device(0).stat();
        in_space(|space| {
            let range = map(space, 3 * PMD_SIZE, HugeAdvice::Huge)?;
            fill(range, 85)?;
            crate::check_eq!(space.space().migrate(range, DEV0)?.pages, 1536);
            crate::check_eq!(mm().device(0).folios().0[9], 3);
            let lies = space.resident();
            crate::check_eq!((lies.on_device(0), lies.pages(), lies.devices[0][9]), (1536, 1536, 1536));
            // One comes back by fault, one by call, one is unmapped.
            check(pages(range, 0, 512), 85)?;
            space.space().migrate(pages(range, 512, 512), Place::RAM)?;
            space.space().unmap(pages(range, 1024, 512))?;
            let stat = mm().device(0).stat();
            crate::check_eq!(stat.pages_in - before.pages_in, 1536);
            crate::check_eq!(stat.out.0[9] - before.out.0[9], 2);
            crate::check_eq!(stat.faults - before.faults, 1);
            crate::check_eq!(stat.pages_dropped - before.pages_dropped, 512);
            crate::check_eq!(stat.flushes - before.flushes, 1);
            let own = space.stat();
            crate::check_eq!((own.pages_in, own.pages_out), (1536, 1024));
            crate::check_eq!(resident(0), 0);
            Ok(())
        })?;
    }
}

crate::ktest! {
    fn the_lists_of_counters_agree_with_the_counters() {
        let mut names = 0;
        let mut fails = 0;
        mm().vmstat(&mut |name, value| {
            names += 1;
            if name == "pgmigrate_fail" {
                fails = value;
            }
        });
        crate::check!(names > farpage_mm::Event::ALL.len());
        crate::check_eq!(fails, super::support::counted(farpage_mm::Event::MigrateFail));
    }
}
