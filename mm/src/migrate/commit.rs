//! The last of the middle phases, and the last point of refusal: folios move to their new memory.

use crate::folio::{Folio, RmapLink};
use crate::machine::Machine;
use crate::migrate::unit::{Batch, Dest, PieceChunk, Source, State};
use crate::migrate::{Cause, finalize, holes};
use crate::trace::Phase;
use crate::types::Order;
use crate::zone::Zone;

/// Freezes each source for a moment to make sure that nobody got a reference since the pin check, and moves it to its new
/// memory, or passes its identity on to the pieces. Copies are mapped here, and then holes filled.
pub(crate) fn commit<M: Machine>(batch: &mut Batch<M>) {
    let zone = M::mm().zone(batch.to);
    let Batch { units, report, .. } = batch;
    let mut holes = None;
    units.for_each(|unit| {
        let done = match &unit.source {
            Source::Gone => return,
            Source::Folio(folio) => {
                if folio.freeze(1) {
                    match &mut unit.dest {
                        // The commonest case: a single page.
                        Dest::Frames(frames) if unit.order == Order::BASE => {
                            frames.replace(|to| folio.relocate(zone, Order::BASE, to));
                        }
                        dest => commit_large(folio, zone, unit.order, dest),
                    }
                    folio.unfreeze(1);
                    unit.state = State::Committed;
                    return;
                }
                Err(Cause::Pinned)
            }
            Source::Hole { .. } => return holes::join(&mut holes, unit),
            Source::Shared(_) => holes::map_copy(unit),
        };
        match done {
            Ok(state) => unit.state = state,
            Err(cause) => finalize::fail(unit, cause, report),
        }
    });
    if let Some((space, range)) = holes {
        holes::fill(units, space, range, report);
    }
    batch.marks.mark::<M>(Phase::Commit);
}

#[inline(never)]
fn commit_large<M: Machine>(source: &Folio, zone: &Zone<M>, order: Order, dest: &mut Dest<M>) {
    match dest {
        Dest::Frames(frames) => frames.replace(|to| source.relocate(zone, order, to)),
        Dest::Pieces(first) => pass_identity(source, first),
        Dest::None | Dest::Folio(_) => {}
    }
}

/// What is known of the source becomes true of the pieces.
fn pass_identity<M: Machine>(source: &Folio, first: &PieceChunk<M>) {
    let link = source.link();
    let mut page = 0;
    for folio in first.iter() {
        folio.set_link(RmapLink { index: link.index + page, ..link });
        if source.is_dirty() {
            folio.set_dirty();
        }
        page += u64::from(folio.order().pages());
    }
}
