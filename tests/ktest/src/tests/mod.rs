//! Unit tests, one file for each module.

mod stream;
mod wire;
