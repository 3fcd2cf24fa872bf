//! `peer [--sizes BYTES,...] [FILTER]`: what operations cost a program, in ticks of the time-stamp counter, as records for `bench`.
//!
//! The operations are those of `docs/peer-linux.toml`, by their names there, bracketed by RDTSC in ring 3: under instruction
//! counting a tick is an instruction. A row gives the median and the least of its rounds; `bulk` is the data that the operation has to
//! move or clear, in words of 8 bytes. Then come the sizes of the field's migration benchmark, but 256 MiB if that is not asked for.

use std::process::ExitCode;

use farpage_programs::area::Errno;
use farpage_programs::dmirror::Device;

mod operations;
mod sizes;

/// The costs of the rounds of one operation.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Vec<u64>);

impl Rounds {
    /// Measures one round.
    #[inline(always)]
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (result, ticks) = ticks(work);
        self.0.push(ticks);
        result
    }

    /// Takes one round that was measured otherwise.
    pub(crate) fn push(&mut self, ticks: u64) {
        self.0.push(ticks);
    }

    fn median(&mut self) -> u64 {
        self.0.sort_unstable();
        self.0.get(self.0.len() / 2).copied().unwrap_or(0)
    }

    fn least(&self) -> u64 {
        self.0.iter().min().copied().unwrap_or(0)
    }
}

/// Ticks that some work takes.
#[inline(always)]
pub(crate) fn ticks<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let begin = now();
    let result = work();
    (result, now() - begin)
}

/// The time-stamp counter.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 CPU, and allowed in ring 3 wherever this runs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// An operation.
pub(crate) struct Row {
    /// What people call it.
    pub(crate) name: &'static str,
    /// Words that it has to move or clear.
    pub(crate) bulk: u64,
    /// The most that may go beyond these.
    pub(crate) goal: u64,
    pub(crate) measure: fn(&Device, &mut Rounds) -> Result<(), Errno>,
}

fn main() -> ExitCode {
    let (mut sizes, mut filter) = (sizes::USUAL.to_vec(), String::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--sizes" {
            let list = arguments.next().unwrap_or_default();
            sizes = list.split(',').filter_map(|size| size.parse().ok()).collect();
        } else {
            filter = argument;
        }
    }
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("/dev/hmm_dmirror0 cannot be opened: {error:?}; give the machine a device");
            return ExitCode::FAILURE;
        }
    };
    for row in operations::ROWS.iter().filter(|row| row.name.contains(&filter)) {
        let mut rounds = Rounds::default();
        if let Err(error) = (row.measure)(&device, &mut rounds) {
            eprintln!("{}: {error:?}", row.name);
            return ExitCode::FAILURE;
        }
        let (Row { name, bulk, goal, .. }, median) = (row, rounds.median());
        let (least, n) = (rounds.least(), rounds.0.len());
        println!("@peer name=\"{name}\" total={median} least={least} bulk={bulk} n={n} goal={goal}");
    }
    if sizes::NAME.contains(&filter)
        && let Err(error) = sizes::measure(&device, &sizes)
    {
        eprintln!("the sizes: {error:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
