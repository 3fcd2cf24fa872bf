//! Which codes stand for an event, by vendor and model.
//!
//! A row may have several codes: the event is their sum. Intel's codes are from the pre-defined architectural events (SDM volume
//! 3B, 20.2.1.2, table 20-1) and from the event tables that Intel publishes for each model; AMD's from the processor
//! programming references (PMCx numbers). A model that is not here counts what its vendor promises for every model, and says of the
//! rest that it is not known.

use core::fmt;

use crate::event::Event;

/// What a counter is told to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The event select; AMD's have up to twelve bits.
    pub event: u16,
    /// The unit mask.
    pub umask: u8,
}

impl Code {
    /// Where an event-select register has it. Bits 11:8 of the event, which Intel's do not have, are at 35:32.
    pub(crate) const fn bits(self) -> u64 {
        self.event as u64 & 0xff | (self.umask as u64) << 8 | (self.event as u64 >> 8 & 0xf) << 32
    }
}

/// An event and what stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The event.
    pub event: Event,
    /// The codes whose counts are added.
    pub codes: &'static [Code],
    /// The bit of CPUID.0AH:EBX that says the event is missing, and the fixed counter that counts it.
    pub(crate) architectural: Option<(u8, Option<u8>)>,
    /// The vendor's name for the codes.
    pub name: &'static str,
    /// The manual and its section.
    pub manual: &'static str,
}

/// Why an event cannot be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncounted {
    /// No code is known for this model.
    Unknown,
    /// CPUID.0AH:EBX says that this CPU does not have it.
    Missing,
    /// There is no counter that could.
    NoCounter,
}

impl fmt::Display for Uncounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no code is known for this model",
            Self::Missing => "CPUID.0AH:EBX says that this CPU does not have it",
            Self::NoCounter => "no counter of this CPU takes it",
        })
    }
}

const fn code(event: u16, umask: u8) -> Code {
    Code { event, umask }
}

const fn row(event: Event, codes: &'static [Code], name: &'static str, manual: &'static str) -> Row {
    Row { event, codes, architectural: None, name, manual }
}

const fn architectural(
    event: Event,
    codes: &'static [Code],
    bit: u8,
    fixed: Option<u8>,
    name: &'static str,
) -> Row {
    let manual = "SDM vol. 3B, 20.2.1.2";
    Row { event, codes, architectural: Some((bit, fixed)), name, manual }
}

/// What every Intel CPU with architectural counters may have.
const ARCHITECTURAL: &[Row] = &[
    architectural(Event::Cycles, &[code(0x3c, 0)], 0, Some(1), "UnHalted Core Cycles"),
    architectural(Event::Instructions, &[code(0xc0, 0)], 1, Some(0), "Instructions Retired"),
    architectural(Event::LlcMisses, &[code(0x2e, 0x41)], 4, None, "LLC Misses"),
];

/// The walks of one generation of Intel's cores: the events of loads and of stores, and the unit mask of a miss of all TLBs.
macro_rules! walks {
    ($load:literal, $store:literal, $miss:literal, $load_miss:literal, $store_miss:literal, $manual:literal) => {
        &[
            row(Event::DtlbLoadMisses, &[code($load, $miss)], $load_miss, $manual),
            row(Event::DtlbStoreMisses, &[code($store, $miss)], $store_miss, $manual),
            row(Event::PageWalks, &[code($load, 0x0e), code($store, 0x0e)], WALK_COMPLETED, $manual),
            row(Event::WalkCycles, &[code($load, 0x10), code($store, 0x10)], WALK_PENDING, $manual),
        ]
    };
}

const WALK_COMPLETED: &str = "DTLB_{LOAD,STORE}_MISSES.WALK_COMPLETED";
const WALK_PENDING: &str = "DTLB_{LOAD,STORE}_MISSES.WALK_PENDING";

const SKYLAKE: &[Row] = walks!(
    0x08,
    0x49,
    0x01,
    "DTLB_LOAD_MISSES.MISS_CAUSES_A_WALK",
    "DTLB_STORE_MISSES.MISS_CAUSES_A_WALK",
    "Intel event tables: Skylake, Skylake-X, Cascade Lake-X, core"
);
/// A miss of all TLBs has no event of its own from here on: the walks that it causes and that complete stand for it.
const ICE_LAKE: &[Row] = walks!(
    0x08,
    0x49,
    0x0e,
    "DTLB_LOAD_MISSES.WALK_COMPLETED",
    "DTLB_STORE_MISSES.WALK_COMPLETED",
    "Intel event tables: Ice Lake, Ice Lake-X, Tiger Lake, Rocket Lake, core"
);
const GOLDEN_COVE: &[Row] = walks!(
    0x12,
    0x13,
    0x0e,
    "DTLB_LOAD_MISSES.WALK_COMPLETED",
    "DTLB_STORE_MISSES.WALK_COMPLETED",
    "Intel event tables: Sapphire Rapids, Alder Lake (Golden Cove), core"
);

/// The same on every AMD CPU since the K7.
const AMD: &[Row] = &[
    row(Event::Cycles, &[code(0x76, 0)], "Cycles Not in Halt", "PPR, PMCx076"),
    row(Event::Instructions, &[code(0xc0, 0)], "Retired Instructions", "PPR, PMCx0C0"),
];

/// Zen counts loads and stores that miss together, so neither has a row; it does not count the cycles of walks. The last level of
/// cache has counters of its own, which are not the core's: demand fills of the data cache from memory stand for its misses.
const ZEN: &[Row] = &[
    row(Event::PageWalks, &[code(0x45, 0xf0)], "LsL1DTlbMiss, L2 TLB missed", "PPR family 17h/19h, PMCx045"),
    row(Event::LlcMisses, &[code(0x43, 0x48)], "LsDmndFillsFromSys, memory", "PPR family 17h/19h, PMCx043"),
];

/// Who made the CPU, as far as counters differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    Intel,
    /// And Hygon, whose CPUs are Zen.
    Amd,
    /// Others with CPUID.0AH: what is architectural holds for them.
    Other,
}

/// Which CPU this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) vendor: Vendor,
    pub(crate) family: u32,
    pub(crate) model: u32,
    /// A small core of a hybrid CPU, whose codes are others.
    pub(crate) small_core: bool,
}

impl Model {
    /// The rows that hold for every CPU of the vendor, and those of this model.
    fn rows(self) -> [&'static [Row]; 2] {
        let of_model = match (self.vendor, self.family, self.model) {
            (Vendor::Intel, ..) if self.small_core => &[],
            (Vendor::Intel, 6, 0x4e | 0x55 | 0x5e | 0x8e | 0x9e | 0xa5 | 0xa6) => SKYLAKE,
            (Vendor::Intel, 6, 0x6a | 0x6c | 0x7d | 0x7e | 0x8c | 0x8d | 0xa7) => ICE_LAKE,
            (Vendor::Intel, 6, 0x8f | 0x97 | 0x9a | 0xb7 | 0xba | 0xbf | 0xcf) => GOLDEN_COVE,
            (Vendor::Amd, 0x17..=0x19, _) => ZEN,
            _ => &[],
        };
        [if self.vendor == Vendor::Amd { AMD } else { ARCHITECTURAL }, of_model]
    }

    /// What stands for an event here.
    pub(crate) fn row(self, event: Event) -> Option<&'static Row> {
        self.rows().into_iter().flatten().find(|row| row.event == event)
    }
}
