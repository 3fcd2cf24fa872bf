//! What a viewer of traces relies on, checked: events of a track lie within each other or apart, and come in order.

use serde_json::Value;
use std::collections::BTreeMap;

/// An event's place in time.
#[derive(Clone, Copy)]
struct Span {
    track: u64,
    start: u64,
    end: u64,
}

/// Looks a document in Chrome's format over, as [`super::chrome`] writes it; how many complete events it has.
///
/// # Errors
/// The first event that lies across another one of its track, goes back in time, or is a phase and not within its record; or that
/// has no time or no place at all.
pub fn check_nesting(document: &Value) -> Result<usize, String> {
    let events = document["traceEvents"].as_array().ok_or("there is no list of events")?;
    let mut open: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut records: BTreeMap<u64, Span> = BTreeMap::new();
    let mut complete = 0;
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let span = span(event).ok_or_else(|| format!("no event: {event}"))?;
        let open = open.entry(span.track).or_default();
        while open.last().is_some_and(|outer| *outer <= span.start) {
            open.pop();
        }
        if open.last().is_some_and(|outer| *outer < span.end) {
            return Err(format!("it lies across the one before: {event}"));
        }
        if last.insert(span.track, span.start).is_some_and(|last| last > span.start) {
            return Err(format!("it goes back in time: {event}"));
        }
        open.push(span.end);
        if event["cat"] == "record" {
            records.insert(number(event).ok_or_else(|| format!("a record without a number: {event}"))?, span);
        }
        complete += 1;
    }
    for event in events.iter().filter(|event| event["cat"] == "phase") {
        let within = || {
            let (own, record) = (span(event)?, records.get(&number(event)?)?);
            let inside = record.start <= own.start && own.end <= record.end;
            (inside && own.track == record.track).then_some(())
        };
        within().ok_or_else(|| format!("it is not within its record: {event}"))?;
    }
    Ok(complete)
}

fn number(event: &Value) -> Option<u64> {
    event["args"]["record"].as_u64()
}

/// In thousandths of a microsecond, which are the ticks: sums of fractions would not be exact.
fn span(event: &Value) -> Option<Span> {
    let ticks =
        |key: &str| event[key].as_f64().filter(|us| *us >= 0.0).map(|us| (us * 1000.0).round() as u64);
    let (track, start) = (event["tid"].as_u64()?, ticks("ts")?);
    Some(Span { track, start, end: start + ticks("dur")? })
}
