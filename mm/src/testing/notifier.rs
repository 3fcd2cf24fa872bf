//! Interval notifiers: who is told of what, before what; and the sequence protocol in every order of its steps.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use crate::advise::Advice;
use crate::entry::Entry;
use crate::migrate::MigrateOptions;
use crate::notifier::{NotifierOps, NotifierRef, NotifyEvent, Owner, Sequence};
use crate::testing::kit::{DEV, Kit, at, range};
use crate::testing::machine::{Config, Soft};
use crate::types::{Place, Prot, USER_END, VaRange, Vaddr};
use crate::vma::HugeAdvice::{Default as Small, Huge};

/// Notes what it is told, and what stood in the entry of the range's first page at that moment.
struct Recorder {
    space: &'static crate::space::Space<Soft>,
    notifier: RefCell<Option<NotifierRef<Soft>>>,
    told: RefCell<Vec<(VaRange, NotifyEvent)>>,
    entries: RefCell<Vec<Entry>>,
    was_active: Cell<bool>,
}

thread_local! {
    static RECORDERS: RefCell<Vec<&'static Recorder>> = const { RefCell::new(Vec::new()) };
}

/// The number of a recorder of this thread.
struct Ops(usize);

impl NotifierOps<Soft> for Ops {
    fn invalidate(&self, range: VaRange, event: NotifyEvent) {
        let recorder = RECORDERS.with_borrow(|all| all[self.0]);
        recorder.told.borrow_mut().push((range, event));
        recorder.entries.borrow_mut().push(recorder.space.entry_at(range.start).1);
        if let Ok(notifier) = recorder.notifier.try_borrow()
            && let Some(notifier) = &*notifier
        {
            recorder.was_active.set(notifier.is_active());
        }
    }
}

fn record(kit: &Kit, range: VaRange) -> &'static Recorder {
    let recorder: &'static Recorder = Box::leak(Box::new(Recorder {
        space: kit.space.space(),
        notifier: RefCell::new(None),
        told: RefCell::default(),
        entries: RefCell::default(),
        was_active: Cell::new(false),
    }));
    let number = RECORDERS.with_borrow_mut(|all| {
        all.push(recorder);
        all.len() - 1
    });
    let ops: &'static Ops = Box::leak(Box::new(Ops(number)));
    let notifier = kit.space.space().register_notifier(range, ops).expect("memory for a notifier");
    *recorder.notifier.borrow_mut() = Some(notifier);
    recorder
}

impl Recorder {
    fn take(&self) -> Vec<(VaRange, NotifyEvent)> {
        self.entries.borrow_mut().clear();
        let mut told = self.told.take();
        // One operation may tell of the same twice.
        told.dedup();
        told
    }

    fn begin(&self) -> u64 {
        self.notifier.borrow().as_ref().and_then(NotifierRef::read_begin).expect("nothing is under way")
    }

    fn retry(&self, count: u64) -> bool {
        self.notifier.borrow().as_ref().is_some_and(|n| n.read_retry(count))
    }

    /// Runs `change` and makes sure that it tells of `range` for this reason, before the entry changes, and that a reader
    /// notices.
    fn expect(&self, what: &str, range: VaRange, event: NotifyEvent, change: impl FnOnce()) {
        self.take();
        let before = self.space.entry_at(range.start).1;
        let count = self.begin();
        assert!(!self.retry(count), "{what}: nothing happened yet");
        self.was_active.set(false);
        change();
        let told = self.told.borrow().clone();
        let first = told.iter().position(|(told, e)| told.covers(range) && *e == event);
        let first = first.unwrap_or_else(|| panic!("{what}: of {range} for {event:?} in {told:?}"));
        let seen = self.entries.borrow()[first];
        if told[first].0.start == range.start {
            assert_eq!(seen, before, "{what}: told before the entry changes");
        }
        assert!(self.was_active.get(), "{what}: active during the callback");
        assert!(self.retry(count), "{what}: a reader notices");
        let _ = self.begin(); // and it is over
    }
}

fn everything() -> VaRange {
    VaRange::between(Vaddr(0), Vaddr(USER_END))
}

