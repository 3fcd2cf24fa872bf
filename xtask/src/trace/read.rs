//! Records as the kernel sends them, back to values.

use super::{PhaseSpan, Trace, TraceRecord};
use ktest::trace::{Codec, DATA, END, HEAD, NAMES, Packed, from_base64};
use ktest::wire::Record;

/// Takes the lines of a trace as they come among others.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    names: Names,
    codec: Codec,
    trace: Trace,
    /// How many records were promised, once that is known.
    promised: Option<u64>,
    /// The last line has come, and all before it were right.
    whole: bool,
    broken: bool,
}

#[derive(Debug, Default)]
struct Names {
    kinds: Vec<String>,
    framed: Vec<String>,
    phases: Vec<String>,
    outcomes: Vec<String>,
}

impl Reader {
    /// Takes a line if it is of a trace; false if it is another.
    pub(crate) fn take_line(&mut self, line: &str) -> bool {
        let Some(record) = Record::parse(line) else { return false };
        match record.kind() {
            NAMES => {
                let list = |key| -> Vec<String> {
                    record.get(key).unwrap_or_default().split(',').map(String::from).collect()
                };
                let names = Names {
                    kinds: list("kinds"),
                    framed: list("framed"),
                    phases: list("phases"),
                    outcomes: list("outcomes"),
                };
                *self = Self { names, ..Self::default() };
            }
            HEAD => {
                self.promised = record.u64("records");
                self.trace.lost = record.u64("lost").unwrap_or(0);
                self.trace.counted = record.u64("counted") == Some(1);
            }
            DATA => {
                let mut bytes = Vec::new();
                let mut packed = Vec::new();
                let text = record.get("data").unwrap_or_default();
                let right = from_base64(&text, &mut |byte| bytes.push(byte))
                    && self.codec.decode(&bytes, &mut |record| packed.push(record));
                let records: Option<Vec<_>> = packed.iter().map(|packed| self.names.record(packed)).collect();
                match records.filter(|_| right) {
                    Some(records) => self.trace.records.extend(records),
                    None => self.broken = true,
                }
            }
            END => {
                let came = Some(self.trace.records.len() as u64);
                self.whole = !self.broken && came == self.promised && came == record.u64("records");
            }
            _ => return false,
        }
        true
    }

    /// The trace, if all of it has come.
    pub(crate) fn take(&mut self) -> Option<Trace> {
        let done = std::mem::take(self);
        done.whole.then_some(done.trace)
    }
}

impl Names {
    fn record(&self, packed: &Packed) -> Option<TraceRecord> {
        let kind = self.kinds.get(usize::from(packed.kind))?.clone();
        let outcome = self.outcomes.get(usize::from(packed.outcome))?.clone();
        let (mut phases, mut begin) = (Vec::new(), packed.start);
        for (name, &after) in self.phases.iter().zip(&packed.ends) {
            if after != 0 {
                let end = packed.start + u64::from(after);
                phases.push(PhaseSpan { name: name.clone(), begin, end });
                begin = end;
            }
        }
        // In order: a record that goes backwards is none.
        if phases.iter().any(|phase| phase.begin > phase.end) {
            return None;
        }
        let framed = self.framed.contains(&kind);
        Some(TraceRecord {
            kind,
            outcome,
            start: packed.start,
            end: begin,
            phases,
            addr: Some(packed.addr).filter(|addr| *addr != 0),
            order: packed.order,
            from: place(packed.from),
            to: place(packed.to),
            frame: framed.then_some(packed.number),
            count: (!framed).then_some(packed.number),
            thread: packed.thread,
        })
    }
}

/// RAM, a private device, or a coherent one.
fn place(number: u8) -> String {
    match number {
        0 => "ram".into(),
        1..=8 => format!("dev{}", number - 1),
        _ => format!("coh{}", number - 9),
    }
}
