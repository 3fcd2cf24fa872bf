use std::{vec, vec::Vec};

use super::fake::{memory, window};
use crate::{
    DeviceAddr,
    mmio::{AccessError, CopyRoutine, store_fence},
};

const ROUTINES: [CopyRoutine; 5] = CopyRoutine::ALL;

fn pattern(words: usize, seed: u64) -> Vec<u64> {
    (0..words as u64).map(|n| (n + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect()
}

#[test]
fn registers_are_checked_for_bounds_and_alignment() {
    let window = window(2);
    window.write_u64(8, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(window.read_u32(12), Ok(0x1122_3344));
    window.write_u32(8, 7).unwrap();
    assert_eq!(window.read_u64(8), Ok(0x1122_3344_0000_0007));
    assert_eq!(window.read_u64(0), Ok(0));
    assert_eq!(window.read_u32(2), Err(AccessError::Unaligned { offset: 2, align: 4 }));
    assert_eq!(window.read_u64(4), Err(AccessError::Unaligned { offset: 4, align: 8 }));
    let past = |offset| Err(AccessError::OutOfRange { offset, len_bytes: 4, window_bytes: 16 });
    assert_eq!(window.read_u32(16), past(16));
    assert_eq!(window.write_u32(u64::MAX - 3, 0), past(u64::MAX - 3).map(|_: u32| ()));
}

#[test]
fn every_routine_moves_every_word_and_no_other() {
    for routine in ROUTINES {
        for count in [0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 512] {
            let memory = memory(600);
            let mover = memory.by(routine);
            let (around, data) = (pattern(600, 5), pattern(count, 77));
            mover.copy_in(DeviceAddr(0), &around).unwrap();
            mover.copy_in(DeviceAddr(24), &data).unwrap();
            store_fence();
            let mut all = vec![0; 600];
            mover.copy_out(DeviceAddr(0), &mut all).unwrap();
            let mut expected = around.clone();
            expected[3..3 + count].copy_from_slice(&data);
            assert_eq!(all, expected, "{routine:?} {count}");

            let mut back = vec![!0; count + 2];
            mover.copy_out(DeviceAddr(24), &mut back[1..=count]).unwrap();
            assert_eq!((back[0], back[count + 1]), (!0, !0), "{routine:?} {count}");
            assert_eq!(back[1..=count], data, "{routine:?} {count}");

            mover.zero(DeviceAddr(24), count as u64 * 8).unwrap();
            expected[3..3 + count].fill(0);
            mover.copy_out(DeviceAddr(0), &mut all).unwrap();
            assert_eq!(all, expected, "{routine:?} {count}");
        }
    }
}

#[test]
fn a_copy_inside_the_device_may_touch_but_not_overlap() {
    for routine in ROUTINES {
        let memory = memory(64);
        let mover = memory.by(routine);
        mover.copy_in(DeviceAddr(0), &pattern(64, 1)).unwrap();
        let (from, to, len_bytes) = (DeviceAddr(64), DeviceAddr(160), 96);
        mover.copy_within(from, to, len_bytes).unwrap();
        let mut all = vec![0; 64];
        mover.copy_out(DeviceAddr(0), &mut all).unwrap();
        let mut expected = pattern(64, 1);
        expected.copy_within(8..20, 20);
        assert_eq!(all, expected, "{routine:?}");
        for (from, to) in [(64, 152), (152, 64), (64, 64)] {
            let refused = mover.copy_within(DeviceAddr(from), DeviceAddr(to), 96);
            assert_eq!(refused, Err(AccessError::Overlap { from, to, len_bytes: 96 }));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let memory = memory(16);
    memory.copy_in(DeviceAddr(0), &pattern(16, 9)).unwrap();
    let past = |offset, len_bytes| Err(AccessError::OutOfRange { offset, len_bytes, window_bytes: 128 });
    assert_eq!(memory.copy_in(DeviceAddr(120), &[0; 2]), past(120, 16));
    assert_eq!(memory.copy_out(DeviceAddr(128), &mut [0]), past(128, 8));
    assert_eq!(memory.copy_out(DeviceAddr(u64::MAX - 7), &mut [0; 2]), past(u64::MAX - 7, 16));
    assert_eq!(memory.by(CopyRoutine::default()).zero(DeviceAddr(64), 72), past(64, 72));
    assert_eq!(
        memory.by(CopyRoutine::default()).copy_within(DeviceAddr(0), DeviceAddr(72), 64),
        past(72, 64)
    );
    assert_eq!(
        memory.by(CopyRoutine::default()).zero(DeviceAddr(0), 12),
        Err(AccessError::Length { len_bytes: 12 })
    );
    let crooked = Err(AccessError::Unaligned { offset: 4, align: 8 });
    assert_eq!(memory.copy_in(DeviceAddr(4), &[0]), crooked);
    assert_eq!(memory.by(CopyRoutine::default()).zero(DeviceAddr(4), 8), crooked);
    let mut all = vec![0; 16];
    memory.copy_out(DeviceAddr(0), &mut all).unwrap();
    assert_eq!(all, pattern(16, 9));
    assert_eq!(memory.copy_in(DeviceAddr(128), &[]), Ok(()), "nothing at the very end is inside");
}

#[test]
fn single_words_go_to_their_place() {
    let memory = memory(4);
    memory.write(DeviceAddr(8), 42).unwrap();
    assert_eq!((memory.read(DeviceAddr(8)), memory.read(DeviceAddr(0))), (Ok(42), Ok(0)));
    assert_eq!(memory.len_bytes(), 32);
    assert_eq!(DeviceAddr(u64::MAX).checked_add(1), None);
}
