//! What there is, and which events it counts.

use std::{
    format,
    string::{String, ToString},
};

use super::sim::{Cpu, Sim};
use crate::{BadList, Code, Counters, Event, Events, Kind, NoPmu, Refusal, Refused, Register, Uncounted};

fn detected(cpu: Cpu) -> Result<String, NoPmu> {
    Counters::detect(&Sim::new(cpu)).map(|counters| counters.pmu().to_string())
}

#[test]
fn versions_of_architectural_counters_differ_in_what_they_have() {
    for (version, what) in [
        (1, "architectural counters, version 1: 4 of 48 bits"),
        (2, "architectural counters, version 2: 4 of 48 bits, 3 fixed of 48 bits"),
        (4, "architectural counters, version 4: 4 of 48 bits, 3 fixed of 48 bits"),
        (5, "architectural counters, version 5: 4 of 48 bits, 3 fixed of 48 bits"),
        (6, "architectural counters, version 5: 4 of 48 bits, 3 fixed of 48 bits"),
    ] {
        assert_eq!(detected(Cpu::intel(version)).unwrap(), what);
    }
    // From version 5 on fixed counters may be there without those before them; ECX counts only then.
    let sparse = |version| Cpu::intel(version).with(|cpu| cpu.fixed = (1, 0b1000));
    assert!(detected(sparse(4)).unwrap().contains("1 fixed"));
    assert!(detected(sparse(5)).unwrap().contains("2 fixed"));
    let eight = Cpu::intel(5).with(|cpu| cpu.leaf[1] = 8);
    assert!(detected(eight).unwrap().contains("8 of 48 bits, of which 4 are used"));
}

#[test]
fn amd_has_three_kinds() {
    let kind = |cpu| Counters::detect(&Sim::new(cpu)).map(|counters| counters.pmu().kind);
    assert_eq!(kind(Cpu::amd(0x10, false, None)), Ok(Kind::K7));
    assert_eq!(kind(Cpu::amd(0x17, true, None)), Ok(Kind::Core));
    assert_eq!(kind(Cpu::amd(0x19, true, Some(6))), Ok(Kind::CoreGlobal));
    assert!(detected(Cpu::amd(0x19, true, Some(6))).unwrap().contains("6 of 48 bits"));
    assert!(detected(Cpu::amd(0x19, true, Some(4))).unwrap().contains("4 of 48 bits"));
}

#[test]
fn a_cpu_without_counters_says_so() {
    assert_eq!(detected(Cpu::intel(0)), Err(NoPmu::NotAnnounced));
    assert_eq!(
        NoPmu::NotAnnounced.to_string(),
        "this CPU has no performance counters (CPUID.0AH: version 0)"
    );
    // As QEMU's translator is an AMD CPU: writes are swallowed, RDPMC is refused.
    assert_eq!(detected(Cpu::amd(0xf, false, None).with(|cpu| cpu.swallows = true)), Err(NoPmu::Dead));
    // Announced, and yet not there.
    assert!(NoPmu::Dead.to_string().ends_with("(the first does not keep what is written to it)"));
    let refuses = Cpu::intel(2).with(|cpu| cpu.refuses = Some(0x186));
    assert_eq!(detected(refuses), Err(NoPmu::Refused(Refused(Register::Read(0x186)))));
}

#[test]
fn trying_counters_out_leaves_them_as_they_were() {
    for cpu in [
        Cpu::intel(1),
        Cpu::intel(2),
        Cpu::intel(5),
        Cpu::amd(0x10, false, None),
        Cpu::amd(0x19, true, Some(6)),
    ] {
        let sim = Sim::new(cpu).used();
        let before = sim.state();
        Counters::detect(&sim).unwrap();
        assert_eq!(sim.state(), before);
    }
}

#[test]
fn what_a_cpu_refuses_half_way_is_put_back_too() {
    // The first counter cannot be read; then it can, and not be written.
    let unreadable = Cpu::intel(2).with(|cpu| cpu.refuses = Some(0xc1));
    for cpu in [unreadable, Cpu::intel(2).with(|cpu| cpu.read_only = Some(0xc1))] {
        let sim = Sim::new(cpu).used();
        let before = sim.state();
        assert!(Counters::detect(&sim).is_err());
        assert_eq!(sim.state(), before);
    }
}

