//! Whole runs of the shell: a script goes in, a transcript comes out, and what the kernel says of its state is what it must be.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ktest::monitor::LINE_MAX;
use libtest_mimic::{Failed, Trial};

use crate::{
    host,
    process::{self, Finished},
    runs,
};

type Check = fn(&Shell) -> Result<(), String>;

const RUNS: [(&str, Check); 14] = [
    ("a_page_goes_to_the_device_and_comes_back", there_and_back),
    ("part_of_a_page_and_a_clone", part_and_clone),
    ("a_mistake_is_told_and_the_kernel_goes_on", mistakes),
    ("a_script_stops_where_a_command_fails", stops),
    ("keep_going_counts_what_failed", keeps_going),
    ("a_file_and_a_pipe_are_scripts", file_and_pipe),
    ("the_same_commands_cost_the_same", same_cost),
    ("a_kernel_that_dies_is_reported", dies),
    ("a_machine_without_counters_says_so", counters),
    ("coherent_devices_and_failures_can_be_had", failures),
    ("knobs_change_what_is_done", knobs),
    ("unsafe_knobs_are_named_and_spoil_a_bench", unsafe_knobs),
    ("figures_are_not_those_of_a_trace", figures_and_a_trace),
    ("no_line_brings_the_kernel_down", any_lines),
];

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let trial = |&(name, check): &(&str, Check)| {
        let shell = Shell(runner.to_path_buf());
        Trial::test(format!("run::shell::{name}"), move || check(&shell).map_err(Failed::from))
    };
    RUNS.iter().map(trial).collect()
}

/// The program behind `cargo run`.
struct Shell(PathBuf);

impl Shell {
    fn run(&self, arguments: &[&str]) -> Result<Transcript, String> {
        let mut command = Command::new(&self.0);
        command.arg("shell").args(arguments);
        finish(&mut command)
    }

    fn commands(&self, commands: &str) -> Result<Transcript, String> {
        self.run(&["-c", commands])
    }
}

fn finish(command: &mut Command) -> Result<Transcript, String> {
    command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    let done = process::run(command, runs::LIMIT).map_err(|error| error.to_string())?;
    Ok(Transcript { answers: answers(&done.stdout), done })
}

/// A command as the transcript shows it, and the lines of its answer.
type Answer = (String, Vec<String>);

fn answers(transcript: &str) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for line in transcript.lines() {
        let prompt = line.strip_prefix("farpage:").and_then(|rest| rest.split_once("> "));
        match (prompt, answers.last_mut()) {
            (Some((_, command)), _) => answers.push((command.to_owned(), Vec::new())),
            (None, Some((_, lines))) => lines.push(line.trim_start().to_owned()),
            (None, None) => {}
        }
    }
    answers
}

struct Transcript {
    answers: Vec<Answer>,
    done: Finished,
}

