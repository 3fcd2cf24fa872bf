//! The command line: words `key=value` between blanks, by fw_cfg.
//!
//! Every word must be known and make sense; a typing mistake is told, not passed over.

use core::fmt;

use farpage_pmu::{Event, Events};

/// What the kernel is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Run {
    /// The guided tour.
    #[default]
    Tour,
    /// The benchmarks.
    Bench,
    /// In-kernel tests.
    Test,
    /// The list of in-kernel tests.
    List,
    /// Wait for a debugger, then the tour.
    Gdb,
    /// Do what lines on the serial port say.
    Shell,
    /// Never end, for the runner to find out where.
    Hang,
    /// Experiments.
    Exp,
    /// A program of Linux.
    Exec,
}

impl Run {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tour => "tour",
            Self::Bench => "bench",
            Self::Test => "test",
            Self::List => "list",
            Self::Gdb => "gdb",
            Self::Shell => "shell",
            Self::Exp => "exp",
            Self::Hang => "hang",
            Self::Exec => "exec",
        }
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops something from working.
    Error,
    /// What somebody should look at.
    #[default]
    Warn,
    /// What the boot finds and does.
    Info,
    /// What each operation does.
    Debug,
    /// Everything.
    Trace,
}

/// The command line, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandLine<'a> {
    /// `run=tour|bench|test|list|gdb|shell|exp|exec`
    pub run: Run,
    /// `log=off|error|warn|info|debug|trace`
    pub log: LogLevel,
    /// `filter=a,b`: parts of names, separated by commas; empty takes all.
    pub filter: &'a str,
    /// `exact=NAME`, or `exact=1` with the name in `filter`: this one test or row, in full.
    pub exact: Option<&'a str>,
    /// `icount=0|1`: does the TSC count instructions?
    pub icount: bool,
    /// `list=0|1`: only say which experiments there are.
    pub list: bool,
    /// `wall=0|1`: measure wall time instead of instructions.
    pub wall: bool,
    /// `sizes=2M,64M`: sizes for the benchmark, separated by commas; empty takes the usual ones.
    pub sizes: &'a str,
    /// `counters=cycles,page-walks`: events for performance counters, separated by commas; none if empty.
    pub counters: &'a str,
    /// `actions=N`: length of the tests that run lists of actions; none is the usual length.
    pub actions: Option<u64>,
    /// `seed=N`: the first seed of those lists.
    pub seed: u64,
    /// `coherent=2,3`: numbers of the devices whose memory CPUs map where it lies; none if empty.
    pub coherent: &'a str,
    /// `stdin=0|1`: somebody types to the program of `run=exec`.
    pub stdin: bool,
    /// The whole line, if there is a `set=KNOB=VALUE` in it.
    settings: &'a str,
}

/// What is wrong with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandLineError<'a> {
    /// Not of the form `key=value`.
    NoValue(&'a str),
    /// No such key.
    UnknownKey(&'a str),
    /// The key does not take this value.
    BadValue {
        /// The key.
        key: &'static str,
        /// What was given.
        value: &'a str,
        /// What could have been.
        expected: &'static str,
    },
    /// `exact=1` without a name in `filter`.
    ExactWithoutName,
}

impl fmt::Display for CommandLineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue(word) => write!(f, "command line: \"{word}\" is not of the form key=value"),
            Self::UnknownKey(key) => write!(
                f,
                "command line: there is no \"{key}\"; known are run, log, filter, exact, icount, list, wall, sizes, \
                 counters, actions, seed, coherent, stdin and set"
            ),
            Self::BadValue { key, value, expected } => {
                write!(f, "command line: {key} cannot be \"{value}\"; it is one of {expected}")
            }
            Self::ExactWithoutName => write!(f, "command line: exact=1 needs a name in filter"),
        }
    }
}

