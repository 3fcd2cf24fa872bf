//! Making an object shorter or longer (Linux: `truncate_setsize`).
//!
//! ```text
//!   the new length is said ──► every mapping of what lies beyond is emptied, copies too ──► the pages go
//! ```
//!
//! A fault asks for the length once more under its table's lock. So either it sees the new one, or its entry is there before that
//! table is looked at here. The spaces that map the object are visited one after the other, by ascending keys, each with its VMA
//! lock held alone: their list is read anew for each, for it may change while this waits for a lock.

use core::sync::atomic::Ordering::Release;

use crate::error::OutOfMemory;
use crate::machine::{FlushReason, Machine};
use crate::notifier::NotifyEvent;
use crate::object::{Object, ObjectRef};
use crate::space::Space;
use crate::tlb::TlbGather;
use crate::types::{PAGE_SIZE, VaRange, Vaddr};
use crate::vma::Vma;

impl<M: Machine> ObjectRef<M> {
    /// Makes the object `pages` pages long. What lies beyond is unmapped from all who map it, private copies included, and gone;
    /// a later touch there finds no page. When it grows, the new pages are zero. Sleeps; the caller holds no lock of the memory
    /// manager, and lets nobody else resize the object meanwhile.
    ///
    /// # Errors
    /// [`OutOfMemory`] for more than [`Object::MAX_PAGES`]; nothing has changed then.
    pub fn resize(&self, pages: u64) -> Result<(), OutOfMemory> {
        if pages > Object::<M>::MAX_PAGES {
            return Err(OutOfMemory { order: 0 });
        }
        let before = self.pages.swap(pages, Release);
        if pages < before {
            let mut key = 0;
            while let Some(space) = self.next_space(key) {
                key = space.slab_index() + 1;
                // One that ends empties everything itself.
                if let Some(user) = space.try_use() {
                    self.unmap_from(user.space(), pages);
                }
            }
            self.index.lock().truncate(pages);
        }
        Ok(())
    }

    /// Of the spaces that map the object, the one with the lowest key from `key` on.
    fn next_space(&self, key: u32) -> Option<&'static Space<M>> {
        let mm = M::mm();
        let mut next: Option<u32> = None;
        mm.anons.get(self.set()).for_each_vma(mm, &mut |vma| {
            let this = vma.space();
            if this >= key && next.is_none_or(|next| this < next) {
                next = Some(this);
            }
        });
        next.map(|key| mm.spaces.get(key))
    }

    /// Empties what `space` maps of the object's pages from `end` on.
    fn unmap_from(&self, space: &'static Space<M>, end: u64) {
        let vmas = space.vmas.write();
        for vma in vmas.iter().filter(|vma| vma.object() == self.key()) {
            let range = beyond(vma, end);
            if range.is_empty() {
                continue;
            }
            let _change = space.invalidate(range, NotifyEvent::Unmap);
            // No huge mapping is cut: objects have none, and neither have copies of their pages.
            let mut gather = TlbGather::new(FlushReason::Unmap);
            space.zap(range, &mut gather);
            gather.flush();
        }
    }
}

/// The addresses of `vma` that map pages from `end` on.
fn beyond(vma: &Vma, end: u64) -> VaRange {
    let (start, first) = (vma.start(), vma.page_index(vma.start()));
    let kept = end.saturating_sub(first).saturating_mul(PAGE_SIZE).min(vma.range().len());
    VaRange::between(Vaddr(start.0 + kept), vma.end())
}
