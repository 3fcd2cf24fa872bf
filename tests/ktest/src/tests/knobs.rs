use std::{
    string::{String, ToString},
    vec::Vec,
};

use proptest::prelude::{any, proptest};

use crate::monitor::{
    Batch, FailPlan, FailSite, FlushThreshold, Granule, GroupLimit, HugePages, Knob, MaxOrder, Setting,
    SkipFlush, Values,
};

fn refused(text: &str) -> String {
    Setting::read(text).expect_err(text).to_string()
}

#[test]
fn every_knob_has_a_default_that_it_can_be_and_that_is_safe() {
    for (n, knob) in Knob::ALL.iter().enumerate() {
        let spec = knob.spec();
        let setting = Setting::parse(*knob, spec.default).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(setting.knob(), *knob);
        assert!(!setting.is_unsafe(), "{}", spec.name);
        assert_eq!(Knob::find(spec.name), Some(*knob));
        assert!(Knob::ALL[..n].iter().all(|other| other.word() != spec.name), "{} is there twice", spec.name);
        assert!(!spec.help.is_empty() && spec.help.len() <= 96 && !spec.help.contains('\n'), "{}", spec.name);
        for word in knob.words() {
            assert!(Setting::parse(*knob, word).is_ok(), "{} {word}", spec.name);
        }
        assert!(!Values(*knob).to_string().is_empty());
    }
}

#[test]
fn values_are_read() {
    let cases = [
        ("huge=always", Setting::Huge(HugePages::Always)),
        ("max-order=0", Setting::MaxOrder(MaxOrder(0))),
        ("max-order=9", Setting::MaxOrder(MaxOrder(9))),
        ("granule=64K", Setting::Granule(Granule::Medium)),
        ("batch=0x40", Setting::Batch(Batch(64))),
        ("flush-threshold=262144", Setting::FlushThreshold(FlushThreshold(262_144))),
        ("group-limit=off", Setting::GroupLimit(GroupLimit(None))),
        ("group-limit=2M", Setting::GroupLimit(GroupLimit(Some(512)))),
        ("fail-plan=off", Setting::FailPlan(FailPlan::Off)),
        (
            "fail-plan=device-folio:3:1",
            Setting::FailPlan(FailPlan::At { site: FailSite::DeviceFolio, skip: 3, count: 1 }),
        ),
        ("skip-flush=copy-on-write", Setting::SkipFlush(SkipFlush::CopyOnWrite)),
    ];
    for (text, expected) in cases {
        assert_eq!(Setting::read(text), Ok(expected), "{text}");
    }
}

#[test]
fn every_mistake_is_one_sentence_with_a_way_out() {
    let cases = [
        ("granule", "\"granule\" is not of the form KNOB=VALUE, like granule=64K"),
        ("granule=5K", "granule cannot be \"5K\": it is 4K, 64K or 2M"),
        ("granule=", "granule cannot be \"\": it is 4K, 64K or 2M"),
        ("max-order=10", "max-order cannot be \"10\": it is a number from 0 to 9"),
        ("batch=0", "batch cannot be \"0\": it is a number from 1 to 4096"),
        ("flush-threshold=-1", "flush-threshold cannot be \"-1\": it is a number from 0 to 262144"),
        ("group-limit=1000", "group-limit cannot be \"1000\": it is off or whole pages, like 16p or 2M"),
        ("break-before-make=0", "break-before-make cannot be \"0\": it is on or off"),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected);
    }
    for text in [
        "fail-plan=table:0",
        "fail-plan=disk:0:1",
        "fail-plan=table:0:1:2",
        "fail-plan=table::",
        "fail-plan=",
    ] {
        let said = refused(text);
        assert!(said.ends_with("like table:0:1") && said.starts_with("fail-plan cannot be"), "{said}");
    }
    assert!(
        refused("granul=4K")
            .starts_with("there is no knob \"granul\"; did you mean granule? known are log, huge,")
    );
    assert!(refused("=").starts_with("there is no knob \"\"; known are "));
}

#[test]
fn what_is_unsafe_is_for_experiments() {
    for text in ["skip-flush=unmap", "break-before-make=off"] {
        let setting = Setting::read(text).unwrap();
        assert!(setting.is_unsafe());
        for run in ["tour", "bench", "test", "list", "gdb", "anything"] {
            let said = setting.check_for(run).expect_err(run).to_string();
            assert!(
                said.contains("unsafe") && said.ends_with(run.to_string().as_str()) || said.contains(run),
                "{said}"
            );
        }
        assert_eq!((setting.check_for("shell"), setting.check_for("exp")), (Ok(()), Ok(())));
    }
    for text in ["skip-flush=off", "break-before-make=on", "granule=4K", "fail-alloc=3", "copy=words"] {
        assert_eq!(Setting::read(text).unwrap().check_for("bench"), Ok(()), "{text}");
    }
}

proptest! {
    #[test]
    fn no_setting_is_too_much(text in any::<String>(), knob in 0..Knob::ALL.len()) {
        for text in [text.clone(), std::format!("{}={text}", Knob::ALL[knob].word())] {
            if let Err(error) = Setting::read(&text) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

/// The table for people says what the table for the program says, knob by knob and in the same order.
#[test]
fn the_documentation_has_every_knob() {
    let text = include_str!("../../../../docs/EXPERIMENTS.md");
    let rows = |knob: &Knob| {
        let spec = knob.spec();
        let danger = if spec.is_unsafe { "**unsafe**; " } else { "" };
        std::format!("| `{}` | {} | {} | {danger}{} |", spec.name, Values(*knob), spec.default, spec.help)
    };
    let expected: Vec<String> = Knob::ALL.iter().map(rows).collect();
    let expected = expected.join("\n");
    assert!(text.contains(&expected), "the table in docs/EXPERIMENTS.md should be:\n{expected}");
}
