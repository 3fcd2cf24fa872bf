//! What happened, and when: the records of a trace.
//!
//! ```text
//!   fault ── begin ── mark(Collect) ── mark(Alloc) ── .. ── end ──► one Record      the thread's open record
//!   batch ── begin ── mark(Collect) ── mark(Unmap) ── .. ── end ──► one Record      in the batch: it may change threads
//!     └─ unit ................................................ ──► one Record each
//!   step  ── begin ───────────────────────────────────────── end ──► one Record     only at level 2
//! ```
//!
//! A fault, and a unit of a migration, write *one* record with the ticks at which their phases ended; who reads it makes nested
//! events of that. A mark is a reading of the clock and a store. The memory manager says what happened; the clock, the open
//! record of each thread and the ring belong to the machine ([`Machine::now`], [`Machine::open`], [`Machine::record`]).
//!
//! **Off** costs next to nothing. Hot paths have a second body with marks in it (`const TRACED`), and who takes the fault chooses
//! ([`crate::Space::handle_fault_as`]); a fault's migration finds its body by the look at its level that it takes anyway; an
//! allocation, by the look at [`crate::inject`]. A batch asks once.

mod batch;
mod open;
mod record;

use crate::error::FaultError;
use crate::fault::FaultOutcome;
use crate::migrate::{Cause, Verdict};

pub(crate) use batch::{BatchFacts, Marks, Step, UnitFacts, unit_stayed};
pub use open::Open;
pub(crate) use open::{copied_if_traced, mark};
pub use record::Record;

/// How much is recorded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Tracing {
    /// Nothing.
    #[default]
    Off = 0,
    /// Faults, batches and units of migrations, with their phases.
    Units = 1,
    /// Single steps too: allocations, flushes, lists of copies, splits, merges, evictions, waits.
    Steps = 2,
}

/// Declares an enum whose values have names, and that a byte can be turned back into.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// The name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// A phase of a fault or a migration; its tick is that of its end. Which are gone through depends on what happens.
    Phase {
        /// Looks that led to nothing yet, sleeping included: the time until the last look began.
        Wait = "wait",
        /// Found and looked at, and once more with the table locked; folios locked, migration entries in their place.
        Collect = "collect",
        /// Other mappings are gone too.
        Unmap = "unmap",
        /// No TLB remembers the pages; pins are checked.
        Flush = "flush",
        /// Memory is there.
        Alloc = "alloc",
        /// It has its contents: copied or cleared. Of a batch, where allocations and copies alternate, all that was spent on
        /// allocations counts as the first part.
        Copy = "copy",
        /// The folios have moved: the last point of refusal.
        Commit = "commit",
        /// The entries lead to the pages, and what was left behind is free. The end.
        Finalize = "finalize",
    }
}

named! {
    /// What a record is about.
    Kind {
        /// A page fault.
        Fault = "fault",
        /// A batch of a migration. Its number is that of the units that moved.
        Batch = "batch",
        /// A unit of one.
        Unit = "unit",
        /// Memory was allocated.
        Frames = "alloc",
        /// Memory for a page table was allocated.
        Table = "alloc-table",
        /// A round of flushes. Its number is that of the pages asked for; 0 for all.
        Flush = "flush-tlb",
        /// A list of copies was done by a device's engine. Its number is that of the copies.
        Copies = "copy-list",
        /// A folio was split.
        Split = "split",
        /// A huge mapping became a table.
        SplitMapping = "split-mapping",
        /// Small pages on a device became one of 2 MiB.
        Merge = "merge",
        /// Small pages in RAM became one of 2 MiB.
        Collapse = "collapse",
        /// Device memory was emptied. Its number is that of the pages.
        Evict = "evict",
        /// A fault slept on a folio.
        Sleep = "sleep",
    }
}

impl Kind {
    /// True when the record's number is that of a frame.
    #[must_use]
    pub const fn has_frame(self) -> bool {
        !matches!(self, Self::Batch | Self::Flush | Self::Copies | Self::Evict)
    }
}

