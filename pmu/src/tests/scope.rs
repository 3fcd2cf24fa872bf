//! Counting: every kind of CPU, every width, turns, and what is left behind.

use std::{string::ToString, vec, vec::Vec};

use super::sim::{Cpu, Sim};
use crate::{Counters, Event, Refusal, Refused, Regions, Register, Value};

/// Every kind of CPU that there is, each used by somebody else before.
fn kinds() -> Vec<Sim> {
    let mut kinds: Vec<Cpu> = (1..=5).map(Cpu::intel).collect();
    kinds.push(Cpu::intel(2).with(|cpu| cpu.fixed.0 = 0));
    kinds.push(Cpu::intel(5).with(|cpu| cpu.fixed = (0, 0b11)));
    kinds.push(Cpu::intel(3).with(|cpu| cpu.full_width = false));
    kinds.push(Cpu::intel(4).with(|cpu| (cpu.leaf[2], cpu.fixed_width) = (40, 40)));
    kinds.push(Cpu::amd(0x17, false, None));
    kinds.push(Cpu::amd(0x17, true, None));
    kinds.push(Cpu::amd(0x19, true, Some(6)));
    kinds.into_iter().map(|cpu| Sim::new(cpu).used()).collect()
}

#[test]
fn every_kind_counts_what_passes_and_nothing_else() {
    for sim in kinds() {
        let counters = Counters::detect(&sim).unwrap();
        sim.pass(1000);
        let mut scope = counters.scope(&[Event::Cycles, Event::Instructions]).unwrap();
        sim.pass(10);
        let counts = scope.read().unwrap();
        assert_eq!(counts.get(Event::Cycles), Some(Value::Counted(20)), "{:?}", sim.cpu);
        assert_eq!(counts.get(Event::Instructions), Some(Value::Counted(30)), "{:?}", sim.cpu);
        assert_eq!(counts.get(Event::PageWalks), None);
        scope.pause().unwrap();
        sim.pass(1000);
        scope.resume().unwrap();
        sim.pass(1);
        assert_eq!(scope.read().unwrap().get(Event::Cycles), Some(Value::Counted(22)), "{:?}", sim.cpu);
    }
}

#[test]
fn everything_is_put_back() {
    for sim in kinds() {
        let counters = Counters::detect(&sim).unwrap();
        let before = sim.state();
        let mut scope = counters
            .scope(&[Event::Instructions, Event::Cycles, Event::PageWalks, Event::LlcMisses])
            .or_else(|_| counters.scope(&[Event::Instructions, Event::Cycles]))
            .unwrap();
        sim.pass(10);
        scope.rotate().unwrap();
        sim.pass(10);
        assert_ne!(sim.state(), before);
        drop(scope);
        assert_eq!(sim.state(), before, "{:?}", sim.cpu);
    }
}

#[test]
fn a_count_goes_on_over_the_width() {
    for width in [32, 40, 48] {
        for fixed in [0, 3] {
            let sim = Sim::new(Cpu::intel(3).with(|cpu| {
                (cpu.leaf[2], cpu.fixed_width, cpu.fixed.0) = (width, width, fixed);
            }));
            let counters = Counters::detect(&sim).unwrap();
            let mut scope = counters.scope(&[Event::Cycles, Event::LlcMisses]).unwrap();
            let most = (1 << width) / 5;
            for round in 1..=7 {
                sim.pass(most);
                let counts = scope.read().unwrap();
                assert_eq!(
                    counts.get(Event::LlcMisses),
                    Some(Value::Counted(5 * most * round)),
                    "{width} bits"
                );
                assert_eq!(counts.get(Event::Cycles), Some(Value::Counted(2 * most * round)), "{width} bits");
            }
            assert_ne!(sim.state().status, 0, "it passed 0");
            drop(scope);
            assert_eq!(sim.state().status, 0, "and nobody else needs to know");
        }
    }
}

#[test]
fn an_overflow_of_somebody_else_stays() {
    let sim = Sim::new(Cpu::intel(3));
    let counters = Counters::detect(&sim).unwrap();
    let mut first = counters.scope(&[Event::LlcMisses]).unwrap();
    sim.pass(1 << 46);
    sim.pass(1 << 46);
    first.read().unwrap();
    let before = sim.state().status;
    assert_ne!(before, 0);
    core::mem::forget(first);
    // A second one on the same machine, as if the first belonged to firmware.
    let counters = Counters::detect(&sim).unwrap();
    drop(counters.scope(&[Event::LlcMisses]).unwrap());
    assert_eq!(sim.state().status, before);
}

