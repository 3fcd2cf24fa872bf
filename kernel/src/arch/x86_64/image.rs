//! The kernel's image in memory: which pages it has, and what each may do.

use core::ops::Range;

use kernel_logic::PAGE_SIZE;
use spin::Once;

use super::paging::bits;
use super::stacks;

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// A page of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImagePage {
    /// Where it is linked.
    pub(super) virt: u64,
    /// The bits of its leaf; none for a guard page.
    pub(super) leaf: Option<u64>,
}

/// Code.
pub(crate) fn text() -> Range<u64> {
    &raw const __text_start as u64..&raw const __text_end as u64
}

/// Constants.
pub(crate) fn rodata() -> Range<u64> {
    &raw const __rodata_start as u64..&raw const __rodata_end as u64
}

/// All of it.
pub(crate) fn all() -> Range<u64> {
    &raw const __image_start as u64..&raw const __image_end as u64
}

/// The pages of the image, each with what it may do: code is not written, nothing else is executed.
pub(super) fn pages() -> impl Iterator<Item = ImagePage> {
    all().step_by(PAGE_SIZE as usize).map(|virt| {
        let guard = stacks::guards().any(|guard| guard.contains(&virt));
        let leaf = match virt {
            _ if guard => None,
            _ if text().contains(&virt) => Some(bits::KERNEL),
            _ if rodata().contains(&virt) => Some(bits::KERNEL | bits::NO_EXECUTE),
            _ => Some(bits::DATA),
        };
        ImagePage { virt, leaf }
    })
}

/// How many pieces of physical memory the image may lie in.
const MAX_RUNS: usize = 32;

/// The frames of the image, as runs of adjacent ones.
#[derive(Clone, Debug)]
pub(super) struct FrameRuns {
    runs: [Range<u64>; MAX_RUNS],
    len: usize,
}

static RUNS: Once<FrameRuns> = Once::new();

impl FrameRuns {
    pub(super) const fn new() -> Self {
        Self { runs: [const { 0..0 }; MAX_RUNS], len: 0 }
    }

    /// Adds the frame of the next page.
    ///
    /// # Panics
    /// The loader scattered the image over more than [`MAX_RUNS`] pieces.
    pub(super) fn add(&mut self, frame: u64) {
        if self.len > 0 && self.runs[self.len - 1].end == frame {
            self.runs[self.len - 1].end += PAGE_SIZE;
            return;
        }
        assert!(self.len < MAX_RUNS, "the loader scattered the kernel over more than {MAX_RUNS} places");
        self.runs[self.len] = frame..frame + PAGE_SIZE;
        self.len += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + Clone + '_ {
        self.runs[..self.len].iter().cloned()
    }

    /// Keeps them for [`holds_frame`].
    pub(super) fn remember(self) {
        RUNS.call_once(|| self);
    }
}

/// Is this frame one of the image's?
pub(crate) fn holds_frame(phys: u64) -> bool {
    RUNS.get().is_some_and(|runs| runs.iter().any(|run| run.contains(&phys)))
}

crate::ktest! {
    fn no_page_of_the_image_is_both_written_and_executed() {
        let executable = |entry: u64| entry & bits::NO_EXECUTE == 0;
        for page in pages() {
            let walk = super::walk::Walk::current(page.virt);
            let Some(leaf) = walk.leaf() else {
                crate::check!(page.leaf.is_none(), "not mapped: {:#x}\n{walk}", page.virt);
                continue;
            };
            let writable = leaf.entry & bits::WRITABLE != 0;
            crate::check_eq!(executable(leaf.entry), text().contains(&page.virt), "{walk}");
            crate::check_eq!(writable, !text().contains(&page.virt) && !rodata().contains(&page.virt), "{walk}");
            crate::check!(leaf.entry & bits::GLOBAL != 0, "{walk}");
        }
    }
}

crate::ktest! {
    fn guard_pages_are_mapped_nowhere() {
        let mut guards = 0;
        for guard in stacks::guards() {
            crate::check!(super::walk::Walk::current(guard.start).leaf().is_none(), "{guard:#x?} is mapped");
            crate::check!(super::walk::Walk::current(guard.end).leaf().is_some(), "no stack above {guard:#x?}");
            guards += 1;
        }
        crate::check_eq!(guards, stacks::IN_IMAGE + stacks::Ist::ALL.len());
    }
}

crate::ktest! {
    fn the_image_has_no_alias_in_the_direct_map() {
        for page in pages().filter(|page| page.leaf.is_some()) {
            let walk = super::walk::Walk::current(page.virt);
            let phys = walk.translate(page.virt).unwrap_or(0);
            crate::check!(holds_frame(phys));
            let alias = super::paging::DIRECT_MAP + phys;
            crate::check!(super::walk::Walk::current(alias).leaf().is_none(), "{alias:#x} is an alias of {:#x}", page.virt);
        }
    }
}
