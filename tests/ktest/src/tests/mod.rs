//! Unit tests, one file for each module.

mod monitor;
mod stream;
mod wire;
