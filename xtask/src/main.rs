//! `cargo run`: see the library for what it does.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use xtask::error::Error;

fn main() -> ExitCode {
    match xtask::cli::run(xtask::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // As a shell ends with what its command ended with.
        Err(Error::Program(status)) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