impl<'a> CommandLine<'a> {
    /// Reads the words of `line`. A key given twice counts the last time.
    ///
    /// # Errors
    /// The first word that is unknown or makes no sense.
    pub fn parse(line: &'a str) -> Result<Self, CommandLineError<'a>> {
        let mut parsed = Self::default();
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or(CommandLineError::NoValue(word))?;
            parsed.set(key, value)?;
            if key == "set" {
                parsed.settings = line;
            }
        }
        parsed.exact = match parsed.exact {
            Some("0") => None,
            Some("1") if parsed.filter.is_empty() => return Err(CommandLineError::ExactWithoutName),
            Some("1") => Some(parsed.filter),
            given => given,
        };
        Ok(parsed)
    }

    /// Does `filter` take this name?
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        match self.exact {
            Some(exact) => name == exact,
            None => self.filter.is_empty() || self.filter.split(',').any(|part| name.contains(part)),
        }
    }

    /// What knobs are set to, as `KNOB=VALUE`, in the order in which they stand.
    pub fn settings(&self) -> impl Iterator<Item = &'a str> {
        self.settings.split_ascii_whitespace().filter_map(|word| word.strip_prefix("set="))
    }

    /// Is the device of this number to be coherent?
    #[must_use]
    pub fn is_coherent(&self, device: usize) -> bool {
        self.coherent.split(',').any(|number| number.parse() == Ok(device))
    }

    fn set(&mut self, key: &'a str, value: &'a str) -> Result<(), CommandLineError<'a>> {
        match key {
            "run" => {
                self.run = match value {
                    "tour" => Run::Tour,
                    "bench" => Run::Bench,
                    "test" => Run::Test,
                    "list" => Run::List,
                    "gdb" => Run::Gdb,
                    "shell" => Run::Shell,
                    "hang" => Run::Hang,
                    "exp" => Run::Exp,
                    "exec" => Run::Exec,
                    _ => {
                        return Err(bad(
                            "run",
                            value,
                            "tour, bench, test, list, gdb, shell, hang, exp, exec",
                        ));
                    }
                }
            }
            "log" => {
                self.log = match value {
                    "off" => LogLevel::Off,
                    "error" => LogLevel::Error,
                    "warn" => LogLevel::Warn,
                    "info" => LogLevel::Info,
                    "debug" => LogLevel::Debug,
                    "trace" => LogLevel::Trace,
                    _ => return Err(bad("log", value, "off, error, warn, info, debug, trace")),
                }
            }
            "filter" => self.filter = value,
            "exact" => self.exact = Some(value),
            "icount" => self.icount = flag("icount", value)?,
            "list" => self.list = flag("list", value)?,
            "wall" => self.wall = flag("wall", value)?,
            "sizes" => self.sizes = value,
            "counters" if Events::parse(value).is_ok() => self.counters = value,
            "counters" => return Err(bad("counters", value, Event::NAMES)),
            "actions" => self.actions = Some(number("actions", value)?),
            "seed" => self.seed = number("seed", value)?,
            "coherent" if value.split(',').all(|n| n.parse::<u8>().is_ok()) => self.coherent = value,
            "stdin" => self.stdin = flag("stdin", value)?,
            // What knobs there are and what they can be is not known here.
            "set" if value.contains('=') => {}
            "set" => return Err(bad("set", value, "KNOB=VALUE")),
            "coherent" => return Err(bad("coherent", value, "device numbers, separated by commas")),
            _ => return Err(CommandLineError::UnknownKey(key)),
        }
        Ok(())
    }
}

fn flag<'a>(key: &'static str, value: &'a str) -> Result<bool, CommandLineError<'a>> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(bad(key, value, "0, 1")),
    }
}

fn number<'a>(key: &'static str, value: &'a str) -> Result<u64, CommandLineError<'a>> {
    value.parse().map_err(|_| bad(key, value, "0, 1, 2, ..."))
}

fn bad<'a>(key: &'static str, value: &'a str, expected: &'static str) -> CommandLineError<'a> {
    CommandLineError::BadValue { key, value, expected }
}