#[test]
fn without_full_width_a_large_value_comes_back_in_part() {
    for (full, after) in [(true, 0x8012_3456_789a), (false, 0x3456_789a)] {
        let sim = Sim::new(Cpu::intel(3).with(|cpu| cpu.full_width = full));
        sim.set_general(0, 0x8012_3456_789a);
        let counters = Counters::detect(&sim).unwrap();
        drop(counters.scope(&[Event::LlcMisses]).unwrap());
        assert_eq!(sim.state().general[0], after);
    }
}

#[test]
fn more_events_than_counters_take_turns_and_are_scaled() {
    // Two counters: load misses and store misses, then the two halves of walks, then those of their cycles.
    let sim = Sim::new(Cpu::intel(1).with(|cpu| cpu.leaf[1] = 2)).used();
    let counters = Counters::detect(&sim).unwrap();
    let before = sim.state();
    let events = [Event::DtlbLoadMisses, Event::DtlbStoreMisses, Event::PageWalks, Event::WalkCycles];
    let mut scope = counters.scope(&events).unwrap();
    assert!(scope.takes_turns());
    sim.pass(100);
    let counts = scope.read().unwrap();
    assert_eq!(counts.get(Event::DtlbLoadMisses), Some(Value::Counted(700)), "all the time so far");
    assert_eq!(counts.get(Event::PageWalks), Some(Value::Never));
    for _ in 0..5 {
        scope.rotate().unwrap();
        sim.pass(100);
    }
    let counts = scope.read().unwrap();
    let scaled = |count| Some(Value::Scaled { count, permille: 333 });
    assert_eq!(counts.get(Event::DtlbLoadMisses), scaled(7 * 600));
    assert_eq!(counts.get(Event::DtlbStoreMisses), scaled(11 * 600));
    assert_eq!(counts.get(Event::PageWalks), scaled((13 + 17) * 600));
    assert_eq!(counts.get(Event::WalkCycles), scaled((19 + 23) * 600));
    let order: Vec<Event> = counts.iter().map(|(event, _)| event).collect();
    assert_eq!(order, events);
    let said = counts.get(Event::WalkCycles).unwrap().to_string();
    assert_eq!(said, "about 25200 (scaled; counted 33.3 % of the time)");
    drop(scope);
    assert_eq!(sim.state(), before);
}

#[test]
fn fixed_counters_count_all_the_time() {
    let sim = Sim::new(Cpu::intel(2).with(|cpu| cpu.leaf[1] = 1));
    let counters = Counters::detect(&sim).unwrap();
    let mut scope = counters
        .scope(&[Event::Cycles, Event::DtlbLoadMisses, Event::WalkCycles, Event::Instructions])
        .unwrap();
    // One general counter: load misses, one half of the walks' cycles, the other; unequal turns.
    for ticks in [100, 200, 700] {
        sim.pass(ticks);
        scope.rotate().unwrap();
    }
    let counts = scope.read().unwrap();
    assert_eq!(counts.get(Event::Cycles), Some(Value::Counted(2000)));
    assert_eq!(counts.get(Event::Instructions), Some(Value::Counted(3000)));
    assert_eq!(counts.get(Event::DtlbLoadMisses), Some(Value::Scaled { count: 7000, permille: 100 }));
    // Its halves had 20 % and 70 %: the smaller is what it is worth.
    assert_eq!(counts.get(Event::WalkCycles), Some(Value::Scaled { count: 42_000, permille: 200 }));
}

#[test]
fn halves_of_an_event_count_together_where_they_can() {
    let sim = Sim::new(Cpu::amd(0x17, false, None).with(|cpu| cpu.leaf[1] = 4));
    let counters = Counters::detect(&sim).unwrap();
    assert!(!counters.scope(&[Event::Cycles, Event::Instructions, Event::PageWalks]).unwrap().takes_turns());
    // Three counters: the second event's two halves do not share a turn with the first's.
    let sim = Sim::new(Cpu::intel(1).with(|cpu| cpu.leaf[1] = 3));
    let counters = Counters::detect(&sim).unwrap();
    let mut scope = counters.scope(&[Event::PageWalks, Event::WalkCycles]).unwrap();
    sim.pass(10);
    let counts = scope.read().unwrap();
    assert_eq!(counts.get(Event::PageWalks), Some(Value::Counted(300)));
    assert_eq!(counts.get(Event::WalkCycles), Some(Value::Never));
}

