//! What is told of the machine.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use farpage_mm::{Order, PAGE_SIZE, Place};

use super::kib;
use crate::linux::errno::Errno;
use crate::linux::process::Process;
use crate::vm::mm;

type Make = fn(&Process) -> Result<Vec<u8>, Errno>;

/// Files of the root.
pub(super) const TEXTS: &[(&str, Make)] = &[
    ("cpuinfo", cpuinfo),
    ("filesystems", |_| Ok(b"nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\n".to_vec())),
    ("loadavg", |_| Ok(b"0.00 0.00 0.00 1/1 1\n".to_vec())),
    ("meminfo", meminfo),
    ("stat", |_| Ok(b"cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nbtime 0\n".to_vec())),
    ("uptime", uptime),
    ("version", |_| Ok(b"Linux version 7.2.0-farpage (farpage)\n".to_vec())),
    ("vmstat", vmstat),
];

/// Directories of `/proc/sys`, and what is in them. They can be written, and stay as they are.
pub(super) const SETTINGS: &[(&str, &[(&str, Make)])] = &[
    (
        "kernel",
        &[
            ("osrelease", |_| Ok(b"7.2.0-farpage\n".to_vec())),
            ("ostype", |_| Ok(b"Linux\n".to_vec())),
            ("pid_max", |_| Ok(b"4194304\n".to_vec())),
            ("randomize_va_space", |_| Ok(b"0\n".to_vec())),
            ("threads-max", |_| Ok(b"4096\n".to_vec())),
        ],
    ),
    (
        "vm",
        &[
            ("max_map_count", |_| Ok(b"65530\n".to_vec())),
            ("mmap_min_addr", |_| Ok(b"65536\n".to_vec())),
            ("overcommit_memory", |_| Ok(b"1\n".to_vec())),
            ("overcommit_ratio", |_| Ok(b"50\n".to_vec())),
            ("swappiness", |_| Ok(b"0\n".to_vec())),
        ],
    ),
];

fn cpuinfo(_process: &Process) -> Result<Vec<u8>, Errno> {
    let vendor = raw_cpuid::CpuId::new().get_vendor_info();
    let vendor = vendor.as_ref().map_or("unknown", |vendor| vendor.as_str());
    Ok(format!("processor\t: 0\nvendor_id\t: {vendor}\n\n").into_bytes())
}

fn uptime(_process: &Process) -> Result<Vec<u8>, Errno> {
    let hundredths = crate::measure::nanoseconds(crate::arch::x86_64::tsc::now()) / 10_000_000;
    Ok(format!("{}.{:02} 0.00\n", hundredths / 100, hundredths % 100).into_bytes())
}

pub(super) fn mounts(_process: &Process) -> Result<Vec<u8>, Errno> {
    Ok(b"tmpfs / tmpfs rw 0 0\nproc /proc proc rw 0 0\nsysfs /sys sysfs rw 0 0\n".to_vec())
}

fn meminfo(_process: &Process) -> Result<Vec<u8>, Errno> {
    let ram = mm().zone(Place::RAM).stat();
    let bytes = |pages: u32| u64::from(pages) * PAGE_SIZE;
    let mut out = String::new();
    let huge = mm().folios_in_ram().0[usize::from(Order::PMD.get())] * Order::PMD.bytes();
    let pool = mm().huge_pool();
    for (name, bytes) in [
        ("MemTotal", bytes(ram.managed)),
        ("MemFree", bytes(ram.free)),
        ("MemAvailable", bytes(ram.free)),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("AnonHugePages", huge),
    ] {
        kib(&mut out, name, bytes);
    }
    for (name, pages) in [
        ("HugePages_Total", pool.total),
        ("HugePages_Free", pool.free),
        ("HugePages_Rsvd", pool.reserved),
        ("HugePages_Surp", 0_u32),
    ] {
        let _ = writeln!(out, "{:<16}{pages:>8}", format!("{name}:"));
    }
    kib(&mut out, "Hugepagesize", Order::PMD.bytes());
    kib(&mut out, "Hugetlb", u64::from(pool.total) * Order::PMD.bytes());
    Ok(out.into_bytes())
}

fn vmstat(_process: &Process) -> Result<Vec<u8>, Errno> {
    let mut out = String::new();
    mm().vmstat(&mut |name, value| {
        let _ = writeln!(out, "{name} {value}");
    });
    Ok(out.into_bytes())
}
