use std::{string::ToString, vec::Vec};

use x86_64::PhysAddr;

use super::fake::{FakeBus, FakeFunction, FakePorts, MEMORY_AND_IO, window};
use crate::pci::{
    Bar, BarError, BarKind, ConfigAccess, DeviceType, Ecam, EcamRegion, LegacyPorts, PciAddress,
    enable_memory, scan,
};

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

fn host_bridge() -> FakeFunction {
    FakeFunction::new(0x8086, 0x29C0).class(0x06, 0x00)
}

fn one(function: FakeFunction) -> FakeBus {
    FakeBus::default().with(0, 3, 0, function)
}

fn read(bus: &FakeBus, slot: u8) -> Result<Bar, BarError> {
    Bar::read(bus, at(0, 3, 0), slot)
}

fn addresses(bus: &FakeBus) -> Vec<PciAddress> {
    scan(bus).map(|function| function.address).collect()
}

#[test]
fn a_scan_follows_bridges_and_functions() {
    let bus = FakeBus::default()
        .with(0, 0, 0, host_bridge())
        .with(0, 1, 0, FakeFunction::new(0x1B36, 0x000C).bridge_to(2).multifunction())
        .with(0, 1, 5, FakeFunction::new(0x1B36, 0x000C).bridge_to(7))
        .with(0, 31, 0, FakeFunction::new(0x8086, 0x2918))
        .with(0, 31, 3, FakeFunction::new(0x8086, 0x2930)) // not multi-function: there is no function 3
        .with(2, 0, 0, FakeFunction::ivshmem(0x1_0000_0000, 64 << 20))
        .with(7, 31, 0, FakeFunction::new(0x1AF4, 0x1041).multifunction())
        .with(7, 31, 7, FakeFunction::new(0x1AF4, 0x1042))
        .with(9, 0, 0, FakeFunction::new(0x1AF4, 0x1043)); // behind no bridge
    let expected =
        [at(0, 0, 0), at(0, 1, 0), at(0, 1, 5), at(0, 31, 0), at(2, 0, 0), at(7, 31, 0), at(7, 31, 7)];
    assert_eq!(addresses(&bus), expected);
    let kinds: Vec<_> = scan(&bus).map(|function| function.kind()).collect();
    assert_eq!((kinds[0], kinds[1]), (DeviceType::HostBridge, DeviceType::PciPciBridge));
}

#[test]
fn bridges_in_a_loop_end() {
    let bridge = |to| FakeFunction::new(0x1B36, 0x000C).bridge_to(to);
    let bus =
        FakeBus::default().with(0, 1, 0, bridge(255)).with(255, 0, 0, bridge(255)).with(255, 1, 0, bridge(0));
    assert_eq!(addresses(&bus), [at(0, 1, 0), at(255, 0, 0), at(255, 1, 0)]);
}

#[test]
fn an_empty_bus_has_no_functions() {
    assert_eq!(addresses(&FakeBus::default()), []);
}

#[test]
fn a_64_bit_bar_is_sized_with_decode_off_and_put_back() {
    for size in [4 << 20, 64 << 20, 1 << 30, 4 << 30, 256u64 << 30] {
        let address = 0x40_0000_0000u64.max(size);
        let bus = one(FakeFunction::ivshmem(address, size).command(0x0507));
        let before = bus.words(at(0, 3, 0));
        let bar = read(&bus, 2).unwrap();
        let kind = BarKind::Memory64;
        assert_eq!(bar, Bar { slot: 2, kind, prefetchable: true, address: PhysAddr::new(address), size });
        assert_eq!(bus.words(at(0, 3, 0)), before, "every register is as it was");
        assert_eq!(bus.violations.take(), [""; 0]);
        assert_eq!(bus.sizings.get(), 2, "all ones went into both halves");
    }
}

#[test]
fn a_32_bit_bar_is_sized_too() {
    let bus = one(FakeFunction::ivshmem(0x1_0000_0000, 64 << 20));
    let bar = read(&bus, 0).unwrap();
    assert_eq!((bar.kind, bar.size, bar.prefetchable), (BarKind::Memory32, 256, false));
    assert_eq!(bar.address, PhysAddr::new(0xFEBF_0000));
    assert_eq!(bar.wide(), Err(BarError::Not64Bit { slot: 0 }));
    assert_eq!(bus.violations.take(), [""; 0]);
    let top = one(FakeFunction::new(1, 1).bar32(0, 0xFFFF_F000, 0x1000));
    assert_eq!(read(&top, 0).unwrap().address, PhysAddr::new(0xFFFF_F000), "right up to 4 GiB");
}

