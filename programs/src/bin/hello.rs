//! The smallest whole program: prints its arguments, and ends with the number that the last one is.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("hello from ring 3");
    let args: Vec<String> = env::args().skip(1).collect();
    for (number, text) in (1..).zip(&args) {
        println!("argument {number}: {text}");
    }
    if let Ok(value) = env::var("GREETING") {
        println!("GREETING is {value}");
    }
    if args.first().is_some_and(|text| text == "unended") {
        print!("no line end");
    }
    let status = args.last().and_then(|text| text.parse().ok()).unwrap_or(0);
    ExitCode::from(status)
}
