//! What to look for in each plot: read from `docs/EXPERIMENTS.md`, so that it is written once.
//!
//! There, an experiment is a heading with its name, and each of its plots an item: `- *Title*: what to look for`.

const TEXT: &str = include_str!("../../../docs/EXPERIMENTS.md");

/// The sentences, by experiment and plot.
#[derive(Debug)]
pub(super) struct Guide(Vec<(String, String, String)>);

impl Guide {
    /// Reads the file that was there when this was built.
    pub(super) fn read() -> Self {
        Self::parse(TEXT)
    }

    fn parse(text: &str) -> Self {
        let mut sentences: Vec<(String, String, String)> = Vec::new();
        let (mut experiment, mut open) = ("", false);
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("### ") {
                (experiment, open) = (heading.trim(), false);
            } else if let Some((title, look)) =
                line.strip_prefix("- *").and_then(|item| item.split_once("*: "))
            {
                sentences.push((experiment.into(), title.into(), look.into()));
                open = true;
            } else if let (true, Some(more), Some(last)) =
                (open, line.strip_prefix("  "), sentences.last_mut())
            {
                last.2.extend([" ", more.trim()]);
            } else {
                open = false;
            }
        }
        for (_, _, look) in &mut sentences {
            // Code is marked in the file; a page shows it as text.
            *look = look.replace('`', "");
            if let Some(first) = look.get(..1).map(str::to_uppercase) {
                look.replace_range(..1, &first);
            }
        }
        Self(sentences)
    }

    /// The sentence for a plot.
    pub(super) fn look_for(&self, experiment: &str, title: &str) -> Option<&str> {
        self.0.iter().find(|found| found.0 == experiment && found.1 == title).map(|found| found.2.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_under_a_heading_are_sentences_about_its_plots() {
        let text = "### a-b\nprose\n- *One plot*: look here,\n  and `there`.\n- other\n### c\n- *One plot*: not here\n";
        let guide = Guide::parse(text);
        assert_eq!(guide.look_for("a-b", "One plot"), Some("Look here, and there."));
        assert_eq!(guide.look_for("c", "One plot"), Some("Not here"));
        assert_eq!(guide.look_for("c", "Other"), None);
    }

    /// The folder of the experiments in the kernel, and its files.
    fn sources() -> Vec<(String, String)> {
        let folder = crate::build::root().join("kernel/src/lab");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
        files
            .filter(|path| path.is_file())
            .map(|path| (name(&path), std::fs::read_to_string(path).unwrap()))
            .collect()
    }

    #[test]
    fn every_experiment_has_a_section() {
        let sources = sources();
        let declared = sources
            .iter()
            .flat_map(|(_, text)| text.split("crate::experiment! {\n").skip(1))
            .filter_map(|text| text.split_once("name: \""));
        let names: Vec<&str> = declared.filter_map(|(_, rest)| rest.split('"').next()).collect();
        assert!(names.len() >= 3, "{names:?}");
        for name in names.into_iter().chain(super::super::OF_BENCH) {
            assert!(
                TEXT.contains(&format!("\n### {name}\n")),
                "docs/EXPERIMENTS.md has no section ### {name}"
            );
        }
    }

    #[test]
    fn the_example_is_the_file_that_the_kernel_has() {
        let (_, example) = sources().into_iter().find(|(name, _)| name == "example.rs").unwrap();
        assert!(
            TEXT.contains(&format!("```rust\n{example}```\n")),
            "docs/EXPERIMENTS.md shows another kernel/src/lab/example.rs"
        );
    }
}
