//! The console: COM1, and the `log` back end on it.
//!
//! One lock orders output by line or by call. A report of a fatal fault must come out even if the interrupted code
//! holds that lock, so it opens a port of its own ([`emergency`]).

use core::fmt::{self, Write};

use kernel_logic::cmdline::LogLevel;
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::arch::x86_64::percpu;
use crate::arch::x86_64::serial::{self, Serial};

/// A serial port that takes text.
#[derive(Debug)]
pub(crate) struct Console(Option<Serial>);

static CONSOLE: Mutex<Console> = Mutex::new(Console(None));

impl Console {
    /// Sends bytes as they are.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        if let Some(serial) = &mut self.0 {
            serial.send_bytes_exact(bytes);
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}

/// Opens the console. On a machine without COM1 the kernel runs silently.
pub(crate) fn init() {
    *CONSOLE.lock() = emergency();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Logs from this level on.
pub(crate) fn set_log_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// A console without a lock, for reports that nothing may hold up.
pub(crate) fn emergency() -> Console {
    Console(serial::open().ok())
}

/// Does `body` with the console locked, so that nothing comes in between.
pub(crate) fn with<T>(body: impl FnOnce(&mut Console) -> T) -> T {
    percpu::preempt_disable();
    let result = body(&mut CONSOLE.lock());
    percpu::preempt_enable();
    result
}

#[doc(hidden)]
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // A console cannot fail.
    let _ = with(|console| console.write_fmt(text));
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let target = record.target().strip_prefix("farpage_kernel::").unwrap_or(record.target());
            println!("[{:<5} {}] {}", record.level(), target, record.args());
        }
    }

    fn flush(&self) {}
}
