//! `tour`.
use crate::boot;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::GuestCommand;
use crate::symbolize::Symbolizer;

pub(crate) fn run(machine: &MachineArgs) -> Result<(), Error> {
    let qemu = machine.qemu(&Defaults::TOUR, GuestCommand::run("tour"))?;
    let built = machine.prepare(&qemu)?;
    boot::show(qemu.spawn(&built)?, &mut Symbolizer::new(&built.kernel))
}