impl Transcript {
    /// The answer to the `n`th command must have a line in which all these stand, in this order.
    fn says(&self, n: usize, parts: &[&str]) -> Result<(), String> {
        let (command, lines) = self.answers.get(n).ok_or_else(|| format!("no answer {n}: {}", self.done))?;
        let fits = |line: &String| {
            let mut rest = line.as_str();
            parts.iter().all(|part| match rest.split_once(part) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
        };
        if lines.iter().any(fits) {
            Ok(())
        } else {
            Err(format!("{command:?} does not say {parts:?}: {}", self.done))
        }
    }

    /// The answer to the `n`th command must be these lines, what it cost not counted.
    fn is(&self, n: usize, expected: &[&str]) -> Result<(), String> {
        let (command, lines) = self.answers.get(n).ok_or_else(|| format!("no answer {n}: {}", self.done))?;
        let lines: Vec<&str> =
            lines.iter().map(String::as_str).filter(|line| !line.contains(" instructions")).collect();
        if lines == expected {
            Ok(())
        } else {
            Err(format!("{command:?} is not {expected:?}: {}", self.done))
        }
    }

    fn ends(&self, code: i32, last_words: &str) -> Result<(), String> {
        if self.done.code() == Some(code) && self.done.stderr.trim_end().ends_with(last_words) {
            return Ok(());
        }
        Err(format!("must end with status {code} and {last_words:?}: {}", self.done))
    }
}

fn there_and_back(shell: &Shell) -> Result<(), String> {
    let told = shell.commands(
        "map 0x10_0000_0000 2M rw huge; fill 0x10_0000_0000 2M 7; migrate 0x10_0000_0000 2M dev0; walk 0x10_0000_1238; \
         check 0x10_0000_0000 2M 7 --where; stat; touch 0x10_0000_1238 r; stat --diff; events; walk 0x10_0000_1238; \
         check 0x10_0000_0000 2M 7; check 0x10_0000_0000 2M 8; audit",
    )?;
    told.is(1, &["filled 262,144 words: 1 page fault"])?;
    told.is(2, &["moved 512 of 512 pages to dev0 in 1 unit, 1 of 2 MiB; 1 flush round"])?;
    told.says(
        3,
        &["PMD [  0] 0x4", "not present: 2 MiB at dev0:0x", "a touch is a fault that brings it back"],
    )?;
    told.says(3, &["63:61  kind", "0x2", "device-private"])?;
    told.says(3, &["10  soft-dirty", "0x1"])?;
    told.says(3, &["0  present", "0x0"])?;
    told.is(
        4,
        &["262,144 words are right where they lie: 0 in RAM, 262,144 on devices; nothing was touched"],
    )?;
    told.is(6, &["touched 1 page: 1 page fault, 1 on device memory that brought 512 pages back"])?;
    let changed = |name: &str, by: &str| {
        let (_, lines) = &told.answers[7];
        let mut words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        if words.any(|words| words == [name, by]) {
            Ok(())
        } else {
            Err(format!("no {by} of {name}: {}", told.done))
        }
    };
    changed("devmem_fault", "+1")?;
    changed("pgfault", "+1")?;
    changed("devmem_pages_out", "+512")?;
    changed("nr_device_folios_2048kB", "-1")?;
    told.says(8, &["devmem_fault", "+1"])?;
    told.says(9, &["PMD [  0]", "present: 2 MiB at ram:0x"])?;
    told.says(9, &["5  accessed", "0x1"])?;
    told.is(10, &["262,144 words are right: 0 page faults"])?;
    told.says(11, &["error: 262144 words are wrong; the first is at 0x1000000000: 0x"])?;
    told.ends(1, "line 1 of -c failed: check 0x10_0000_0000 2M 8")
}

fn part_and_clone(shell: &Shell) -> Result<(), String> {
    let told = shell.commands(
        "map 1000000000 4M rw huge; fill 1000000000 4M; migrate 1000000000 4M dev0; unmap 0x10_0010_0000 64K; \
         check 0x10_0000_0000 1M --where; pt; split 0x10_0020_0000; pt 0x10_0020_0000; collapse 0x10_0020_0000; \
         remap 1000200000 2M 0x20_0000_0000; check 2000000000 2M --as 1000200000; fork; use 2; folio 2000000000; \
         exit-space; spaces; evict dev0; dev; touch 2000001238 w; check 2000000000 2M --as 1000200000 --where; audit",
    )?;
    told.says(3, &["unmapped [0x1000100000, 0x1000110000): 16 pages freed"])?;
    told.is(
        4,
        &["131,072 words are right where they lie: 0 in RAM, 131,072 on devices; nothing was touched"],
    )?;
    told.says(5, &["0x001000000000-0x001000100000", " 256 x 4 KiB  device-private"])?;
    told.says(5, &["0x001000200000-0x001000400000", "   1 x 2 MiB  device-private"])?;
    told.says(7, &["0x001000200000-0x001000400000", " 512 x 4 KiB  device-private"])?;
    told.says(8, &["2 MiB pages made: "])?;
    told.says(9, &["moved [0x1000200000, 0x1000400000) to 0x2000000000"])?;
    told.says(10, &["262,144 words are right: ", "on device memory that brought 512 pages back"])?;
    told.says(11, &["space 2 is a clone of space 1"])?;
    told.says(13, &["space 1 maps it: [0x2000000000, "])?;
    told.says(13, &["space 2 maps it: [0x2000000000, "])?;
    told.is(14, &["space 2 is gone, its memory freed; space 1 is loaded"])?;
    told.says(15, &["0x002000000000-0x002000200000 rw-", "2 MiB huge"])?;
    told.says(16, &["evicted 496 pages from pages 0x0 to 0x4000 of dev0"])?;
    told.says(17, &["16,384 of 16,384 pages are free"])?;
    told.is(18, &["touched 1 page: 1 page fault"])?;
    told.is(
        19,
        &["262,144 words are right where they lie: 262,144 in RAM, 0 on devices; nothing was touched"],
    )?;
    told.is(20, &["audit ok: every invariant holds"])?;
    told.ends(0, "")
}

fn mistakes(shell: &Shell) -> Result<(), String> {
    let long = "a".repeat(LINE_MAX + 1);
    let commands = format!(
        "mpa 0 4K\nmap 0x1000\nmap 0x1000 2X\nmap 0x1000 3\ntouch 0xdead0000\ntouch ffff800000000000\n\
         walk ffffffffffffffff\nuse 9\nmigrate 0x1000 4K dev3\nmigrate 0x1000 4K dev0\nfolio ram:0xffffffff\n{long}\n\
         check 0x1000 8\nset skip-flush nothing\nevict dev0 0x4000\naudit"
    );
    let told = shell.run(&["--keep-going", "-c", &commands])?;
    let expected = [
        "there is no command \"mpa\"; did you mean map? help lists all",
        "map needs SIZE; usage: map ADDR SIZE [rw|r|none] [huge|nohuge]",
        "SIZE cannot be \"2X\": a size is like 4K, 2M, 1G, 16p (pages), 8192 or 0x2000, and not 0; usage: map ADDR SIZE \
         [rw|r|none] [huge|nohuge]",
        "[0x1000, 0x1003) is not a page-aligned range of user addresses; addresses and sizes are multiples of 4K here",
        "user address 0xdead0000 cannot be accessed: no mapping at 0xdead0000; spaces lists what is mapped, map makes more",
        "user address 0xffff800000000000 cannot be accessed: user addresses end at 0x7ffffffff000",
        "0xffffffffffffffff is not a user address: those end at 0x7ffffffff000",
        "there is no space 9; spaces lists them",
        "there is no dev3: the machine has 1 device; --device-count N gives it more",
        "nothing is mapped at 0x1000; spaces lists what is mapped",
        "no folio owns frame ram:0xffffffff: it is free, a table, or not there",
        "the line has 513 bytes and 512 fit; it was not obeyed: send it in parts",
        "user address 0x1000 cannot be accessed: no mapping at 0x1000; spaces lists what is mapped, map makes more",
        "skip-flush cannot be \"nothing\": it is off, split, migrate, zero-replaced, copy-on-write, protect, unmap, \
         free-tables, remap, exclusive or owed",
        "dev0 has no page 0x4000: its last is 0x3fff",
    ];
    for (n, error) in expected.iter().enumerate() {
        told.is(n, &[&format!("error: {error}")])?;
    }
    told.is(expected.len(), &["audit ok: every invariant holds"])?;
    told.ends(1, "15 commands of the script failed: see above")
}

fn stops(shell: &Shell) -> Result<(), String> {
    let told = shell.commands("audit\n# a comment; bogus\naudit; map 0x1000 3; audit\naudit")?;
    let asked: Vec<&str> = told.answers.iter().map(|(command, _)| command.as_str()).collect();
    if asked != ["audit", "audit", "map 0x1000 3"] {
        return Err(format!("it did not stop there: {}", told.done));
    }
    told.ends(1, "line 3 of -c failed: map 0x1000 3")
}

/// QEMU's translator has no performance counters, whichever CPU it plays.
fn counters(shell: &Shell) -> Result<(), String> {
    for cpu in ["max", "Skylake-Server"] {
        let cpu = format!("--qemu-arg=-cpu --qemu-arg={cpu}");
        let mut arguments: Vec<&str> = cpu.split(' ').collect();
        arguments.extend(["-c", "counters; set counters off; set counters cycles,instructions"]);
        let told = shell.run(&arguments)?;
        let [(_, lines), ..] = &told.answers[..] else { return Err(format!("no answer: {}", told.done)) };
        if lines.len() != 1 {
            return Err(format!("it takes more than one line to say that there is nothing: {}", told.done));
        }
        told.says(
            0,
            &["this CPU has no performance counters", "counts instructions here", "counters of software"],
        )?;
        told.is(1, &["counters is off"])?;
        told.says(2, &["error: this CPU has no performance counters"])?;
        told.ends(1, "line 1 of -c failed: set counters cycles,instructions")?;
    }
    Ok(())
}

fn keeps_going(shell: &Shell) -> Result<(), String> {
    let told = shell.run(&["--keep-going", "-c", "bogus; audit"])?;
    told.is(1, &["audit ok: every invariant holds"])?;
    told.ends(1, "a command of the script failed: see above")?;
    shell.run(&["--keep-going", "-c", "audit; exit; bogus"])?.ends(0, "")
}

fn file_and_pipe(shell: &Shell) -> Result<(), String> {
    let file = host::workspace().join(format!("target/shell-{}.script", std::process::id()));
    let write = |text: &str| std::fs::write(&file, text).map_err(|error| error.to_string());
    write("# one page\nmap 0x1000 4K   # small\ntouch 0x1000 w\n\nwalk 0x1000\nbogus\n")?;
    let path = file.to_string_lossy().into_owned();
    let told = shell.run(&["--script", &path]);
    let mut pipe = Command::new("sh");
    pipe.args(["-c", "exec \"$0\" shell < \"$1\""]).arg(&shell.0).arg(&file);
    let piped = finish(&mut pipe);
    // Nothing is kept under target/.
    let _ = std::fs::remove_file(&file);
    for (told, name) in [(told?, path.as_str()), (piped?, "standard input")] {
        told.is(1, &["touched 1 page: 1 page fault"])?;
        told.says(2, &["PTE [  1]", "present: 4 KiB at ram:0x"])?;
        told.ends(1, &format!("line 6 of {name} failed: bogus"))?;
    }
    shell
        .run(&["--script", "/nonexistent/script"])?
        .ends(1, "/nonexistent/script: No such file or directory (os error 2)")
}

fn same_cost(shell: &Shell) -> Result<(), String> {
    let commands =
        "map 1000000000 2M rw huge; touch 1000000000 w; migrate 1000000000 2M dev0; touch 1000000000";
    let told = [shell.commands(commands)?, shell.commands(commands)?];
    told[0].says(3, &[" instructions, 262,144 of them the data moved or cleared"])?;
    if told[0].done.stdout == told[1].done.stdout {
        return Ok(());
    }
    Err(format!("the second run is another: {} and {}", told[0].done, told[1].done))
}

fn dies(shell: &Shell) -> Result<(), String> {
    let told = shell.commands("audit; panic; audit")?;
    told.says(1, &["panic at kernel/src/monitor/mod.rs", "a command asked for it"])?;
    told.says(1, &["farpage_kernel::monitor"])?;
    told.ends(
        1,
        "the machine is gone, and with it all that was in it: the guest stopped with an error: see above",
    )?;
    let late = shell.run(&["--timeout", "2", "--qemu-arg=-S", "-c", "audit"])?;
    late.ends(1, "the guest did not end in time and was stopped; --timeout SECS gives it longer")
}

fn knobs(shell: &Shell) -> Result<(), String> {
    let options = ["--set", "granule=64K", "--set", "group-limit=4M"];
    let commands = "map 1000000000 2M rw huge; fill 1000000000 2M 7; migrate 1000000000 2M dev0; touch 1000012345 r; stat --diff; \
                    set granule 4K; touch 1000100000 r; pt; check 1000000000 2M 7 --where; \
                    map 1000200000 4M; touch 1000200000 4M w; set group-limit off; set huge always; map 2000000000 2M; \
                    touch 2000000000 w; set fail-copies 1; migrate 2000000000 2M dev0; set granule; audit";
    let told = shell.run(&[&options[..], &["--keep-going", "-c", commands]].concat())?;
    if !["granule is 64K", "group-limit is 4M"].iter().all(|said| told.done.stdout.contains(said)) {
        return Err(format!("the command line's knobs are not told: {}", told.done));
    }
    told.says(3, &["touched 1 page: 1 page fault, 1 on device memory that brought 16 pages back"])?;
    told.says(4, &["devmem_pages_out", "+16"])?;
    told.is(5, &["granule is 4K"])?;
    told.says(6, &["touched 1 page: 1 page fault, 1 on device memory that brought 1 page back"])?;
    for run in ["16 x 4 KiB  present", "224 x 4 KiB  device-private", "1 x 4 KiB  present"] {
        told.says(7, &[run])?;
    }
    told.is(
        8,
        &["262,144 words are right where they lie: 8,704 in RAM, 253,440 on devices; nothing was touched"],
    )?;
    told.says(10, &["error: ", "its group has all of its 1024 pages"])?;
    told.says(14, &["touched 1 page: 1 page fault"])?;
    told.says(16, &["512 pages stayed: the copy failed"])?;
    told.says(17, &["granule ", " 4K ", "4K, 64K or 2M"])?;
    told.is(18, &["audit ok: every invariant holds"])?;
    told.ends(1, "a command of the script failed: see above")
}

fn figures_and_a_trace(shell: &Shell) -> Result<(), String> {
    let commands = "trace on; bench alloc; trace off; bench alloc; set skip-flush exclusive; exp tlb-stale; set skip-flush";
    let told = shell.run(&["--memory", "1G", "--device-size", "256M", "--keep-going", "-c", commands])?;
    told.says(1, &["error: ", "trace off"])?;
    told.says(3, &["alloc and free of 2 MiB on the device"])?;
    told.says(6, &["skip-flush", " exclusive "])?;
    told.ends(1, "a command of the script failed: see above")
}

fn unsafe_knobs(shell: &Shell) -> Result<(), String> {
    let commands = "bench fault-back; set break-before-make on; set skip-flush unmap; bench x; set skip-flush off; audit";
    let told = shell.run(&["--set", "break-before-make=off", "--keep-going", "-c", commands])?;
    if !told.done.stdout.contains("break-before-make is off: unsafe, what comes from now on may be wrong") {
        return Err(format!("it is not said that it is unsafe: {}", told.done));
    }
    told.says(0, &["error: ", "set break-before-make on"])?;
    told.is(1, &["break-before-make is on"])?;
    told.is(2, &["skip-flush is unmap: unsafe, what comes from now on may be wrong"])?;
    told.says(3, &["error: ", "set skip-flush off"])?;
    told.is(5, &["audit ok: every invariant holds"])?;
    told.ends(1, "2 commands of the script failed: see above")
}

fn failures(shell: &Shell) -> Result<(), String> {
    let commands = "map 1000000000 16p; fill 1000000000 16p 3; set fail-copies 1; migrate 1000000000 16p dev1; \
                    migrate 1000000000 16p dev1; migrate 1000000000 16p dev2; pt; check 1000000000 16p 3 --where; \
                    check 1000000000 16p 3; map 1000010000 4K; set fail-alloc 1; touch 1000010000 w; touch 1000010000 w; \
                    set log info; set; audit";
    let told = shell.run(&["--device-count", "3", "--coherent", "2", "--keep-going", "-c", commands])?;
    told.is(3, &["moved 15 of 16 pages to dev1 in 15 units, 0 of 2 MiB; 1 flush round; 1 page stayed: the copy failed"])?;
    told.is(4, &["moved 1 of 16 pages to dev1 in 1 unit, 0 of 2 MiB; 1 flush round"])?;
    told.says(5, &["moved 16 of 16 pages to coh2"])?;
    told.says(6, &["16 x 4 KiB  present", "coh2:0x"])?;
    told.is(7, &["8,192 words are right where they lie: 0 in RAM, 8,192 on devices; nothing was touched"])?;
    told.is(8, &["8,192 words are right: 0 page faults"])?;
    told.is(11, &["error: user address 0x1000010000 cannot be accessed: out of memory at 0x1000010000; unmap something first"])?;
    told.is(12, &["touched 1 page: 1 page fault"])?;
    told.says(14, &["log ", " info ", "How much the kernel logs"])?;
    told.is(15, &["audit ok: every invariant holds"])?;
    told.ends(1, "a command of the script failed: see above")
}

/// Lines of the random script.
const LINES: usize = 600;

/// A number below `n`, another one each time (xorshift).
fn below(state: &mut u64, n: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % n as u64) as usize
}

