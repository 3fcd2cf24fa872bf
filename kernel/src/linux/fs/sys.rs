//! `/sys/kernel/mm`: huge pages.

use alloc::format;
use alloc::sync::Arc;

use farpage_mm::{HugePages, PMD_SIZE};

use super::text::Text;
use super::{Node, device, tree::Fixed};
use crate::linux::dev;
use crate::linux::errno::Errno;
use crate::vm::mm;

/// The words of `enabled`, as they stand there.
const WORDS: [(&str, HugePages); 3] =
    [("always", HugePages::Always), ("madvise", HugePages::Madvise), ("never", HugePages::Never)];

/// The root of `/sys`.
pub(super) fn root() -> Arc<dyn Node> {
    let mut ino = 0;
    let mut next = || {
        ino += 1;
        ino
    };
    let directory = |ino| Fixed::new(device::SYS, ino);
    let mut root = directory(next());

    let mut huge = directory(next());
    huge.add("enabled", Text::of_sys(next(), |_| Ok(enabled().into_bytes()), Some(set_enabled)));
    huge.add(
        "defrag",
        Text::of_sys(next(), |_| Ok(b"always defer defer+madvise [madvise] never\n".to_vec()), None),
    );
    huge.add("hpage_pmd_size", Text::of_sys(next(), |_| Ok(format!("{PMD_SIZE}\n").into_bytes()), None));
    huge.add("use_zero_page", Text::of_sys(next(), |_| Ok(b"1\n".to_vec()), None));

    let mut pool = directory(next());
    pool.add("nr_hugepages", Text::of_sys(next(), |_| Ok(line(mm().huge_pool().total)), Some(set_pool)));
    pool.add("free_hugepages", Text::of_sys(next(), |_| Ok(line(mm().huge_pool().free)), None));
    pool.add("resv_hugepages", Text::of_sys(next(), |_| Ok(line(mm().huge_pool().reserved)), None));
    pool.add("surplus_hugepages", Text::of_sys(next(), |_| Ok(line(0)), None));
    pool.add("nr_overcommit_hugepages", Text::of_sys(next(), |_| Ok(line(0)), None));
    let mut pools = directory(next());
    pools.add("hugepages-2048kB", Arc::new(pool));

    let mut memory = directory(next());
    memory.add("transparent_hugepage", Arc::new(huge));
    memory.add("hugepages", Arc::new(pools));
    let mut debug = directory(next());
    for device in dev::DEBUG {
        debug.add(device.name, dev::node(device));
    }
    let mut kernel = directory(next());
    kernel.add("mm", Arc::new(memory));
    kernel.add("debug", Arc::new(debug));
    root.add("kernel", Arc::new(kernel));
    Arc::new(root)
}

fn line(number: u32) -> alloc::vec::Vec<u8> {
    format!("{number}\n").into_bytes()
}

/// All words, that which holds in brackets.
fn enabled() -> alloc::string::String {
    let now = mm().policy.huge();
    let words = WORDS.map(|(word, huge)| if huge == now { format!("[{word}]") } else { word.into() });
    words.join(" ") + "\n"
}

fn set_enabled(text: &str) -> Result<(), Errno> {
    let (_, huge) = WORDS.iter().find(|(word, _)| *word == text).ok_or(Errno::EINVAL)?;
    mm().policy.set_huge(*huge);
    Ok(())
}

fn set_pool(text: &str) -> Result<(), Errno> {
    let pages: u64 = text.parse().map_err(|_| Errno::EINVAL)?;
    mm().resize_huge_pool(u32::try_from(pages).unwrap_or(u32::MAX));
    Ok(())
}
