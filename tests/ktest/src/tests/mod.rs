//! Unit tests, one file for each module.

mod knobs;
mod monitor;
mod stream;
mod trace;
mod wire;
