//! In-kernel tests: declared beside the code they test, collected by the linker, run by name.
//!
//! ```text
//! crate::ktest! {
//!     needs(memory_mib = 5120)             // optional: the machine it needs; other machines skip it
//!     fn a_behaviour_that_holds() {
//!         crate::check_eq!(1 + 1, 2);      // a failure ends this test, not the run
//!     }
//! }
//! crate::ktest! {
//!     destructive(expect = "double-fault") // a boot of its own, which must end in that report
//!     fn a_catastrophe() { ... }
//! }
//! ```
//!
//! The protocol and its wording are those of the crate `ktest`. After each test the audit runs, if one is set.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use kernel_logic::cmdline::CommandLine;
use ktest::catalog::{self, Needs};
use ktest::exit::Exit;
use ktest::ktap::Reporter;
use linkme::distributed_slice;
use spin::Once;

use crate::{bootmem, console, exit, fwcfg};

/// How a test ended, if it ended.
pub(crate) type Outcome = Result<(), Unmet>;

/// Why a test did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unmet {
    /// Something is not as it should be.
    Failed(String),
    /// The test does not apply to this machine.
    Skipped(String),
}

/// One in-kernel test.
#[derive(Debug)]
pub(crate) struct Test {
    /// The module it stands in.
    pub(crate) module: &'static str,
    /// The function.
    pub(crate) function: &'static str,
    /// For a destructive test, how its boot must end: `panic` or the name of a fatal fault.
    pub(crate) expect: Option<&'static str>,
    /// The machine it needs.
    pub(crate) needs: Needs,
    /// The test.
    pub(crate) run: fn() -> Outcome,
}

/// All tests, in no order.
#[distributed_slice]
pub(crate) static TESTS: [Test];

/// What looks the system over after each test.
type Audit = fn() -> Result<(), String>;
static AUDIT: Once<Audit> = Once::new();

/// Sets what looks the system over after each test; once.
pub(crate) fn set_audit(audit: Audit) {
    AUDIT.call_once(|| audit);
}

/// What tests may need of devices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Devices {
    /// How many device-memory devices there are.
    pub(crate) count: u32,
    /// The MiB of the first.
    pub(crate) first_mib: u32,
    /// How many of them are coherent.
    pub(crate) coherent: u32,
}

static DEVICES: Once<Devices> = Once::new();

/// Says what devices the machine has, for tests that need some.
pub(crate) fn set_devices(devices: Devices) {
    DEVICES.call_once(|| devices);
}

impl Test {
    /// The name in the list and on the command line: `kernel::module::function`.
    pub(crate) fn name(&self) -> String {
        let module = self.module.split_once("::").map_or("", |(_, inner)| inner);
        let mut name = String::from("kernel");
        for part in [module, self.function] {
            if !part.is_empty() {
                name.push_str("::");
                name.push_str(part);
            }
        }
        name
    }
}

/// Prints the list of tests, for the host.
pub(crate) fn list() -> ! {
    for (name, test) in sorted() {
        console::with(|out| {
            // A console cannot fail.
            let _ = catalog::write_test(out, &name, test.expect, &test.needs);
        });
    }
    exit::exit(Exit::Success)
}

/// Runs the tests that the command line names. Destructive ones run only if exactly named.
pub(crate) fn run(command: &CommandLine<'_>) -> ! {
    let chosen: Vec<_> = sorted()
        .into_iter()
        .filter(|(name, test)| command.takes(name) && (test.expect.is_none() || command.exact.is_some()))
        .collect();
    exit::exit(match report(&chosen) {
        Ok(0) => Exit::Success,
        Ok(_) | Err(fmt::Error) => Exit::Failed,
    })
}

/// Runs the tests and says how many failed.
fn report(tests: &[(String, &Test)]) -> Result<usize, fmt::Error> {
    let mut out = Unlocked;
    let mut reporter = Reporter::begin(&mut out, tests.len())?;
    for (name, test) in tests {
        reporter.running(name)?;
        let outcome = match missing(&test.needs) {
            Some(why) => Err(Unmet::Skipped(why)),
            None => (test.run)().and_then(|()| audit()),
        };
        match outcome {
            Ok(()) => reporter.passed(name)?,
            Err(Unmet::Failed(why)) => reporter.failed(name, &why)?,
            Err(Unmet::Skipped(why)) => reporter.skipped(name, &why)?,
        }
    }
    Ok(reporter.failures())
}

/// Writes to the console, locking it for each piece only: tests print too.
struct Unlocked;

