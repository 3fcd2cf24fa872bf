use std::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

use crate::monitor::{
    Access, Address, Advice, COMMANDS, Command, Device, Error, Huge, Keep, Knob, Name, Number, Origin, Place,
    Prot, Since, Size, Spec, Target, Topic, TraceWhat, Value, Where, Which, complete, hint, parse,
    without_comment,
};

fn command(line: &str) -> Command<'_> {
    parse(line)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .unwrap_or_else(|| panic!("{line} is nothing"))
}

fn refused(line: &str) -> String {
    parse(line).expect_err(line).to_string()
}

const AT: Address = Address(0x10_0000_0000);
const HUGE: Size = Size(2 << 20);

#[test]
fn every_command_reads_its_arguments() {
    let topic = Topic(Spec::find("map").unwrap());
    let cases = [
        ("map 1000000000 2M", Command::Map { addr: AT, size: HUGE, prot: None, huge: None }),
        (
            "map 0x10_0000_0000 512p r nohuge",
            Command::Map { addr: AT, size: HUGE, prot: Some(Prot::Read), huge: Some(Huge::NoHuge) },
        ),
        ("map 1000000000 2M huge", Command::Map { addr: AT, size: HUGE, prot: None, huge: Some(Huge::Huge) }),
        ("unmap 1000000000 2M", Command::Unmap { addr: AT, size: HUGE }),
        ("fill 1000000000 2M 7", Command::Fill { addr: AT, size: HUGE, seed: Some(Number(7)) }),
        (
            "check 1000000000 2M --where",
            Command::Check { addr: AT, size: HUGE, seed: None, at: Where(true), origin: Origin(None) },
        ),
        (
            "check --as 0x2000 1000000000 2M 0x10",
            Command::Check {
                addr: AT,
                size: HUGE,
                seed: Some(Number(16)),
                at: Where(false),
                origin: Origin(Some(Address(0x2000))),
            },
        ),
        ("touch 1000000000", Command::Touch { addr: AT, size: None, access: None }),
        ("touch 1000000000 w", Command::Touch { addr: AT, size: None, access: Some(Access::Write) }),
        ("touch 1000000000 2M r", Command::Touch { addr: AT, size: Some(HUGE), access: Some(Access::Read) }),
        ("migrate 1000000000 2M ram", Command::Migrate { addr: AT, size: HUGE, place: Place::Ram }),
        ("migrate 1000000000 2M coh2", Command::Migrate { addr: AT, size: HUGE, place: Place::Device(2) }),
        ("evict dev1", Command::Evict { device: Device(1), first: None, count: None }),
        (
            "evict dev0 0x3e00 512",
            Command::Evict { device: Device(0), first: Some(Number(0x3e00)), count: Some(Number(512)) },
        ),
        ("split 1000000000", Command::Split { addr: AT }),
        ("collapse 1000000000 2M", Command::Collapse { addr: AT, size: Some(HUGE) }),
        ("protect 1000000000 2M none", Command::Protect { addr: AT, size: HUGE, prot: Prot::None }),
        (
            "remap 1000000000 2M 0x2000 --keep",
            Command::Remap { old: AT, size: HUGE, new: Address(0x2000), keep: Keep(true) },
        ),
        ("advise 1000000000 2M dontneed", Command::Advise { addr: AT, size: HUGE, advice: Advice::DontNeed }),
        ("fork", Command::Fork {}),
        ("spaces", Command::Spaces {}),
        ("use 2", Command::Use { space: Number(2) }),
        ("exit-space", Command::ExitSpace {}),
        ("pt", Command::Pt { addr: None, size: None }),
        ("pt 1000000000 2M", Command::Pt { addr: Some(AT), size: Some(HUGE) }),
        ("walk 1000000000", Command::Walk { addr: AT }),
        ("folio 1000000000", Command::Folio { target: Target::Address(AT.0) }),
        ("folio dev0:0x3e00", Command::Folio { target: Target::Frame(Place::Device(0), 0x3e00) }),
        ("folio ram:0xfc00", Command::Folio { target: Target::Frame(Place::Ram, 0xfc00) }),
        ("dev", Command::Dev {}),
        ("stat", Command::Stat { diff: Since(false) }),
        ("stat --diff", Command::Stat { diff: Since(true) }),
        ("events", Command::Events {}),
        ("counters", Command::Counters {}),
        (
            "set counters cycles",
            Command::Set { knob: Which(Some(Knob::Counters)), value: Some(Value("cycles")) },
        ),
        ("audit", Command::Audit {}),
        ("trace on", Command::Trace { what: TraceWhat::On, records: None }),
        ("trace 2 100", Command::Trace { what: TraceWhat::Two, records: Some(Number(100)) }),
        ("trace show", Command::Trace { what: TraceWhat::Show, records: None }),
        ("exp", Command::Exp { name: None }),
        ("bench fault-back", Command::Bench { name: Name("fault-back") }),
        ("exp residency", Command::Exp { name: Some(Name("residency")) }),
        ("set", Command::Set { knob: Which(None), value: None }),
        ("set fail-alloc 3", Command::Set { knob: Which(Some(Knob::FailAlloc)), value: Some(Value("3")) }),
        ("help", Command::Help { cmd: None }),
        ("help map", Command::Help { cmd: Some(topic) }),
        ("panic", Command::Panic {}),
        ("exit", Command::Exit {}),
    ];
    for (line, expected) in cases {
        assert_eq!(command(line), expected, "{line}");
    }
    let tried = |spec: &&Spec| cases.iter().any(|(line, _)| line.split(' ').next() == Some(spec.name));
    assert_eq!(
        COMMANDS.iter().filter(|spec| !tried(spec)).map(|spec| spec.name).collect::<Vec<_>>(),
        [""; 0]
    );
}

