//! What an experiment works with: memory of its own, a clock, and paper.

use core::fmt::Display;

use farpage_mm::{AddressSpace, HugeAdvice, Place, Prot, Space, VaRange};
use farpage_pmu::{Event, Refusal, Value};
use ktest::record;

use crate::bench::Stop;
use crate::console;
use crate::counting::{self, NotCounted};
use crate::measure::{Cost, measure, nanoseconds};
use crate::vm::{Machine, activate, mm, new_space};

/// How a plot is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A curve for each series; `x` is a number.
    Lines,
    /// A curve that keeps its level from each point to the next: how many are at most `x`.
    Steps,
    /// Bars side by side; `x` is a word.
    Bars,
    /// Bars on top of each other: parts of a whole.
    Stacked,
    /// A table: what is found is no curve.
    Table,
}

/// What an axis shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    label: &'static str,
    unit: &'static str,
    log: bool,
}

impl Axis {
    /// Evenly divided. `unit` may be empty.
    pub(crate) const fn linear(label: &'static str, unit: &'static str) -> Self {
        Self { label, unit, log: false }
    }
    /// Each step twice the one before.
    pub(crate) const fn log(label: &'static str, unit: &'static str) -> Self {
        Self { label, unit, log: true }
    }
    /// Bytes, each step twice the one before.
    pub(crate) const fn bytes(label: &'static str) -> Self {
        Self::log(label, "bytes")
    }
    /// Words: the `x` of bars and tables.
    pub(crate) const fn words(label: &'static str) -> Self {
        Self::linear(label, "")
    }
    /// What something costs: instructions where they are counted, else nanoseconds. Points take ticks ([`Sheet::cost`]).
    pub(crate) const fn cost(label: &'static str) -> Self {
        Self::linear(label, "cost")
    }
}

/// A plot that is open on a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a plot without points shows nothing"]
pub(crate) struct Plot(u64);

/// What an experiment writes on.
pub(crate) struct Sheet<'a> {
    space: &'a AddressSpace<Machine>,
    plots: u64,
    next: u64,
    wall: bool,
}

impl<'a> Sheet<'a> {
    /// The first device.
    pub(crate) const DEV: Place = Place::device(0);
    /// Where memory that is mapped here begins.
    pub(crate) const BASE: u64 = 0x10_0000_0000;
    /// What lies between two mappings, so that none grows into another.
    const GAP: u64 = 1 << 30;

    /// A new sheet, its space loaded while `work` runs.
    pub(super) fn with(wall: bool, work: fn(&mut Sheet<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let space = new_space()?;
        let active = activate(&space);
        let result = work(&mut Sheet { space: &space, plots: 0, next: Self::BASE, wall });
        drop(active);
        result
    }

    /// The address space that is loaded.
    pub(crate) fn space(&self) -> &'static Space<Machine> {
        self.space.space()
    }