#[test]
fn what_is_wrong_with_a_bar_is_told_and_everything_put_back() {
    let base = || FakeFunction::new(1, 1).command(MEMORY_AND_IO);
    let cases = [
        (base(), 0, BarError::Absent { slot: 0 }, "BAR0 is absent"),
        (base(), 6, BarError::Absent { slot: 6 }, "BAR6 is absent"),
        (
            base().word(0x14, 0xC001),
            1,
            BarError::Io { slot: 1, port: 0xC000 },
            "BAR1 is I/O ports at 0xc000, not memory",
        ),
        (
            base().bar64(2, 0, 64 << 20),
            2,
            BarError::Unassigned { slot: 2, size: 64 << 20 },
            "BAR2 of 0x4000000 bytes has been given no address by the firmware",
        ),
        (
            base().bar64(2, 0xFFFF_FFFF_FC00_0000, 64 << 20),
            2,
            BarError::Unassigned { slot: 2, size: 64 << 20 },
            "BAR2 of 0x4000000 bytes has been given no address by the firmware",
        ),
        (
            base().bar64(2, 0x1_0000_0000, 64 << 20).word(0x18, 0x0010_000C).crooked(),
            2,
            BarError::Unaligned { slot: 2, address: 0x1_0010_0000, size: 64 << 20 },
            "BAR2 at 0x100100000 is not aligned to its size of 0x4000000 bytes",
        ),
        (
            base().word(0x24, 0b0100),
            5,
            BarError::Type { slot: 5, raw: 0b0100 },
            "BAR5 has no valid type, it reads 0x00000004",
        ),
        (
            base().word(0x10, 0b0010),
            0,
            BarError::Type { slot: 0, raw: 0b0010 },
            "BAR0 has no valid type, it reads 0x00000002",
        ),
        (
            base().bar64(2, 1 << 32, 64 << 20).mask(3, 0xFFFF_FEFF),
            2,
            BarError::Mask { slot: 2, mask: 0xFFFF_FEFF_FC00_0000 },
            "BAR2 has no valid size, its mask is 0xfffffefffc000000",
        ),
    ];
    for (function, slot, error, text) in cases {
        let bus = one(function);
        let before = bus.words(at(0, 3, 0));
        assert_eq!(read(&bus, slot), Err(error));
        assert_eq!(error.to_string(), text);
        assert_eq!(bus.words(at(0, 3, 0)), before, "{text}");
        assert_eq!(bus.violations.take(), [""; 0], "{text}");
    }
}

#[test]
fn too_small_is_told_with_both_sizes() {
    let bus = one(FakeFunction::ivshmem(0x1_0000_0000, 1 << 20));
    let bar = read(&bus, 2).unwrap();
    assert_eq!(bar.at_least(1 << 20), Ok(bar));
    let error = bar.at_least(4 << 20).unwrap_err();
    assert_eq!(error.to_string(), "BAR2 has 0x100000 bytes and at least 0x400000 are needed");
}

#[test]
fn memory_decode_is_turned_on_and_status_left_alone() {
    let bus = one(FakeFunction::new(1, 1).command(0x0400));
    enable_memory(&bus, at(0, 3, 0));
    assert_eq!(bus.words(at(0, 3, 0))[1], 0xF010_0402);
    assert_eq!(bus.violations.take(), [""; 0]);
}

#[test]
fn the_ports_reach_the_first_256_bytes_of_every_function() {
    let bus = FakeBus::default().with(0, 0, 0, host_bridge()).with(
        200,
        31,
        7,
        FakeFunction::ivshmem(1 << 32, 4 << 20),
    );
    let ports = LegacyPorts::new(FakePorts { bus: &bus, selected: 0 });
    assert_eq!(ports.read(at(200, 31, 7), 0), 0x1110_1AF4);
    assert_eq!(ports.read(at(200, 31, 7), 0x1C), 1);
    assert_eq!(ports.read(at(1, 0, 0), 0), u32::MAX);
    ports.write(at(0, 0, 0), 0x04, 0);
    assert_eq!(bus.words(at(0, 0, 0))[1] & 0xFFFF, 0);
    assert_eq!(ports.read(at(0, 0, 0), 0x100), u32::MAX, "past their reach");
    assert_eq!(ports.read(at(0, 0, 0), 2), u32::MAX, "unaligned");
    assert_eq!(ports.read(PciAddress::new(1, 0, 0, 0), 0), u32::MAX, "another segment");
}

