//! Pages for others than the CPU: got and pinned on real page tables, from private and from coherent memory.

use farpage_mm::{
    Cause, Event, Frame, Got, HugeAdvice, Machine as _, PAGE_SIZE, PMD_SIZE, PinError, PinFlags, Pinned,
    Place, VaRange,
};

use super::support::{DEV0, check, counting, fill, frame_at, in_space, map, pages, pattern, resident};
use crate::testing::Unmet;
use crate::vm::Machine;

const COH2: Place = Place::coherent(2);
const WRITE: PinFlags = PinFlags::WRITE;

/// The first and the last word of a page, where it lies.
fn ends(frame: Frame) -> (u64, u64) {
    let (mut first, mut last) = ([0], [0]);
    Machine::read_frame(frame, 0, &mut first);
    Machine::read_frame(frame, 511, &mut last);
    (first[0], last[0])
}

fn one<T>(mut taken: [Option<T>; 1]) -> Result<T, Unmet> {
    match taken[0].take() {
        Some(page) => Ok(page),
        None => crate::fail!("a page was asked for"),
    }
}

fn pin(space: &super::support::Space, at: VaRange, flags: PinFlags) -> Result<Pinned<Machine>, Unmet> {
    let mut taken = [None];
    if let Err(error) = space.space().pin_pages(at, flags, &mut taken) {
        crate::fail!("{error}");
    }
    one(taken)
}

fn get(space: &super::support::Space, at: VaRange, flags: PinFlags) -> Result<Got<Machine>, Unmet> {
    let mut taken = [None];
    if let Err(error) = space.space().get_pages(at, flags, &mut taken) {
        crate::fail!("{error}");
    }
    one(taken)
}

/// Four pages on `device`: got, got fast, pinned fast for long, pinned for long. `stay` is where the first two are then.
fn get_and_pin_from(device: Place, stay: Place) -> Result<(), Unmet> {
    in_space(|space| {
        let range = map(space, 4 * PAGE_SIZE, HugeAdvice::NoHuge)?;
        let page = |n| pages(range, n, 1);
        fill(range, 81)?;
        crate::check_eq!(space.space().migrate(range, device)?.pages, 4);
        let got = [get(space, page(0), WRITE)?, get(space, page(1), WRITE | PinFlags::FAST)?];
        let long = WRITE | PinFlags::LONGTERM;
        let pinned = [pin(space, page(2), long | PinFlags::FAST)?, pin(space, page(3), long)?];
        crate::check_eq!(got.each_ref().map(|got| got.place()), [stay; 2]);
        crate::check_eq!(pinned.each_ref().map(|pinned| pinned.place()), [Place::RAM; 2]);
        let frames = got.iter().map(Got::frame).chain(pinned.iter().map(|pinned| pinned.frame()));
        for (n, frame) in frames.enumerate() {
            let at = page(n as u64).start.0;
            crate::check_eq!(frame_at(space, at), Some(frame));
            crate::check_eq!(ends(frame), (pattern(at, 81), pattern(at + 511 * 8, 81)));
        }
        drop((got, pinned));
        check(range, 81)
    })
}

crate::ktest! {
    fn pages_of_a_private_device_come_to_ram_for_whoever_wants_them() {
        get_and_pin_from(DEV0, Place::RAM)?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn pages_of_a_coherent_device_leave_it_for_long_pins_only() {
        get_and_pin_from(COH2, COH2)?;
    }
}

crate::ktest! {
    fn a_pinned_page_does_not_move_until_it_is_unpinned() {
        in_space(|space| {
            let range = map(space, PMD_SIZE + 4 * PAGE_SIZE, HugeAdvice::Huge)?;
            fill(range, 82)?;
            let (pinned, acquired) = counting(Event::FollPinAcquired, || {
                Ok::<_, Unmet>([
                    pin(space, pages(range, 100, 1), WRITE | PinFlags::FAST)?,
                    pin(space, pages(range, 513, 1), PinFlags::empty())?,
                ])
            });
            let pinned = pinned?;
            crate::check_eq!(acquired, 2);
            let report = space.space().migrate(range, DEV0)?;
            crate::check_eq!((report.pages, report.failed[Cause::Pinned as usize]), (3, 513));
            crate::check_eq!(frame_at(space, pages(range, 100, 1).start.0), Some(pinned[0].frame()));
            check(range, 82)?;
            let ((), released) = counting(Event::FollPinReleased, || drop(pinned));
            crate::check_eq!(released, 2);
            crate::check_eq!(space.space().migrate(range, DEV0)?.failed_pages(), 0);
            crate::check_eq!(resident(0), 516);
            check(range, 82)
        })?;
    }
}

crate::ktest! {
    needs(devices = 4, coherent = 2)
    fn a_long_pin_brings_a_huge_coherent_page_to_ram_as_one_unless_it_is_held_there() {
        in_space(|space| {
            let range = map(space, PMD_SIZE, HugeAdvice::Huge)?;
            let (first, other) = (pages(range, 0, 1), pages(range, 300, 1));
            fill(range, 83)?;
            space.space().migrate(range, COH2)?;
            let short = pin(space, first, WRITE)?;
            crate::check_eq!(short.place(), COH2);
            let mut taken = [None];
            let refused = space.space().pin_pages(other, WRITE | PinFlags::LONGTERM, &mut taken);
            crate::check_eq!(refused, Err(PinError::Busy(other.start)));
            drop(short);
            let pinned = pin(space, other, WRITE | PinFlags::LONGTERM | PinFlags::FAST)?;
            crate::check_eq!((pinned.place(), pinned.folio().order().get(), resident(2)), (Place::RAM, 9, 0));
            drop(pinned);
            check(range, 83)
        })?;
    }
}
