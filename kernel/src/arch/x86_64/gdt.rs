//! Segments and the task state segment.
//!
//! Long mode needs few: code and data for both rings, in the order that SYSRET wants, and the TSS, whose one use is to
//! name the interrupt stacks.

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::stacks::{Ist, interrupt_top, thread_top};

struct Tables {
    gdt: GlobalDescriptorTable,
    code: SegmentSelector,
    data: SegmentSelector,
    tss: SegmentSelector,
}

static TSS: Once<TaskStateSegment> = Once::new();
static TABLES: Once<Tables> = Once::new();

/// Loads the tables on the boot CPU.
pub(super) fn init() {
    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        tss.privilege_stack_table[0] = VirtAddr::new(thread_top());
        for ist in Ist::ALL {
            tss.interrupt_stack_table[ist as usize - 1] = VirtAddr::new(interrupt_top(ist));
        }
        tss
    });
    let tables = TABLES.call_once(|| {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::user_data_segment());
        gdt.append(Descriptor::user_code_segment());
        let tss = gdt.append(Descriptor::tss_segment(tss));
        Tables { gdt, code, data, tss }
    });
    tables.gdt.load();
    // SAFETY: the selector is that of a 64-bit code segment of the table just loaded.
    unsafe { CS::set_reg(tables.code) };
    // SAFETY: a writable data segment of the same table.
    unsafe { SS::set_reg(tables.data) };
    for null in [DS::set_reg, ES::set_reg, FS::set_reg] {
        // SAFETY: in long mode these are not used for addressing; GS is left alone, as loading it clears its base.
        unsafe { null(SegmentSelector::NULL) };
    }
    // SAFETY: the selector is that of the TSS, which is static.
    unsafe { load_tss(tables.tss) };
}
