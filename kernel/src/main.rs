//! The kernel: from the loader's hand-off to the command that was asked for.
//!
//! This file is the story of the boot, top to bottom. Everything that is `unsafe` is under `arch/` and in `vm.rs`.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod backtrace;
mod bench;
mod bits;
mod bootmem;
mod console;
mod counting;
mod exit;
mod fwcfg;
mod hang;
mod knobs;
mod lab;
mod linux;
mod measure;
mod memory;
mod mm_tests;
mod monitor;
mod report;
mod task;
mod testing;
mod tour;
mod units;
mod vm;

use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::{BootInfo, entry_point};
use kernel_logic::cmdline::{CommandLine, Run};
use spin::Once;

use arch::{heap, x86_64};

/// What the kernel asks of its loader: physical memory mapped somewhere, a stack, and everything in the upper half.
static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config.mappings.dynamic_range_start = Some(0xffff_8000_0000_0000);
    config.kernel_stack_size = 256 * 1024;
    config
};

entry_point!(on_loader_tables, config = &CONFIG);

/// The longest command line.
const COMMAND_LINE_MAX: usize = 4096;
/// The file of fw_cfg that holds it.
const COMMAND_LINE_FILE: &str = "opt/farpage/cmd";

/// What the kernel keeps of the loader's information.
#[derive(Debug)]
pub(crate) struct Boot {
    command: CommandLine<'static>,
    /// Where ACPI's first table is, physically.
    pub(crate) rsdp: Option<u64>,
    /// The boot archive, physically: address and length.
    pub(crate) archive: Option<(u64, u64)>,
}

static BOOT: Once<Boot> = Once::new();

/// The first step, on the loader's page tables and stack: make traps work, learn what the machine has, and build page
/// tables of our own.
fn on_loader_tables(info: &'static mut BootInfo) -> ! {
    let cpu = x86_64::init_cpu();
    console::init();
    if let Err(missing) = cpu {
        exit::fail(&missing);
    }
    let command = command_line();
    console::set_log_level(command.log);
    log::info!("cpu: {}", x86_64::features::get());

    let Some(offset) = info.physical_memory_offset.into_option() else {
        exit::fail(&"the loader did not map physical memory");
    };
    x86_64::paging::use_loader_map(offset);
    if let Err(error) = bootmem::init(&info.memory_regions) {
        exit::fail(&error);
    }
    BOOT.call_once(|| Boot {
        command,
        rsdp: info.rsdp_addr.into_option(),
        archive: info.ramdisk_addr.into_option().and_then(|virt| {
            let phys = x86_64::walk::Walk::current(virt).translate(virt)?;
            Some((phys, info.ramdisk_len))
        }),
    });
    let Err(error) = x86_64::enter_own_tables(on_own_tables);
    exit::fail(&format_args!("no RAM for page tables: {} frames in one piece are missing", error.frames))
}

/// The second step, on the kernel's own tables and stack: the heap, the interrupt controller, and what was asked for.
extern "C" fn on_own_tables() -> ! {
    let boot = boot();
    if let Err(error) = heap::init(boot.command.run == Run::Exec) {
        exit::fail(&format_args!("no RAM for the heap: {} frames in one piece are missing", error.frames));
    }
    if let Err(error) = x86_64::init_on_own_tables() {
        exit::fail(&error);
    }
    let devices = match memory::init() {
        Ok(devices) => devices,
        Err(error) => exit::fail(&error),
    };
    // The tour and the benchmarks end with this sentence; what runs without a device says it and goes on.
    if let (Err(error), Run::Test | Run::List | Run::Shell | Run::Exec) = (&devices, boot.command.run) {
        log::warn!("{error}");
    }
    log::info!("on the kernel's own page tables, root {:?}", x86_64::tlb::root());
    knobs::init(&boot.command);
    match boot.command.run {
        Run::List => testing::list(),
        Run::Test => testing::run(&boot.command),
        Run::Bench => bench::run(&boot.command, devices),
        Run::Shell => monitor::run(),
        Run::Hang => hang::run(),
        Run::Exec => linux::run(),
        Run::Exp if boot.command.list => lab::list(),
        Run::Exp => lab::run(&boot.command, devices),
        Run::Tour | Run::Gdb => tour::run(&boot.command, devices),
    }
}

/// What the loader said.
///
/// # Panics
/// Before it is read.
pub(crate) fn boot() -> &'static Boot {
    BOOT.get().expect("the loader's information is read first")
}

/// The command line; none is an empty one.
fn command_line() -> CommandLine<'static> {
    static TEXT: Once<[u8; COMMAND_LINE_MAX]> = Once::new();
    let mut found = Ok(0);
    let text = TEXT.call_once(|| {
        let mut buffer = [0; COMMAND_LINE_MAX];
        found = fwcfg::read_file(COMMAND_LINE_FILE, &mut buffer).map(<[u8]>::len);
        buffer
    });
    let len = match found {
        Ok(len) => len,
        Err(fwcfg::FwCfgError::NoFile | fwcfg::FwCfgError::NoDevice) => 0,
        Err(error) => exit::fail(&error),
    };
    let words = match core::str::from_utf8(&text[..len]) {
        Ok(words) => words.trim_end_matches('\0'),
        Err(_) => exit::fail(&"the command line is not UTF-8"),
    };
    match CommandLine::parse(words) {
        Ok(command) => command,
        Err(error) => exit::fail(&error),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    report::panic(info)
}
