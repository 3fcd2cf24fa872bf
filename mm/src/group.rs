//! Groups of address spaces with a common limit (Linux: a memory cgroup).
//!
//! A *folio* is charged, not a mapping: to the group of the space whose touch, hole or copy made it, until its memory is free. A
//! folio that moves stays the same folio ([decision 4]), so a move to a device and back neither charges nor asks: no migration of
//! a page and no fault-back can meet the limit. Pages on devices and in RAM count alike, and can be told apart on reading.
//!
//! ```text
//!   charged, if the limit allows:  first touch, copy on write, a page of an object, a hole that a migration fills, a collapse
//!   handed over:                   parts of a split, pieces of a migration, what a merge makes one
//!   uncharged:                     when the folio's memory is free
//! ```
//!
//! The number of the group is in the folio's word of flags, which is read anyway when it is freed: who uses no groups pays a
//! load and a branch for a fresh folio, and nothing else.
//!
//! [decision 4]: ../../docs/decisions/0004-a-folio-moves.md

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::error::{FaultError, OutOfMemory};
use crate::folio::{Folio, FolioRef};
use crate::machine::Machine;
use crate::mm::Mm;
use crate::space::Space;
use crate::types::{MAX_DEVICES, Vaddr};

/// Most groups at a time.
pub const MAX_GROUPS: usize = 31;

/// A group. Its number, from 1 on, is free when nobody uses it and nothing is charged to it.
#[derive(Debug)]
pub(crate) struct Group {
    /// Spaces that belong to it, and its handle.
    users: AtomicU32,
    /// Pages.
    limit: AtomicU64,
    charged: AtomicU64,
    /// Charges that the limit did not allow.
    refused: AtomicU64,
}

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPage {
    /// No memory.
    Memory,
    /// The group has all that its limit allows, which is the number.
    Limit(u64),
}

impl NoPage {
    /// As the error of a fault at `addr`.
    pub(crate) const fn at(self, addr: Vaddr) -> FaultError {
        match self {
            Self::Memory => FaultError::Oom(addr),
            Self::Limit(pages) => FaultError::Limit(addr, pages),
        }
    }
}

impl From<OutOfMemory> for NoPage {
    fn from(_: OutOfMemory) -> Self {
        Self::Memory
    }
}

impl Group {
    pub(crate) const fn new() -> Self {
        Self {
            users: AtomicU32::new(0),
            limit: AtomicU64::new(0),
            charged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn charged(&self) -> u64 {
        self.charged.load(Relaxed)
    }

    fn try_charge(&self, pages: u64) -> Result<(), NoPage> {
        let limit = self.limit.load(Relaxed);
        let more = |charged: u64| charged.checked_add(pages).filter(|&sum| sum <= limit);
        match self.charged.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.refused.fetch_add(1, Relaxed);
                Err(NoPage::Limit(limit))
            }
        }
    }

    fn charge(&self, pages: u64) {
        self.charged.fetch_add(pages, Relaxed);
    }

    fn uncharge(&self, pages: u64) {
        self.charged.fetch_sub(pages, Release);
    }
}

/// What a group holds, in base pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupStat {
    /// The most that it may hold.
    pub limit: u64,
    /// What is charged to it.
    pub charged: u64,
    /// How much of that lies in RAM.
    pub ram: u64,
    /// And on each device.
    pub devices: [u64; MAX_DEVICES],
    /// How often it was refused more.
    pub refused: u64,
}

/// The handle of a group: it is there as long as this, or a space that belongs to it, or a page that is charged to it.
pub struct GroupRef<M: Machine> {
    number: u32,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> GroupRef<M> {
    /// A group that may hold `limit` pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] when there are [`MAX_GROUPS`] already; one whose users are gone counts until its last page is free.
    pub fn new(limit: u64) -> Result<Self, OutOfMemory> {
        for (group, number) in M::mm().groups.iter().zip(1..) {
            if group.users.compare_exchange(0, 1, AcqRel, Relaxed).is_err() {
                continue;
            }
            // Without users it can only lose charges.
            if group.charged.load(Acquire) == 0 {
                group.limit.store(limit, Relaxed);
                group.refused.store(0, Relaxed);
                return Ok(Self { number, machine: PhantomData });
            }
            group.users.store(0, Release);
        }
        Err(OutOfMemory { order: 0 })
    }

    fn group(&self) -> &'static Group {
        M::mm().group(self.number)
    }

