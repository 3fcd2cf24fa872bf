//! A trace in the format of Chrome's trace viewer, which Perfetto reads: complete events (`ph: "X"`), nested by time.
//!
//! A record becomes one event, and a child for each of its phases. The units of a batch go through each phase one after the
//! other, so a unit becomes two slices of its batch: one of the batch's first phase, up to the moment when the unit was taken, and one of
//! its `finalize`, up to the moment when the unit had arrived. What of a batch is allocation and what is copying alternates unit
//! by unit, and is one child, `copy`, with the share of the allocations among its arguments.
//!
//! Events on one track lie within each other or apart, never across: an event that would lie across another (a migration that was
//! begun before another one, and ended before it) goes to a further track of its thread.

use super::{Trace, TraceRecord};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Instructions, or ticks, that count as a microsecond.
const TICKS_PER_US: f64 = 1000.0;

/// A stretch of time, before it has a track.
struct Slice {
    name: String,
    category: &'static str,
    start: u64,
    end: u64,
    /// Records outside, then phases, then units of a phase.
    depth: u8,
    /// The number of the record outside.
    within: usize,
    thread: u8,
    args: Map<String, Value>,
}

/// The whole document.
#[must_use]
pub fn chrome(trace: &Trace) -> Value {
    let origin = trace.records.iter().map(|record| record.start).min().unwrap_or(0);
    let mut slices = slices(trace);
    slices.sort_by_key(|slice| (slice.thread, slice.start, Reverse(slice.end), slice.depth));
    let us = |ticks: u64| ticks as f64 / TICKS_PER_US;
    let mut tracks = Tracks::default();
    let mut events = Vec::new();
    for slice in slices {
        let track = tracks.place(&slice);
        events.push(json!({
            "name": slice.name,
            "cat": slice.category,
            "ph": "X",
            "ts": us(slice.start - origin),
            "dur": us(slice.end - slice.start),
            "pid": 1,
            "tid": track,
            "args": slice.args,
        }));
    }
    let name = |what: &str, track: Option<u64>, name: String| {
        let mut event = json!({ "name": what, "ph": "M", "pid": 1, "args": { "name": name } });
        if let Some(track) = track {
            event["tid"] = track.into();
        }
        event
    };
    let mut all = vec![name("process_name", None, "farpage".into())];
    all.extend(tracks.list.iter().map(|track| {
        let further = if track.lane == 0 { String::new() } else { format!(" ({})", track.lane + 1) };
        name("thread_name", Some(track.id()), format!("thread {}{further}", track.thread))
    }));
    all.extend(events);
    let clock = if trace.counted { "guest instructions" } else { "ticks of the time-stamp counter" };
    json!({
        "traceEvents": all,
        "displayTimeUnit": "ns",
        "otherData": {
            "clock": format!("1 us here is 1000 {clock}"),
            "records": trace.records.len(),
            "lost": trace.lost,
        },
    })
}

/// What lies on a track at the moment: the ends of the events that are open.
struct Track {
    thread: u8,
    lane: u64,
    open: Vec<u64>,
}

impl Track {
    fn id(&self) -> u64 {
        u64::from(self.thread) * 100 + self.lane + 1
    }
}

#[derive(Default)]
struct Tracks {
    list: Vec<Track>,
    /// Where each record is.
    of: BTreeMap<usize, u64>,
}

impl Tracks {
    /// The first track of the thread on which the slice lies across no other; a part of a record goes where the record is. Slices
    /// come in the order of their beginnings.
    fn place(&mut self, slice: &Slice) -> u64 {
        let of = if slice.depth == 0 { None } else { self.of.get(&slice.within).copied() };
        let mut lanes = 0;
        for track in self.list.iter_mut().filter(|track| track.thread == slice.thread) {
            while track.open.last().is_some_and(|open| *open <= slice.start) {
                track.open.pop();
            }
            let fits = track.open.last().is_none_or(|open| slice.end <= *open);
            if fits && of.is_none_or(|of| of == track.id()) {
                track.open.push(slice.end);
                self.of.entry(slice.within).or_insert(track.id());
                return track.id();
            }
            lanes += 1;
        }
        let track = Track { thread: slice.thread, lane: lanes, open: vec![slice.end] };
        let id = track.id();
        self.list.push(track);
        self.of.entry(slice.within).or_insert(id);
        id
    }
}

