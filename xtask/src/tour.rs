//! `tour`: the kernel shows what it does; the runner adds what only it can know, the time on the wall.
//!
//! The guest sends text and records. A step begins with `@step n= title=`; when its operation is done comes
//! `@done n= insns= bulk= what= data=`: instructions that it took, words that it moved or cleared (each one instruction,
//! by `rep movsq` and `rep stosq`), what it was, and whether the words were a copy or a clearing. Share and time are computed
//! here, from the numbers of this run; what follows until the next step is what the operation led to.

use crate::boot;
use crate::cli::{Defaults, MachineArgs};
use crate::error::Error;
use crate::qemu::{GuestCommand, Line, Qemu};
use crate::symbolize::Symbolizer;
use crate::table::{grouped, percent};
use console::style;
use ktest::wire::Record;
use std::io::Write;
use std::time::Duration;

const INDENT: &str = "    ";

/// Runs the tour.
pub(crate) fn run(machine: &MachineArgs) -> Result<(), Error> {
    let qemu = machine.qemu(&Defaults::TOUR, GuestCommand::run("tour"))?;
    let built = machine.prepare(&qemu)?;
    let mut symbolizer = Symbolizer::new(&built.kernel);
    let mut screen = Screen::new(&qemu);
    let mut run = qemu.spawn(&built)?;
    let mut out = std::io::stdout().lock();
    while let Some(line) = run.next_line() {
        for line in screen.show(&line, &mut symbolizer) {
            writeln!(out, "{line}")?;
        }
    }
    let elapsed = run.elapsed();
    boot::verdict(run.finish())?;
    for line in screen.end(elapsed) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Turns what the guest sends into what a person reads.
struct Screen {
    /// The guest's clock counts instructions.
    counted: bool,
    /// When the step that runs began, and its number.
    step: Option<(u64, Duration)>,
    nr_steps: u64,
    ticks: u64,
    bulk: u64,
    /// The last line was a machine fact.
    in_facts: bool,
}

impl Screen {
    fn new(qemu: &Qemu) -> Self {
        Self { counted: qemu.icount, step: None, nr_steps: 0, ticks: 0, bulk: 0, in_facts: false }
    }

    /// The lines to show for a line of the console.
    fn show(&mut self, line: &Line, symbolizer: &mut Symbolizer) -> Vec<String> {
        let record = Record::parse(&line.text);
        let kind = record.as_ref().map_or("", Record::kind);
        let was_in_facts = std::mem::replace(&mut self.in_facts, kind == "machine");
        match (kind, record) {
            ("machine", Some(record)) => facts(&record, was_in_facts),
            ("say", Some(record)) => vec![String::new(), record.get("text").unwrap_or_default().into_owned()],
            ("step", Some(record)) => self.begin(&record, line.at),
            ("done", Some(record)) => self.done(&record, line.at),
            ("progress", Some(_)) => Vec::new(),
            _ => symbolizer.expand(&line.text).iter().map(|line| text(line)).collect(),
        }
    }

    fn begin(&mut self, record: &Record<'_>, at: Duration) -> Vec<String> {
        let n = record.u64("n").unwrap_or(self.nr_steps + 1);
        self.step = Some((n, at));
        let title = record.get("title").unwrap_or_default();
        vec![String::new(), style(format!("{n:2}  {title}")).bold().to_string()]
    }

    fn done(&mut self, record: &Record<'_>, at: Duration) -> Vec<String> {
        self.nr_steps += 1;
        let ticks = record.u64("insns").unwrap_or(0);
        let bulk = record.u64("bulk").unwrap_or(0);
        self.ticks += ticks;
        self.bulk += bulk;
        let n = record.u64("n");
        let began = self.step.take().filter(|&(begun, _)| n.is_none_or(|n| n == begun));
        let mut cost = record.get("what").map_or(String::new(), |what| format!("{what}: "));
        cost += &self.cost(ticks, bulk, &record.get("data").unwrap_or("data".into()));
        if let Some((_, began)) = began {
            cost += &format!("; {:.1} ms", at.saturating_sub(began).as_secs_f64() * 1e3);
        }
        vec![style(indented(&cost)).cyan().to_string()]
    }

    fn cost(&self, ticks: u64, bulk: u64, data: &str) -> String {
        cost(self.counted, ticks, bulk, data)
    }

    fn end(&self, elapsed: Duration) -> Vec<String> {
        let cost = self.cost(self.ticks, self.bulk, "data moved or cleared");
        let steps = format!("{} steps: {cost}", self.nr_steps);
        let line = format!("{:.2} s of wall time from power-on to the end", elapsed.as_secs_f64());
        vec![String::new(), style(steps).cyan().to_string(), style(line).green().bold().to_string()]
    }
}

/// A cost in words. Only counted instructions can be compared with words of data.
pub(crate) fn cost(counted: bool, ticks: u64, bulk: u64, data: &str) -> String {
    match (counted, bulk) {
        (false, _) => format!("{} ticks, {} words of {data}", grouped(ticks), grouped(bulk)),
        (true, 0) => format!("{} instructions", grouped(ticks)),
        (true, _) => format!(
            "{} instructions, {} of them the {data} ({}), {} beyond",
            grouped(ticks),
            grouped(bulk),
            percent(bulk, ticks),
            grouped(ticks.saturating_sub(bulk))
        ),
    }
}

/// A line of the guest's text; on a terminal with a little colour, so that the eye finds what lies where.
pub(crate) fn text(line: &str) -> String {
    if line.starts_with("data right") || line.starts_with("audit ok") {
        return style(indented(line)).green().to_string();
    }
    // The kernel's last sentence, when it gives up.
    if let Some(why) = line.strip_prefix("farpage: ") {
        return format!("\n{} {why}", style("farpage:").red().bold());
    }
    let mut line = indented(line);
    for (word, styled) in
        [("device-private", style("device-private").yellow()), ("present  ", style("present  ").green())]
    {
        line = line.replacen(word, &styled.to_string(), 1);
    }
    line
}

/// `key: value` lines under a heading of their own.
fn facts(record: &Record<'_>, goes_on: bool) -> Vec<String> {
    let heading = (!goes_on).then(|| style("Machine").bold().to_string());
    let fact = |(key, value): (&str, ktest::wire::Value<'_>)| {
        format!("{INDENT}{:<18}{}", key.replace(['_', '-'], " "), value.text())
    };
    heading.into_iter().chain(record.fields().map(fact)).collect()
}

fn indented(line: &str) -> String {
    if line.is_empty() { String::new() } else { format!("{INDENT}{line}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn shown(lines: &[(&str, u64)], counted: bool) -> Vec<String> {
        let qemu = Qemu { icount: counted, ..Qemu::default() };
        let mut screen = Screen::new(&qemu);
        let mut symbolizer = Symbolizer::new(Path::new("/nonexistent"));
        let mut out = Vec::new();
        for &(text, ms) in lines {
            out.extend(screen.show(
                &Line { text: text.into(), bytes: Vec::new(), at: Duration::from_millis(ms) },
                &mut symbolizer,
            ));
        }
        out.extend(screen.end(Duration::from_millis(1500)));
        out.iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect()
    }

    #[test]
    fn a_step_shows_title_cost_with_wall_time_and_text() {
        let lines = [
            ("@step n=3 title=\"Move to the device\"", 100),
            ("@done n=3 insns=1000000 bulk=750000 what=\"2 MiB\" data=copy", 112),
            ("2 pages", 113),
        ];
        let expected = [
            "",
            " 3  Move to the device",
            "    2 MiB: 1,000,000 instructions, 750,000 of them the copy (75.0 %), 250,000 beyond; 12.0 ms",
            "    2 pages",
            "",
            "1 steps: 1,000,000 instructions, 750,000 of them the data moved or cleared (75.0 %), 250,000 beyond",
            "1.50 s of wall time from power-on to the end",
        ];
        assert_eq!(shown(&lines, true), expected);
    }

    #[test]
    fn uncounted_ticks_are_not_called_instructions() {
        let shown = shown(&[("@step n=1 title=x", 0), ("@done n=1 insns=5000 bulk=100", 1)], false);
        assert_eq!(shown[2], "    5,000 ticks, 100 words of data; 1.0 ms");
    }

    #[test]
    fn a_step_that_ends_as_another_has_no_time() {
        let shown = shown(&[("@step n=1 title=x", 0), ("@done n=2 insns=1 bulk=0", 1)], true);
        assert_eq!(shown[2], "    1 instructions");
    }

    #[test]
    fn machine_facts_share_one_heading_and_other_lines_pass() {
        let lines = [("@machine cpu=max ram_mib=256", 0), ("@machine device=1af4:1110", 0), ("@odd x=1", 0)];
        let shown = shown(&lines, true);
        assert_eq!(shown[0], "Machine");
        assert_eq!(shown[1], "    cpu               max");
        assert_eq!(shown[2], "    ram mib           256");
        assert_eq!(shown[3], "    device            1af4:1110");
        assert_eq!(shown[4], "    @odd x=1");
    }
}