    /// The same, to clone it or to load it again.
    pub(crate) fn address_space(&self) -> &'a AddressSpace<Machine> {
        self.space
    }

    /// Does this run measure time instead of instructions?
    pub(crate) fn is_wall(&self) -> bool {
        self.wall
    }

    /// Maps `len` bytes for loads and stores, at an address of 1 GiB's alignment that was not mapped here before.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn map(&mut self, len: u64, advice: HugeAdvice) -> Result<VaRange, Stop> {
        let range = VaRange::new(self.next, len);
        self.next += len.next_multiple_of(Self::GAP) + Self::GAP;
        self.space().map_anon(range, Prot::RW, advice)?;
        Ok(range)
    }

    /// Moves all of `range` to the first device.
    ///
    /// # Errors
    /// Out of memory, or a page that did not move.
    pub(crate) fn to_device(&self, range: VaRange) -> Result<(), Stop> {
        let report = self.space().migrate(range, Self::DEV)?;
        if report.pages == range.nr_pages() { Ok(()) } else { Err(Stop::Wrong("not every page moved")) }
    }

    /// Is there so much free memory, in bytes?
    ///
    /// # Errors
    /// [`Stop::DoesNotFit`]: the experiment is skipped.
    pub(crate) fn needs(&self, ram: u64, device: u64) -> Result<(), Stop> {
        let free = |place| u64::from(mm().zone(place).stat().free) << 12;
        if free(Self::DEV) < device {
            return Err(Stop::DoesNotFit("the device's memory is smaller (--device-size)"));
        }
        // Tables and descriptors take their part.
        if free(Place::RAM) < ram + (ram >> 6) + (8 << 20) {
            return Err(Stop::DoesNotFit("the machine has less free RAM (--memory)"));
        }
        Ok(())
    }

    /// Runs `work` and says what it cost, the measuring itself not included.
    #[inline(always)]
    pub(crate) fn measure<R>(&self, work: impl FnOnce() -> R) -> (R, Cost) {
        measure(work)
    }

    /// Runs `work` and counts `event` in it, where the CPU has counters that can.
    ///
    /// # Errors
    /// It has none, and what there is instead: a finding, not the end of an experiment.
    pub(crate) fn count<R>(&self, event: Event, work: impl FnOnce() -> R) -> Result<(R, u64), NotCounted> {
        let mut scope = counting::scope(&[event])?;
        let result = work();
        let counts = scope.read().map_err(Refusal::Register)?;
        Ok((result, counts.get(event).and_then(Value::number).unwrap_or(0)))
    }

    /// What `work` says that it cost, in ticks: of one time where instructions are counted, else the median of many.
    ///
    /// # Errors
    /// The first of `work`.
    pub(crate) fn typical<E>(&self, mut work: impl FnMut() -> Result<u64, E>) -> Result<u64, E> {
        let mut costs = [0; 15];
        let costs = if self.wall { &mut costs[..] } else { &mut costs[..1] };
        for cost in &mut *costs {
            *cost = work()?;
        }
        costs.sort_unstable();
        Ok(costs[costs.len() / 2])
    }

    /// Opens a plot.
    pub(crate) fn plot(&mut self, kind: Kind, title: &str, x: Axis, y: Axis) -> Plot {
        self.open(kind, title, x, y, true)
    }

    /// Opens a plot whose numbers are not the same in every run, whatever counts them.
    pub(crate) fn plot_that_varies(&mut self, kind: Kind, title: &str, x: Axis, y: Axis) -> Plot {
        self.open(kind, title, x, y, false)
    }

    fn open(&mut self, kind: Kind, title: &str, x: Axis, y: Axis, exact: bool) -> Plot {
        let plot = self.plots;
        self.plots += 1;
        let word = |axis: Axis| if axis.log { "log" } else { "linear" };
        let kind = match kind {
            Kind::Lines => "lines",
            Kind::Steps => "steps",
            Kind::Bars => "bars",
            Kind::Stacked => "stacked",
            Kind::Table => "table",
        };
        // Time never repeats.
        let exact = u8::from(exact && !(self.wall && [x.unit, y.unit].contains(&"cost")));
        let (yunit, wall) = (y.unit, u8::from(self.wall));
        console::with(|out| {
            let _ = record!(
                out,
                "plot",
                id = plot,
                kind = kind,
                title = title,
                x = x.label,
                xunit = x.unit,
                xscale = word(x),
                y = y.label,
                yunit = yunit,
                yscale = word(y),
                wall = wall,
                exact = exact
            );
        });
        Plot(plot)
    }

    /// A point of a series: `sum` for `n` times what the axis shows one of.
    pub(crate) fn point(&mut self, plot: Plot, series: &str, x: impl Display, sum: u64, n: u64) {
        console::with(|out| {
            let _ = record!(out, "point", plot = plot.0, series = series, x = x, sum = sum, n = n);
        });
    }

    /// A point of a series whose axis is a cost: ticks for `n` times the same.
    pub(crate) fn cost(&mut self, plot: Plot, series: &str, x: impl Display, ticks: u64, n: u64) {
        let sum = if self.wall { nanoseconds(ticks) } else { ticks };
        self.point(plot, series, x, sum, n);
    }

    /// A cell of a table, in words.
    pub(crate) fn cell(&mut self, plot: Plot, column: &str, row: impl Display, text: impl Display) {
        console::with(|out| {
            let _ = record!(out, "cell", plot = plot.0, series = column, x = row, text = text);
        });
    }

    /// What the numbers say, in one sentence.
    pub(crate) fn finding(&mut self, text: impl Display) {
        console::with(|out| {
            let _ = record!(out, "finding", text = text);
        });
    }
}
