//! Axes: what range they show, where their ticks are, and what stands there.
//!
//! `plotters` draws; where it would choose ticks itself it is told, because sizes of memory want powers of two.

use crate::size::Size;
use crate::table::grouped;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use std::ops::Range;

/// The most ticks that an axis has.
const TICKS: usize = 9;

/// An axis with a range and ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Scale {
    /// For `values`. A logarithmic axis has no place for 0, so it is a linear one if there is any.
    pub(super) fn new(values: impl Iterator<Item = f64> + Clone, log: bool, unit: &str) -> Self {
        let (least, most) = (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max));
        match (least <= most, log && least > 0.0) {
            (false, _) => Self::linear(1.0, ""),
            (true, true) => {
                Self::logarithmic(least, most, if unit == "bytes" || unit == "pages" { 2.0 } else { 10.0 })
            }
            (true, false) => Self::linear(most, unit),
        }
    }

    /// From 0 on. (Nothing here is negative.)
    fn linear(most: f64, unit: &str) -> Self {
        if unit == "%" && most > 50.0 {
            return Self {
                from: 0.0,
                to: 100.0,
                log: false,
                ticks: (0..=5).map(|n| f64::from(n) * 20.0).collect(),
            };
        }
        let most = if most > 0.0 { most } else { 1.0 };
        let decade = 10f64.powf((most / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * decade);
        let step = step.into_iter().find(|step| most / step <= 5.5).unwrap_or(10.0 * decade);
        let count = (most / step - 1e-6).ceil().max(1.0) as u32;
        Self {
            from: 0.0,
            to: step * f64::from(count),
            log: false,
            ticks: (0..=count).map(|n| f64::from(n) * step).collect(),
        }
    }

    /// With a little room at both ends.
    fn logarithmic(least: f64, most: f64, base: f64) -> Self {
        let (from, to) = if most > least { (least / 1.2, most * 1.2) } else { (least / base, most * base) };
        let powers = |base: f64| {
            let exponents = from.log(base).ceil() as i32..=to.log(base).floor() as i32;
            exponents.map(move |exponent| base.powi(exponent)).collect::<Vec<_>>()
        };
        let mut ticks = powers(base);
        if ticks.len() < 3 && base > 2.0 {
            ticks = ticks_1_2_5(from, to);
        }
        let every = ticks.len().div_ceil(TICKS);
        Self { from, to, log: true, ticks: ticks.into_iter().step_by(every.max(1)).collect() }
    }

    /// From the next power of ten below, so that every bar has a length.
    pub(super) fn for_bars(values: impl Iterator<Item = f64> + Clone, log: bool, unit: &str) -> Self {
        let scale = Self::new(values, log, unit);
        if !scale.log {
            return scale;
        }
        let (from, to) = (10f64.powf(scale.from.log10().floor()), scale.to);
        Self { from, ..Self::logarithmic(from * 1.2, to, 10.0) }
    }

    /// For `n` words, the first at the top of a vertical axis; `n + 0.5` is the middle of the place of word `n`.
    pub(super) fn words(n: usize) -> Self {
        Self { from: n as f64, to: 0.0, log: false, ticks: (0..n).map(|n| n as f64 + 0.5).collect() }
    }

    /// Where it begins.
    pub(super) fn from(&self) -> f64 {
        self.from
    }

    /// The longest of what stands at its ticks, in characters.
    pub(super) fn label_len(&self, unit: &str) -> usize {
        self.ticks.iter().map(|&tick| label(tick, unit).chars().count()).max().unwrap_or(0)
    }
}

fn ticks_1_2_5(from: f64, to: f64) -> Vec<f64> {
    let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|times| times * 10f64.powi(decade)));
    all.filter(|tick| (from..=to).contains(tick)).collect()
}

/// What stands at a tick: `64K` for bytes, `2 M` for other large numbers.
pub(super) fn label(value: f64, unit: &str) -> String {
    if unit == "bytes" && value >= 1.0 {
        return Size(value.round() as u64).to_string();
    }
    let short = |value: f64, suffix: &str| {
        let digits = format!("{value:.1}");
        format!("{}{suffix}", digits.strip_suffix(".0").unwrap_or(&digits))
    };
    match value {
        value if value >= 1e9 => short(value / 1e9, " G"),
        value if value >= 1e6 => short(value / 1e6, " M"),
        value if value >= 1e5 => short(value / 1e3, " k"),
        value if value >= 1.0 && value.fract() == 0.0 => grouped(value as u64),
        0.0 => "0".into(),
        value if value >= 1.0 => short(value, ""),
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, &value: &f64, (first, last): (i32, i32)) -> i32 {
        let place = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let (from, to) = (place(self.from), place(self.to));
        let part = (place(value) - from) / (to - from);
        first + (f64::from(last - first) * part.clamp(-0.1, 1.1)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool, unit: &str) -> Vec<String> {
        let scale = Scale::new(values.iter().copied(), log, unit);
        scale.ticks.iter().map(|&tick| label(tick, unit)).collect()
    }

    #[test]
    fn memory_has_ticks_at_powers_of_two() {
        let sizes = [(512 << 10) as f64, (2 << 20) as f64, (256 << 20) as f64];
        assert_eq!(labels(&sizes, true, "bytes"), ["512K", "2M", "8M", "32M", "128M"]);
        assert_eq!(labels(&[65536.0, 131_072.0], true, "bytes"), ["64K", "128K"]);
    }

    #[test]
    fn numbers_have_ticks_at_powers_of_ten() {
        assert_eq!(labels(&[300.0, 2e6], true, "instructions"), ["1,000", "10,000", "100 k", "1 M"]);
        assert_eq!(labels(&[300.0, 1500.0], true, "instructions"), ["500", "1,000"]);
    }

    #[test]
    fn linear_axes_begin_at_zero_and_end_at_a_tick() {
        assert_eq!(labels(&[3.0, 7.6], false, ""), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(&[99.2], false, "%"), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(&[0.0], false, ""), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn zero_makes_a_logarithmic_axis_linear() {
        assert!(!Scale::new([0.0, 8.0].into_iter(), true, "").log);
        assert!(Scale::new([1.0, 8.0].into_iter(), true, "").log);
        assert!(!Scale::new(std::iter::empty(), true, "").ticks.is_empty(), "no value, but an axis");
    }

    #[test]
    fn a_value_has_its_place() {
        let scale = Scale { from: 1.0, to: 100.0, log: true, ticks: Vec::new() };
        assert_eq!([1.0, 10.0, 100.0].map(|value| scale.map(&value, (0, 200))), [0, 100, 200]);
        assert_eq!(Scale::words(4).map(&0.5, (400, 0)), 50, "the first word is at the top");
    }
}