#[test]
fn one_scope_at_a_time() {
    let sim = Sim::new(Cpu::intel(4));
    let counters = Counters::detect(&sim).unwrap();
    assert_eq!(counters.scope(&[]).map(drop), Err(Refusal::Nothing));
    let scope = counters.scope(&[Event::Cycles, Event::Cycles]).unwrap();
    assert_eq!(counters.scope(&[Event::Cycles]).map(drop), Err(Refusal::Taken));
    drop(scope);
    assert!(counters.scope(&[Event::Cycles]).is_ok());
}

#[test]
fn a_refused_register_is_an_error_and_everything_else_is_put_back() {
    // The global control, a select and a fixed counter that turn out not to be there.
    for register in [0x38f, 0x187, 0x309, 0x38d] {
        let refusing = |cpu: &mut Cpu| cpu.refuses = Some(register);
        let sim = Sim::new(Cpu::intel(2).with(refusing)).used();
        let counters = Counters::detect(&sim).unwrap();
        let before = sim.state();
        let events = [Event::Instructions, Event::DtlbLoadMisses, Event::DtlbStoreMisses];
        let refused = counters.scope(&events).map(drop);
        assert_eq!(refused, Err(Refusal::Register(Refused(Register::Read(register)))));
        assert_eq!(sim.state(), before, "{register:#x}");
        // And nobody is left in possession of the counters.
        assert_eq!(counters.scope(&events).map(drop), refused);
    }
}

#[test]
fn a_scope_that_fails_half_way_puts_back_what_it_changed() {
    for register in [0x38f, 0x187, 0x4c2, 0x30a, 0x38d] {
        let sim = Sim::new(Cpu::intel(3).with(|cpu| cpu.read_only = Some(register))).used();
        let counters = Counters::detect(&sim).unwrap();
        let before = sim.state();
        let events = [Event::Instructions, Event::Cycles, Event::PageWalks];
        let refused = counters.scope(&events).map(drop);
        assert_eq!(refused, Err(Refusal::Register(Refused(Register::Write(register)))));
        assert_eq!(sim.state(), before, "{register:#x}");
    }
}

#[test]
fn the_counters_start_at_zero_whatever_they_held() {
    let sim = Sim::new(Cpu::intel(1).with(|cpu| cpu.leaf[2] = 40)).used();
    sim.set_general(0, (1 << 40) - 1);
    let counters = Counters::detect(&sim).unwrap();
    let mut scope = counters.scope(&[Event::Cycles]).unwrap();
    assert_eq!(scope.read().unwrap().get(Event::Cycles), Some(Value::Counted(0)));
    sim.pass(3);
    let all: Vec<_> = scope.read().unwrap().iter().collect();
    assert_eq!(all, vec![(Event::Cycles, Value::Counted(6))]);
}

#[test]
fn only_what_lies_in_a_region_is_counted() {
    for sim in kinds() {
        let counters = Counters::detect(&sim).unwrap();
        let scope = counters.scope(&[Event::Cycles]).unwrap();
        sim.pass(1000);
        let mut regions = Regions::new(scope).unwrap();
        for _ in 0..3 {
            sim.pass(100);
            regions.begin();
            sim.pass(5);
            regions.end();
        }
        sim.pass(100);
        let measured = regions.read().unwrap();
        assert_eq!((measured.regions, measured.counts.get(Event::Cycles)), (3, Some(Value::Counted(30))));
    }
}

#[test]
fn events_take_turns_from_region_to_region() {
    let sim = Sim::new(Cpu::intel(2).with(|cpu| cpu.leaf[1] = 1));
    let counters = Counters::detect(&sim).unwrap();
    let scope = counters.scope(&[Event::Cycles, Event::DtlbLoadMisses, Event::DtlbStoreMisses]).unwrap();
    let mut regions = Regions::new(scope).unwrap();
    let one = |regions: &mut Regions<'_, &Sim>| {
        regions.begin();
        sim.pass(10);
        regions.end();
        regions.read().unwrap().counts
    };
    let first = one(&mut regions);
    assert_eq!(first.get(Event::DtlbLoadMisses), Some(Value::Counted(70)));
    assert_eq!(first.get(Event::DtlbStoreMisses), Some(Value::Never));
    let second = one(&mut regions);
    assert_eq!(second.get(Event::Cycles), Some(Value::Counted(40)));
    assert_eq!(second.get(Event::DtlbLoadMisses), Some(Value::Scaled { count: 140, permille: 500 }));
    assert_eq!(second.get(Event::DtlbStoreMisses), Some(Value::Scaled { count: 220, permille: 500 }));
}