#[test]
fn every_change_of_entries_is_told_before_it_is_made() {
    let kit = Kit::new();
    let space = kit.space.space();
    kit.map(0, 1024, Huge);
    kit.map(1024, 512, Small);
    kit.fill(0, 512);
    kit.fill(1024, 16);
    let recorder = record(&kit, everything());
    let migrate = |range, to| {
        space.migrate(range, to).expect("mapped");
    };
    use NotifyEvent::{Clear, Migrate, Protection, Unmap};
    let (moved, back) = (Migrate { owner: None }, Migrate { owner: Some(Owner::device(DEV)) });
    recorder.expect("huge to the device", range(0, 512), moved, || migrate(range(0, 512), DEV));
    recorder.expect("small to the device", range(1024, 16), moved, || migrate(range(1024, 16), DEV));
    recorder.expect("huge fault-back", range(0, 512), back, || kit.check(7, 1));
    recorder.expect("small fault-back", range(1026, 1), back, || kit.check(1026, 1));
    recorder.expect("back by call", range(1027, 4), moved, || migrate(range(1027, 4), Place::RAM));
    kit.try_read(1100).expect("the zero page");
    recorder.expect("zero page written", range(1100, 1), Clear, || kit.fill(1100, 1));
    kit.try_read(600).expect("the zero folio");
    recorder.expect("zero folio to the device", range(512, 512), moved, || migrate(range(512, 512), DEV));
    recorder.expect("protect", range(0, 512), Protection, || {
        space.protect(range(0, 512), Prot::READ).expect("mapped");
    });
    recorder.expect("dontneed", range(1024, 4), Clear, || {
        space.advise(range(1024, 4), Advice::DontNeed).expect("mapped");
    });
    recorder.expect("unmap", range(0, 50), Unmap, || space.unmap(range(0, 50)).expect("memory"));
    // What adds a mapping or permission, or happens elsewhere, is nobody's business.
    space.protect(range(50, 462), Prot::RW).expect("mapped");
    recorder.take();
    kit.fill(1300, 4);
    kit.map(4096, 4, Small);
    assert_eq!(recorder.take(), []);
    kit.audit();
    recorder.notifier.take();
    kit.fill(1024, 1);
    space.unmap(range(50, 462)).expect("memory");
    assert_eq!(recorder.take(), [], "after its end");
    kit.audit();
}

#[test]
fn a_fault_back_tells_of_what_it_moves_and_no_more() {
    let kit = Kit::new();
    kit.map(0, 512, Small);
    kit.fill(0, 512);
    let recorder = record(&kit, everything());
    kit.space.space().migrate(range(0, 512), DEV).expect("mapped");
    recorder.take();
    kit.check(17, 1);
    let back = NotifyEvent::Migrate { owner: Some(Owner::device(DEV)) };
    assert_eq!(recorder.take(), [(range(17, 1), back)]);
    // The same with the page's neighbours, whose table was used last.
    kit.check(18, 2);
    assert_eq!(recorder.take().len(), 2);
    kit.audit();
}

#[test]
fn all_holes_of_a_batch_are_told_of_at_once() {
    let config = Config { devices: vec![16 * 512], ..Config::default() };
    for (zeros, huge) in [(false, true), (true, true), (false, false), (true, false)] {
        let kit = Kit::on(&config);
        let len = if huge { 16 * 512 } else { 1024 };
        kit.map(0, len, if huge { Huge } else { Small });
        for page in (0..len).step_by(512).filter(|_| zeros) {
            kit.try_read(page).expect("zeros");
        }
        let recorder = record(&kit, everything());
        let owner = Some(Owner::device(DEV));
        let options = MigrateOptions { owner, ..MigrateOptions::to(DEV) };
        let space = kit.space.space();
        let report = space.migrate_as(range(0, len), DEV, &options, &mut |_| {}).expect("it is mapped");
        assert_eq!((report.pages, report.batches), (len, 1), "{report:?}");
        let told = recorder.told.borrow().clone();
        let event = |owner| (range(0, len), NotifyEvent::Migrate { owner });
        assert_eq!(told, [event(owner), event(None)], "the walk, and the holes: {zeros} {huge}");
        let _ = recorder.begin(); // and it is over
        kit.audit();
    }
}

#[test]
fn only_the_interval_is_told_and_only_its_part() {
    let kit = Kit::new();
    kit.map(0, 64, Small);
    kit.fill(0, 64);
    let (low, high) = (record(&kit, range(0, 16)), record(&kit, range(16, 100)));
    let (low_count, high_count) = (low.begin(), high.begin());
    kit.space.space().unmap(range(0, 8)).expect("memory");
    assert_eq!((low.take(), high.take()), (vec![(range(0, 8), NotifyEvent::Unmap)], vec![]));
    assert!(low.retry(low_count) && !high.retry(high_count));
    kit.space.space().unmap(range(12, 8)).expect("memory");
    assert_eq!(low.take(), [(range(12, 4), NotifyEvent::Unmap)]);
    assert_eq!(high.take(), [(range(16, 4), NotifyEvent::Unmap)]);
}