/// A line that is a command more often than not, on few addresses, so that commands meet.
fn any_line(state: &mut u64) -> String {
    const ADDRESSES: [&str; 8] = [
        "0x1000",
        "0x10_0000_0000",
        "0x10_0000_0000",
        "0x10_0020_0000",
        "0x10_001f_f000",
        "0x20_0000_0000",
        "7fffffe00000",
        "ffffffffffffffff",
    ];
    const SIZES: [&str; 6] = ["4K", "64K", "2M", "2M", "4M", "8"];
    const PLACES: [&str; 4] = ["dev0", "dev1", "dev2", "ram"];
    const LINES: [&str; 24] = [
        "map A S rw huge",
        "map A S rw huge",
        "map A S r",
        "unmap A S",
        "fill A S",
        "fill A S 3",
        "touch A S w",
        "touch A S",
        "check A S --where",
        "migrate A S P",
        "migrate A S P",
        "migrate A S P",
        "evict P",
        "split A",
        "collapse A",
        "protect A S none",
        "protect A S rw",
        "remap A S A",
        "advise A S dontneed",
        "fork",
        "exit-space",
        "use 2",
        "set fail-alloc 1",
        "folio A",
    ];
    let template = LINES[below(state, LINES.len())];
    let mut words = template.split(' ').map(|word| match word {
        "A" => ADDRESSES[below(state, ADDRESSES.len())],
        "S" => SIZES[below(state, SIZES.len())],
        "P" => PLACES[below(state, PLACES.len())],
        word => word,
    });
    let mut line = words.next().unwrap_or_default().to_owned();
    words.for_each(|word| line.extend([" ", word]));
    line
}

fn any_lines(shell: &Shell) -> Result<(), String> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let lines: Vec<String> = (0..LINES).map(|_| any_line(&mut state)).collect();
    let commands = format!("{}\nset fail-alloc 0\naudit", lines.join("\n"));
    let told = shell.run(&["--device-count", "3", "--coherent", "2", "--keep-going", "-c", &commands])?;
    told.is(LINES + 1, &["audit ok: every invariant holds"])
}
