//! Whole plans over memory in a vector, with kernels made here.

use super::*;
use crate::paging::tests::Bytes;
use bootloader_api::BootloaderConfig;

const KERNEL: u64 = 0xffff_ffff_8000_0000;
const ARENA: Range<u64> = 0x10_0000..0x40_0000;
const PF_R: u32 = 4;
const PF_RW: u32 = 6;
const PF_RX: u32 = 5;

/// A kernel ELF: program headers, segment bytes, and a section table with the configuration.
fn kernel(config: &BootloaderConfig, segments: &[(u64, u64, u32, &[u8])]) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.bootloader-config\0.shstrtab\0";
    let config = config.serialize();
    let data_at = 64 + 56 * segments.len();
    let len_data: usize = segments.iter().map(|segment| segment.3.len()).sum();
    let (config_at, names_at) = (data_at + len_data, data_at + len_data + config.len());
    let sections_at = names_at + NAMES.len();

    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    let half = |out: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    let word = |out: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    let quad = |out: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    half(&mut out, &[2, 62]);
    word(&mut out, &[1]);
    quad(&mut out, &[KERNEL + 2, 64, sections_at as u64]);
    word(&mut out, &[0]);
    half(&mut out, &[64, 56, segments.len() as u16, 64, 3, 2]);
    let mut at = data_at;
    for (virt, len_bytes, flags, data) in segments {
        word(&mut out, &[1, *flags]);
        quad(&mut out, &[at as u64, *virt, *virt, data.len() as u64, *len_bytes, 4096]);
        at += data.len();
    }
    segments.iter().for_each(|segment| out.extend_from_slice(segment.3));
    out.extend_from_slice(&config);
    out.extend_from_slice(NAMES);
    out.resize(out.len() + 64, 0);
    for (name, kind, offset, len) in [(1, 1, config_at, config.len()), (20, 3, names_at, NAMES.len())] {
        word(&mut out, &[name, kind]);
        quad(&mut out, &[0, 0, offset as u64, len as u64]);
        word(&mut out, &[0, 0]);
        quad(&mut out, &[1, 0]);
    }
    out
}

fn config() -> BootloaderConfig {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 0x5000;
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config.mappings.dynamic_range_start = Some(0xffff_8000_0000_0000);
    config
}

