//! The run: how long things are measured, and the table of results.

use std::{fmt, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::percentile;

/// How often each thing is measured.
const TURNS: usize = 9;
/// How many short turns are as long as a full one.
const SHORT: u32 = 5;

/// The goal for a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
}

impl Goal {
    fn is_reached_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Between(low, high) => (low..=high).contains(&value),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
            Self::Between(low, high) => write!(f, "{low}–{high}"),
        }
    }
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: f64,
    /// What our figure is compared with, and the figure of that from the same run.
    pub(crate) limit: Option<(String, f64)>,
    /// Of our figure to the limit.
    pub(crate) ratio: Option<f64>,
    /// For the ratio, or for the figure itself if there is no limit.
    pub(crate) goal: Option<Goal>,
}

impl Row {
    /// Whether it reaches its goal. True if it has none.
    pub(crate) fn is_reached(&self) -> bool {
        self.goal.is_none_or(|goal| goal.is_reached_by(self.ratio.unwrap_or(self.ours)))
    }
}

/// One run of the benchmarks.
pub(crate) struct Bench {
    /// Whether the run only checks that everything works: then the figures mean nothing.
    pub(crate) is_smoke: bool,
    pub(crate) rows: Vec<Row>,
    /// The tables of docs/capacity.md.
    pub(crate) capacity: String,
    bar: ProgressBar,
}

impl Bench {
    pub(crate) fn new(is_smoke: bool) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed}  {msg}").expect("a template"));
        bar.enable_steady_tick(Duration::from_millis(200));
        println!("{:<80}{:>8}{:>8}{:>8}{:>10}", "", "ours", "limit", "ratio", "to reach");
        Self { is_smoke, rows: Vec::new(), capacity: String::new(), bar }
    }

    /// How long something is measured at a time.
    pub(crate) fn turn(&self) -> Duration {
        if self.is_smoke { Duration::from_millis(50) } else { Duration::from_secs(1) }
    }

    /// `full`, or `smoke` in a run whose figures mean nothing.
    pub(crate) fn size(&self, full: usize, smoke: usize) -> usize {
        if self.is_smoke { smoke } else { full }
    }

    /// Shows what is going on.
    pub(crate) fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// How long something that answers in microseconds is measured at a time, with [`Self::in_short_turns`].
    pub(crate) fn short_turn(&self) -> Duration {
        self.turn() / SHORT
    }

    /// Measures several things in turns, A B C A B C …, so that whatever disturbs the machine disturbs all of them.
    pub(crate) fn in_turns<T, const N: usize>(
        &self,
        what: &str,
        measure: [&mut dyn FnMut() -> T; N],
    ) -> [Vec<T>; N] {
        self.turns(what, TURNS, measure)
    }

    /// The same in shorter turns, and as many times more of them: the closer turns follow each other, the more they
    /// share of what disturbs the machine.
    pub(crate) fn in_short_turns<T, const N: usize>(
        &self,
        what: &str,
        measure: [&mut dyn FnMut() -> T; N],
    ) -> [Vec<T>; N] {
        self.turns(what, TURNS * SHORT as usize, measure)
    }

    fn turns<T, const N: usize>(
        &self,
        what: &str,
        turns: usize,
        mut measure: [&mut dyn FnMut() -> T; N],
    ) -> [Vec<T>; N] {
        let turns = self.size(turns, 1);
        let mut all = [const { Vec::new() }; N];
        for turn in 1..=turns {
            self.doing(&format!("{what}, turn {turn} of {turns}"));
            for (measure, values) in measure.iter_mut().zip(&mut all) {
                values.push(measure());
            }
        }
        all
    }

    /// Figures beside their limit, one from each turn. The ratio is the median of the turns' ratios rather than the
    /// ratio of the medians: whatever disturbs the machine for longer disturbs both figures of a turn.
    pub(crate) fn ratio(
        &mut self,
        what: &str,
        ours: &[f64],
        (limited_by, limits): (&str, &[f64]),
        goal: Goal,
    ) {
        let ratio = Some(median(ours.iter().zip(limits).map(|(ours, limit)| ours / limit)));
        let limit = Some((limited_by.to_owned(), median(limits.iter().copied())));
        let (what, ours) = (what.to_owned(), median(ours.iter().copied()));
        self.row(Row { what, ours, limit, ratio, goal: Some(goal) });
    }

    /// A figure that should stay within a bound.
    pub(crate) fn bound(&mut self, what: &str, ours: f64, goal: Goal) {
        self.row(Row { what: what.to_owned(), ours, limit: None, ratio: None, goal: Some(goal) });
    }

    /// A figure without a goal.
    pub(crate) fn note(&mut self, what: &str, ours: f64) {
        self.row(Row { what: what.to_owned(), ours, limit: None, ratio: None, goal: None });
    }

    fn row(&mut self, row: Row) {
        let what = match &row.limit {
            Some((limit, _)) => format!("{} ÷ {limit}", row.what),
            None => row.what.clone(),
        };
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let limit = row.limit.as_ref().map_or(String::new(), |(_, limit)| figure(*limit));
        let goal = row.goal.map_or(String::new(), |goal| goal.to_string());
        let missed = if row.is_reached() { "" } else { "  missed" };
        let ours = figure(row.ours);
        self.say(&format!("{what:<80}{ours:>8}{limit:>8}{ratio:>8}{goal:>10}{missed}"));
        self.rows.push(row);
    }

    /// Prints a line of its own.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// The end of all measuring.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A figure for people: three digits, or all those before the point; a count has none after it.
pub(crate) fn figure(value: f64) -> String {
    let digits = match value {
        _ if value.fract() == 0.0 => 0,
        _ if value < 10.0 => 2,
        _ => usize::from(value < 100.0),
    };
    format!("{value:.digits$}")
}

/// The median.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 50.0)
}
