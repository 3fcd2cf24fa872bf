use super::{PhaseSpan, Reader, Trace, TraceRecord, check_nesting, chrome, table};
use ktest::record;
use ktest::trace::{Base64, Codec, PHASES, Packed};
use serde_json::{Value, json};

/// A record from tick `start` on; each phase with its end.
fn record(kind: &str, thread: u8, start: u64, phases: &[(&str, u64)]) -> TraceRecord {
    let mut begin = start;
    let phases = phases.iter().map(|&(name, end)| {
        let span = PhaseSpan { name: name.into(), begin, end };
        begin = end;
        span
    });
    let phases: Vec<_> = phases.collect();
    TraceRecord {
        kind: kind.into(),
        outcome: "done".into(),
        start,
        end: phases.last().map_or(start, |phase| phase.end),
        phases,
        addr: Some(0x10_0000_0000 + start),
        from: "dev0".into(),
        to: "ram".into(),
        frame: Some(7),
        thread,
        ..TraceRecord::default()
    }
}

fn unit(thread: u8, start: u64, end: u64) -> TraceRecord {
    record("unit", thread, start, &[("unmap", 140), ("copy", 150), ("finalize", end)])
}

fn batch(thread: u8, start: u64, end: u64) -> TraceRecord {
    let phases = [("collect", 130), ("unmap", 140), ("alloc", 143), ("copy", 150), ("finalize", end)];
    record("batch", thread, start, &phases)
}

/// The complete events, read back as a viewer does.
fn check(trace: &Trace) -> Vec<Value> {
    let text = serde_json::to_string(&chrome(trace)).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["otherData"]["clock"].as_str().unwrap().contains("1000"));
    let events = document["traceEvents"].as_array().unwrap();
    let complete: Vec<Value> = events.iter().filter(|event| event["ph"] == "X").cloned().collect();
    assert_eq!(check_nesting(&document), Ok(complete.len()));
    // Each track has a name.
    let mut tracks: Vec<_> = complete.iter().map(|event| event["tid"].as_u64()).collect();
    tracks.sort_unstable();
    tracks.dedup();
    let named = events.iter().filter(|event| event["name"] == "thread_name");
    assert_eq!(named.map(|event| event["tid"].as_u64()).collect::<Vec<_>>(), tracks);
    complete
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["name"].as_str().unwrap()).collect()
}

#[test]
fn a_record_is_an_event_with_its_phases_and_its_steps_within() {
    let fault = record("fault", 0, 100, &[("find", 150), ("alloc", 200), ("copy", 800), ("finalize", 900)]);
    let step = TraceRecord { kind: "alloc".into(), ..record("alloc", 0, 160, &[("finalize", 190)]) };
    let trace = Trace { records: vec![step, fault], lost: 3, counted: true };
    let events = check(&trace);
    assert_eq!(names(&events), ["fault", "find", "alloc", "alloc", "copy", "finalize"]);
    assert_eq!((events[0]["ts"].as_f64(), events[0]["dur"].as_f64()), (Some(0.0), Some(0.8)));
    let args = &events[0]["args"];
    assert_eq!(args["address"], "0x1000000064");
    assert_eq!(
        (&args["folio"], &args["device"], &args["outcome"]),
        (&"ram:0x7".into(), &"dev0".into(), &"done".into())
    );
    assert_eq!(chrome(&trace)["otherData"]["lost"], 3);
}

#[test]
fn units_are_parts_of_the_phases_of_their_batch() {
    let records = vec![unit(0, 110, 160), unit(0, 125, 170), batch(0, 100, 200)];
    let events = check(&Trace { records, ..Trace::default() });
    let expected = ["batch", "collect", "take", "take", "unmap", "copy", "finalize", "arrive", "arrive"];
    assert_eq!(names(&events), expected);
    assert_eq!(events[5]["args"]["of this, allocation"], 3);
    // One that stayed ended before the others arrived.
    let records = vec![unit(0, 110, 145), unit(0, 125, 170), batch(0, 100, 200)];
    let events = check(&Trace { records, ..Trace::default() });
    assert!(names(&events).contains(&"put back"));
    // Whose batch is missing is an event of its own.
    let events = check(&Trace { records: vec![unit(0, 110, 160)], ..Trace::default() });
    assert_eq!(names(&events)[0], "unit");
}

#[test]
fn what_lies_across_goes_to_another_track() {
    let parked = record("batch", 0, 100, &[("collect", 150), ("finalize", 400)]);
    let other = record("batch", 0, 300, &[("collect", 350), ("finalize", 500)]);
    let elsewhere = record("fault", 3, 200, &[("find", 250), ("finalize", 450)]);
    let events = check(&Trace { records: vec![parked, elsewhere, other], ..Trace::default() });
    let mut tracks: Vec<_> = events.iter().map(|event| event["tid"].as_u64().unwrap()).collect();
    tracks.dedup();
    assert_eq!(tracks, [1, 2, 301]);
}

