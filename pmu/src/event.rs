//! Events by name.

use core::fmt;

/// Something that counters count. Which codes stand for it is [`Pmu::row`](crate::Pmu::row).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Clock cycles while the CPU is not halted.
    Cycles,
    /// Instructions that were retired.
    Instructions,
    /// Loads whose translation no TLB had.
    DtlbLoadMisses,
    /// Stores whose translation no TLB had.
    DtlbStoreMisses,
    /// Walks of the page table for data, loads and stores.
    PageWalks,
    /// Cycles of such walks, summed over those that run at once.
    WalkCycles,
    /// Misses of the last level of cache.
    LlcMisses,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cycles,
        Self::Instructions,
        Self::DtlbLoadMisses,
        Self::DtlbStoreMisses,
        Self::PageWalks,
        Self::WalkCycles,
        Self::LlcMisses,
    ];
    /// Their names, for people.
    pub const NAMES: &str =
        "cycles, instructions, dtlb-load-misses, dtlb-store-misses, page-walks, walk-cycles, llc-misses";
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// What people type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Instructions => "instructions",
            Self::DtlbLoadMisses => "dtlb-load-misses",
            Self::DtlbStoreMisses => "dtlb-store-misses",
            Self::PageWalks => "page-walks",
            Self::WalkCycles => "walk-cycles",
            Self::LlcMisses => "llc-misses",
        }
    }

    /// The event of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Some events, each once, in the order in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    list: [Event; Event::COUNT],
    len: usize,
}

/// A word in a list that is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadList<'a>(pub &'a str);

impl fmt::Display for BadList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(word) = self;
        write!(f, "there is no event \"{word}\"; events, with commas between them, are {}", Event::NAMES)
    }
}

impl Events {
    /// Reads names with commas between them. One that comes again counts once.
    ///
    /// # Errors
    /// The first word that is no event; the empty list has one, the empty word.
    pub fn parse(text: &str) -> Result<Self, BadList<'_>> {
        let mut events = Self { list: [Event::Cycles; Event::COUNT], len: 0 };
        for word in text.split(',') {
            let event = Event::find(word).ok_or(BadList(word))?;
            if !events.as_slice().contains(&event) {
                events.list[events.len] = event;
                events.len += 1;
            }
        }
        Ok(events)
    }

    /// The events.
    #[must_use]
    pub fn as_slice(&self) -> &[Event] {
        &self.list[..self.len]
    }
}
