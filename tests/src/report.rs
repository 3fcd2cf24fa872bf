//! The report, as a user has it made and as a browser shows it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::{
    host,
    process::{self, Finished},
    require, runs,
};

/// A browser has shown a page of one file long before.
const BROWSER: Duration = Duration::from_secs(120);
/// Parts of a report that are no experiments of the kernel.
const OTHERS: [&str; 4] = ["migration", "operations", "linux", "phases"];
/// Experiments whose plots are of each kind, and which are quick.
const QUICK: [&str; 5] = ["example", "granularity", "fault-latency", "flush-batching", "tlb-stale"];
/// With this variable set the report has every experiment, which takes two minutes more.
const WHOLE: &str = "FARPAGE_WHOLE_REPORT";
/// The colours of the first two series, as the screen has them.
const SERIES: [[u8; 3]; 2] = [[0x00, 0x72, 0xb2], [0xd5, 0x5e, 0x00]];

/// All of them.
pub(crate) fn trials(runner: &Path) -> Vec<Trial> {
    let (first, second) = (runner.to_path_buf(), runner.to_path_buf());
    vec![
        Trial::ignorable_test("run::report::page_in_a_browser", move || {
            require::with("chromium", |chromium| in_folder("page", |folder| page(&first, &chromium, folder)))
        }),
        Trial::test("run::report::plot_of_the_readme_is_of_today", move || {
            in_folder("plot", |folder| plot_of_the_readme(&second, folder)).map_err(Failed::from)
        }),
    ]
}

/// With a folder that is gone afterwards.
fn in_folder(name: &str, trial: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    let folder = env::temp_dir().join(format!("farpage-report-{name}-{}", std::process::id()));
    let result = trial(&folder);
    // It may not have come to be.
    let _ = fs::remove_dir_all(&folder);
    result
}

fn report(runner: &Path, arguments: &[&str], folder: &Path) -> Result<Finished, String> {
    let mut command = Command::new(runner);
    command.arg("report").args(arguments).arg("-o").arg(folder);
    command.current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    let done = process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())?;
    if done.success() { Ok(done) } else { Err(done.to_string()) }
}

fn page(runner: &Path, chromium: &Path, folder: &Path) -> Result<(), String> {
    let chosen = if env::var_os(WHOLE).is_some() {
        Vec::new()
    } else {
        OTHERS.iter().chain(&QUICK).copied().collect()
    };
    let done = report(runner, &[&chosen[..], &["--sizes", "2M,4M"]].concat(), folder)?;
    let text = |name: &str| {
        fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}: {done}"))
    };
    let json: Value = serde_json::from_str(&text("report.json")?).map_err(|error| error.to_string())?;
    let points = text("report.csv")?.lines().count() - 1;

    let dom = browse(chromium, folder, &["--dump-dom"])?;
    let parts =
        if chosen.is_empty() { parts(runner)? } else { chosen.into_iter().map(str::to_owned).collect() };
    let drawn = check_plots(&json, &dom.stdout, &parts)?;
    if drawn != points {
        return Err(format!("{points} lines of CSV, and {drawn} points and cells on the page"));
    }
    let shot = folder.join("page.png");
    let argument = format!("--screenshot={}", shot.display());
    browse(chromium, folder, &["--window-size=1200,6000", "--hide-scrollbars", &argument])?;
    check_colors(&colors(&shot)?)
}

/// What a whole report has: what comes from `bench` and the trace, and every experiment that there is.
fn parts(runner: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new(runner);
    command.args(["exp", "--list"]).current_dir(host::workspace()).env_remove("CARGO_MANIFEST_DIR");
    let done = process::run(&mut command, runs::LIMIT).map_err(|error| error.to_string())?;
    let listed = done.stdout.lines().filter_map(|line| line.split_whitespace().next());
    let parts: Vec<_> = OTHERS.into_iter().chain(listed).map(str::to_owned).collect();
    if parts.len() > 10 { Ok(parts) } else { Err(format!("too few experiments: {done}")) }
}

/// What the browser says of the page; a word on its console is a failure.
fn browse(chromium: &Path, folder: &Path, arguments: &[&str]) -> Result<Finished, String> {
    let mut command = Command::new(chromium);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]);
    command.args(["--enable-logging=stderr", "--force-color-profile=srgb"]);
    command.arg(format!("--user-data-dir={}", folder.join("browser").display()));
    command.args(arguments).arg(format!("file://{}", folder.join("index.html").display()));
    let done = process::run(&mut command, BROWSER).map_err(|error| error.to_string())?;
    match done.stderr.lines().find(|line| line.contains("CONSOLE")) {
        Some(word) => Err(format!("the page has errors: {word}")),
        None if done.success() => Ok(done),
        None => Err(done.to_string()),
    }
}

/// Every plot has a mark for each of its numbers, every table a cell for each of its words, and each a word on what to look for.
fn check_plots(json: &Value, dom: &str, parts: &[String]) -> Result<usize, String> {
    let experiments = json["experiments"].as_array().ok_or("no experiments")?;
    let names: Vec<&str> = experiments.iter().filter_map(|one| one["name"].as_str()).collect();
    if names.len() != parts.len() || !parts.iter().all(|part| names.contains(&part.as_str())) {
        return Err(format!("{names:?} instead of {parts:?}"));
    }
    let mut all = 0;
    for plot in experiments.iter().flat_map(|one| one["plots"].as_array().into_iter().flatten()) {
        let id = plot["id"].as_str().ok_or("a plot without a name")?;
        let (marker, end, mark) = match plot["kind"].as_str() {
            Some("table") => (format!("data-table=\"{id}\""), "</table>", "<td"),
            _ => (format!("<svg data-plot=\"{id}\""), "</svg>", "class=\"mark\""),
        };
        let (before, rest) = dom.split_once(&marker).ok_or_else(|| format!("{id} is not on the page"))?;
        let drawn = rest.split_once(end).map_or("", |(inside, _)| inside).matches(mark).count();
        let series = plot["series"].as_array().into_iter().flatten();
        let points = series.map(|series| series["points"].as_array().map_or(0, Vec::len)).sum::<usize>();
        if points < 2 || drawn != points {
            return Err(format!("{id} has {points} points, and {drawn} of them are drawn"));
        }
        let figure = before.rsplit_once("<figure>").map_or("", |(_, figure)| figure);
        if !figure.contains("class=\"look\"") {
            return Err(format!(
                "{id} does not say what to look for: docs/EXPERIMENTS.md has no item with its title"
            ));
        }
        all += points;
    }
    Ok(all)
}

