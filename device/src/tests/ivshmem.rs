use std::{string::ToString, vec::Vec};

use super::fake::{FakeBus, FakeFunction, window};
use crate::{
    ivshmem::{Ivshmem, IvshmemError, QEMU_ARGS, find},
    mmio::AccessError,
    pci::{BarError, PciAddress},
};

fn all(bus: &FakeBus) -> Vec<Result<Ivshmem, IvshmemError>> {
    find(bus).collect()
}

#[test]
fn two_devices_are_found_one_of_them_behind_a_bridge() {
    let bus = FakeBus::default()
        .with(0, 2, 0, FakeFunction::new(0x1B36, 0x000C).bridge_to(1))
        .with(0, 4, 0, FakeFunction::ivshmem(0x1_0000_0000, 1 << 30).command(0))
        .with(0, 5, 0, FakeFunction::new(0x1AF4, 0x1111))
        .with(1, 0, 0, FakeFunction::ivshmem(0x80_0000_0000, 4 << 20));
    let found: Vec<_> = all(&bus).into_iter().map(Result::unwrap).collect();
    let places: Vec<_> =
        found.iter().map(|d| (d.address.bus(), d.memory.address.as_u64(), d.memory.size)).collect();
    assert_eq!(places, [(0, 0x1_0000_0000, 1 << 30), (1, 0x80_0000_0000, 4 << 20)]);
    assert!(found.iter().all(|device| bus.words(device.address)[1] & 0b10 != 0), "memory decode is on");
    assert_eq!(bus.violations.take(), [""; 0]);
}

#[test]
fn a_machine_without_one_has_none() {
    let bus = FakeBus::default().with(0, 0, 0, FakeFunction::new(0x8086, 0x29C0));
    assert_eq!(all(&bus), []);
    let text = IvshmemError::Missing.to_string();
    assert!(
        text.contains("no ivshmem device")
            && text.ends_with(QEMU_ARGS)
            && text.contains("-device ivshmem-plain")
    );
}

#[test]
fn a_bad_device_is_told_and_the_good_one_still_found() {
    let bad = |function: FakeFunction| {
        let bus = FakeBus::default().with(0, 4, 0, function.command(0)).with(
            0,
            5,
            0,
            FakeFunction::ivshmem(1 << 32, 64 << 20),
        );
        let mut found = all(&bus);
        assert!(found.pop().unwrap().is_ok());
        let address = PciAddress::new(0, 0, 4, 0);
        assert_eq!(bus.words(address)[1] & 0b11, 0, "decode stays off");
        match found.pop() {
            Some(Err(error @ IvshmemError::Bar { error: bar, .. })) => (bar, error.to_string()),
            other => panic!("{other:?}"),
        }
    };
    let (error, text) = bad(FakeFunction::ivshmem(1 << 32, 1 << 20));
    assert_eq!(error, BarError::TooSmall { slot: 2, size: 1 << 20, need: 4 << 20 });
    assert_eq!(
        text,
        "no device memory on 0000:00:04.0: BAR2 has 0x100000 bytes and at least 0x400000 are needed; give QEMU \
         -object memory-backend-ram,id=dev0,size=64M,share=on -device ivshmem-plain,memdev=dev0"
    );
    let unassigned = BarError::Unassigned { slot: 2, size: 64 << 20 };
    assert_eq!(bad(FakeFunction::ivshmem(0, 64 << 20)).0, unassigned);
    let without = FakeFunction::new(0x1AF4, 0x1110).bar32(0, 0xFEBF_0000, 256);
    assert_eq!(bad(without.clone()).0, BarError::Absent { slot: 2 });
    assert_eq!(bad(without.bar32(2, 0xC000_0000, 64 << 20)).0, BarError::Not64Bit { slot: 2 });
    assert_eq!(bad(FakeFunction::new(0x1AF4, 0x1110)).0, BarError::Absent { slot: 0 });
}

#[test]
fn the_position_is_read_from_its_register() {
    let bus = FakeBus::default().with(0, 4, 0, FakeFunction::ivshmem(1 << 32, 64 << 20));
    let device = find(&bus).next().unwrap().unwrap();
    let registers = window(32);
    registers.write_u32(8, 3).unwrap();
    assert_eq!(device.position(&registers), Ok(3));
    let short = AccessError::OutOfRange { offset: 8, len_bytes: 4, window_bytes: 8 };
    assert_eq!(device.position(&window(1)), Err(short));
}
