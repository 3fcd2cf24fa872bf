//! Words that could stand where the line ends, and what is still missing there.

use super::knobs::Knob;
use super::table::{COMMANDS, Spec, Usage};
use super::words::Shape;

/// The words of a line, and the one that is being typed (empty behind a blank).
fn typed(line: &str) -> (impl Iterator<Item = &str>, &str) {
    let start = line
        .rfind(char::is_whitespace)
        .map_or(0, |at| at + line[at..].chars().next().map_or(0, char::len_utf8));
    (line[..start].split_whitespace(), &line[start..])
}

/// Calls `f` with every word that could stand at the end of `line`, and says where that word begins.
pub fn complete(line: &str, f: &mut dyn FnMut(&'static str)) -> usize {
    let (mut words, last) = typed(line);
    let mut offer = |word: &'static str| {
        if word.starts_with(last) {
            f(word);
        }
    };
    let names = || COMMANDS.iter().map(|spec| spec.name);
    match words.next() {
        None => names().for_each(&mut offer),
        Some(name) => {
            let knob = words.next().and_then(Knob::find);
            for param in Spec::find(name).map_or(&[][..], |spec| spec.params) {
                match param.shape {
                    Shape::Knob if knob.is_none() => Knob::ALL.iter().for_each(|knob| offer(knob.word())),
                    Shape::OfKnob => knob.map_or(&[][..], Knob::words).iter().copied().for_each(&mut offer),
                    Shape::Words(words) | Shape::Value(words, _) => {
                        words.iter().copied().for_each(&mut offer);
                    }
                    Shape::Flag(flag) | Shape::FlagAddress(flag) => offer(flag),
                    Shape::Place => ["ram", "dev0", "dev1", "dev2", "dev3"].into_iter().for_each(&mut offer),
                    Shape::Device => ["dev0", "dev1", "dev2", "dev3"].into_iter().for_each(&mut offer),
                    Shape::Command => names().for_each(&mut offer),
                    Shape::Address
                    | Shape::Size
                    | Shape::Number
                    | Shape::Target
                    | Shape::Knob
                    | Shape::Text => {}
                }
            }
        }
    }
    line.len() - last.len()
}

/// The arguments that are still to be typed, once the command is known and its last word is finished.
#[must_use]
pub fn hint(line: &str) -> Option<Usage> {
    let (mut words, last) = typed(line);
    let spec = Spec::find(words.next()?)?;
    let params = spec.params.get(words.count()..).filter(|params| !params.is_empty() && last.is_empty())?;
    Some(Usage { name: "", params })
}