fn ordinary_segments() -> [(u64, u64, u32, &'static [u8]); 3] {
    [
        (KERNEL, 0x1001, PF_RX, b"text"),
        (KERNEL + 0x2010, 0x10, PF_R, b"rodata"),
        (KERNEL + 0x3000, 0x3000, PF_RW, b"data"),
    ]
}

fn machine() -> Machine {
    Machine {
        features: Features { no_execute: true, gib_pages: true },
        ram_end: 5 << 30,
        module: 0x50_0123..0x50_3000,
        handoff_page: 0x8000,
        boot_info_len: 0x1234,
    }
}

/// Builds a plan and hands it, with the memory, to `check`.
fn planned(file: &[u8], check: impl FnOnce(Plan, &Tables<'_, Bytes>)) -> Result<(), LoadError> {
    let mut memory = Bytes(vec![0xaa; ARENA.end as usize]);
    let mut arena = Arena::new(ARENA);
    let plan = build(&machine(), &Image::parse(file)?, &mut memory, &mut arena)?;
    check(plan, &Tables::at(&mut memory, &mut arena, plan.root));
    Ok(())
}

fn byte(tables: &Tables<'_, Bytes>, virt: u64) -> u8 {
    tables.memory.0[tables.translate(virt).unwrap().0 as usize]
}

#[test]
fn segments_are_mapped_with_their_own_rights_and_zeroed_behind() {
    planned(&kernel(&config(), &ordinary_segments()), |_, tables| {
        let access = |virt| tables.translate(virt).map(|(_, _, access)| access);
        assert_eq!(access(KERNEL + 0x1fff), Some(Access::ReadExecute));
        assert_eq!(access(KERNEL + 0x2000), Some(Access::ReadOnly));
        assert_eq!(access(KERNEL + 0x5fff), Some(Access::ReadWrite));
        assert_eq!(access(KERNEL + 0x6000), None);
        assert_eq!(byte(tables, KERNEL), b't');
        assert_eq!(byte(tables, KERNEL + 4), 0);
        assert_eq!(byte(tables, KERNEL + 0x2010), b'r');
        assert_eq!(byte(tables, KERNEL + 0x5fff), 0);
    })
    .unwrap();
}

#[test]
fn the_stack_has_unmapped_pages_on_both_sides() {
    planned(&kernel(&config(), &ordinary_segments()), |plan, tables| {
        assert_eq!(plan.stack_len, 0x5000);
        assert_eq!(tables.translate(plan.stack_bottom - 1), None);
        assert_eq!(tables.translate(plan.stack_bottom).unwrap().2, Access::ReadWrite);
        assert!(tables.translate(plan.stack_bottom + plan.stack_len - 1).is_some());
        assert_eq!(tables.translate(plan.stack_bottom + plan.stack_len), None);
    })
    .unwrap();
}

#[test]
fn physical_memory_is_mapped_beyond_4_gib_by_large_pages_and_never_executable() {
    planned(&kernel(&config(), &ordinary_segments()), |plan, tables| {
        let offset = plan.physical_memory_offset.unwrap();
        for phys in [0, 0xfee0_0000, (5 << 30) - 1] {
            let expected = (phys, PageSize::Size1G, Access::ReadWrite);
            assert_eq!(tables.translate(offset + phys), Some(expected));
        }
        assert_eq!(tables.translate(offset + (5 << 30)), None);
    })
    .unwrap();
}

#[test]
fn archive_boot_info_and_handoff_page_are_where_the_plan_says() {
    planned(&kernel(&config(), &ordinary_segments()), |plan, tables| {
        assert_eq!(
            tables.translate(plan.ramdisk_virt),
            Some((0x50_0123, PageSize::Size4K, Access::ReadOnly))
        );
        let info = tables.translate(plan.boot_info_virt).unwrap();
        assert_eq!((info.0, info.2), (plan.boot_info_phys, Access::ReadWrite));
        assert_eq!(tables.translate(0x8000), Some((0x8000, PageSize::Size4K, Access::ReadExecute)));
        assert!(ARENA.contains(&plan.root) && tables.arena.used().contains(&plan.boot_info_phys));
    })
    .unwrap();
}

#[test]
fn fixed_addresses_are_honoured() {
    let mut config = config();
    config.mappings.kernel_stack = Mapping::FixedAddress(0xffff_9000_0000_0000);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_a000_0020_0000));
    config.mappings.boot_info = Mapping::FixedAddress(0xffff_b000_0000_0000);
    config.mappings.page_table_recursive = Some(Mapping::FixedAddress(0xffff_c000_0000_0000));
    planned(&kernel(&config, &ordinary_segments()), |plan, tables| {
        assert_eq!(plan.stack_bottom, 0xffff_9000_0000_1000);
        assert_eq!(plan.boot_info_virt, 0xffff_b000_0000_0000);
        assert_eq!(plan.recursive_index, Some(0x180));
        let (phys, size, _) = tables.translate(0xffff_a000_0020_0000 + 12345).unwrap();
        assert_eq!((phys, size), (12345, PageSize::Size2M));
    })
    .unwrap();
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |segments: &[(u64, u64, u32, &[u8])], config: &BootloaderConfig| {
        planned(&kernel(config, segments), |_, _| ()).unwrap_err()
    };
    let text = (KERNEL, 0x1000, PF_RX, b"text".as_slice());
    let writable = (KERNEL + 0x1000, 0x1000, 7, b"".as_slice());
    assert_eq!(refused(&[text, writable], &config()), LoadError::WritableCode { virt: KERNEL + 0x1000 });

    let sharing = (KERNEL + 0xff0, 0x10, PF_RW, b"".as_slice());
    let short = (KERNEL, 0x10, PF_RX, b"text".as_slice());
    assert_eq!(refused(&[short, sharing], &config()), LoadError::AlreadyMapped { virt: KERNEL });

    let low = (0x8000, 0x1000, PF_RW, b"".as_slice());
    assert_eq!(refused(&[text, low], &config()), LoadError::AlreadyMapped { virt: 0x8000 });

    let data_only = (KERNEL, 0x1000, PF_RW, b"".as_slice());
    assert!(matches!(refused(&[data_only], &config()), LoadError::BadKernel(_)));

    let huge = (KERNEL + 0x1000, 0x80_0000, PF_RW, b"".as_slice());
    assert!(matches!(refused(&[text, huge], &config()), LoadError::NotEnoughMemory { .. }));

    let mut guarded = config();
    guarded.mappings.kernel_stack = Mapping::FixedAddress(KERNEL);
    assert_eq!(refused(&[text], &guarded), LoadError::AlreadyMapped { virt: KERNEL });
}

#[test]
fn a_kernel_cut_short_is_refused_at_every_length() {
    let file = kernel(&config(), &ordinary_segments());
    for len in 0..file.len() {
        let outcome = planned(&file[..len], |_, _| ());
        assert!(
            matches!(outcome, Err(LoadError::BadKernel(_) | LoadError::BadConfig(_))),
            "{len}: {outcome:?}"
        );
    }
}
