//! Whole runs, as a user types them: `cargo run -- ...`, its output and its exit status.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use libtest_mimic::{Failed, Trial};

use crate::{
    baseline, exp, gdb, host,
    process::{self, Finished},
    report, scenarios, shell, stuck, trace,
};

/// The longest a run may take, the first build of the kernel included.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

/// One run and what must come of it.
struct Run {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The exit status must be 0.
    succeeds: bool,
    /// Each must be in what it prints.
    says: &'static [&'static str],
}

const RUNS: &[Run] = &[
    Run {
        name: "help",
        arguments: &["--help"],
        succeeds: true,
        says: &["tour", "bench", "shell", "test", "gdb", "--memory"],
    },
    Run {
        name: "print_qemu",
        arguments: &["tour", "--print-qemu"],
        succeeds: true,
        says: &["qemu-system-x86_64", "ivshmem-plain", "isa-debug-exit"],
    },
    Run { name: "tour", arguments: &["tour"], succeeds: true, says: &["audit ok"] },
    Run { name: "unknown_command", arguments: &["tuor"], succeeds: false, says: &["tuor", "help"] },
    Run { name: "unknown_option", arguments: &["--memroy", "1G"], succeeds: false, says: &["--memroy"] },
    Run { name: "bad_size", arguments: &["--memory", "12parsecs"], succeeds: false, says: &["12parsecs"] },
    Run {
        name: "device_size_not_a_power_of_two",
        arguments: &["--device-size", "3M"],
        succeeds: false,
        says: &["power of two"],
    },
    Run {
        name: "too_many_devices",
        arguments: &["--device-count", "5"],
        succeeds: false,
        says: &["5 devices", "0 to 4"],
    },
    Run {
        name: "qmp_socket_over_a_file",
        arguments: &["--qmp", "Cargo.toml"],
        succeeds: false,
        says: &["Cargo.toml", "a port"],
    },
    Run {
        name: "knob_that_cannot_be",
        arguments: &["--set", "granule=5K"],
        succeeds: false,
        says: &["granule cannot be \"5K\": it is 4K, 64K or 2M"],
    },
    Run {
        name: "unsafe_knob_in_the_tour",
        arguments: &["tour", "--set", "break-before-make=off"],
        succeeds: false,
        says: &["for experiments only", "tour does not"],
    },
    Run {
        name: "unsafe_knob_in_a_bench",
        arguments: &["bench", "--set", "skip-flush=unmap"],
        succeeds: false,
        says: &["for experiments only", "bench does not"],
    },
    Run {
        // By the kernel itself: the runner passes these words on.
        name: "unsafe_knob_in_the_kernels_tests",
        arguments: &["boot", "run=test", "filter=heap", "set=skip-flush=unmap"],
        succeeds: false,
        says: &["for experiments only", "test does not"],
    },
    Run {
        name: "knob_and_baseline",
        arguments: &["bench", "--baseline", "tests/baseline/bench.json", "--set", "batch=1"],
        succeeds: false,
        says: &["leave out --set"],
    },
    Run {
        name: "tour_with_a_knob",
        arguments: &["tour", "--set", "flush-policy=full", "--set", "copy=sse"],
        succeeds: true,
        says: &["flush-policy is full", "copy is sse", "audit ok"],
    },
    Run {
        name: "device_too_small",
        arguments: &["tour", "--device-size", "1M"],
        succeeds: false,
        says: &["BAR2", "-device ivshmem-plain"],
    },
    Run {
        name: "no_device",
        arguments: &["tour", "--no-device"],
        succeeds: false,
        says: &["-device ivshmem-plain"],
    },
    Run {
        name: "too_little_memory",
        arguments: &["tour", "--memory", "8M"],
        succeeds: false,
        says: &["memory"],
    },
    Run {
        name: "hang",
        arguments: &["tour", "--timeout", "2", "--qemu-arg=-S"],
        succeeds: false,
        says: &["in time", "--timeout"],
    },
    Run {
        name: "qemu_dies",
        arguments: &["tour", "--qemu-arg=-nonsense"],
        succeeds: false,
        says: &["nonsense"],
    },
    Run {
        name: "exec_of_no_program",
        arguments: &["exec", "./Cargo.toml"],
        succeeds: false,
        says: &["Cargo.toml cannot be run: it is no ELF file", "crt-static"],
    },
    Run {
        name: "exec_of_nothing",
        arguments: &["exec", "no-such-program"],
        succeeds: false,
        says: &["no-such-program cannot be run", "no program of this name"],
    },
    Run {
        name: "exec_with_half_a_file",
        arguments: &["exec", "--file", "Cargo.toml", "hello"],
        succeeds: false,
        says: &["HOST:GUEST"],
    },
    Run { name: "exp_list", arguments: &["exp", "--list"], succeeds: true, says: &["example ", "?"] },
    Run {
        name: "exp_unknown",
        arguments: &["exp", "phlogiston"],
        succeeds: false,
        says: &["phlogiston", "exp --list"],
    },
    Run {
        name: "exp_example",
        arguments: &["exp", "example", "--csv"],
        succeeds: true,
        says: &["example,First touch,2 MiB pages,16777216,bytes,", ",instructions,exact"],
    },
    Run {
        name: "exp_without_a_device",
        arguments: &["exp", "--no-device"],
        succeeds: false,
        says: &["-device ivshmem-plain"],
    },
    Run {
        name: "bench_without_counters",
        arguments: &["bench", "--filter", "alloc", "--counters", "cycles,page-walks"],
        succeeds: true,
        says: &["alloc and free", "nothing was counted: this CPU has no performance counters"],
    },
    Run {
        name: "unknown_counter",
        arguments: &["bench", "--counters", "cycles,walks"],
        succeeds: false,
        says: &["there is no event \"walks\"", "page-walks"],
    },
    Run {
        name: "icount_needs_tcg",
        arguments: &["tour", "--accel", "kvm", "--icount"],
        succeeds: false,
        says: &["--accel tcg"],
    },
];

