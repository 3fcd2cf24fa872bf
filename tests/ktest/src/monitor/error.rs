//! What can be wrong with a line, in one sentence that ends with the way out.

use core::fmt;

use super::words::Shape;
use super::{COMMANDS, Spec};

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<'a> {
    /// No command has this name.
    Unknown {
        /// The name.
        word: &'a str,
        /// A command whose name is nearly this.
        like: Option<&'static Spec>,
    },
    /// An argument is missing.
    Missing {
        /// The command.
        spec: &'static Spec,
        /// The argument.
        name: &'static str,
    },
    /// An argument is not what it should be.
    Bad {
        /// The command.
        spec: &'static Spec,
        /// The argument.
        name: &'static str,
        /// What was given.
        word: &'a str,
        /// What could have been.
        shape: Shape,
    },
    /// A word too many, or one that no argument takes.
    Extra {
        /// The command.
        spec: &'static Spec,
        /// The word.
        word: &'a str,
    },
}

impl<'a> Error<'a> {
    pub(super) fn unknown(word: &'a str) -> Self {
        let like = COMMANDS.iter().filter(|spec| distance(word, spec.name) <= 1 + spec.name.len() / 5);
        Self::Unknown { word, like: like.min_by_key(|spec| distance(word, spec.name)) }
    }
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { word, like: Some(spec) } => {
                write!(f, "there is no command \"{word}\"; did you mean {}? help lists all", spec.name)
            }
            Self::Unknown { word, like: None } => {
                write!(f, "there is no command \"{word}\"; help lists all")
            }
            Self::Missing { spec, name } => {
                write!(f, "{} needs {}; usage: {}", spec.name, Capitals(name), spec.usage())
            }
            Self::Bad { spec, name, word, shape } => {
                write!(f, "{} cannot be \"{word}\": {}", Capitals(name), shape.expected())?;
                write!(f, "; usage: {}", spec.usage())
            }
            Self::Extra { spec, word } => {
                write!(f, "{} has no use for \"{word}\"; usage: {}", spec.name, spec.usage())
            }
        }
    }
}

/// The name of an argument as usage shows it.
pub(super) struct Capitals(pub(super) &'static str);

impl fmt::Display for Capitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write!(f, "{}", c.to_ascii_uppercase()))
    }
}

/// Names are short; what is longer is like nothing.
const NAME_MAX: usize = 20;

/// How many letters must be changed, added, left out or exchanged with the next to make `b` of `a`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > NAME_MAX || b.len() > NAME_MAX {
        return NAME_MAX;
    }
    let mut rows = [[0; NAME_MAX + 1]; NAME_MAX + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    let swap = if swapped { rows[i - 2][j - 2] + 1 } else { NAME_MAX };
                    change.min(swap).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
                }
            };
        }
    }
    rows[a.len()][b.len()]
}
