//! The page: one file, with nothing in it that comes from elsewhere and nothing that runs.

use super::guide::Guide;
use super::{Part, Summary, draw};
use crate::error::Error;
use crate::lab::data::{End, Experiment, Kind, Plot};
use crate::lab::show::{show_x, show_y};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
/// What a browser may load: the style above. So a page that asks for anything else says so on its console.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The whole page.
///
/// # Errors
/// [`Error::Plot`].
pub(super) fn page(summary: &Summary, parts: &[Part]) -> Result<String, Error> {
    let guide = Guide::read();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>farpage: report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    out += &contents(parts);
    out += "<main>\n<h1>farpage: report</h1>\n";
    out += &head(summary);
    for part in parts {
        let _ = writeln!(
            out,
            "<h2 id=\"{}\">{}</h2>\n<p>{}</p>",
            slug(part.title),
            escaped(part.title),
            escaped(part.about)
        );
        for experiment in &part.experiments {
            out += &section(experiment, &guide, part.prefix)?;
        }
    }
    out += "</main>\n</body>\n</html>\n";
    Ok(out)
}

fn contents(parts: &[Part]) -> String {
    let mut out = String::from("<nav aria-label=\"Contents\">\n<a href=\"#summary\">Summary</a>\n");
    for part in parts {
        let _ =
            writeln!(out, "<strong><a href=\"#{}\">{}</a></strong>", slug(part.title), escaped(part.title));
        for experiment in &part.experiments {
            let id = format!("{}{}", part.prefix, experiment.name);
            let _ = writeln!(out, "<a href=\"#{id}\">{}</a>", escaped(&experiment.name));
        }
    }
    out + "</nav>\n"
}

fn head(summary: &Summary) -> String {
    let mut out = String::from("<section id=\"summary\">\n<dl class=\"facts\">\n");
    for (name, value) in &summary.facts {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value));
    }
    out += "</dl>\n<h2>At a glance</h2>\n<div class=\"tiles\">\n";
    for (value, what) in &summary.figures {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>",
            escaped(value),
            escaped(what)
        );
    }
    out += "</div>\n";
    for line in &summary.notes {
        let _ = writeln!(out, "<p>{}</p>", escaped(line));
    }
    out + "</section>\n"
}

fn section(experiment: &Experiment, guide: &Guide, prefix: &str) -> Result<String, Error> {
    let id = format!("{prefix}{}", experiment.name);
    let mut out = format!(
        "<section id=\"{id}\">\n<h3>{}</h3>\n<p class=\"question\">{}</p>\n<p class=\"measured\">Measured: {}.</p>\n",
        escaped(&experiment.name),
        escaped(&experiment.question),
        escaped(&experiment.measures)
    );
    if !experiment.findings.is_empty() {
        let items = experiment.findings.iter().map(|finding| format!("<li>{}</li>\n", escaped(finding)));
        let _ = write!(out, "<ul class=\"findings\">\n{}</ul>\n", items.collect::<String>());
    }
    match &experiment.end {
        End::Skipped(why) => drop(writeln!(out, "<p class=\"warning\">Skipped: {}.</p>", escaped(why))),
        End::Failed(why) => drop(writeln!(out, "<p class=\"warning\">Failed: {}.</p>", escaped(why))),
        End::Open | End::Done => {}
    }
    for plot in &experiment.plots {
        let look = guide.look_for(&experiment.name, &plot.title);
        out += &figure(plot, &figure_id(prefix, experiment, plot), look)?;
    }
    Ok(out + "</section>\n")
}

fn figure(plot: &Plot, id: &str, look: Option<&str>) -> Result<String, Error> {
    let varies = if plot.exact { "" } else { " <small>(not the same in every run)</small>" };
    let mut out = format!("<figure>\n<figcaption>\n<h4>{}{varies}</h4>\n", escaped(&plot.title));
    if let Some(look) = look {
        let _ = writeln!(out, "<p class=\"look\">{}</p>", escaped(look));
    }
    out += "</figcaption>\n";
    if plot.kind == Kind::Table {
        let _ = writeln!(out, "<div class=\"wide\" data-table=\"{id}\">\n{}</div>", table(plot));
    } else {
        let points: usize = plot.series.iter().map(|series| series.points.len()).sum();
        let _ = write!(out, "<div class=\"wide\">\n{}</div>\n", draw::svg(plot, id)?);
        let _ = writeln!(
            out,
            "<details><summary>The numbers ({points})</summary>\n<div class=\"wide\">\n{}</div></details>",
            table(plot)
        );
    }
    Ok(out + "</figure>\n")
}

fn table(plot: &Plot) -> String {
    let mut out = String::from("<table>\n<thead><tr>");
    let _ = write!(out, "<th scope=\"col\">{}</th>", escaped(&draw::named(&plot.x.label, &plot.x.unit)));
    for series in &plot.series {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escaped(&series.name));
    }
    out += "</tr></thead>\n<tbody>\n";
    for x in plot.xs() {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escaped(&show_x(plot, x)));
        for series in &plot.series {
            let point = series.points.iter().find(|point| point.x == x);
            let text = point.map(show_y).unwrap_or_default();
            let _ = write!(out, "<td{}>{}</td>", class(&text), escaped(&text));
        }
        out += "</tr>\n";
    }
    let what = if plot.y.unit.is_empty() {
        String::new()
    } else {
        format!("<caption>{}</caption>", escaped(&draw::named(&plot.y.label, &plot.y.unit)))
    };
    out.replacen("<table>\n", &format!("<table>\n{what}"), 1) + "</tbody>\n</table>\n"
}

/// Numbers stand to the right; only what is long is broken into lines.
fn class(text: &str) -> &'static str {
    let digit = |c: char| c.is_ascii_digit() || ",.% -".contains(c);
    match text {
        _ if text.chars().all(digit) => " class=\"n\"",
        _ if text.len() > 28 => " class=\"long\"",
        _ => "",
    }
}

/// What a figure is called within the page, and in the JSON.
pub(super) fn figure_id(prefix: &str, experiment: &Experiment, plot: &Plot) -> String {
    format!("{prefix}{}-{}", experiment.name, slug(&plot.title))
}

/// Text as it stands in a page, between tags or in an attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// A name for an address within the page: letters, digits and `-`.
fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let words: String = text.chars().map(plain).collect();
    words.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests;
