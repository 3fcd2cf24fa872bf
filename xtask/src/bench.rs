//! `bench`.
use crate::boot;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::GuestCommand;
use crate::symbolize::Symbolizer;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {}

pub(crate) fn run(_args: &BenchArgs, machine: &MachineArgs) -> Result<(), Error> {
    let qemu = machine.qemu(&Defaults::TOUR, GuestCommand::run("bench"))?;
    let built = machine.prepare(&qemu)?;
    boot::show(qemu.spawn(&built)?, &mut Symbolizer::new(&built.kernel))
}