#[test]
fn ecam_is_memory_laid_out_by_function() {
    let region = window(2 << 17); // two buses
    region.write_u32(1 << 20 | 31 << 15 | 7 << 12 | 0xFFC, 0xABCD).unwrap();
    let ecam = Ecam::new(region);
    assert_eq!(ecam.read(at(1, 31, 7), 0xFFC), 0xABCD);
    ecam.write(at(0, 2, 1), 0x10, 77);
    assert_eq!(ecam.read(at(0, 2, 1), 0x10), 77);
    ecam.write(at(2, 0, 0), 0, 1);
    assert_eq!(ecam.read(at(2, 0, 0), 0), u32::MAX, "past its end there is no function");
    assert_eq!(ecam.read(at(0, 0, 0), 0x1000), u32::MAX);
    assert_eq!(ecam.read(PciAddress::new(1, 0, 0, 0), 0), u32::MAX);
}

#[test]
fn the_ecam_region_is_read_from_the_chipset() {
    let region = |low, high| {
        let bridge = host_bridge().word(0x60, low).word(0x64, high);
        EcamRegion::of_chipset(&FakeBus::default().with(0, 0, 0, bridge))
    };
    let expect = |base, buses| Some(EcamRegion { base: PhysAddr::new(base), buses });
    assert_eq!(region(0xB000_0001, 0), expect(0xB000_0000, 256));
    assert_eq!(region(0xE800_0003, 0), expect(0xE800_0000, 128));
    assert_eq!(region(0x0400_0005, 0x1F), expect(0x1F_0400_0000, 64));
    assert_eq!(region(0xB000_0001, 0).unwrap().len_bytes(), 256 << 20);
    assert_eq!(region(0xB000_0000, 0), None, "off");
    assert_eq!(region(0xB000_0007, 0), None, "reserved length");
    assert_eq!(region(0x0000_0001, 0), None, "no address");
    let other = FakeBus::default().with(0, 0, 0, FakeFunction::new(0x8086, 0x1237).word(0x60, 0xB000_0001));
    assert_eq!(EcamRegion::of_chipset(&other), None, "a chipset without ECAM");
}

#[test]
fn a_bar_is_moved_with_decode_off_and_nothing_else_changes() {
    let bus = one(FakeFunction::ivshmem(0xF000_0000, 64 << 20).command(0x0507));
    let before = bus.words(at(0, 3, 0));
    let bar = read(&bus, 2).unwrap();
    let there = PhysAddr::new(0x40_0000_0000);
    let moved = bar.move_to(&bus, at(0, 3, 0), there).unwrap();
    assert_eq!(moved, Bar { address: there, ..bar });
    assert_eq!(read(&bus, 2), Ok(moved));
    let mut after = bus.words(at(0, 3, 0));
    assert_eq!((after[6], after[7]), (0xC, 0x40), "the type bits stay");
    (after[6], after[7]) = (before[6], before[7]);
    assert_eq!(after, before, "every other register is as it was");
    assert_eq!(bus.violations.take(), [""; 0]);
}

#[test]
fn a_bar_is_not_moved_to_where_it_cannot_lie() {
    let bus = one(FakeFunction::ivshmem(0xF000_0000, 64 << 20));
    let bar = read(&bus, 2).unwrap();
    let move_to = |to| bar.move_to(&bus, at(0, 3, 0), PhysAddr::new(to));
    let unaligned = BarError::Unaligned { slot: 2, address: 0x40_0010_0000, size: 64 << 20 };
    assert_eq!(move_to(0x40_0010_0000), Err(unaligned));
    assert_eq!(move_to(0), Err(BarError::Unassigned { slot: 2, size: 64 << 20 }));
    assert_eq!(read(&bus, 2), Ok(bar), "it is where it was");
    // A device that keeps only the low half of what it is given.
    let deaf = one(FakeFunction::ivshmem(0xF000_0000, 64 << 20).mask(3, 0));
    let error = bar.move_to(&deaf, at(0, 3, 0), PhysAddr::new(0x40_F000_0000)).unwrap_err();
    assert!(matches!(error, BarError::NotTaken { .. } | BarError::Mask { .. }), "{error}");
}