#[test]
fn where_the_ticks_went() {
    let records = vec![
        record("fault", 0, 0, &[("find", 10), ("finalize", 100)]),
        record("fault", 0, 200, &[("find", 220), ("alloc", 250), ("finalize", 260)]),
        record("flush-tlb", 0, 300, &[("finalize", 301)]),
    ];
    let trace = Trace { records, counted: true, lost: 0 };
    let sums =
        [("find", 30), ("alloc", 30), ("finalize", 100)].map(|(name, ticks)| (name.to_string(), ticks));
    assert_eq!(trace.by_phase("fault"), sums);
    assert_eq!(trace.latencies("fault"), [60, 100]);
    let lines = table(&trace);
    assert!(lines[0].contains("instructions") && lines.len() == 3, "{lines:?}");
    let shares = "find 18.8 %, alloc 18.8 %, finalize 62.5 %";
    assert!(lines[1].starts_with("fault, done") && lines[1].ends_with(shares), "{lines:?}");
}

/// The lines of a trace of two faults.
fn sent(codec: &mut Codec) -> Vec<String> {
    let ends = |ends: [u32; 3]| {
        let mut all = [0; PHASES];
        (all[0], all[1], all[7]) = (ends[0], ends[1], ends[2]);
        all
    };
    let first = Packed { start: 1000, addr: 0x1000, ends: ends([10, 20, 700]), from: 1, ..Packed::default() };
    let second =
        Packed { start: 2000, ends: ends([5, 0, 9]), outcome: 1, from: 11, kind: 1, ..Packed::default() };
    let mut bytes = codec.encode(&first).as_slice().to_vec();
    bytes.extend_from_slice(codec.encode(&second).as_slice());
    let mut text = String::new();
    record!(
        &mut text,
        "trace-names",
        kinds = "fault,batch",
        framed = "fault",
        phases = "wait,collect,unmap,flush,alloc,copy,commit,finalize",
        outcomes = "done,failed"
    )
    .unwrap();
    record!(&mut text, "trace", records = 2, lost = 5, counted = 1).unwrap();
    record!(&mut text, "rec", data = Base64(&bytes)).unwrap();
    record!(&mut text, "trace-end", records = 2).unwrap();
    text.lines().map(String::from).collect()
}

#[test]
fn what_the_kernel_sends_is_read() {
    let mut reader = Reader::default();
    assert!(!reader.take_line("touched 1 page") && !reader.take_line("@ready n=1 ok=1"));
    assert!(sent(&mut Codec::default()).iter().all(|line| reader.take_line(line)));
    let trace = reader.take().expect("all of it");
    assert_eq!((trace.lost, trace.counted, trace.records.len()), (5, true, 2));
    let [first, second] = &trace.records[..] else { panic!() };
    assert_eq!(
        (first.kind.as_str(), first.start, first.end, first.addr),
        ("fault", 1000, 1700, Some(0x1000))
    );
    assert_eq!(
        (first.from.as_str(), first.to.as_str(), first.frame, first.count),
        ("dev0", "ram", Some(0), None)
    );
    assert_eq!(first.phase("collect").map(|phase| (phase.begin, phase.end)), Some((1010, 1020)));
    assert_eq!(
        (second.kind.as_str(), second.outcome.as_str(), second.from.as_str()),
        ("batch", "failed", "coh2")
    );
    assert_eq!((second.phases.len(), second.end, second.addr), (2, 2009, None));
}

#[test]
fn a_trace_that_is_not_whole_is_none() {
    let lines = sent(&mut Codec::default());
    for missing in 0..lines.len() {
        let mut reader = Reader::default();
        for (n, line) in lines.iter().enumerate().filter(|(n, _)| *n != missing) {
            assert!(reader.take_line(line), "line {n}");
        }
        assert!(reader.take().is_none(), "without line {missing}");
    }
    let mut reader = Reader::default();
    for line in &lines {
        reader.take_line(&line.replace("data=", "data=!"));
    }
    assert!(reader.take().is_none());
}

#[test]
fn what_a_viewer_would_show_wrongly_is_found() {
    let event = |cat: &str, track: u64, start: f64, len: f64| json!({ "ph": "X", "cat": cat, "tid": track, "ts": start, "dur": len, "args": { "record": 1 } });
    let check = |events: &[Value]| check_nesting(&json!({ "traceEvents": events }));
    let record = event("record", 1, 1.0, 2.0);
    assert_eq!(check(&[record.clone(), event("phase", 1, 1.0, 2.0)]), Ok(2));
    assert!(check(&[record.clone(), event("record", 1, 2.0, 1.5)]).unwrap_err().contains("across"));
    assert!(check(&[record.clone(), event("record", 1, 0.5, 0.1)]).unwrap_err().contains("back"));
    for elsewhere in [event("phase", 2, 1.0, 2.0), event("phase", 1, 3.0, 0.1)] {
        assert!(check(&[record.clone(), elsewhere]).unwrap_err().contains("within"));
    }
    assert!(check(&[event("record", 1, -1.0, 2.0)]).is_err());
    assert!(check_nesting(&json!({})).is_err());
}

#[test]
fn units_are_counted_and_their_times_are_their_batch_s() {
    let records = vec![unit(0, 100, 160), unit(0, 110, 170), batch(0, 100, 180)];
    let lines = table(&Trace { records, counted: true, ..Trace::default() });
    let row = |name: &str| lines.iter().find(|line| line.starts_with(name)).cloned().unwrap_or_default();
    assert_eq!(row("unit").split_whitespace().collect::<Vec<_>>(), ["unit,", "done", "2", "in", "batches"]);
    assert!(row("batch").contains(" 80 "), "{lines:?}");
}