#[test]
fn one_that_comes_during_a_change_waits_for_its_end() {
    let kit = Kit::new();
    kit.map(0, 64, Small);
    let first = record(&kit, range(0, 8));
    // Outside of every interval: nobody is called, and yet it counts.
    let outer = kit.space.space().invalidate(range(40, 8), NotifyEvent::Clear);
    let late = record(&kit, range(32, 8));
    assert!(
        late.notifier.borrow().as_ref().is_some_and(NotifierRef::is_active),
        "the change began before it came"
    );
    let inner = kit.space.space().invalidate(range(32, 2), NotifyEvent::Clear);
    drop(outer);
    assert!(late.notifier.borrow().as_ref().is_some_and(NotifierRef::is_active), "one is left");
    drop(inner);
    let _ = (late.begin(), first.begin());
    // One that goes during a change is not waited for.
    let change = kit.space.space().invalidate(everything(), NotifyEvent::Clear);
    late.notifier.take();
    drop(change);
    let _ = first.begin();
    first.notifier.take();
    assert_eq!(kit.machine.mm.notifiers.live(), 0);
}

#[test]
fn the_end_of_a_space_is_told_and_nothing_after() {
    let kit = Kit::new();
    kit.map(0, 64, Small);
    kit.fill(0, 4);
    let recorder = record(&kit, everything());
    let user = recorder.notifier.borrow().as_ref().and_then(NotifierRef::space_user).expect("it lives");
    let Kit { space, machine } = kit;
    let before = recorder.space.entry_at(at(0)).1;
    drop(space);
    assert_eq!(recorder.take(), [], "somebody works with it yet");
    assert_eq!(user.space().entry_at(at(0)).1, before);
    drop(user);
    assert_eq!(recorder.take(), [(everything(), NotifyEvent::Release)]);
    let notifier = recorder.notifier.take().expect("it is registered");
    assert!(notifier.read_begin().is_none() && notifier.space_user().is_none());
    // The slot is another space's now: neither its changes nor its end are this one's.
    let again = crate::space::AddressSpace::<Soft>::new(|_| {}).expect("memory");
    assert_eq!(again.space(), recorder.space, "the slot is used again");
    assert!(notifier.space_user().is_none());
    again.space().map_anon(range(0, 4), Prot::RW, Small).expect("free");
    again.space().unmap(range(0, 4)).expect("memory");
    drop(notifier);
    drop(again);
    assert_eq!(recorder.take(), []);
    machine.mm.audit().expect("every invariant");
    assert_eq!(machine.mm.notifiers.live(), 0);
}

#[test]
fn without_memory_for_a_notifier_nothing_is_registered() {
    let kit = Kit::on(&Config::default());
    kit.machine.mm.inject.arm(crate::inject::Site::Object as u32, 0, 0, 1);
    let ops: &'static Ops = Box::leak(Box::new(Ops(0)));
    assert!(kit.space.space().register_notifier(everything(), ops).is_err());
    kit.machine.mm.inject.disarm();
    assert!(!kit.space.notifiers.any());
    kit.audit();
}

// The protocol, in all orders of its atomic steps: one page whose entry is changed, and a copy of it.

/// A mistake in the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// The count is raised before the change is noted as active.
    AdvanceFirst,
    /// The reader asks whether something is active, then reads the count.
    ActiveFirst,
    /// The reader does not ask again.
    NoRetry,
    /// The reader asks again before it has the lock.
    RetryOutside,
    /// The callback comes after the change.
    CallbackLate,
}

#[derive(Default)]
struct World {
    sequence: Sequence,
    locked_by: Cell<Option<usize>>,
    entry: Cell<u32>,
    copy: Cell<Option<u32>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Changer,
    Reader,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Actor {
    role: Role,
    step: usize,
    count: u64,
    found: u32,
    moved: bool,
}

const DONE: usize = usize::MAX;

impl World {
    /// True when the actor's next step would not wait.
    fn can_step(&self, actor: &Actor, mistake: Mistake) -> bool {
        if actor.step == DONE {
            return false;
        }
        let locks = match actor.role {
            Role::Changer if mistake == Mistake::CallbackLate => actor.step == 3,
            Role::Changer => actor.step == 2,
            Role::Reader => actor.step == 4,
        };
        let sleeps = actor.role == Role::Reader && actor.step == 10;
        !(locks && self.locked_by.get().is_some() || sleeps && self.sequence.is_active())
    }

