//! The machine, and the command line that makes it.

use crate::build::Built;
use crate::error::Error;
use crate::size::Size;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Accel {
    /// QEMU's translator: everywhere, and exact with instruction counting.
    #[default]
    Tcg,
    /// The host's own CPU, through `/dev/kvm`.
    Kvm,
}

/// A device with memory: QEMU's `ivshmem-plain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Size of its memory BAR.
    pub size: Size,
    /// A file that holds the memory, for other programs to see; made if it does not exist.
    pub file: Option<PathBuf>,
}

impl Device {
    /// A device whose memory nobody else sees.
    #[must_use]
    pub const fn new(size: Size) -> Self {
        Self { size, file: None }
    }
}

/// Where QEMU's machine protocol (QMP) is served to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpPlace {
    /// A Unix socket, which QEMU makes.
    Socket(PathBuf),
    /// A port of the loopback interface.
    Port(u16),
}

/// The longest name of a Unix socket (`sun_path` without its zero).
const SOCKET_NAME_MAX: usize = 107;

impl QmpPlace {
    fn check(&self) -> Result<(), Error> {
        let Self::Socket(path) = self else { return Ok(()) };
        let fail = |why| Err(Error::QmpSocket { path: path.clone(), why });
        if path.as_os_str().len() > SOCKET_NAME_MAX {
            return fail("the name of a socket has at most 107 bytes");
        }
        let found = std::fs::symlink_metadata(path);
        if found.is_ok_and(|data| !std::os::unix::fs::FileTypeExt::is_socket(&data.file_type())) {
            return fail("something that is no socket is there already");
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        if dir.is_some_and(|dir| !dir.is_dir()) {
            return fail("there is no such directory");
        }
        Ok(())
    }

    /// The program that connects to it.
    #[must_use]
    pub fn client(&self) -> String {
        match self {
            Self::Socket(path) => format!("socat - UNIX-CONNECT:{}", shell_quoted(&path.to_string_lossy())),
            Self::Port(port) => format!("nc 127.0.0.1 {port}"),
        }
    }
}

impl std::str::FromStr for QmpPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return if text.is_empty() {
                Err("a socket has a name".into())
            } else {
                Ok(Self::Socket(text.into()))
            };
        }
        match text.parse() {
            Ok(port) if port != 0 => Ok(Self::Port(port)),
            _ => Err(format!("{text} is no port: use 1 to 65535, or the path of a socket like ./qmp")),
        }
    }
}

/// What the guest is told to do: `key=value` words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestCommand(String);

impl GuestCommand {
    /// `run=WHAT`.
    #[must_use]
    pub fn run(what: &str) -> Self {
        Self(format!("run={what}"))
    }

    /// Words as they stand.
    #[must_use]
    pub fn words(words: &[String]) -> Self {
        Self(words.join(" "))
    }

    /// Adds `key=value`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        let blank = if self.0.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{blank}{key}={value}");
        self
    }

    /// What is to be run: the last `run=WHAT`, or what the kernel does without one.
    #[must_use]
    pub fn what(&self) -> &str {
        self.0.split(' ').filter_map(|word| word.strip_prefix("run=")).next_back().unwrap_or("tour")
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A machine with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// QEMU's machine type.
    pub machine: String,
    /// QEMU's CPU model.
    pub cpu: String,
    /// RAM.
    pub memory: Size,
    /// CPUs.
    pub cpus: u32,
    /// Who executes.
    pub accel: Accel,
    /// Count instructions: the guest's clock advances by one tick per instruction, and runs repeat exactly.
    pub icount: bool,
    /// Devices with memory.
    pub devices: Vec<Device>,
    /// What the guest is to do.
    pub command: GuestCommand,
    /// Where the user finds QEMU's machine protocol.
    pub qmp: Option<QmpPlace>,
    /// A loopback port for gdb; the guest then waits for it.
    pub gdb: Option<u16>,
    /// The guest takes input: the serial line is open in both directions, and while it waits the host sleeps too.
    pub input: bool,
    /// The console is a program's: what has come is passed on before its line ends.
    pub pieces: bool,
    /// Further arguments, last.
    pub extra: Vec<String>,
    /// How long the run may take; `None` for a run with a person at a debugger.
    pub timeout: Option<Duration>,
}

/// A chipset with ECAM. Without its disk controller: the firmware waits for disks at its six ports, by counting, and where
/// instructions are counted too that takes 0.6 s of a boot's 0.7 s.
const MACHINE: &str = "q35,sata=off";

impl Default for Qemu {
    /// The machine of the tour: 256 MiB of RAM, one CPU, one device of 64 MiB, instructions counted.
    fn default() -> Self {
        Self {
            machine: MACHINE.into(),
            cpu: "max".into(),
            memory: Size::mib(256),
            cpus: 1,
            accel: Accel::Tcg,
            icount: true,
            devices: vec![Device::new(Size::mib(64))],
            command: GuestCommand::default(),
            qmp: None,
            gdb: None,
            input: false,
            pieces: false,
            extra: Vec::new(),
            timeout: Some(Duration::from_secs(60)),
        }
    }
}

