//! The trace: begun, ended, shown, and sent to a program ([`ktest::trace`]).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use farpage_mm::Place;
use farpage_mm::trace::{Kind, Outcome, Phase, Record, Tracing};
use ktest::monitor::{Number, TraceWhat};
use ktest::record;
use ktest::trace::{self as wire, Base64, Codec, List, Packed};

use super::counters::Plural;
use super::{Done, Refusal};
use crate::units::Grouped;
use crate::vm::trace::{self, Held};
use crate::{boot, console, println};

const _: () = assert!(Phase::COUNT == wire::PHASES);

/// Records that `show` shows.
const SHOWN: u64 = 16;
/// Bytes of a line that is sent, about.
const LINE: usize = 1500;

pub(super) fn trace(what: TraceWhat, records: Option<Number>) -> Done {
    let records = records.map_or(trace::USUAL, |Number(n)| n);
    match what {
        TraceWhat::On | TraceWhat::One => start(Tracing::Units, records)?,
        TraceWhat::Two => start(Tracing::Steps, records)?,
        TraceWhat::Off => {
            trace::stop();
            println!("the trace is off; {}", held());
        }
        TraceWhat::Show => show(),
        TraceWhat::Send => send(),
    }
    Ok(None)
}

fn start(level: Tracing, records: u64) -> Result<(), Refusal> {
    trace::start(level, records).map_err(|no_room| Refusal::said(&no_room))?;
    println!(
        "the trace is on: {}; it keeps the last {} records",
        if level == Tracing::Steps {
            "faults, units of migrations, and single steps"
        } else {
            "faults and units of migrations"
        },
        Grouped(records.max(2).next_power_of_two())
    );
    Ok(())
}

fn held() -> String {
    let Held { records, lost } = trace::held();
    format!("{}, {} before those were overwritten", Plural(records, "record"), Grouped(lost))
}

fn show() {
    println!("{}", held());
    let (skip, mut n) = (trace::held().records.saturating_sub(SHOWN), 0);
    trace::for_each(&mut |record| {
        if n >= skip {
            println!("{}", line(record));
        }
        n += 1;
    });
}

/// A record, for people.
fn line(record: &Record) -> String {
    let whom = match record.frame() {
        Some(frame) => format!("order {} {} to {frame}", record.order().get(), record.from()),
        None => format!("{} {} to {}", record.number(), record.from(), record.to()),
    };
    let mut text = format!(
        "{:<13} {:#014x} {whom}, {}: {}",
        record.kind().name(),
        record.addr.0,
        record.outcome().name(),
        Grouped(record.end() - record.start)
    );
    let phases: Vec<_> = record.phases().collect();
    if phases.len() > 1 {
        for (phase, begin, end) in phases {
            text += &format!(" {} {}", phase.name(), Grouped(end - begin));
        }
    }
    text
}

/// All of it, for a program. The trace is off from here on: what is sent must not change.
fn send() {
    trace::stop();
    let Held { records, lost } = trace::held();
    console::with(|out| {
        // A console cannot fail.
        let _ = record!(
            out,
            wire::NAMES,
            kinds = List(Kind::ALL.iter().map(|kind| kind.name())),
            framed = List(Kind::ALL.iter().filter(|kind| kind.has_frame()).map(|kind| kind.name())),
            phases = List(Phase::ALL.iter().map(|phase| phase.name())),
            outcomes = List(Outcome::ALL.iter().map(|outcome| outcome.name())),
        );
        let _ = record!(
            out,
            wire::HEAD,
            records = records,
            lost = lost,
            counted = u8::from(boot().command.icount)
        );
    });
    let (mut codec, mut bytes) = (Codec::default(), Vec::with_capacity(LINE + wire::MOST_BYTES));
    trace::for_each(&mut |record| {
        bytes.extend_from_slice(codec.encode(&packed(record)).as_slice());
        if bytes.len() >= LINE {
            send_line(&mut bytes);
        }
    });
    send_line(&mut bytes);
    console::with(|out| {
        let _ = record!(out, wire::END, records = records);
    });
}

fn send_line(bytes: &mut Vec<u8>) {
    if !bytes.is_empty() {
        let text = format!("{}", Base64(bytes));
        console::with(|out| {
            let _ = record!(out, wire::DATA, data = text);
        });
        bytes.clear();
    }
}

/// A place as a number: 0 is RAM, devices follow, coherent ones from 8 on.
fn place(place: Place) -> u8 {
    let kind = if place.is_coherent() { 8 } else { 0 };
    place.device_number().map_or(0, |n| n as u8 + 1 + kind)
}

fn packed(record: &Record) -> Packed {
    Packed {
        start: record.start,
        addr: record.addr.0,
        ends: record.ends(),
        number: record.number(),
        kind: record.kind() as u8,
        outcome: record.outcome() as u8,
        order: record.order().get(),
        from: place(record.from()),
        to: place(record.to()),
        thread: record.thread() as u8,
    }
}