    fn step(&self, me: usize, actor: &mut Actor, mistake: Mistake) {
        match actor.role {
            Role::Changer => self.change(me, actor, mistake),
            Role::Reader => self.read(me, actor, mistake),
        }
    }

    fn change(&self, me: usize, actor: &mut Actor, mistake: Mistake) {
        let order: [u8; 7] = match mistake {
            Mistake::AdvanceFirst => [1, 0, 2, 3, 4, 5, 6],
            Mistake::CallbackLate => [0, 1, 5, 2, 3, 4, 6],
            _ => [0, 1, 2, 3, 4, 5, 6],
        };
        match order[actor.step] {
            0 => self.sequence.step_raise(),
            1 => self.sequence.step_advance(),
            2 => self.locked_by.set(Some(me)),
            3 => self.copy.set(None),
            4 => self.locked_by.set(None),
            5 => self.entry.set(self.entry.get() + 1),
            _ => {
                self.sequence.end();
            }
        }
        actor.step = if actor.step == 6 { DONE } else { actor.step + 1 };
    }

    fn read(&self, me: usize, actor: &mut Actor, mistake: Mistake) {
        let swapped = mistake == Mistake::ActiveFirst;
        actor.step = match actor.step {
            0 | 1 if (actor.step == 0) != swapped => {
                actor.count = self.sequence.current();
                actor.step + 1
            }
            0 | 1 if self.sequence.is_active() => 10,
            0 | 1 => actor.step + 1,
            10 => 0,
            2 => {
                actor.found = self.entry.get();
                3
            }
            3 => {
                // Where it would be wrong.
                actor.moved = mistake == Mistake::RetryOutside && self.sequence.has_moved(actor.count);
                4
            }
            4 => {
                self.locked_by.set(Some(me));
                5
            }
            5 => {
                let ask = !matches!(mistake, Mistake::NoRetry | Mistake::RetryOutside);
                actor.moved |= ask && self.sequence.has_moved(actor.count);
                if actor.moved { 8 } else { 6 }
            }
            6 => {
                self.copy.set(Some(actor.found));
                7
            }
            7 => {
                self.locked_by.set(None);
                DONE
            }
            _ => {
                self.locked_by.set(None);
                0
            }
        };
    }
}

/// Runs two changes and a reader in every order; the number of states, or the first order that left a stale copy. What is
/// reached a second time is not gone through again.
fn explore(mistake: Mistake) -> Result<usize, Vec<usize>> {
    let mut choices: Vec<(usize, usize)> = Vec::new(); // (taken, of how many)
    let mut seen = HashSet::new();
    loop {
        let world = World::default();
        let actor = |role| Actor { role, step: 0, count: 0, found: 0, moved: false };
        let mut actors = [actor(Role::Changer), actor(Role::Reader), actor(Role::Changer)];
        let mut depth = 0;
        loop {
            let ready: Vec<usize> = (0..3).filter(|&i| world.can_step(&actors[i], mistake)).collect();
            if ready.is_empty() {
                assert!(actors.iter().all(|a| a.step == DONE), "somebody waits for ever");
                break;
            }
            if depth == choices.len() {
                let sequence = (world.sequence.active_now(), world.sequence.current());
                let state = (sequence, world.locked_by.get(), world.entry.get(), world.copy.get(), actors);
                if !seen.insert(state) {
                    break;
                }
                choices.push((0, ready.len()));
            }
            let me = ready[choices[depth].0];
            depth += 1;
            world.step(me, &mut actors[me], mistake);
            if world.copy.get().is_some_and(|copy| copy != world.entry.get()) {
                return Err(choices.iter().map(|c| c.0).collect());
            }
        }
        choices.truncate(depth);
        while choices.last().is_some_and(|(taken, of)| taken + 1 == *of) {
            choices.pop();
        }
        match choices.last_mut() {
            Some(last) => last.0 += 1,
            None => return Ok(seen.len()),
        }
    }
}

#[test]
fn no_order_of_steps_leaves_a_stale_copy() {
    let states = explore(Mistake::None).unwrap_or_else(|order| panic!("a stale copy after {order:?}"));
    assert!(states > 1000, "{states} states");
}

#[test]
fn every_mistake_in_the_protocol_leaves_a_stale_copy_in_some_order() {
    use Mistake::{ActiveFirst, AdvanceFirst, CallbackLate, NoRetry, RetryOutside};
    for mistake in [AdvanceFirst, ActiveFirst, NoRetry, RetryOutside, CallbackLate] {
        assert!(explore(mistake).is_err(), "{mistake:?} is not noticed");
    }
}