impl Qemu {
    /// Refuses machines that QEMU or this host cannot make.
    ///
    /// # Errors
    /// One of the sentences of [`Error`] about sizes, numbers and accelerators.
    pub fn check(&self) -> Result<(), Error> {
        if !(Size::mib(2)..=Size::mib(1 << 20)).contains(&self.memory) {
            return Err(Error::MemorySize(self.memory));
        }
        if !(1..=64).contains(&self.cpus) {
            return Err(Error::Cpus(self.cpus));
        }
        for device in &self.devices {
            let fits = (Size::mib(1)..=Size::mib(64 << 10)).contains(&device.size);
            if !fits || !device.size.bytes().is_power_of_two() {
                return Err(Error::DeviceSize(device.size));
            }
        }
        if let Some(place) = &self.qmp {
            place.check()?;
        }
        if self.accel == Accel::Kvm {
            if self.icount {
                return Err(Error::IcountNeedsTcg);
            }
            kvm_is_usable().map_err(Error::NoKvm)?;
        }
        Ok(())
    }

    /// QEMU's arguments.
    #[must_use]
    pub fn args(&self, built: &Built) -> Vec<OsString> {
        let mut args = Args::default();
        args.pair("-machine", &self.machine).pair("-cpu", &self.cpu);
        args.pair("-m", format!("size={}", megabytes(self.memory)));
        if self.cpus != 1 {
            args.pair("-smp", self.cpus.to_string());
        }
        args.pair("-accel", if self.accel == Accel::Tcg { "tcg" } else { "kvm" });
        if self.icount {
            // A guest that halts until somebody types must not make its clock race to the next timer.
            args.pair("-icount", if self.input { "shift=0,sleep=on" } else { "shift=0,sleep=off" });
        }
        args.pair("-display", "none").flag("-nodefaults").pair("-serial", "stdio");
        args.pair("-monitor", "none").flag("-no-reboot");
        args.pair("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4");
        for (index, device) in self.devices.iter().enumerate() {
            args.pair("-object", device.backend(index));
            args.pair("-device", format!("ivshmem-plain,memdev=dev{index}"));
        }
        match &self.qmp {
            Some(QmpPlace::Socket(path)) => {
                args.pair("-qmp", format!("unix:{},server=on,wait=off", quoted(&path.to_string_lossy())));
            }
            Some(QmpPlace::Port(port)) => {
                args.pair("-qmp", format!("tcp:127.0.0.1:{port},server=on,wait=off"));
            }
            None => {}
        }
        if let Some(port) = self.gdb {
            args.pair("-gdb", format!("tcp:127.0.0.1:{port}")).flag("-S");
        }
        args.pair("-kernel", &built.boot).pair("-initrd", &built.archive);
        let words = quoted(self.command.as_str());
        args.pair("-fw_cfg", format!("name=opt/farpage/cmd,string={words}"));
        args.0.extend(self.extra.iter().map(OsString::from));
        args.0
    }

    /// The whole command line as one types it in a shell.
    #[must_use]
    pub fn shell_line(&self, built: &Built) -> String {
        let words = self.args(built);
        let words = words.iter().map(|word| shell_quoted(&word.to_string_lossy()));
        std::iter::once(super::PROGRAM.to_string()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

impl Device {
    fn backend(&self, index: usize) -> String {
        let size = megabytes(self.size);
        match &self.file {
            Some(file) => {
                let path = quoted(&file.to_string_lossy());
                format!("memory-backend-file,id=dev{index},size={size},share=on,mem-path={path}")
            }
            None => format!("memory-backend-ram,id=dev{index},size={size},share=on"),
        }
    }
}

/// Sizes in a unit that all of QEMU's options read the same way.
fn megabytes(size: Size) -> String {
    if size.bytes().is_multiple_of(1 << 20) {
        format!("{}M", size.bytes() >> 20)
    } else {
        format!("{}B", size.bytes())
    }
}

/// QEMU's option lists are separated by commas; a comma in a value is doubled.
pub(super) fn quoted(value: &str) -> String {
    value.replace(',', ",,")
}

pub(crate) fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `/dev/kvm` alone is not enough: in a container it may open on a machine without hardware virtualisation.
fn kvm_is_usable() -> Result<(), String> {
    let opens = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opens.map_err(|error| format!("/dev/kvm does not open ({error})"))?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    if has("vmx") || has("svm") { Ok(()) } else { Err("this CPU shows neither vmx nor svm".into()) }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) -> &mut Self {
        self.flag(flag);
        self.0.push(value.into());
        self
    }
}