    /// Changes the limit, in pages. What is charged beyond it stays; nothing more is allowed until enough is free.
    pub fn set_limit(&self, limit: u64) {
        self.group().limit.store(limit, Relaxed);
    }

    /// What it holds, and where. Counted from the descriptors, without locks: exact on a machine at rest.
    #[must_use]
    pub fn stat(&self) -> GroupStat {
        let group = self.group();
        let mut stat = GroupStat {
            limit: group.limit.load(Relaxed),
            charged: group.charged(),
            refused: group.refused.load(Relaxed),
            ..GroupStat::default()
        };
        let mm = M::mm();
        mm.folios.for_each(mm, &mut |folio| {
            if folio.refs() != 0 && folio.group() == self.number {
                let here = match folio.place().device_number() {
                    None => &mut stat.ram,
                    Some(number) => &mut stat.devices[number],
                };
                *here += u64::from(folio.order().pages());
            }
        });
        stat
    }

    /// Calls `f` with every figure of the group, by a name in the style of `/proc/vmstat`.
    pub fn vmstat(&self, f: &mut dyn FnMut(&'static str, u64)) {
        let stat = self.stat();
        f("nr_group_limit_pages", stat.limit);
        f("nr_group_pages", stat.charged);
        f("nr_group_ram_pages", stat.ram);
        DEVICE_NAMES.iter().zip(stat.devices).for_each(|(name, pages)| f(name, pages));
        f("group_charge_fail", stat.refused);
    }
}

const DEVICE_NAMES: [&str; MAX_DEVICES] =
    ["nr_group_device0_pages", "nr_group_device1_pages", "nr_group_device2_pages", "nr_group_device3_pages"];

impl<M: Machine> fmt::Debug for GroupRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.number)
    }
}

impl<M: Machine> Drop for GroupRef<M> {
    fn drop(&mut self) {
        self.group().users.fetch_sub(1, AcqRel);
    }
}

impl<M: Machine> Mm<M> {
    fn group(&'static self, number: u32) -> &'static Group {
        &self.groups[number as usize - 1]
    }

    /// The folio's memory is free.
    #[cold]
    pub(crate) fn uncharge(&'static self, folio: &Folio) {
        let number = folio.take_group();
        if number != 0 {
            self.group(number).uncharge(u64::from(folio.order().pages()));
        }
    }

    /// Charges `folio` where `like` is charged, whatever the limit: it takes over what that held.
    pub(crate) fn charge_like(&'static self, folio: &Folio, like: &Folio) {
        let number = like.group();
        if number != folio.group() {
            self.uncharge(folio);
            if number != 0 {
                self.group(number).charge(u64::from(folio.order().pages()));
                folio.set_group(number);
            }
        }
    }
}

impl<M: Machine> Space<M> {
    /// Makes the space one of `group`: what it brings into being from now on is charged there, and so is what its later clones do.
    /// Pages that are there already stay charged where they are.
    pub fn join_group(&'static self, group: &GroupRef<M>) {
        // Held alone: no fault and no clone is under way.
        let _vmas = self.vmas.write();
        self.enter_group(group.number);
    }

    /// A clone joins its parent's group. With the parent's VMA lock held alone, so that the group stays.
    pub(crate) fn join_group_of(&self, parent: &Self) {
        self.enter_group(parent.group.load(Relaxed));
    }

    /// The space ends.
    pub(crate) fn leave_group(&self) {
        self.enter_group(0);
    }

    fn enter_group(&self, number: u32) {
        if number != 0 {
            M::mm().group(number).users.fetch_add(1, AcqRel);
        }
        let old = self.group.swap(number, Relaxed);
        if old != 0 {
            M::mm().group(old).users.fetch_sub(1, AcqRel);
        }
    }

    /// Charges a fresh folio to the space's group, if it has one. Beyond the limit the folio is free again.
    #[inline(always)]
    pub(crate) fn charge(&self, folio: FolioRef<M>) -> Result<FolioRef<M>, NoPage> {
        if self.group.load(Relaxed) != 0 {
            self.try_charge(&folio)?;
        }
        Ok(folio)
    }

    /// Charges a folio that nobody else knows yet.
    #[cold]
    #[inline(never)]
    pub(crate) fn try_charge(&self, folio: &Folio) -> Result<(), NoPage> {
        let number = self.group.load(Relaxed);
        if number == 0 {
            return Ok(());
        }
        M::mm().group(number).try_charge(u64::from(folio.order().pages()))?;
        folio.set_group(number);
        Ok(())
    }
}