#[cfg(test)]
mod tests {
    use super::{CommandLine, CommandLineError, LogLevel, Run};
    use std::string::ToString;

    #[test]
    fn nothing_is_the_tour() {
        let line = CommandLine::parse("  ");
        assert_eq!(line, Ok(CommandLine::default()));
        assert_eq!(line.map(|line| line.run), Ok(Run::Tour));
    }

    #[test]
    fn words_are_read() {
        let line = CommandLine::parse("run=test log=trace filter=mm::,fault icount=1").expect("good words");
        assert_eq!((line.run, line.log, line.icount), (Run::Test, LogLevel::Trace, true));
        assert!(
            line.takes("kernel::mm::split") && line.takes("x::fault_back") && !line.takes("kernel::heap")
        );
    }

    #[test]
    fn exact_takes_one_name() {
        for text in ["exact=1 filter=a::b", "exact=a::b"] {
            let line = CommandLine::parse(text).expect("good words");
            assert!(line.takes("a::b") && !line.takes("a::bc"));
        }
        assert_eq!(CommandLine::parse("exact=1"), Err(CommandLineError::ExactWithoutName));
    }

    #[test]
    fn lists_of_actions_have_a_length_and_a_seed() {
        let line = CommandLine::parse("run=test actions=200000 seed=7").expect("good words");
        assert_eq!((line.actions, line.seed), (Some(200_000), 7));
        assert_eq!(CommandLine::parse("run=test").map(|line| line.actions), Ok(None));
        let error = CommandLine::parse("actions=many").expect_err("a bad value");
        assert_eq!(error.to_string(), "command line: actions cannot be \"many\"; it is one of 0, 1, 2, ...");
    }

    #[test]
    fn coherent_devices_are_named_by_number() {
        let line = CommandLine::parse("coherent=2,3").expect("good words");
        assert_eq!([0, 1, 2, 3].map(|n| line.is_coherent(n)), [false, false, true, true]);
        assert!(!CommandLine::default().is_coherent(0));
        for wrong in ["coherent=", "coherent=all", "coherent=1,,2", "coherent=1;2"] {
            assert!(CommandLine::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_to_count_are_named() {
        let line = CommandLine::parse("run=bench counters=cycles,page-walks").expect("good words");
        assert_eq!(line.counters, "cycles,page-walks");
        let error = CommandLine::parse("counters=cycle").expect_err("a bad value").to_string();
        assert!(error.contains("counters cannot be \"cycle\"; it is one of cycles, instructions"), "{error}");
    }

    #[test]
    fn knobs_are_set_as_often_as_one_likes() {
        let line = CommandLine::parse("run=exp set=granule=64K filter=x set=fail-plan=table:0:1")
            .expect("good words");
        assert!(line.settings().eq(["granule=64K", "fail-plan=table:0:1"]));
        assert_eq!(CommandLine::parse("run=exp").map(|line| line.settings().count()), Ok(0));
        let error = CommandLine::parse("set=granule").expect_err("no value");
        assert_eq!(error.to_string(), "command line: set cannot be \"granule\"; it is one of KNOB=VALUE");
    }

    #[test]
    fn a_run_is_called_what_it_is_asked_for_by() {
        for name in ["tour", "bench", "test", "list", "gdb", "shell", "exp", "hang", "exec"] {
            let line = std::format!("run={name}");
            assert_eq!(CommandLine::parse(&line).map(|line| line.run.name()), Ok(name));
        }
    }

    #[test]
    fn mistakes_are_told() {
        assert_eq!(CommandLine::parse("rnu=test"), Err(CommandLineError::UnknownKey("rnu")));
        assert_eq!(CommandLine::parse("quick"), Err(CommandLineError::NoValue("quick")));
        let error = CommandLine::parse("run=tset").expect_err("a bad value");
        assert_eq!(
            error.to_string(),
            "command line: run cannot be \"tset\"; it is one of tour, bench, test, list, gdb, shell, hang, exp, exec"
        );
    }
}