named! {
    /// How it ended.
    Outcome {
        /// As it should.
        Done = "done",
        /// It did not come about.
        Failed = "failed",
        /// A migration was dropped, and everything is back.
        PutBack = "put-back",
        /// The entry was as wanted already.
        Spurious = "spurious",
        /// The zero page was mapped.
        ZeroPage = "zero-page",
        /// A fresh page was mapped.
        Allocated = "allocated",
        /// The write was granted in place.
        Upgraded = "upgraded",
        /// A shared page was copied.
        Copied = "copied",
        /// A page of an object was mapped.
        Mapped = "mapped",
        /// A page came back from its device.
        Returned = "returned",
        /// A page that was lent to a device was taken back.
        TakenBack = "taken-back",
        /// The unit moved.
        Moved = "moved",
        /// It moved, and arrived in smaller pieces.
        InPieces = "in-pieces",
        /// The hole was filled.
        Filled = "filled",
        /// No mapping.
        NoVma = "no-vma",
        /// The mapping forbids the access.
        Access = "access",
        /// No memory.
        NoMemory = "no-memory",
        /// The group has all that it may have.
        Limit = "limit",
        /// The device failed.
        Device = "device",
        /// Somebody holds the page.
        Held = "held",
        /// The object has no page there.
        NoPage = "no-page",
        /// A reserved bit was set.
        Reserved = "reserved",
        /// The folio was locked.
        Busy = "busy",
        /// Somebody else was faster.
        Raced = "raced",
        /// The folio reaches out of the range.
        NotSplit = "not-split",
        /// It lies on another device.
        Foreign = "foreign",
        /// It is no anonymous memory.
        NotAnon = "not-anon",
    }
}

impl Outcome {
    /// [`Outcome::Done`] or [`Outcome::Failed`].
    pub(crate) const fn of(done: bool) -> Self {
        if done { Self::Done } else { Self::Failed }
    }

    pub(crate) const fn of_fault(result: &Result<FaultOutcome, FaultError>) -> Self {
        match result {
            Ok(FaultOutcome::Spurious) => Self::Spurious,
            Ok(FaultOutcome::ZeroPage(_)) => Self::ZeroPage,
            Ok(FaultOutcome::Allocated(_)) => Self::Allocated,
            Ok(FaultOutcome::Upgraded) => Self::Upgraded,
            Ok(FaultOutcome::Copied(_)) => Self::Copied,
            Ok(FaultOutcome::Mapped) => Self::Mapped,
            Ok(FaultOutcome::Returned) => Self::Returned,
            Ok(FaultOutcome::TakenBack) => Self::TakenBack,
            Err(FaultError::NoVma(_)) => Self::NoVma,
            Err(FaultError::Access(..)) => Self::Access,
            Err(FaultError::Oom(_)) => Self::NoMemory,
            Err(FaultError::Limit(..)) => Self::Limit,
            Err(FaultError::Device(_)) => Self::Device,
            Err(FaultError::Held(_)) => Self::Held,
            Err(FaultError::NoPage(_)) => Self::NoPage,
            Err(FaultError::Reserved(_)) => Self::Reserved,
        }
    }

    pub(crate) const fn of_unit(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Moved => Self::Moved,
            Verdict::InPieces => Self::InPieces,
            Verdict::Filled => Self::Filled,
            Verdict::Copied => Self::Copied,
            Verdict::Stayed(cause) => match cause {
                Cause::Busy => Self::Busy,
                Cause::Pinned => Self::Held,
                Cause::NoMemory => Self::NoMemory,
                Cause::CopyFailed => Self::Device,
                Cause::Raced => Self::Raced,
                Cause::NotSplit => Self::NotSplit,
                Cause::Foreign => Self::Foreign,
                Cause::NotAnon => Self::NotAnon,
                Cause::Limit => Self::Limit,
            },
        }
    }
}