/// How often each colour is in a picture.
fn colors(path: &Path) -> Result<BTreeMap<[u8; 3], usize>, String> {
    let file = fs::File::open(path).map_err(|error| format!("no screenshot: {error}"))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let mut bytes = vec![0; reader.output_buffer_size().ok_or("a screenshot that is too large")?];
    let frame = reader.next_frame(&mut bytes).map_err(|error| error.to_string())?;
    let mut colors = BTreeMap::new();
    for pixel in bytes[..frame.buffer_size()].chunks_exact(frame.color_type.samples()) {
        *colors.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
    }
    Ok(colors)
}

/// It is not blank: there is text, which has many shades, and there are the colours of series.
fn check_colors(colors: &BTreeMap<[u8; 3], usize>) -> Result<(), String> {
    let all: usize = colors.values().sum();
    let most = colors.values().max().copied().unwrap_or(0);
    if colors.len() < 50 || most == all {
        return Err(format!("the page looks blank: {} colours, {most} of {all} pixels alike", colors.len()));
    }
    match SERIES.iter().find(|color| colors.get(*color).copied().unwrap_or(0) < 500) {
        None => Ok(()),
        Some(color) => Err(format!("no line or bar in {color:x?} is to be seen")),
    }
}

/// The marks of a plot: what they are of, and their numbers.
fn marks(svg: &str) -> BTreeMap<String, f64> {
    let titles = svg.lines().filter(|line| line.contains("class=\"mark\"")).filter_map(|line| {
        let (name, number) = line.split_once("<title>")?.1.split_once("</title>")?.0.rsplit_once(": ")?;
        let digits: String = number.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        Some((name.to_owned(), digits.parse().ok()?))
    });
    titles.collect()
}

fn plot_of_the_readme(runner: &Path, folder: &Path) -> Result<(), String> {
    let shown: PathBuf = host::workspace().join("docs/plots/migration.svg");
    report(runner, &["--readme-plot"], folder)?;
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let (old, new) = (marks(&read(&shown)?), marks(&read(&folder.join("migration.svg"))?));
    let way_out = "cargo run -- report --readme-plot draws it again";
    if old.is_empty() || !old.keys().eq(new.keys()) {
        return Err(format!("docs/plots/migration.svg shows other points than today: {way_out}"));
    }
    match old.iter().find(|(name, old)| (new[*name] - **old).abs() > **old * 0.02) {
        None => Ok(()),
        Some((name, old)) => Err(format!(
            "docs/plots/migration.svg has {old} at {name:?}, today it is {}: {way_out}",
            new[name]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOM: &str = "<figure>\n<p class=\"look\">Look.</p><svg data-plot=\"a-b\" role=\"img\">\
                       <rect class=\"mark\"></rect><rect class=\"mark\"></rect></svg></figure>";

    fn json(points: usize) -> Value {
        let plot = |id: &str| serde_json::json!({ "id": id, "kind": "bars", "series": [{ "points": vec![0; points] }] });
        let of = |name: &String| serde_json::json!({ "name": name, "plots": if name == "linux" { vec![plot("a-b")] } else { vec![] } });
        serde_json::json!({ "experiments": expected().iter().map(of).collect::<Vec<_>>() })
    }

    fn expected() -> Vec<String> {
        OTHERS.map(str::to_owned).to_vec()
    }

    #[test]
    fn a_plot_without_its_points_is_noticed() {
        let check_plots = |json: &Value, dom: &str| check_plots(json, dom, &expected());
        assert_eq!(check_plots(&json(2), DOM), Ok(2));
        assert!(check_plots(&json(3), DOM).unwrap_err().contains("3 points, and 2"));
        assert!(check_plots(&json(2), &DOM.replace("a-b", "c")).unwrap_err().contains("not on the page"));
        assert!(check_plots(&json(2), &DOM.replace("look", "")).unwrap_err().contains("what to look for"));
        assert!(check_plots(&serde_json::json!({ "experiments": [] }), DOM).is_err());
    }

    #[test]
    fn a_blank_page_is_noticed() {
        let mut colors = BTreeMap::from([([255, 255, 255], 1_000_000)]);
        assert!(check_colors(&colors).unwrap_err().contains("blank"));
        colors.extend((0..60).map(|shade| ([shade, shade, shade], 10)));
        assert!(check_colors(&colors).unwrap_err().contains("no line or bar"));
        colors.extend(SERIES.map(|color| (color, 600)));
        check_colors(&colors).unwrap();
    }

    #[test]
    fn marks_are_read_from_a_plot() {
        let svg = "<svg>\n<rect class=\"mark\"><title>to the device, 2M: 3,112.50 instructions</title></rect>\n<rect/>\n</svg>";
        assert_eq!(marks(svg), BTreeMap::from([("to the device, 2M".to_owned(), 3112.5)]));
    }
}
