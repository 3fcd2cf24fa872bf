//! A device that reads while the process unmaps.

use std::thread;
use std::time::Duration;

use crate::kit::{Fixture, Outcome, TIMES, bounce, buffer, fill, holds, numbers};

/// Another thread unmaps the upper half while the device reads all of it: the device reads what was there, or is refused.
pub(crate) fn anon_teardown(on: Fixture) -> Outcome {
    let device = on.open(0)?;
    let mut seed = 0x2545_f491_u32;
    for _ in 0..TIMES {
        let area = buffer()?;
        fill(area);
        let to = bounce(area)?;
        let half = area.pages() / 2;
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = Duration::from_micros(u64::from(seed >> 27));
        let other = thread::spawn(move || {
            thread::sleep(pause);
            area.part(half, half).unmap()
        });
        let done = device.read(area, to);
        let unmapped = other.join();
        if done.is_ok() {
            holds(to, |word| numbers(word, 0))?;
        }
        match unmapped {
            Ok(unmapped) => unmapped?,
            Err(_) => return Err(crate::kit::failed(&"the other thread panicked")),
        }
        area.part(0, half).unmap()?;
        to.unmap()?;
    }
    Ok(())
}