#[test]
fn every_example_is_a_command_of_its_own_kind() {
    for (n, spec) in COMMANDS.iter().enumerate() {
        assert!(spec.example.split(' ').next() == Some(spec.name), "{}", spec.example);
        command(spec.example);
        assert!(!spec.help.is_empty() && spec.help.len() <= 96 && !spec.help.contains('\n'), "{}", spec.name);
        assert!(COMMANDS[..n].iter().all(|other| other.name != spec.name), "{} is there twice", spec.name);
        let optional = spec.params.iter().map(|param| param.optional);
        assert!(optional.is_sorted(), "{}: what may be left out comes last", spec.name);
    }
}

#[test]
fn usage_shows_what_may_be_left_out() {
    let usage = |name| Spec::find(name).unwrap().usage().to_string();
    assert_eq!(usage("map"), "map ADDR SIZE [rw|r|none] [huge|nohuge]");
    assert_eq!(usage("check"), "check ADDR SIZE [SEED] [--where] [--as ORIGIN]");
    assert_eq!(usage("folio"), "folio ADDR|FRAME");
    assert_eq!(usage("audit"), "audit");
}

#[test]
fn comments_and_blanks_are_no_commands() {
    for line in ["", "   ", "# audit", "  # audit # audit", "\t"] {
        assert_eq!(parse(line), Ok(None), "{line:?}");
    }
    assert_eq!(command(" audit  # every invariant"), Command::Audit {});
    assert_eq!(without_comment("a b # c"), "a b");
}

#[test]
fn sizes_and_addresses_have_units() {
    let size = |word: &str| match parse(&format!("map 0 {word}")) {
        Ok(Some(Command::Map { size, .. })) => Some(size.0),
        _ => None,
    };
    for (word, bytes) in
        [("4K", 4096), ("1G", 1 << 30), ("16p", 65536), ("8192", 8192), ("0x2000", 8192), ("1_000", 1000)]
    {
        assert_eq!(size(word), Some(bytes), "{word}");
    }
    let wrong = [
        "0",
        "0K",
        "K",
        "",
        "-1",
        "4k",
        "4KB",
        "4 K",
        "0x",
        "99999999999999999999",
        "17179869184G",
        "1.5M",
        "_1",
    ];
    for word in wrong {
        assert_eq!(size(word), None, "{word}");
    }
    let address = |word: &str| match parse(&format!("split {word}")) {
        Ok(Some(Command::Split { addr })) => Some(addr.0),
        _ => None,
    };
    for (word, addr) in [
        ("0x1000", 0x1000),
        ("1000", 0x1000),
        ("ffff_8000", 0xffff_8000),
        ("0x1000+8K", 0x3000),
        ("0+1p", 0x1000),
    ] {
        assert_eq!(address(word), Some(addr), "{word}");
    }
    for word in
        ["g", "0x", "0x1_0000_0000_0000_0000", "ffffffffffffffff+1", "1000+", "+4K", "1000-4K", "0x0x1"]
    {
        assert_eq!(address(word), None, "{word}");
    }
}

