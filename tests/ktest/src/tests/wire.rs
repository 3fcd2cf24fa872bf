use std::{format, string::String, vec::Vec};

use proptest::prelude::{any, prop, proptest};

use crate::{
    exit::Exit,
    wire::{Record, Writer},
};

#[test]
fn a_record_reads_as_documented() {
    let mut line = String::new();
    crate::record!(&mut line, "step", n = 1, title = "x", say = "two words", path = "a\\b \"c\"").unwrap();
    assert_eq!(line, "@step n=1 title=x say=\"two words\" path=\"a\\\\b \\\"c\\\"\"\n");
    let record = Record::parse(&line).unwrap();
    assert_eq!(record.kind(), "step");
    assert_eq!(record.u64("n"), Some(1));
    assert_eq!(record.get("title").as_deref(), Some("x"));
    assert_eq!(record.get("path").as_deref(), Some("a\\b \"c\""));
    assert!(record.value("say").unwrap().is("two words"));
    assert_eq!(record.get("absent"), None);
    assert_eq!(record.fields().map(|(key, _)| key).collect::<Vec<_>>(), ["n", "title", "say", "path"]);
}

#[test]
fn numbers_are_decimal_or_hexadecimal() {
    let record =
        Record::parse("@pc addr=0xffffffff80012345 n=18446744073709551615 bad=0x1g neg=-1 q=\"7\"").unwrap();
    assert_eq!(record.u64("addr"), Some(0xffff_ffff_8001_2345));
    assert_eq!(record.u64("n"), Some(u64::MAX));
    assert_eq!(record.u64("bad"), None);
    assert_eq!(record.u64("neg"), None);
    assert_eq!(record.u64("q"), Some(7));
}

#[test]
fn an_empty_value_and_no_fields_are_records() {
    let mut line = String::new();
    crate::record!(&mut line, "say", text = "").unwrap();
    assert_eq!(line, "@say text=\"\"\n");
    assert_eq!(Record::parse(&line).unwrap().get("text").as_deref(), Some(""));
    assert_eq!(Record::parse("@end\r\n").unwrap().kind(), "end");
}

#[test]
fn a_torn_or_foreign_line_is_no_record() {
    for line in [
        "",
        "@",
        "@ n=1",
        "step n=1",
        " @step n=1",
        "@st\u{e9}p",
        "@step n",
        "@step n=",
        "@step =1",
        "@step n=1 x",
        "@step t=\"open",
        "@step t=\"bad \\q\"",
        "@step t=\"x\"y=1",
        "@step t=\"\\u{110000}\"",
        "@step t=\"\\u{41\"",
        "@step t=a\"b",
        "@step t=\"a\\",
    ] {
        assert_eq!(Record::parse(line), None, "{line:?}");
    }
}

#[test]
fn every_exit_has_its_status_and_zero_has_none() {
    assert_eq!(Exit::ALL.map(Exit::code), [0x10, 0x11, 0x12, 0x13]);
    assert_eq!(Exit::ALL.map(Exit::qemu_status), [33, 35, 37, 39]);
    for exit in Exit::ALL {
        assert_eq!(Exit::from_qemu_status(exit.qemu_status()), Some(exit));
    }
    assert!([0, 1, 32, 34, 41].into_iter().all(|status| Exit::from_qemu_status(status).is_none()));
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_back(fields in prop::collection::vec(("[a-z][a-z0-9_]{0,8}", any::<String>()), 0..6)) {
        let mut line = String::new();
        let writer = fields.iter().fold(Writer::begin(&mut line, "kind"), |w, (key, value)| w.field(key, value));
        writer.end().unwrap();
        assert_eq!(line.matches(['\n', '\r']).count(), 1, "a record is one line");
        let record = Record::parse(&line).unwrap();
        let read: Vec<_> = record.fields().map(|(k, v)| (String::from(k), v.text().into_owned())).collect();
        assert_eq!(read, fields);
        assert!(record.fields().all(|(_, v)| v.is(&v.text()) && format!("{v}") == v.text()));
    }

    #[test]
    fn no_input_makes_the_parser_panic(line in "@[a-z\"=\\\\{}u ]{0,40}") {
        if let Some(record) = Record::parse(&line) {
            record.fields().for_each(|(_, value)| drop(value.text()));
        }
    }

    #[test]
    fn a_record_cut_short_is_never_a_longer_one(value in "[a-z \"\\\\]{0,12}", cut in 0..100usize) {
        let mut line = String::new();
        crate::record!(&mut line, "kind", text = value).unwrap();
        let cut = &line[..cut.min(line.len())];
        if let Some(text) = Record::parse(cut).and_then(|record| record.get("text")) {
            assert!(value.starts_with(&*text), "{cut:?} read as {text:?}");
        }
    }
}
