//! Unit tests, one file for each module.

mod knobs;
mod monitor;
mod stream;
mod wire;
