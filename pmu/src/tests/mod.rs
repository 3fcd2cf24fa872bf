//! Everything against a PMU in software.

mod detect;
mod scope;
mod sim;