impl fmt::Write for Unlocked {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::with(|out| out.write_str(text))
    }
}

fn sorted() -> Vec<(String, &'static Test)> {
    let mut tests: Vec<_> = TESTS.iter().map(|test| (test.name(), test)).collect();
    tests.sort_by(|a, b| a.0.cmp(&b.0));
    tests
}

fn audit() -> Outcome {
    match AUDIT.get() {
        Some(audit) => audit().map_err(|why| Unmet::Failed(alloc::format!("audit after the test: {why}"))),
        None => Ok(()),
    }
}

/// What the machine lacks for a test, as far as the kernel core can tell.
fn missing(needs: &Needs) -> Option<String> {
    // Firmware and the first MiB's holes take a little of what QEMU was given.
    let found = bootmem::ram()
        .map(|range| range.end - range.start)
        .sum::<u64>()
        .div_ceil(1 << 20)
        .next_multiple_of(4);
    let memory = needs.memory_mib.map_or(found, u64::from);
    if found != memory {
        return Some(alloc::format!("is for a machine with {memory} MiB of RAM, this one has {found}"));
    }
    let cpus = fwcfg::cpus().unwrap_or(1);
    let devices = DEVICES.get().copied().unwrap_or_default();
    // Who asks for a number of devices and not for coherent ones wants private ones.
    let coherent = needs.coherent.or(needs.devices.map(|_| 0));
    for (what, asked, found) in [
        ("CPUs", needs.cpus, cpus),
        ("devices", needs.devices, devices.count),
        ("MiB of device memory", needs.device_mib, devices.first_mib),
        ("coherent devices", coherent, devices.coherent),
    ] {
        if asked.is_some_and(|asked| asked != found) {
            return Some(alloc::format!(
                "is for a machine with {} {what}, this one has {found}",
                asked.unwrap_or(0)
            ));
        }
    }
    None
}

/// Declares an in-kernel test; see [`crate::testing`].
#[macro_export]
macro_rules! ktest {
    (@test $expect:expr, $needs:expr, $(#[$meta:meta])* fn $name:ident() $body:block) => {
        $(#[$meta])*
        fn $name() -> $crate::testing::Outcome {
            #[::linkme::distributed_slice($crate::testing::TESTS)]
            static TEST: $crate::testing::Test = $crate::testing::Test {
                module: module_path!(),
                function: stringify!($name),
                expect: $expect,
                needs: $needs,
                run: $name,
            };
            $body
            #[allow(unreachable_code, reason = "some bodies never come to their end")]
            Ok(())
        }
    };
    (@needs $($key:ident = $value:literal),*) => {
        ktest::catalog::Needs { $($key: Some($value),)* ..ktest::catalog::Needs::NONE }
    };
    (destructive(expect = $kind:literal) $($rest:tt)*) => {
        $crate::ktest!(@test Some($kind), ktest::catalog::Needs::NONE, $($rest)*);
    };
    (needs($($needs:tt)*) $($rest:tt)*) => {
        $crate::ktest!(@test None, $crate::ktest!(@needs $($needs)*), $($rest)*);
    };
    ($($rest:tt)*) => {
        $crate::ktest!(@test None, ktest::catalog::Needs::NONE, $($rest)*);
    };
}

/// Ends a test as failed, with a text.
#[macro_export]
macro_rules! fail {
    ($($text:tt)+) => {
        return Err($crate::testing::Unmet::Failed(
            alloc::format!("{}:{}: {}", file!(), line!(), format_args!($($text)+))))
    };
}

/// Ends a test as not applying to this machine, with a reason.
#[macro_export]
macro_rules! skip {
    ($($text:tt)+) => { return Err($crate::testing::Unmet::Skipped(alloc::format!($($text)+))) };
}

/// Fails the test unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        if !$condition { $crate::fail!("does not hold: {}", stringify!($condition)); }
    };
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            $crate::fail!("does not hold: {}: {}", stringify!($condition), format_args!($($text)+));
        }
    };
}

/// Fails the test unless the two are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => if !(*left == *right) {
                $crate::fail!("{} is {left:x?}, not {right:x?}", stringify!($left));
            }
        }
    };
    ($left:expr, $right:expr, $($text:tt)+) => {
        match (&$left, &$right) {
            (left, right) => if !(*left == *right) {
                $crate::fail!("{} is {left:x?}, not {right:x?}: {}", stringify!($left), format_args!($($text)+));
            }
        }
    };
}
