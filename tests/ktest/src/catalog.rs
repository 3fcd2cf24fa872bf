//! The list of in-kernel tests, as `run=list` prints it: one record per test.
//!
//! ```text
//! @test name=kernel::arch::fault::double_fault expect=double-fault
//! @test name=kernel::mm::two_devices devices=2 memory_mib=512
//! ```
//!
//! A test with `expect` is destructive: it has a boot of its own, which must end in that report.
//! What else a test needs of its machine is said here too, and the host gives it such a machine.

use core::fmt::{self, Write};

use crate::wire::{Record, Writer};

/// The kind of the record.
pub const TEST: &str = "test";
/// What `expect` says when the end is a Rust panic; anything else names the kind of a fatal fault.
pub const EXPECT_PANIC: &str = "panic";

/// What a test needs of the machine it runs on. The default is the host's default machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Needs {
    /// RAM in MiB.
    pub memory_mib: Option<u32>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// How many device-memory devices; 0 is a machine without.
    pub devices: Option<u32>,
    /// The size of each device's memory in MiB.
    pub device_mib: Option<u32>,
    /// How many of the devices, the last ones, are coherent: mapped by CPUs where they lie.
    pub coherent: Option<u32>,
}

impl Needs {
    /// Nothing beyond the default machine.
    pub const NONE: Self =
        Self { memory_mib: None, cpus: None, devices: None, device_mib: None, coherent: None };

    fn fields(&self) -> [(&'static str, Option<u32>); 5] {
        [
            ("memory_mib", self.memory_mib),
            ("cpus", self.cpus),
            ("devices", self.devices),
            ("device_mib", self.device_mib),
            ("coherent", self.coherent),
        ]
    }
}

/// Prints one entry of the list.
///
/// # Errors
/// Whatever `out` gives.
pub fn write_test<W: Write + ?Sized>(
    out: &mut W,
    name: &str,
    expect: Option<&str>,
    needs: &Needs,
) -> fmt::Result {
    let mut record = Writer::begin(out, TEST).field("name", &name);
    if let Some(expect) = expect {
        record = record.field("expect", &expect);
    }
    for (key, value) in needs.fields() {
        if let Some(value) = value {
            record = record.field(key, &value);
        }
    }
    record.end()
}

/// What the machine must have, read from a record of the list.
#[must_use]
pub fn needs_of(record: &Record<'_>) -> Needs {
    let number = |key| record.u64(key).and_then(|n| u32::try_from(n).ok());
    Needs {
        memory_mib: number("memory_mib"),
        cpus: number("cpus"),
        devices: number("devices"),
        device_mib: number("device_mib"),
        coherent: number("coherent"),
    }
}
