//! Every test there is, as one list. See the crate's documentation.

use std::{collections::BTreeSet, num::NonZero, process::ExitCode, sync::Arc, thread};

use harness::{
    gdb,
    guest::{Guests, QemuMachine},
    host, oracle,
    programs::Programs,
    runs, summary,
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let args = Arguments::from_args();
    // Two builds with a lock each: side by side.
    let (mut trials, runner, (machine, guests)) = thread::scope(|scope| {
        let others = scope.spawn(|| (host::trials(), runs::runner()));
        let machine = QemuMachine::new().map(Arc::new);
        let guests = machine.clone().and_then(|machine| Guests::find(machine));
        let (trials, runner) = others.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
        (trials, runner, (machine, guests))
    });
    let programs = Programs::new(runner.clone());
    trials.extend(runs::trials(runner));
    if let Ok(machine) = &machine {
        trials.extend(oracle::trials(machine));
        trials.extend(gdb::trials(machine));
    }
    match &guests {
        Ok(guests) => trials.extend(guests.trials()),
        Err(why) => trials.push(broken_kernel(why.clone())),
    }
    trials.extend(programs.trials());

    trials.retain(|trial| !args.is_filtered_out(trial));
    if !args.list {
        let chosen = trials.iter().filter(|trial| !args.is_ignored(trial));
        let chosen = chosen.map(|trial| trial.name().to_owned()).collect::<BTreeSet<_>>();
        programs.start(&chosen);
        if let Ok(guests) = &guests {
            let at_once =
                args.test_threads.and_then(NonZero::new).or_else(|| thread::available_parallelism().ok());
            guests.start(&chosen, at_once.unwrap_or(NonZero::<usize>::MIN));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    summary::finish(&args, &conclusion)
}

/// Stands for all in-kernel tests when there is no kernel to run them. The host's tests run all the same.
fn broken_kernel(why: String) -> Trial {
    Trial::test("kernel::list", move || Err(Failed::from(why)))
}
