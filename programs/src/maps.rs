//! `/proc/self/maps`, reduced to what must be the same everywhere.
//!
//! Kernels differ in what they merge, and in where they put things; so a range is described by runs of the same protection and
//! kind, each as long as it can be, with offsets from the range's start.

use std::fmt;
use std::fs;

/// A run of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the start of the range that was asked for.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// As the file has it: `rw-p`.
    pub kind: String,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (page, pages) = (self.offset / crate::PAGE, self.len / crate::PAGE);
        write!(f, "{}+{} {}", page, pages, self.kind)
    }
}

/// What is mapped in a range, merged.
///
/// # Panics
/// `/proc/self/maps` cannot be read, or is no such file.
#[must_use]
pub fn runs(start: u64, len: u64) -> Vec<Run> {
    let end = start + len;
    let mut runs: Vec<Run> = Vec::new();
    for line in fs::read_to_string("/proc/self/maps").expect("/proc/self/maps").lines() {
        let mut words = line.split_whitespace();
        let (range, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (from, to) = range.split_once('-').expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let (from, to) = (number(from).max(start), number(to).min(end));
        if from >= to {
            continue;
        }
        let run = Run { offset: from - start, len: to - from, kind: kind.to_owned() };
        match runs.last_mut() {
            Some(last) if last.offset + last.len == run.offset && last.kind == run.kind => {
                last.len += run.len;
            }
            _ => runs.push(run),
        }
    }
    runs
}

/// The same in one line: `page+pages kind` for each run.
#[must_use]
pub fn line(start: u64, len: u64) -> String {
    let runs: Vec<String> = runs(start, len).iter().map(Run::to_string).collect();
    if runs.is_empty() { "nothing".to_owned() } else { runs.join(", ") }
}
