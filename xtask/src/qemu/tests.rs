//! Command lines and endings, without starting QEMU.

use super::*;
use crate::build::Built;
use crate::error::Error;
use crate::size::Size;
use ktest::exit::Exit;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

fn built() -> Built {
    Built { boot: "/b/boot".into(), kernel: "/b/kernel".into(), archive: "/b/kernel.cpio".into() }
}

fn line(qemu: &Qemu) -> String {
    qemu.shell_line(&built())
}

#[test]
fn the_default_machine_is_the_tours() {
    let qemu = Qemu { command: GuestCommand::run("tour").with("log", "info"), ..Qemu::default() };
    assert_eq!(
        line(&qemu),
        "qemu-system-x86_64 -machine q35,sata=off -cpu max -m size=256M -accel tcg -icount shift=0,sleep=off \
         -display none -nodefaults -serial stdio -monitor none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=0x4 \
         -object memory-backend-ram,id=dev0,size=64M,share=on -device ivshmem-plain,memdev=dev0 \
         -kernel /b/boot -initrd /b/kernel.cpio -fw_cfg 'name=opt/farpage/cmd,string=run=tour log=info'"
    );
}

#[test]
fn every_part_of_the_machine_reaches_the_line() {
    let qemu = Qemu {
        cpu: "qemu64".into(),
        cpus: 2,
        memory: Size::mib(5 << 10),
        icount: false,
        devices: vec![
            Device { size: Size::mib(4), file: Some("/x/a,b".into()) },
            Device::new(Size::mib(1024)),
        ],
        qmp: Some(QmpPlace::Socket("/x/qmp".into())),
        gdb: Some(1234),
        extra: vec!["-d".into(), "int".into()],
        ..Qemu::default()
    };
    let line = line(&qemu);
    for part in [
        "-cpu qemu64",
        "-m size=5120M",
        "-smp 2",
        "memory-backend-file,id=dev0,size=4M,share=on,mem-path=/x/a,,b",
        "memory-backend-ram,id=dev1,size=1024M,share=on -device ivshmem-plain,memdev=dev1",
        "-qmp unix:/x/qmp,server=on,wait=off",
        "-gdb tcp:127.0.0.1:1234 -S",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("-icount"));
    assert!(line.ends_with(" -d int"));
}

#[test]
fn the_monitor_is_served_at_a_socket_or_a_port() {
    let at = |place: &str| Qemu { qmp: Some(place.parse().unwrap()), ..Qemu::default() };
    assert!(line(&at("4444")).contains("-qmp tcp:127.0.0.1:4444,server=on,wait=off"));
    assert!(line(&at("./44")).contains("-qmp unix:./44,server=on,wait=off"));
    assert_eq!("a b".parse::<QmpPlace>().unwrap().client(), "socat - UNIX-CONNECT:'a b'");
    for nonsense in ["", "0", "65536"] {
        assert!(nonsense.parse::<QmpPlace>().is_err(), "{nonsense}");
    }
    at("qmp-of-a-test").check().unwrap();
    for bad in ["Cargo.toml", "/nonexistent/qmp", &"x".repeat(108)] {
        assert!(matches!(at(bad).check(), Err(Error::QmpSocket { .. })), "{bad}");
    }
}

#[test]
fn a_guest_that_takes_input_sleeps_while_it_waits() {
    let waits = Qemu { input: true, ..Qemu::default() };
    assert!(line(&waits).contains("-icount shift=0,sleep=on "));
    assert!(!line(&Qemu { icount: false, ..waits }).contains("-icount"));
}

#[test]
fn commas_in_guest_words_survive_qemus_option_parser() {
    let qemu = Qemu { command: GuestCommand::run("test").with("filter", "a,b"), ..Qemu::default() };
    assert!(line(&qemu).contains("'name=opt/farpage/cmd,string=run=test filter=a,,b'"));
}

#[test]
fn impossible_machines_are_refused_before_qemu_starts() {
    let small = Qemu { memory: Size(4096), ..Qemu::default() };
    assert!(matches!(small.check(), Err(Error::MemorySize(Size(4096)))));
    for size in [Size(4096), Size::mib(48), Size::mib(128 << 10)] {
        let qemu = Qemu { devices: vec![Device::new(size)], ..Qemu::default() };
        assert!(matches!(qemu.check(), Err(Error::DeviceSize(found)) if found == size));
    }
    let no_cpu = Qemu { cpus: 0, ..Qemu::default() };
    assert!(matches!(no_cpu.check(), Err(Error::Cpus(0))));
    let counted = Qemu { accel: Accel::Kvm, ..Qemu::default() };
    assert!(matches!(counted.check(), Err(Error::IcountNeedsTcg)));
    Qemu { devices: Vec::new(), ..Qemu::default() }.check().unwrap();
}

#[test]
fn the_guests_exit_codes_are_read_from_qemus_status() {
    let status = |code: i32| ending_of_status(ExitStatus::from_raw(code << 8), "");
    assert_eq!(status(33), Ending::Exit(Exit::Success));
    assert_eq!(status(35), Ending::Exit(Exit::Failed));
    assert_eq!(status(37), Ending::Exit(Exit::Panic));
    assert_eq!(status(39), Ending::Exit(Exit::Fault));
}

#[test]
fn status_0_other_statuses_and_signals_are_never_success() {
    let ending = |raw: i32, complaints: &str| match ending_of_status(ExitStatus::from_raw(raw), complaints) {
        Ending::Died(how) => how,
        other => panic!("{other:?}"),
    };
    assert!(ending(0, "").contains("triple fault"));
    assert!(ending(1 << 8, "warning\nqemu: no such device").ends_with("status 1: qemu: no such device"));
    assert!(ending(9, "").contains("signal: 9"));
}