#[test]
fn the_mask_says_which_events_are_missing() {
    let row = |cpu, event| Counters::detect(&Sim::new(cpu)).unwrap().pmu().row(event).map(|row| row.name);
    assert_eq!(row(Cpu::intel(2), Event::LlcMisses), Ok("LLC Misses"));
    let masked = Cpu::intel(2).with(|cpu| cpu.missing = 1 << 4);
    assert_eq!(row(masked.clone(), Event::LlcMisses), Err(Uncounted::Missing));
    assert_eq!(row(masked, Event::Cycles), Ok("UnHalted Core Cycles"));
    // A mask of four bits does not speak of the fifth event, so that is not there either.
    let short = Cpu::intel(2).with(|cpu| cpu.leaf[3] = 4);
    assert_eq!(row(short, Event::LlcMisses), Err(Uncounted::Missing));
    // The model's own events have no bit in the mask.
    let all = Cpu::intel(2).with(|cpu| cpu.missing = 0x7f);
    assert!(row(all, Event::PageWalks).is_ok());
}

#[test]
fn codes_are_those_of_the_model() {
    let codes = |cpu, event| Counters::detect(&Sim::new(cpu)).unwrap().pmu().row(event).map(|row| row.codes);
    let model = |model| Cpu::intel(4).with(|cpu| cpu.model = model);
    let code = |event, umask| Code { event, umask };
    assert_eq!(codes(model(0x55), Event::DtlbLoadMisses), Ok(&[code(0x08, 0x01)][..]));
    assert_eq!(codes(model(0x6a), Event::DtlbLoadMisses), Ok(&[code(0x08, 0x0e)][..]));
    assert_eq!(codes(model(0x8f), Event::DtlbStoreMisses), Ok(&[code(0x13, 0x0e)][..]));
    assert_eq!(codes(model(0x8f), Event::WalkCycles), Ok(&[code(0x12, 0x10), code(0x13, 0x10)][..]));
    assert_eq!(codes(model(0x01), Event::DtlbLoadMisses), Err(Uncounted::Unknown));
    assert_eq!(codes(model(0x01), Event::Cycles), Ok(&[code(0x3c, 0)][..]));
    let hybrid = |kind| Cpu::intel(5).with(|cpu| (cpu.model, cpu.core_kind) = (0x97, Some(kind)));
    assert_eq!(codes(hybrid(0x40), Event::DtlbLoadMisses), Ok(&[code(0x12, 0x0e)][..]));
    assert_eq!(codes(hybrid(0x20), Event::DtlbLoadMisses), Err(Uncounted::Unknown));
    for family in [0x17, 0x19] {
        let zen = || Cpu::amd(family, true, None);
        assert_eq!(codes(zen(), Event::PageWalks), Ok(&[code(0x45, 0xf0)][..]));
        assert_eq!(codes(zen(), Event::Cycles), Ok(&[code(0x76, 0)][..]));
        assert_eq!(codes(zen(), Event::DtlbLoadMisses), Err(Uncounted::Unknown));
    }
    assert_eq!(codes(Cpu::amd(0x10, false, None), Event::PageWalks), Err(Uncounted::Unknown));
}

#[test]
fn only_fixed_counters_count_only_what_they_count() {
    let sim = Sim::new(Cpu::intel(2).with(|cpu| cpu.leaf[1] = 0));
    let counters = Counters::detect(&sim).unwrap();
    assert!(counters.scope(&[Event::Cycles, Event::Instructions]).is_ok());
    let refused = counters.scope(&[Event::Cycles, Event::LlcMisses]).map(drop);
    assert_eq!(refused, Err(Refusal::Event(Event::LlcMisses, Uncounted::NoCounter)));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "llc-misses cannot be counted: no counter of this CPU takes it; ask for other events"
    );
}

#[test]
fn lists_of_events_are_read() {
    let events = Events::parse("page-walks,cycles,page-walks").unwrap();
    assert_eq!(events.as_slice(), [Event::PageWalks, Event::Cycles]);
    for event in Event::ALL {
        assert_eq!(Events::parse(event.name()).unwrap().as_slice(), [event]);
    }
    assert_eq!(Event::ALL.map(Event::name).join(", "), Event::NAMES);
    assert_eq!(Events::parse(""), Err(BadList("")));
    assert_eq!(
        Events::parse("cycles,dtlb").unwrap_err().to_string(),
        format!("there is no event \"dtlb\"; events, with commas between them, are {}", Event::NAMES)
    );
}
