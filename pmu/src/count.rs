//! Counts: what a scope has read.

use core::fmt;

use crate::event::Event;

/// How often something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Counted all the time.
    Counted(u64),
    /// Counted a part of the time, and scaled to all of it.
    Scaled {
        /// The estimate.
        count: u64,
        /// The part of the time, in thousandths; of the code that had least if there were several.
        permille: u16,
    },
    /// Other events had the counters all the time.
    Never,
}

impl Value {
    /// The number, counted or scaled.
    #[must_use]
    pub const fn number(self) -> Option<u64> {
        match self {
            Self::Counted(count) | Self::Scaled { count, .. } => Some(count),
            Self::Never => None,
        }
    }

    /// The count of `raw` events in `spent` of `total` ticks.
    pub(crate) fn scale(raw: u64, spent: u64, total: u64) -> Self {
        if spent == total {
            return Self::Counted(raw);
        }
        if spent == 0 {
            return Self::Never;
        }
        let count = u128::from(raw) * u128::from(total) / u128::from(spent);
        let permille = (u128::from(spent) * 1000 / u128::from(total)) as u16;
        Self::Scaled { count: u64::try_from(count).unwrap_or(u64::MAX), permille }
    }

    /// The sum of two parts of an event.
    pub(crate) fn plus(self, other: Self) -> Self {
        let (Some(a), Some(b)) = (self.number(), other.number()) else { return Self::Never };
        let count = a.saturating_add(b);
        match self.permille().min(other.permille()) {
            1000 => Self::Counted(count),
            permille => Self::Scaled { count, permille },
        }
    }

    fn permille(self) -> u16 {
        match self {
            Self::Counted(_) => 1000,
            Self::Scaled { permille, .. } => permille,
            Self::Never => 0,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(count) => write!(f, "{count}"),
            Self::Scaled { count, permille } => {
                write!(f, "about {count} (scaled; counted {}.{} % of the time)", permille / 10, permille % 10)
            }
            Self::Never => f.write_str("not counted: other events had the counters; ask for fewer at once"),
        }
    }
}

/// The counts of a scope's events, in the order in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub(crate) all: [Option<(Event, Value)>; Event::COUNT],
}

impl Counts {
    /// Each event with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Event, Value)> + '_ {
        self.all.iter().copied().flatten()
    }

    /// The count of one event, if the scope was asked for it.
    #[must_use]
    pub fn get(&self, event: Event) -> Option<Value> {
        self.iter().find(|(one, _)| *one == event).map(|(_, value)| value)
    }
}