fn slices(trace: &Trace) -> Vec<Slice> {
    let mut slices = Vec::new();
    let mut units: Vec<(usize, &TraceRecord)> = Vec::new();
    for (number, record) in trace.records.iter().enumerate() {
        match record.kind.as_str() {
            "unit" => units.push((number, record)),
            "batch" => {
                with_phases(number, record, &mut slices);
                // Units are recorded before their batch.
                let own = |unit: &&TraceRecord| {
                    unit.thread == record.thread && record.start <= unit.start && unit.end <= record.end
                };
                let (own, others) = units.into_iter().partition(|(_, unit)| own(unit));
                units = others;
                of_batch(number, record, own, &mut slices);
            }
            _ => with_phases(number, record, &mut slices),
        }
    }
    // Their batch was not recorded: the trace ended before it.
    for (number, unit) in units {
        with_phases(number, unit, &mut slices);
    }
    slices
}

fn with_phases(number: usize, record: &TraceRecord, slices: &mut Vec<Slice>) {
    let slice = |name: &str, category, start, end, depth, args| Slice {
        name: name.into(),
        category,
        start,
        end,
        depth,
        within: number,
        thread: record.thread,
        args,
    };
    slices.push(slice(&record.kind, "record", record.start, record.end, 0, args(number, record)));
    if record.phases.len() < 2 {
        return;
    }
    let in_a_batch = record.phase("unmap").is_some();
    for (n, phase) in record.phases.iter().enumerate() {
        let mut args = Map::new();
        args.insert("record".into(), number.into());
        let mut begin = phase.begin;
        if in_a_batch
            && phase.name == "alloc"
            && record.phases.get(n + 1).is_some_and(|next| next.name == "copy")
        {
            continue;
        }
        if in_a_batch
            && phase.name == "copy"
            && let Some(alloc) =
                n.checked_sub(1).map(|n| &record.phases[n]).filter(|last| last.name == "alloc")
        {
            begin = alloc.begin;
            args.insert("of this, allocation".into(), (alloc.end - alloc.begin).into());
        }
        slices.push(slice(&phase.name, "phase", begin, phase.end, 1, args));
    }
}

/// The units of a batch, in its phases.
fn of_batch(
    batch_number: usize,
    batch: &TraceRecord,
    mut units: Vec<(usize, &TraceRecord)>,
    slices: &mut Vec<Slice>,
) {
    let slice = |name: &str, number, unit: &TraceRecord, start, end| Slice {
        name: name.into(),
        category: "unit",
        start,
        end,
        depth: 2,
        within: batch_number,
        thread: unit.thread,
        args: args(number, unit),
    };
    units.sort_by_key(|(_, unit)| unit.start);
    let mut begin = batch.start;
    for &(number, unit) in &units {
        slices.push(slice("take", number, unit, begin, unit.start));
        begin = unit.start;
    }
    units.sort_by_key(|(_, unit)| unit.end);
    let mut begin = batch.phase("finalize").map_or(batch.end, |phase| phase.begin);
    for (number, unit) in units {
        // One that failed had ended before.
        let start = begin.min(unit.end);
        let name = if start == unit.end { "put back" } else { "arrive" };
        slices.push(slice(name, number, unit, start, unit.end));
        begin = begin.max(unit.end);
    }
}

fn args(number: usize, record: &TraceRecord) -> Map<String, Value> {
    let mut args = Map::new();
    args.insert("record".into(), number.into());
    if let Some(addr) = record.addr {
        args.insert("address".into(), format!("{addr:#x}").into());
    }
    args.insert("order".into(), record.order.into());
    if let Some(frame) = record.frame {
        args.insert("folio".into(), format!("{}:{frame:#x}", record.to).into());
    }
    if let Some(count) = record.count {
        args.insert("count".into(), count.into());
    }
    let device = [&record.from, &record.to].into_iter().find(|place| *place != "ram");
    if let Some(device) = device {
        args.insert("device".into(), device.as_str().into());
    }
    args.insert("from".into(), record.from.as_str().into());
    args.insert("to".into(), record.to.as_str().into());
    args.insert("outcome".into(), record.outcome.as_str().into());
    args
}