/// All of them.
#[must_use]
pub fn trials(runner: Result<PathBuf, String>) -> Vec<Trial> {
    match runner {
        Ok(runner) => {
            let runs = RUNS.iter().map(|run| run.trial(&runner));
            let more = [
                shell::trials(&runner),
                exp::trials(&runner),
                baseline::trials(&runner),
                stuck::trials(&runner),
                gdb::run_trials(&runner),
                trace::trials(&runner),
                report::trials(&runner),
                scenarios::trials(&runner),
            ];
            runs.chain(more.into_iter().flatten()).collect()
        }
        Err(why) => vec![Trial::test("run::build", move || Err(Failed::from(why)))],
    }
}

/// The program behind `cargo run`, built as `cargo run` would.
///
/// # Errors
/// It cannot be built.
pub fn runner() -> Result<PathBuf, String> {
    let manifest = host::workspace().join("xtask/Cargo.toml");
    let artifacts = host::build_artifacts(&["build", "-p", "xtask", "--bin", "xtask"])?;
    let ours = artifacts.iter().filter(|a| a["manifest_path"].as_str().map(Path::new) == Some(&manifest));
    let path = ours.filter_map(|artifact| artifact["executable"].as_str()).next();
    path.map(PathBuf::from).ok_or_else(|| "cargo has built no runner".to_owned())
}

impl Run {
    fn trial(&'static self, runner: &Path) -> Trial {
        let mut command = Command::new(runner);
        command.args(self.arguments).current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
        Trial::test(format!("run::{}", self.name), move || {
            let done = process::run(&mut command, LIMIT)?;
            self.check(&done).map_err(|what| Failed::from(format!("{what}: {done}")))
        })
    }

    fn check(&self, done: &Finished) -> Result<(), String> {
        let code = done.code().ok_or("it was killed")?;
        if (code == 0) != self.succeeds {
            return Err(format!("exit status {code}"));
        }
        if !self.succeeds && done.stderr.trim().is_empty() {
            return Err("it says nothing to standard error".to_owned());
        }
        let text = [done.stdout.as_str(), &done.stderr].concat();
        if let Some(missing) = self.says.iter().find(|part| !text.contains(**part)) {
            return Err(format!("it does not say {missing:?}"));
        }
        if text.contains("panicked at") {
            return Err("the runner panicked".to_owned());
        }
        Ok(())
    }
}
