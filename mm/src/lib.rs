//! The memory manager: pure logic, no `unsafe`, tested on the host.
//!
//! It owns page-table entries, folios, VMAs, faults, migration and split. It does not know registers, ports, real addresses
//! or how a copy is done: those are behind [`Machine`] and [`CopyEngine`], each with a kernel and a host implementation.
//!
//! Where to begin reading: [`Space::handle_fault`] for the way from #PF to a mapped page, [`migrate`] for the way to a
//! device and back, [`tlb`](self) for why a flush cannot be forgotten.
//!
//! Nothing here uses the global allocator: objects live in slabs on frames of the manager's own, allocation is fallible, and
//! out of memory is a value.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "exercise"))]
extern crate alloc;

mod advise;
mod audit;
mod buddy;
mod clone;
mod collapse;
mod counters;
mod cursor;
mod cut;
mod device;
mod dump;
mod entry;
mod error;
mod exclusive;
#[cfg(any(test, feature = "exercise"))]
pub mod exercise;
mod fault;
mod folio;
mod framemap;
mod frames;
mod group;
mod gup;
mod hmm;
mod hugetlb;
mod inject;
mod machine;
mod merge;
pub mod migrate;
pub mod mirror;
mod mm;
mod notifier;
mod object;
mod pagemap;
mod policy;
mod protect;
mod remap;
mod rmap;
mod slab;
mod space;
mod split;
mod stats;
mod sync;
mod table;
#[cfg(test)]
mod testing;
mod tlb;
pub mod trace;
mod track;
mod types;
mod vma;
mod zap;
mod zone;

pub use advise::Advice;
pub use audit::AuditError;
pub use collapse::{MergeCause, MergeReport};
pub use counters::Event;
pub use device::{COPY_LIST, CopyEngine, CopyOp, Device, DeviceKind, Fence, PagemapOps, StillInUse};
pub use dump::Run;
pub use entry::{Attrs, BadEntry, CacheType, Entry, Leaf, NON_PRESENT_CLEAR, SoftKind, SoftLeaf};
pub use error::{FaultError, OutOfMemory, RangeError};
pub use exclusive::ExclusiveGuard;
pub use fault::{FaultBits, FaultInfo, FaultOutcome};
pub use folio::{Folio, FolioRef, LockedFolio};
pub use group::{GroupRef, GroupStat, MAX_GROUPS};
pub use gup::{Got, PinError, PinFlags, Pinned};
pub use hmm::{HmmError, HmmPfn, HmmWant, RangeFault};
pub use hugetlb::HugePoolStat;
pub use inject::{Inject, Site};
pub use machine::{
    FlushReason, FlushRequest, FlushScope, FreshFrame, MAX_CPUS, Machine, TableWords, WaitKey,
};
pub use migrate::{
    BATCH_PAGES, Cause, Collected, Committed, Copied, FaultMigration, MigrateFlags, MigrateOptions,
    Migration, Report, Sources, UnitReport, Unmapped, Verdict,
};
pub use mirror::dmirror::{self, Dmirror, DmirrorError};
pub use mirror::{MirrorAttrs, MirrorEntry, MirrorRef};
pub use mm::{MapStorage, Mm};
pub use notifier::{NotifierOps, NotifierRef, NotifyEvent, Owner};
pub use object::{Object, ObjectKind, ObjectRef};
pub use pagemap::PagemapEntry;
pub use policy::{FlushPolicy, HugePages, MAX_BATCH_UNITS, MAX_FLUSH_PAGES, Policy};
pub use remap::{RemapFlags, RemapTarget};
pub use space::{AddressSpace, Space, SpaceUser};
pub use stats::{DeviceStat, Folios, Resident, SpaceStat, VmaUse};
pub use types::{
    Access, Frame, FrameRange, Level, MAX_DEVICES, Order, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE,
    PUD_SIZE, Place, Prot, USER_END, VaRange, Vaddr,
};
pub use vma::{HugeAdvice, Vma, VmaFlags, VmaKind};
pub use zone::{Need, Zone, ZoneStat};
