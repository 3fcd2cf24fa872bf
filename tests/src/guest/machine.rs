//! The machine that in-kernel tests run on.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ktest::{catalog::Needs, stream::Ending};
use xtask::{
    build::{self, Built},
    install,
    qemu::{Device, GuestCommand, Qemu},
    size::Size,
    symbolize::Symbolizer,
};

/// The longest a boot may take, on a host that has much else to do. A test that hangs costs this once; the tests after it run
/// in a further boot.
const LIMIT: Duration = Duration::from_secs(300);

/// Something that boots the kernel. The real one is QEMU; the tests of the harness have a script.
pub trait Machine: Send + Sync {
    /// Boots a machine that has what `needs` asks for, with `words` as the kernel's command line, and hands
    /// over its console line by line.
    ///
    /// # Errors
    /// The machine cannot be started.
    fn boot(&self, needs: &Needs, words: &str, line: &mut dyn FnMut(&str)) -> Result<Ending, String>;

    /// A line of the console as a person reads it.
    fn explain(&self, line: &str) -> String;
}

/// The kernel under QEMU.
pub struct QemuMachine {
    built: Built,
    symbolizer: Mutex<Symbolizer>,
}

impl QemuMachine {
    /// Installs QEMU where it is missing, as `cargo run` does, and builds the kernel.
    ///
    /// # Errors
    /// One of the two cannot be done.
    pub fn new() -> Result<Self, String> {
        install::ensure_qemu().map_err(|error| error.to_string())?;
        let built = build::kernel().map_err(|error| error.to_string())?;
        let symbolizer = Mutex::new(Symbolizer::new(&built.kernel));
        Ok(Self { built, symbolizer })
    }

    /// The files that it boots.
    pub(crate) const fn built(&self) -> &Built {
        &self.built
    }
}

impl Machine for QemuMachine {
    fn boot(&self, needs: &Needs, words: &str, line: &mut dyn FnMut(&str)) -> Result<Ending, String> {
        let mut run = qemu(needs, words).spawn(&self.built).map_err(|error| error.to_string())?;
        while let Some(next) = run.next_line() {
            line(&next.text);
        }
        Ok(run.finish())
    }

    fn explain(&self, line: &str) -> String {
        self.symbolizer.lock().unwrap_or_else(PoisonError::into_inner).expand(line).join("\n    ")
    }
}

/// The default machine, with what a test needs changed.
pub(crate) fn qemu(needs: &Needs, words: &str) -> Qemu {
    let default = Qemu::default();
    let device = needs.device_mib.map(mib).or(default.devices.first().map(|device| device.size));
    let devices = needs.devices.map_or(default.devices.len(), |count| count as usize);
    let cpus = needs.cpus.unwrap_or(default.cpus);
    // Counting makes a run repeat exactly. With several CPUs that wait for each other it costs twelvefold.
    let icount = cpus == 1;
    let mut command = GuestCommand::words(&[words.to_owned()]).with("icount", u8::from(icount));
    if let Some(coherent) = needs.coherent.filter(|&count| count != 0) {
        let first = devices.saturating_sub(coherent as usize);
        let numbers: Vec<_> = (first..devices).map(|number| number.to_string()).collect();
        command = command.with("coherent", numbers.join(","));
    }
    Qemu {
        memory: needs.memory_mib.map_or(default.memory, mib),
        cpus,
        devices: device.map_or_else(Vec::new, |size| vec![Device::new(size); devices]),
        icount,
        command,
        timeout: Some(LIMIT),
        ..default
    }
}

fn mib(count: u32) -> Size {
    Size::mib(u64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_what_a_test_needs_and_is_the_default_otherwise() {
        let plain = qemu(&Needs::NONE, "run=test");
        assert_eq!((plain.memory, plain.cpus, plain.devices.len()), (Size::mib(256), 1, 1));
        assert_eq!(plain.command.as_str(), "run=test icount=1");
        let needs = Needs {
            memory_mib: Some(3072),
            cpus: Some(2),
            devices: Some(2),
            device_mib: Some(1024),
            ..Needs::NONE
        };
        let special = qemu(&needs, "run=test");
        assert_eq!((special.memory, special.cpus, special.icount), (Size::mib(3072), 2, false));
        assert_eq!(special.devices, vec![Device::new(Size::mib(1024)); 2]);
        assert_eq!(qemu(&Needs { devices: Some(0), ..Needs::NONE }, "").devices, []);
        let pairs = qemu(&Needs { devices: Some(4), coherent: Some(2), ..Needs::NONE }, "run=test");
        assert_eq!(pairs.devices.len(), 4);
        assert_eq!(pairs.command.as_str(), "run=test icount=1 coherent=2,3");
    }
}
