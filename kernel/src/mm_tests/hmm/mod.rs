//! The scenarios that the field tests its device memory with, by their names there, at the kernel's own interface.
//!
//! Each runs twice: on devices with private memory, and on devices whose memory CPUs can map. A scenario asserts what its command
//! returns, what the snapshot says of every page, what CPU and device read, and at its end that the devices are empty; then comes
//! the audit. All of them share one machine of four devices.

mod basic;
mod clones;
mod exclusive;
mod failing;
mod files;
mod huge;
mod kit;
mod migrating;
mod moving;
mod pinning;
mod racing;
mod snapshots;
mod uncovered;

use kit::{COHERENT, PRIVATE, run};

/// Declares a scenario for both kinds of devices.
macro_rules! scenarios {
    ($($one:ident, $private:ident, $coherent:ident: [$($name:ident in $file:ident),* $(,)?];)*) => {$(
        scenarios!(@variant $private, $crate::mm_tests::hmm::PRIVATE, [$($name in $file),*]);
        scenarios!(@variant $coherent, $crate::mm_tests::hmm::COHERENT, [$($name in $file),*]);
    )*};
    (@variant $variant:ident, $fixture:expr, [$($name:ident in $file:ident),*]) => {
        mod $variant {
            $(crate::ktest! {
                needs(devices = 4, coherent = 2)
                fn $name() { super::run($fixture, super::$file::$name)?; }
            })*
        }
    };
}

scenarios! {
    hmm, hmm_device_private, hmm_device_coherent: [
        open_close in basic,
        anon_read in basic,
        anon_read_prot in basic,
        anon_write in basic,
        anon_write_prot in basic,
        anon_write_child in clones,
        anon_write_child_shared in clones,
        anon_write_huge in basic,
        anon_write_hugetlbfs in basic,
        file_read in files,
        file_write in files,
        migrate in migrating,
        migrate_file_private in files,
        migrate_fault in migrating,
        migrate_release in migrating,
        migrate_shared in files,
        migrate_multiple in migrating,
        anon_read_multiple in basic,
        anon_teardown in racing,
        mixedmap in files,
        compound in snapshots,
        exclusive in exclusive,
        exclusive_mprotect in exclusive,
        exclusive_cow in clones,
        hmm_gup_test in pinning,
        hmm_cow_in_device in clones,
        migrate_anon_huge_empty in huge,
        migrate_anon_huge_zero in huge,
        migrate_anon_huge_free in huge,
        migrate_anon_huge_fault in huge,
        migrate_partial_unmap_fault in moving,
        migrate_remap_fault in moving,
        migrate_anon_huge_err in failing,
        migrate_anon_huge_zero_err in failing,
        benchmark_thp_migration in failing,
    ];
    hmm2, hmm2_device_private, hmm2_device_coherent: [
        migrate_mixed in migrating,
        snapshot in snapshots,
        double_map in snapshots,
    ];
}
