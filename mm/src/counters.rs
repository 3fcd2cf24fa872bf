//! Counters. System-wide ones live per CPU in the machine (one add instruction each) and are summed on reading; their
//! names are those of `/proc/vmstat` where Linux has the counter, and in its style where it has not.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A system-wide counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// The name, in the style of `/proc/vmstat`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

events! {
    /// Faults handled, whatever the outcome.
    PgFault = "pgfault",
    /// Faults that found the entry already as wanted.
    PgFaultSpurious = "pgfault_spurious",
    /// Faults refused: no VMA, or not allowed.
    PgFaultError = "pgfault_error",
    /// Read faults that mapped the shared zero page.
    ZeroPageMapped = "zero_page_mapped",
    /// Read faults that mapped the shared 2 MiB zero folio.
    ThpZeroPageMapped = "thp_zero_page_mapped",
    /// Faults that mapped a fresh 4 KiB page.
    AnonFaultAlloc = "anon_fault_alloc",
    /// Faults that mapped a fresh 2 MiB page.
    ThpFaultAlloc = "thp_fault_alloc",
    /// Huge pages of the pool that a first touch has mapped.
    HugetlbFault = "hugetlb_fault",
    /// Faults that wanted a 2 MiB page and took a small one.
    ThpFaultFallback = "thp_fault_fallback",
    /// Write faults that only had to grant the write.
    WriteUpgrade = "pgfault_upgrade",
    /// Write faults that copied a shared page.
    CowCopy = "cow_copy",
    /// Faults that mapped a page of an object.
    ObjectFault = "object_fault",
    /// Faults on device-private entries that brought the page back.
    DeviceFault = "devmem_fault",
    /// Faults on pages that were lent to a device for atomic access, and were taken back.
    ExclusiveFault = "devmem_exclusive_fault",
    /// Faults that slept on a busy folio.
    FaultWait = "pgfault_wait",
    /// Folios moved to a device.
    DeviceIn = "devmem_migrate_in",
    /// Base pages moved to a device.
    DevicePagesIn = "devmem_pages_in",
    /// Folios moved from a device to RAM.
    DeviceOut = "devmem_migrate_out",
    /// Base pages moved from a device to RAM.
    DevicePagesOut = "devmem_pages_out",
    /// Base pages moved from a device to RAM because the device's memory was wanted.
    DeviceEvict = "devmem_evict_pages",
    /// Base pages of device memory freed without having moved back.
    DevicePagesDropped = "devmem_pages_dropped",
    /// Units that a migration left where they were.
    MigrateFail = "pgmigrate_fail",
    /// Units whose destination was several smaller folios.
    MigrateSplit = "thp_migration_split",
    /// PMD mappings split into 512 PTEs.
    ThpSplitPmd = "thp_split_pmd",
    /// Folios split.
    ThpSplitPage = "thp_split_page",
    /// Folio splits that could not be done.
    ThpSplitPageFailed = "thp_split_page_failed",
    /// Folios that are mapped only in part and could not be split at once.
    ThpDeferredSplit = "thp_deferred_split_page",
    /// 2 MiB pages allocated to collapse small ones.
    ThpCollapseAlloc = "thp_collapse_alloc",
    /// Collapses that found no 2 MiB page.
    ThpCollapseAllocFailed = "thp_collapse_alloc_failed",
    /// 2 MiB of small pages on a device that became one page again.
    DeviceMerge = "devmem_merge",
    /// Base pages unmapped by `unmap` and exit.
    PgUnmapped = "pgunmapped",
    /// TLB flush rounds.
    TlbFlush = "nr_tlb_flush",
    /// TLB flush rounds for work of another thread that was still owed.
    TlbFlushOwed = "nr_tlb_flush_owed",
    /// Flushes of all translations of a space, on one CPU.
    TlbFlushAll = "nr_tlb_local_flush_all",
    /// Pages flushed one by one, on one CPU.
    TlbFlushOne = "nr_tlb_local_flush_one",
    /// Page tables allocated.
    TableAlloc = "nr_table_alloc",
    /// Page tables freed.
    TableFree = "nr_table_free",
    /// Pages pinned.
    FollPinAcquired = "nr_foll_pin_acquired",
    /// Pages unpinned.
    FollPinReleased = "nr_foll_pin_released",
    /// Allocations that failed.
    AllocFail = "alloc_fail",
}
