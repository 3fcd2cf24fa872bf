//! Every test there is, as one list. See the crate's documentation.

use std::{collections::BTreeSet, process::ExitCode, sync::Arc};

use harness::{
    gdb,
    guest::{Guests, QemuMachine},
    host, oracle, runs, summary,
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = host::trials();
    let machine = QemuMachine::new().map(Arc::new);
    let guests = machine.clone().and_then(|machine| Guests::find(machine));
    match &guests {
        Ok(guests) => trials.extend(guests.trials()),
        Err(why) => trials.push(broken_kernel(why.clone())),
    }
    if let Ok(machine) = &machine {
        trials.extend(oracle::trials(machine));
        trials.extend(gdb::trials(machine));
    }
    trials.extend(runs::trials());

    trials.retain(|trial| !args.is_filtered_out(trial));
    if !args.list
        && let Ok(guests) = &guests
    {
        let chosen = trials.iter().filter(|trial| !args.is_ignored(trial));
        guests.start(&chosen.map(|trial| trial.name().to_owned()).collect::<BTreeSet<_>>());
    }
    let conclusion = libtest_mimic::run(&args, trials);
    summary::finish(&args, &conclusion)
}

/// Stands for all in-kernel tests when there is no kernel to run them. The host's tests run all the same.
fn broken_kernel(why: String) -> Trial {
    Trial::test("kernel::list", move || Err(Failed::from(why)))
}
