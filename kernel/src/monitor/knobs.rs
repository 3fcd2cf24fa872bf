//! `set`: what stands, and what is turned.

use ktest::monitor::{Knob, Setting, Value};

use super::{Done, Refusal};
use crate::knobs::{self, List};
use crate::println;

/// Turns a knob; without a value, says how it stands, and without a knob, how all do. True when a knob was turned.
pub(super) fn set(knob: Option<Knob>, value: Option<Value<'_>>) -> Done {
    match (knob, value) {
        (Some(knob), Some(value)) => {
            let setting = Setting::parse(knob, value.0).map_err(|error| Refusal::said(&error))?;
            knobs::turn(setting, value.0).map_err(Refusal::Said)?;
        }
        (knob, _) => println!("{}", List(knob)),
    }
    Ok(None)
}

/// Figures are to be believed: not while an unsafe knob stands as it does.
pub(super) fn must_be_safe(what: &str) -> Result<(), Refusal> {
    match knobs::unsafe_one() {
        None => Ok(()),
        Some(knob) => Err(Refusal::Said(alloc::format!(
            "{what} has no use for what {} {} spoils; first: set {} {}",
            knob.word(),
            knobs::value(knob),
            knob.word(),
            knob.spec().default
        ))),
    }
}
