//! Devices: files of `/dev`, and others that are driven by ioctl.

mod command;
mod console;
pub(super) mod dmirror;
pub(super) mod gup_test;
mod null;
pub(super) mod random;
mod zero;

use alloc::sync::Arc;

use super::errno::Errno;
use super::file::{File, Stat};
use super::fs::{Node, kind};
use super::process::Process;
use crate::vm::devmem;

pub(super) use console::standard;

/// A device in `/dev`.
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub(super) name: &'static str,
    /// Major and minor number.
    pub(super) number: (u32, u32),
    /// Makes the file of an opening; the stat is what `fstat` is to tell.
    pub(super) open: Open,
}

/// Opens a device for a process.
type Open = fn(&Process, Stat) -> Result<Arc<dyn File>, Errno>;

/// All devices.
pub(super) const DEVICES: &[Device] = &[
    Device { name: "null", number: (1, 3), open: null::open },
    Device { name: "zero", number: (1, 5), open: zero::open },
    Device { name: "full", number: (1, 7), open: zero::open_full },
    Device { name: "random", number: (1, 8), open: random::open },
    Device { name: "urandom", number: (1, 9), open: random::open },
    Device { name: "tty", number: (5, 0), open: console::open },
    Device { name: "console", number: (5, 1), open: console::open },
    Device { name: "hmm_dmirror0", number: (240, 0), open: dmirror::open },
    Device { name: "hmm_dmirror1", number: (240, 1), open: dmirror::open },
    Device { name: "hmm_dmirror2", number: (240, 2), open: dmirror::open },
    Device { name: "hmm_dmirror3", number: (240, 3), open: dmirror::open },
];

/// Devices in `/sys/kernel/debug`.
pub(super) const DEBUG: &[Device] =
    &[Device { name: "gup_test", number: (0, 0), open: |_, stat| Ok(gup_test::open(stat)) }];

impl Device {
    /// Has the machine it?
    pub(super) fn is_there(&self) -> bool {
        const DMIRROR: u32 = 240;
        self.number.0 != DMIRROR || devmem::device(self.number.1 as usize).is_some()
    }

    /// What `stat` tells of it.
    fn stat(&self) -> Stat {
        let (major, minor) = self.number;
        let (major, minor) = (u64::from(major), u64::from(minor));
        Stat {
            ino: 0x1000 + (major << 8 | minor),
            mode: kind::CHAR | 0o666,
            nlink: 1,
            rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
            dev: super::fs::device::DEV,
            ..Stat::default()
        }
    }
}

/// A device's name in the tree.
struct DeviceNode(&'static Device);

impl Node for DeviceNode {
    fn stat(&self) -> Stat {
        self.0.stat()
    }

    fn open(self: Arc<Self>, process: &Process, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        (self.0.open)(process, self.0.stat())
    }
}

/// The node of a device.
pub(super) fn node(device: &'static Device) -> Arc<dyn Node> {
    Arc::new(DeviceNode(device))
}