#[test]
fn places_are_ram_and_four_devices() {
    assert!(matches!(command("evict coh3"), Command::Evict { device: Device(3), .. }));
    for line in [
        "evict ram",
        "evict dev4",
        "evict dev",
        "evict dev00",
        "migrate 0 4K disk",
        "folio dev0:",
        "folio x:1",
        "folio ram:0x100000000",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn every_mistake_names_the_word_and_the_way_out() {
    let cases = [
        ("mpa 0 4K", "there is no command \"mpa\"; did you mean map? help lists all"),
        ("migrat", "there is no command \"migrat\"; did you mean migrate? help lists all"),
        ("frobnicate", "there is no command \"frobnicate\"; help lists all"),
        ("map", "map needs ADDR; usage: map ADDR SIZE [rw|r|none] [huge|nohuge]"),
        (
            "walk here",
            "ADDR cannot be \"here\": an address is hexadecimal, like 0x10_0000_0000, and may go on with +SIZE; usage: walk ADDR",
        ),
        (
            "unmap 0 0",
            "SIZE cannot be \"0\": a size is like 4K, 2M, 1G, 16p (pages), 8192 or 0x2000, and not 0; usage: unmap ADDR SIZE",
        ),
        (
            "protect 0 4K x",
            "PROT cannot be \"x\": its words are in the usage; usage: protect ADDR SIZE rw|r|none",
        ),
        ("touch 0 5Q", "touch has no use for \"5Q\"; usage: touch ADDR [SIZE] [r|w]"),
        ("stat --dif", "stat has no use for \"--dif\"; usage: stat [--diff]"),
        ("check 0 8 --as", "check needs ORIGIN; usage: check ADDR SIZE [SEED] [--where] [--as ORIGIN]"),
        (
            "check 0 8 --where --where",
            "check has no use for \"--where\"; usage: check ADDR SIZE [SEED] [--where] [--as ORIGIN]",
        ),
        ("use two", "SPACE cannot be \"two\": a number is like 16 or 0x10; usage: use SPACE"),
        ("set granul 4K", "KNOB cannot be \"granul\": set alone lists the knobs; usage: set [KNOB] [VALUE]"),
        ("help hlep", "help has no use for \"hlep\"; usage: help [CMD]"),
        ("audit a b c d e f g h i j k l m n", "audit has no use for \"m\"; usage: audit"),
    ];
    for (line, expected) in cases {
        assert_eq!(refused(line), expected);
    }
    assert!(matches!(parse("MAP 0 4K"), Err(Error::Unknown { word: "MAP", .. })));
}

fn completed(line: &str) -> (usize, Vec<&'static str>) {
    let mut words = Vec::new();
    let start = complete(line, &mut |word| words.push(word));
    (start, words)
}

#[test]
fn words_are_completed_from_the_table() {
    assert_eq!(completed("mi"), (0, std::vec!["migrate"]));
    assert_eq!(completed("").1.len(), COMMANDS.len());
    assert_eq!(completed("migrate 0x1000 2M d"), (18, std::vec!["dev0", "dev1", "dev2", "dev3"]));
    assert_eq!(completed("check 0 8 --w"), (10, std::vec!["--where"]));
    assert_eq!(completed("help exit"), (5, std::vec!["exit-space", "exit"]));
    assert_eq!(completed("set sk"), (4, std::vec!["skip-flush"]));
    assert_eq!(completed("set granule "), (12, std::vec!["4K", "64K", "2M"]));
    assert_eq!(completed("set fail-plan o"), (14, std::vec!["off"]));
    assert_eq!(completed("set ").1.len(), Knob::ALL.len());
    assert_eq!(completed("nonsense m"), (9, std::vec![]));
}

#[test]
fn hints_are_what_is_still_missing() {
    let hinted = |line| hint(line).map(|rest| rest.to_string());
    assert_eq!(hinted("map ").as_deref(), Some("ADDR SIZE [rw|r|none] [huge|nohuge]"));
    assert_eq!(hinted("map 0x1000 2M ").as_deref(), Some("[rw|r|none] [huge|nohuge]"));
    for line in ["map", "map 0x10", "audit ", "nonsense ", "", "map 1 2 3 4 5 "] {
        assert_eq!(hinted(line), None, "{line:?}");
    }
}

/// Words that are nearly right, and words that are not.
fn word() -> impl Strategy<Value = String> {
    let names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
    prop_oneof![
        prop::sample::select(names).prop_map(String::from),
        prop::sample::select(std::vec![
            "0x1000", "2M", "16p", "rw", "huge", "dev0", "--where", "--as", "ram:1", "#", "+", "0x"
        ])
        .prop_map(String::from),
        any::<u64>().prop_map(|n| format!("{n:#x}")),
        "\\PC{0,12}",
        Just(String::new()),
    ]
}

proptest! {
    #[test]
    fn no_line_is_too_much(words in prop::collection::vec(word(), 0..20), blank in "[ \t;]{1,3}") {
        let line = words.join(&blank);
        if let Err(error) = parse(&line) {
            assert!(!error.to_string().contains('\n'));
        }
        let _ = hint(&line);
        let (start, found) = completed(&line);
        assert!(found.iter().all(|word| word.starts_with(&line[start..])));
    }

    #[test]
    fn no_text_is_too_much(line in any::<String>()) {
        let _ = parse(&line).map_err(|error| error.to_string());
        let _ = hint(&line);
        let (start, _) = completed(&line);
        assert!(line.is_char_boundary(start));
    }
}
