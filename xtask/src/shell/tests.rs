use super::script::commands;
use super::{commands as table, cost, measured, shown};

#[test]
fn a_line_is_commands_and_a_comment() {
    let split = |line| commands(line).collect::<Vec<_>>();
    assert_eq!(split("map 0x1000 4K; touch 0x1000 ;; audit"), ["map 0x1000 4K", "touch 0x1000", "audit"]);
    assert_eq!(split("audit # and; not this"), ["audit"]);
    assert_eq!(split("# nothing; at all"), [""; 0]);
    assert_eq!(split("  "), [""; 0]);
}

#[test]
fn help_names_every_command() {
    let table = table();
    for spec in ktest::monitor::COMMANDS {
        assert!(table.contains(&format!("\n  {}", spec.usage())), "{}", spec.name);
    }
}

#[test]
fn costs_and_errors_read_well() {
    let plain = |text: &str| console::strip_ansi_codes(text).into_owned();
    assert_eq!(plain(&cost(true, 699, 0)), "    699 instructions");
    let copied = "    1,211 instructions, 512 of them the data moved or cleared (42.3 %), 699 beyond";
    assert_eq!(plain(&cost(true, 1211, 512)), copied);
    let row = measured("@bench name=\"fault-back, 4 KiB\" total=3000 bulk=1024 n=2").unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>().join(" "),
        "fault-back, 4 KiB 1,500, 988 beyond the data"
    );
    assert_eq!(plain(&shown("error: no")), "    error: no");
    assert_eq!(plain(&shown("mapped")), "    mapped");
}
